"""The verb: simulate a policy on a cluster, for so many replications or to a precision."""

from __future__ import annotations

import functools
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax

from ._engine.hosts import by_first
from ._engine.record import Record
from ._instance import Instance
from ._policy.base import Policy
from ._result import Result
from ._run_setting import Budget, RunSetting, key_text, random_key
from ._store.kept_run import kept_run
from ._store.stored_record import StoredRecord

Whole = Any
"""A whole number, of Python or numpy; anything else is refused by name."""

Seconds = Any
"""A finite number of seconds, of Python or numpy; anything else is refused by name."""

Progress = Callable[[int, int], None]


class StatisticsWarning(UserWarning):
    """The intervals of a result are doubtful: a warm-up that is too short, batches that are correlated."""


@runtime_checkable
class Engine(Protocol):
    """What `simulate` needs of an engine; see `ClusterEngine`."""

    @property
    def is_fluid(self) -> bool:
        """Whether it is the limit of many GPUs, without chance."""
        ...

    def run(
        self,
        instance: Instance,
        policy: Policy,
        *,
        n_gpus: Any,
        horizon: float,
        warmup: float,
        key: Any,
        replications: int,
        first: int = 0,
        progress: Progress | None = None,
    ) -> Record:
        """Simulate replications `first`, `first + 1`, ...; each depends on the key and its number alone."""
        ...

    def describe(self, instance: Instance, policy: Policy, n_gpus: Any) -> str:
        """One line about how it simulates."""
        ...

    def block_size(self, instance: Instance, policy: Policy, n_gpus: Any, replications: int) -> int:
        """Replications that it simulates at a time, when so many are asked for."""
        ...


def simulate(
    instance: Instance,
    policy: Policy,
    *,
    n_gpus: Whole | None = None,
    horizon: Seconds,
    warmup: Seconds,
    replications: Whole | None = None,
    key: Whole | jax.Array | None = None,
    first: Whole = 0,
    engine: Engine | None = None,
    precision: Any = None,
    max_replications: Whole | None = None,
    time_limit: Seconds | None = None,
    progress: Progress | None = None,
    out: str | os.PathLike[str] | None = None,
) -> Result:
    """Simulate a policy on a cluster that starts empty, and measure it after a warm-up.

    With `precision`, blocks of `replications` are run until half the width of the 95 % interval of the
    revenue (of the instance's scheme) is at most `precision` times the revenue, or the budget is spent;
    `Result.stopped_because` says which. An interval that was watched while it narrowed covers slightly less
    than 95 %; it is not looked at before 8 replications are done.

    Warns with `StatisticsWarning` when the warm-up seems too short, or the batches of a single replication
    are correlated.

    **Arguments:**

    - `instance`, `policy`: what to simulate.
    - `n_gpus`: GPUs in the cluster, n; None with `FluidEngine`, and only there.
    - `horizon`, `warmup`: simulated seconds, and how many of them to discard; `warmup` below `horizon`. With
      `FluidEngine`, `math.inf` and 0 ask for the steady state.
    - `replications`: independent replications, or how many a block has; 64 when None.
    - `key`: a whole number from 0 to 2**32 - 1 (0 when None), or a JAX key. Results with the same key can be
      compared by pairs.
    - `first`: number of the first replication; runs with other numbers are independent.
    - `engine`: `ClusterEngine()` when None.
    - `precision`: relative half-width to reach, above 0 and below 1.
    - `max_replications`: the most replications of a run to a precision; 64 times `replications` when None.
    - `time_limit`: wall-clock seconds after which a run to a precision starts no further block.
    - `progress`: called on the host with (done, total) of the present block, with `out` of all blocks.
    - `out`: a folder into which replications are written as they finish. A call with the same arguments goes
      on from what it holds, to the same bits, and may ask for more replications; one with other arguments,
      or another version of jaxq or JAX, is refused. `load_result` reads it. Damaged files are named by a
      `StoreWarning`, set aside and computed again. The result then reads its replications from there, one
      file at a time. Processes that share a run (`jax.distributed`) must all see it; the first one writes.

    **Raises:** `InputError`, naming the argument and what would be right; `SimulationError` when `out` is
    full.
    """
    engine = default_engine() if engine is None else engine
    setting = RunSetting.of(engine, n_gpus, horizon, warmup, replications, key, first, precision)
    budget = Budget.of(setting.replications, precision, max_replications, time_limit)
    found = simulated(instance, policy, engine, setting, budget, progress, out)
    for line in found.cautions():
        warnings.warn(line, StatisticsWarning, stacklevel=2)
    return found


def simulated(
    instance: Instance,
    policy: Policy,
    engine: Engine,
    setting: RunSetting,
    budget: Budget,
    progress: Progress | None,
    out: Any,
    run: Callable[..., Record] | None = None,
) -> Result:
    """The result of a checked run, kept in `out` if there is one; `run`: in place of the engine's."""
    key = None if engine.is_fluid else random_key(setting.key)
    if run is None:
        numbers = {name: getattr(setting, name) for name in ("n_gpus", "horizon", "warmup")}
        run = functools.partial(engine.run, instance, policy, **numbers, key=key, progress=progress)
    known = {
        "instance": instance,
        "policy_name": policy.name,
        "horizon": setting.horizon,
        "warmup": setting.warmup,
        "key": "" if key is None else key_text(key),
        "first": setting.first,
        "engine_description": engine.describe(instance, policy, setting.n_gpus),
    }
    result = functools.partial(Result, **known)
    if out is None:
        return _within(budget, setting.replications, _InMemory(run, setting.first), result)
    asked = budget.most if budget.precision is None else None
    chunk = engine.block_size(instance, policy, setting.n_gpus, setting.replications)
    known["n_gpus"] = setting.n_gpus
    with kept_run(Path(out), engine, policy, known, run, asked, chunk, progress) as source:
        return _within(budget, setting.replications, source, result)


@runtime_checkable
class _Source(Protocol):
    """Where replications come from."""

    def upto(self, replications: int) -> tuple[Record | StoredRecord, float]:
        """The first replications, and the seconds that they took."""
        ...


@dataclass
class _InMemory:
    """Replications that are simulated when they are asked for."""

    run: Callable[..., Record]
    first: int
    record: Record | None = None
    started: float = field(default_factory=lambda: time.perf_counter())

    def upto(self, replications: int) -> tuple[Record, float]:
        done = 0 if self.record is None else self.record.replications
        more = self.run(first=self.first + done, replications=replications - done)
        self.record = more if self.record is None else Record.concatenate([self.record, more])
        return self.record, time.perf_counter() - self.started


def _within(budget: Budget, replications: int, source: _Source, result: Callable[..., Result]) -> Result:
    """Blocks of replications until the budget is spent."""
    done = 0
    while True:
        done = min(done + replications, budget.most)
        record, seconds = source.upto(done)
        found = result(record=record, seconds=seconds)
        reason = by_first(lambda found=found: budget.spent(found))
        if reason is not None:
            return replace(found, stopped_because=reason)


def default_engine() -> Engine:
    from ._engine.cluster import ClusterEngine

    return ClusterEngine()
