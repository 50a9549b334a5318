"""Studies as tasks of a Ray cluster: one task a study, started again when its worker dies."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import pickle
import signal
import threading
import warnings
from collections.abc import Generator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ._batch import BatchProgress, Outcome
from ._errors import InputError, SimulationError
from ._result import Result
from ._store.kept_run import DECISIVE, summarise_run
from ._store.run_store import wait_until_unlocked
from ._study import Study
from ._versions import versions

POLL = 2.0
"""Seconds between two looks at what the studies have kept."""

LOCK_WAIT = 120.0
"""Seconds for which a study waits for a process that died with its folder locked: the kernel frees such a
lock at once, a file server only when it misses the machine (after 90 s, as a rule, with NFS)."""


def outcomes_on_ray(
    studies: Mapping[str, Study],
    folder: Path,
    gpus: int | None,
    cpus: int,
    max_retries: int,
    progress: BatchProgress | None,
) -> Generator[tuple[str, Outcome], None, None]:
    """What became of each study, by name, as they end.

    **Arguments:** as of `run_studies`; `folder` is absolute.

    **Raises:** `InputError` when Ray is not installed or cannot be reached, or the machine is too small.
    """
    try:
        ray = importlib.import_module("ray")
    except ImportError:
        raise InputError('cluster: Ray is not installed; pip install "jaxq[ray]"') from None
    return _outcomes(ray, studies, folder, gpus, cpus, max_retries, progress)


def _outcomes(
    ray: Any,
    studies: Mapping[str, Study],
    folder: Path,
    gpus: int | None,
    cpus: int,
    max_retries: int,
    progress: BatchProgress | None,
) -> Generator[tuple[str, Outcome], None, None]:
    with _connected(ray) as started_here:
        there = ray.cluster_resources()
        if gpus is None:
            gpus = 1 if there.get("GPU", 0) >= 1 else 0
        if started_here:
            _check_room(there, cpus, gpus)
        # A process of its own for every study: JAX settles devices and threads once in a process.
        places = {"num_cpus": cpus, "num_gpus": gpus, "max_retries": max_retries, "max_calls": 1}
        remote = ray.remote(**places)(_run_study)
        needed = {name: versions()[name] for name in DECISIVE}
        running: dict[Any, str] = {}
        seen: dict[str, tuple[int, int]] = {}
        try:
            for name, study in studies.items():
                # As bytes, because a JAX array in it would take a device before the worker has settled them.
                shipped = ray.cloudpickle.dumps(study)
                running[remote.remote(shipped, str(folder / name), cpus, gpus, needed)] = name
            while running:
                ended, _ = ray.wait(list(running), timeout=POLL)
                for task in ended:
                    yield running.pop(task), _fetched(ray, task)
                if progress is not None:
                    _report(running.values(), folder, seen, progress)
        finally:
            for task in running:
                ray.cancel(task, force=True)


@contextlib.contextmanager
def _connected(ray: Any) -> Iterator[bool]:
    """A connection to a cluster; whether it was started here, on this machine and for this while."""
    if ray.is_initialized():
        yield False
        return
    address = os.environ.get("RAY_ADDRESS") or "local"
    options = {"log_to_driver": False, "logging_level": logging.WARNING}
    if address == "local":
        options["include_dashboard"] = False
    try:
        with _signals_kept(), warnings.catch_warnings():
            # JAX warns of forks for the sake of children that go on to use it; Ray's start other programs.
            warnings.filterwarnings("ignore", message=r"os\.fork\(\) was called")
            ray.init(address, **options)
    except Exception as error:
        ray.shutdown()  # what has started before the failure
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        if address == "local":
            raise SimulationError(f"cluster: Ray does not start on this machine: {reason}") from None
        raise InputError(f"RAY_ADDRESS: no Ray cluster answers at {address}: {reason}") from None
    try:
        yield address == "local"
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray takes the signal to terminate for itself, by which a command line cleans up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _check_room(there: Mapping[str, float], cpus: int, gpus: int) -> None:
    """Refuse what one machine will never have: Ray would wait for another to join."""
    for field, kind, wanted in (("cpus_per_study", "CPU", cpus), ("gpus_per_study", "GPU", gpus)):
        most = int(there.get(kind, 0))
        if wanted > most:
            raise InputError(f"{field}: expected at most {most}, the {kind}s of this machine; got {wanted}")


def _fetched(ray: Any, task: Any) -> Outcome:
    """The outcome of a task that has ended, also of one whose worker died too often."""
    try:
        return ray.get(task)
    except Exception as error:
        cause = getattr(error, "cause", None) or error
        return Outcome(failure=" ".join(f"{type(cause).__name__}: {cause}".split()), trace=str(error))


def _report(
    names: Iterable[str], folder: Path, seen: dict[str, tuple[int, int]], progress: BatchProgress
) -> None:
    """Tell how much of each study is in its folder, where that has changed; of a run to a precision nobody
    knows how much is missing."""
    for name in names:
        with contextlib.suppress(InputError, OSError):
            run = summarise_run(folder / name)
            asked = run.about["asked"]
            if asked is not None and seen.get(name) != (run.kept, asked):
                seen[name] = (run.kept, asked)
                progress(name, min(run.kept, asked), asked)


def _run_study(shipped: bytes, folder: str, cpus: int, gpus: int, needed: dict[str, str]) -> Outcome:
    """A study in a worker process that has not used JAX yet."""

    def run() -> Result:
        _settle_jax(cpus, gpus)
        own = versions()
        for package, version in needed.items():
            if own[package] != version:
                raise InputError(
                    f"cluster: a worker has {package} {own[package]}, and the batch was started with "
                    f"{version}; install the same on both"
                )
        wait_until_unlocked(Path(folder), LOCK_WAIT)
        study: Study = pickle.loads(shipped)
        return study.run(out=folder)

    return Outcome.of(run)


def _settle_jax(cpus: int, gpus: int) -> None:
    """Let JAX use what Ray has reserved, and no more."""
    # XLA's threads; without it, as many as the machine has cores.
    os.environ["PJRT_NPROC"] = str(cpus)
    import jax

    from ._cli.environment import configure_jax

    # The environment of the calling process may keep JAX off the GPUs, which must not hold here.
    jax.config.update("jax_platforms", None if gpus else "cpu")
    configure_jax(cpus)
    if gpus and jax.default_backend() == "cpu":
        raise InputError(
            "gpus_per_study: Ray gave a worker a GPU, and JAX there sees none; install "
            '"jaxq[cuda13]" (or cuda12) on the workers, or give 0'
        )
