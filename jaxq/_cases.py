"""Many clusters in one call: instances, policies and sizes, in as few programs as their shapes allow."""

from __future__ import annotations

import functools
import itertools
import os
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import equinox as eqx

from ._engine.cluster import ClusterEngine
from ._engine.group import Case, structure_of
from ._engine.record import Record
from ._engine.replicated import AbstractReplicatedEngine
from ._errors import InputError
from ._result import Result
from ._run_setting import Budget, RunSetting, checked_whole, random_key
from ._simulate import Engine, Progress, Seconds, StatisticsWarning, Whole, simulated
from ._store.kept_run import is_kept

PROGRESS_PER_CASE = 1_000
"""Steps of the progress that a case counts for."""

CAUTIONS = 3
"""Cases whose doubtful intervals are told one by one."""


def simulate_cases(
    cases: Sequence[Case],
    *,
    horizon: Seconds,
    warmup: Seconds,
    replications: Whole | None = None,
    key: Any = None,
    first: Whole = 0,
    engine: Engine | None = None,
    progress: Progress | None = None,
    out: str | os.PathLike[str] | None = None,
) -> list[Result]:
    """`simulate` for many clusters: those whose policies differ in their numbers alone run as one.

    Rates, lengths, prices, batch and cluster sizes are numbers of a compiled program, not part of it: a
    family of instances at several sizes needs one program for each kind of policy. Each result is the same,
    to the bit, as that of `simulate`; replications with the same number share their random numbers.

    **Arguments:**

    - `cases`: what to simulate; see `Case`.
    - `horizon`, `warmup`, `replications`, `key`, `first`: as for `simulate`, for all cases.
    - `engine`: `ClusterEngine()` when None; or a `PooledEngine`.
    - `progress`: called on the host with (done, total) of the whole.
    - `out`: a folder that keeps each case as it is finished, in a folder of its own named after its position
      (`case_00000`, ...); a call with the same arguments goes on from there.

    **Returns:** a `Result` for each case, in their order. **Raises:** as `simulate`.
    """
    engine = ClusterEngine() if engine is None else engine
    if not isinstance(engine, AbstractReplicatedEngine):
        raise InputError("engine: expected a ClusterEngine or a PooledEngine")
    if not cases:
        raise InputError("cases: expected at least one")
    setting = RunSetting.of(engine, 1, horizon, warmup, replications, key, first, None)
    sizes = [checked_whole(f"cases.{k}.n_gpus", case.n_gpus, 1) for k, case in enumerate(cases)]
    cases = [replace(case, n_gpus=size) for case, size in zip(cases, sizes, strict=True)]
    batch = _Batch(cases, setting, engine, progress, None if out is None else Path(out))
    results: dict[int, Result] = {}
    for family in families(cases):
        results.update(batch.family(family))
    for line in _cautions(cases, results):
        warnings.warn(line, StatisticsWarning, stacklevel=2)
    return [results[k] for k in range(len(cases))]


def _cautions(cases: Sequence[Case], results: dict[int, Result]) -> list[str]:
    """What makes intervals doubtful, of the first few cases in which something does, and of how many more."""
    doubtful = {k: lines for k in range(len(cases)) if (lines := results[k].cautions())}
    told = [
        f"case {k} ({cases[k].policy.name}, n = {cases[k].n_gpus}): {line}"
        for k, lines in itertools.islice(doubtful.items(), CAUTIONS)
        for line in lines
    ]
    more = len(doubtful) - CAUTIONS
    return [*told, f"and {more} more of {len(cases)} cases"] if more > 0 else told


def families(cases: Sequence[Case]) -> list[list[int]]:
    """Positions of the cases, by what one program serves: the kind of policy and the number of classes."""
    found: list[tuple[Any, list[int]]] = []
    for k, case in enumerate(cases):
        kind = (case.instance.n_classes, structure_of(case.policy))
        for known, members in found:
            if known[0] == kind[0] and eqx.tree_equal(known[1], kind[1]) is True:
                members.append(k)
                break
        else:
            found.append((kind, [k]))
    return [members for _, members in found]


@dataclass
class _Batch:
    """The cases of a call, and how many of them are done."""

    cases: Sequence[Case]
    setting: RunSetting
    engine: AbstractReplicatedEngine
    progress: Progress | None
    out: Path | None
    done: int = 0

    def family(self, positions: list[int]) -> dict[int, Result]:
        """The results of cases that one program serves: what is kept, and the others a block at a time."""
        results, missing = {}, []
        for k in positions:
            if self.out is not None and is_kept(self._folder(k), self.setting.replications):
                results[k] = self._result(k, None, 0.0)
                self._report(1)
            else:
                missing.append(k)
        of_family = [self.cases[k] for k in positions]
        # A folder is written after each block; without one, all blocks go through in one call.
        count = len(positions)
        if self.out is not None:
            replications = self.setting.replications
            count = max(1, self.engine.block_of_cases(of_family, replications) // replications)
        for start in range(0, len(missing), count):
            some = missing[start : start + count]
            begun = time.perf_counter()
            records = self.engine.run_cases(
                of_family,
                only=[positions.index(k) for k in some],
                horizon=self.setting.horizon,
                warmup=self.setting.warmup,
                key=random_key(self.setting.key),
                replications=self.setting.replications,
                first=self.setting.first,
                progress=functools.partial(self._part, len(some)),
            )
            seconds = (time.perf_counter() - begun) / len(some)
            results |= {k: self._result(k, record, seconds) for k, record in zip(some, records, strict=True)}
            self._report(len(some))
        return results

    def _result(self, k: int, record: Record | None, seconds: float) -> Result:
        """The result of a case: of its record, or of what is kept."""
        case, setting = self.cases[k], replace(self.setting, n_gpus=self.cases[k].n_gpus)
        budget = Budget.of(setting.replications, None, None, None)
        run = None if record is None else functools.partial(_cut, record, setting.first)
        out = None if self.out is None else self._folder(k)
        found = simulated(case.instance, case.policy, self.engine, setting, budget, None, out, run)
        return found if record is None else replace(found, seconds=seconds)

    def _folder(self, k: int) -> Path:
        assert self.out is not None
        return self.out / f"case_{k:05d}"

    def _part(self, cases: int, done: int, total: int) -> None:
        if self.progress is not None:
            part = PROGRESS_PER_CASE * cases * done // total
            self.progress(PROGRESS_PER_CASE * self.done + part, PROGRESS_PER_CASE * len(self.cases))

    def _report(self, cases: int) -> None:
        self.done += cases
        self._part(0, 0, 1)


def _cut(
    record: Record, before: int, *, first: int, replications: int, progress: Progress | None = None
) -> Record:
    """Replications of a record whose first has the number `before`, as an engine would simulate them."""
    del progress
    return record.part(first - before, replications)
