"""What identifies a run that is kept, and its replications from the folder or from the engine."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from .._engine.hosts import by_first, smallest_of_all
from .._engine.record import Record
from .._errors import InputError
from .._instance_file import instance_from_tables, instance_to_toml
from .._policy.base import Policy
from .._result import Result
from .._versions import versions
from .run_store import RUN_FILE, RunStore, read_run_file, unbroken
from .stored_record import StoredRecord

TOLD = ("policy_name", "n_gpus", "horizon", "warmup", "key", "first", "engine_description")
"""What a folder tells of its run: fields of `Result`, and the number of GPUs."""

DECISIVE = ("jaxq", "jax", "jaxlib")
"""Packages on whose version the bits of a run depend."""


@dataclass(frozen=True)
class KeptRun:
    """The replications of a run, kept in a folder as they finish.

    All processes of a run simulate what is missing, and the first one keeps it.

    - `path`, `store`: the folder, and at the first process what writes to it.
    - `simulate`: simulates so many replications from a number on: `(first, replications)`.
    - `chunk`: replications between two files, at most.
    """

    path: Path
    store: RunStore | None
    simulate: Callable[[int, int], Record]
    chunk: int

    def upto(self, replications: int) -> tuple[StoredRecord, float]:
        """The first replications, and the seconds that they took."""
        for first, count in by_first(lambda: self._written.missing(replications, self.chunk)):
            begun = time.perf_counter()
            record = self.simulate(first, count)
            by_first(functools.partial(self._keep, first, record, begun))
        seconds = by_first(lambda: self._written.seconds)
        if self.store is None:
            return StoredRecord.of(unbroken(self.path), replications), seconds
        return self.store.kept(replications), seconds

    @property
    def _written(self) -> RunStore:
        """The folder, at the first process."""
        assert self.store is not None
        return self.store

    def _keep(self, first: int, record: Record, begun: float) -> None:
        self._written.add(first, record, time.perf_counter() - begun)


@contextlib.contextmanager
def kept_run(
    path: Path,
    engine: Any,
    policy: Policy,
    known: dict[str, Any],
    run: Callable[..., Record],
    asked: int | None,
    chunk: int,
    progress: Callable[[int, int], None] | None,
) -> Iterator[KeptRun]:
    """The folder of a run, locked while it is in use.

    **Arguments:**

    - `known`: the fields of its `Result` that are known before, and `n_gpus`.
    - `run`: simulates replications `first`, ..., as the engine does.
    - `asked`: replications that are wanted; None when that is seen on the way.
    - `chunk`: replications between two files, at most; those of earlier calls may hold more or fewer.
    - `progress`: called with how much of all is done, and all.

    **Raises:** as `RunStore.opened`; `InputError` when a process of the run does not see the folder.
    """
    instance = known["instance"]
    arguments = {
        "n_gpus": known["n_gpus"],
        "policy": known["policy_name"],
        "numbers of the policy": policy_digest(policy),
        "instance": instance.fingerprint(),
        "horizon": repr(known["horizon"]),
        "warmup": repr(known["warmup"]),
        "key": known["key"],
        "first": known["first"],
        "engine": engine_text(engine),
        "platform": jax.default_backend(),
        "versions": {name: versions()[name] for name in DECISIVE},
    }
    about = {
        "instance": instance_to_toml(instance),
        **{name: known[name] for name in TOLD},
        "versions": versions(),
        "device": jax.devices()[0].device_kind,
        "asked": asked,
    }

    def simulate(start: int, replications: int) -> Record:
        of_all = None
        if progress is not None:
            of_all = functools.partial(_of_all, progress, start, replications, asked or 0)
        return run(first=known["first"] + start, replications=replications, progress=of_all)

    with contextlib.ExitStack() as opened:
        stores: list[RunStore] = []
        by_first(lambda: stores.append(opened.enter_context(RunStore.opened(path, arguments, about))))
        if not smallest_of_all((path / RUN_FILE).exists()):
            raise InputError(f"{path}: expected a folder that all processes of the run see")
        yield KeptRun(path, stores[0] if stores else None, simulate, chunk)


def _of_all(
    progress: Callable[[int, int], None], start: int, replications: int, asked: int, done: int, total: int
) -> None:
    """Progress of a chunk as that of all replications that were asked for."""
    progress(start * total + replications * done, max(asked, start + replications) * total)


@dataclass(frozen=True)
class RunSummary:
    """What a folder says of its run without its replications being read.

    - `path`: the folder.
    - `about`: instance (as TOML), policy, engine, versions, device, and how many replications were asked for.
    - `kept`: replications from the first on that are kept without a gap.
    """

    path: Path
    about: dict[str, Any]
    kept: int

    @property
    def n_gpus(self) -> int | None:
        """GPUs in the cluster; None in the fluid limit."""
        return self.about["n_gpus"]

    @property
    def is_complete(self) -> bool:
        """Whether all that was asked for is there."""
        return self.about["asked"] is not None and self.kept >= self.about["asked"]


def summarise_run(path: Path) -> RunSummary:
    """What a folder says of its run. **Raises:** `InputError` when it is not that of a run."""
    about = read_run_file(path / RUN_FILE)["about"]
    return RunSummary(path, about, sum(block.end - block.first for block in unbroken(path)))


def is_kept(path: Path, replications: int) -> bool:
    """Whether the folder of a run seems to hold so many replications; its files are not checked."""
    try:
        return path.is_dir() and summarise_run(path).kept >= replications
    except InputError:
        return False


def load_run(path: Path) -> Result:
    """The result of a run that is kept, of the replications that are there; each file is checked as it is
    read.

    **Raises:** `InputError` that names the file, when one is damaged or none is there.
    """
    summary = summarise_run(path)
    blocks = unbroken(path)
    if not blocks:
        raise InputError(f"{path}: no replication is kept yet; run it again")
    about = summary.about
    seconds = sum(block.read()[1]["seconds"] for block in blocks)
    return Result(
        instance=instance_from_tables(tomllib.loads(about["instance"])),
        record=StoredRecord.of(blocks, summary.kept),
        seconds=seconds,
        stopped_because="replications" if summary.is_complete or about["asked"] is None else "interrupted",
        versions=about["versions"],
        **{name: about[name] for name in TOLD if name != "n_gpus"},
    )


def policy_digest(policy: Policy) -> str:
    """Of a policy's structure and all its numbers."""
    leaves, structure = jax.tree.flatten(policy)
    digest = hashlib.sha256(str(structure).encode())
    for leaf in leaves:
        array = np.asarray(leaf)
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def engine_text(engine: Any) -> str:
    """An engine with all that its results depend on: not how many replications it takes at a time."""
    if hasattr(engine, "block"):
        engine = dataclasses.replace(engine, block=None)
    return " ".join(repr(engine).split())
