"""A batch of studies: each in a folder of its own, one after another or as tasks of a cluster."""

from __future__ import annotations

import contextlib
import os
import re
import traceback
import warnings
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ._errors import InputError, SimulationError
from ._output import writable_folder
from ._result import Result
from ._run_setting import checked_whole
from ._simulate import Whole
from ._study import Study

CLUSTERS = ("ray",)

MAX_RETRIES = 3
"""How often a study is started again when its worker dies."""

_NAME = re.compile(r"(?!.*\.json$)[A-Za-z0-9_][A-Za-z0-9_.-]*")
"""A plain name of a folder, which cannot be that of the file with the results of all."""

BatchProgress = Callable[[str, int, int], None]
"""Called with a study's name, and how much of it is done, of how much."""


@dataclass(frozen=True)
class Outcome:
    """What became of a study; it can be sent from one process to another.

    - `result`: None when it failed.
    - `failure`: why, in a line; `refused`: whether its input was at fault.
    - `trace`: where an unexpected failure arose, for whoever looks into it.
    - `cautions`: warnings on the way, as (category, text).
    """

    result: Result | None = None
    failure: str = ""
    refused: bool = False
    trace: str = ""
    cautions: tuple[tuple[type[Warning], str], ...] = ()

    @classmethod
    def of(cls, run: Callable[[], Result]) -> Outcome:
        """Of a run, whatever it raises short of an interruption."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                outcome = cls(run())
            except (InputError, SimulationError) as error:
                outcome = cls(failure=str(error), refused=isinstance(error, InputError))
            except Exception as error:
                text = " ".join(f"{type(error).__name__}: {error}".split())
                outcome = cls(failure=text, trace=traceback.format_exc())
        unique = dict.fromkeys((warning.category, str(warning.message)) for warning in caught)
        return cls(outcome.result, outcome.failure, outcome.refused, outcome.trace, tuple(unique))


def run_studies(
    studies: Mapping[str, Study],
    out: str | os.PathLike[str],
    *,
    cluster: str | None = None,
    gpus_per_study: Whole | None = None,
    cpus_per_study: Whole = 1,
    max_retries: Whole = MAX_RETRIES,
    progress: BatchProgress | None = None,
) -> dict[str, Result]:
    """Run studies, each kept in a folder of its own; an interrupted batch goes on when it is called again.

    With `cluster=None` they run in this process, one after another, each on all devices. With
    `cluster="ray"` each is a task of a Ray cluster: the one to which the process is connected already, else
    that of the environment variable `RAY_ADDRESS`, else one that is started on this machine and ends with
    the call. A study whose worker dies is started again on another one and goes on from the replications
    that are kept. Results have the same bits either way, on whatever number of devices of a kind.

    A study that fails stops no other. Warnings of a study carry its name.

    **Arguments:**

    - `studies`: by name; a name is that of a folder.
    - `out`: the folder of all; study NAME is kept in `out`/NAME as `simulate(..., out=)` keeps it. On a
      cluster it must be on a file system that this process and all workers see under the same path, and
      that has file locks (`flock`).
    - `cluster`: None or `"ray"` (`pip install "jaxq[ray]"`). Workers need the same versions of jaxq and JAX,
      and the modules of your own policies.
    - `gpus_per_study`, `cpus_per_study`: what Ray reserves for each study. When `gpus_per_study` is None: a
      GPU where the nodes of the cluster have any. With 0 the study runs on its CPUs, one JAX device each.
      On a machine that is a worker too, keep JAX of this process off the GPUs (`JAX_PLATFORMS=cpu`).
    - `max_retries`: how often a study is started again when its worker or its node dies.
    - `progress`: called with (name, done, total) of a study; on a cluster every few seconds.

    **Returns:** the results by name, in the order of `studies`; each reads its replications from its folder.

    **Raises:** `InputError` for a bad argument before anything is run, and when Ray is not installed. After
    all studies have ended, `SimulationError` that names those that failed and says why; `InputError` when
    they were all refused.
    """
    ended: dict[str, Outcome] = {}
    given = {"gpus": gpus_per_study, "cpus": cpus_per_study, "max_retries": max_retries}
    with outcomes(studies, out, cluster=cluster, progress=progress, **given) as found:
        for name, outcome in found:
            ended[name] = outcome
            for category, text in outcome.cautions:
                warnings.warn(f"{name}: {text}", category, stacklevel=2)
            if outcome.result is not None and progress is not None:
                progress(name, outcome.result.replications, outcome.result.replications)
    return results_of({name: ended[name] for name in studies}, Path(out))


def outcomes(
    studies: Mapping[str, Study],
    out: str | os.PathLike[str],
    *,
    cluster: str | None,
    gpus: Whole | None,
    cpus: Whole,
    max_retries: Whole,
    progress: BatchProgress | None,
) -> contextlib.closing[Generator[tuple[str, Outcome], None, None]]:
    """What became of each study, by name, as they end; arguments and refusals as of `run_studies`.

    Leaving the `with` block before the end stops the studies that still run.
    """
    if cluster is not None and cluster not in CLUSTERS:
        raise InputError(f"cluster: expected None or 'ray', got {cluster!r}")
    if not studies:
        raise InputError("studies: expected at least one, got none")
    for name in studies:
        check_name(name)
    gpus = None if gpus is None else checked_whole("gpus_per_study", gpus, 0)
    cpus = checked_whole("cpus_per_study", cpus, 1)
    max_retries = checked_whole("max_retries", max_retries, 0)
    folder = Path(os.path.abspath(out))
    if cluster == "ray":
        from ._ray_cluster import outcomes_on_ray

        found = outcomes_on_ray(studies, folder, gpus, cpus, max_retries, progress)
    else:
        found = _outcomes_here(studies, folder, progress)
    writable_folder(folder, "out")
    return contextlib.closing(found)


def _outcomes_here(
    studies: Mapping[str, Study], folder: Path, progress: BatchProgress | None
) -> Generator[tuple[str, Outcome], None, None]:
    for name, study in studies.items():

        def report(done: int, total: int, name: str = name) -> None:
            if progress is not None:
                progress(name, done, total)

        yield name, Outcome.of(lambda study=study, name=name: study.run(progress=report, out=folder / name))


def check_name(name: str) -> None:
    """Refuse a study's name that is no plain name of a folder."""
    if not _NAME.fullmatch(name):
        raise InputError(
            "studies: expected names of letters, digits, '_', '-' and '.', as in n50-load1.2, beginning with "
            f"one of the first three and not ending in .json; got {name!r:.60}"
        )


def results_of(ended: Mapping[str, Outcome], out: Path) -> dict[str, Result]:
    """The results of studies that have all ended, by name.

    **Raises:** as `run_studies` when some of them failed.
    """
    failures = {name: outcome for name, outcome in ended.items() if outcome.result is None}
    if not failures:
        return {name: outcome.result for name, outcome in ended.items() if outcome.result is not None}
    kind = InputError if all(outcome.refused for outcome in failures.values()) else SimulationError
    reasons = "; ".join(f"{name}: {outcome.failure}" for name, outcome in failures.items())
    rest = len(ended) - len(failures)
    kept = f"; the other {rest} are kept in {out}" if rest else ""
    error = kind(f"{len(failures)} of {len(ended)} studies failed: {reasons}{kept}")
    for outcome in failures.values():
        if outcome.trace:
            error.add_note(outcome.trace)
    raise error
