"""The verb: simulate a policy on a cluster, for so many replications or to a precision."""

from __future__ import annotations

import functools
import math
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from ._engine.record import Record
from ._errors import InputError
from ._instance import Instance
from ._policy.base import Policy
from ._result import Result
from ._store.kept_run import kept_run
from ._store.stored_record import StoredRecord

MAX_BLOCKS = 64
"""How many times `replications` a run to a precision may take, when `max_replications` is not given."""

REPLICATIONS = 64
"""Replications when none are asked for."""

FEWEST_REPLICATIONS = 8
"""Replications before an interval is trusted to stop a run."""

Whole = Any
"""A whole number, of Python or numpy; anything else is refused by name."""

Seconds = Any
"""A finite number of seconds, of Python or numpy; anything else is refused by name."""

LARGEST = 1e300
"""Beyond this a number of seconds is taken for infinite."""

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
      file at a time.

    **Raises:** `InputError`, naming the argument and what would be right; `SimulationError` when `out` is
    full.
    """
    engine = _default_engine() if engine is None else engine
    setting = _Setting.of(engine, n_gpus, horizon, warmup, replications, key, first, precision)
    budget = _Budget.of(setting.replications, precision, max_replications, time_limit)
    if out is not None and jax.process_count() > 1:
        raise InputError("out: expected None in a run over several processes; save its result instead")
    found = _found(instance, policy, engine, setting, budget, progress, out)
    for line in found.cautions():
        warnings.warn(line, StatisticsWarning, stacklevel=2)
    return found


@dataclass(frozen=True)
class _Setting:
    """The checked arguments of a run; `n_gpus` and `key` are None in the fluid limit."""

    n_gpus: int | None
    horizon: float
    warmup: float
    key: jax.Array | None
    replications: int
    first: int

    @classmethod
    def of(
        cls,
        engine: Engine,
        n_gpus: Any,
        horizon: Any,
        warmup: Any,
        replications: Any,
        key: Any,
        first: Any,
        precision: Any,
    ) -> _Setting:
        """Those of a call, checked."""
        times = _times(horizon, warmup, engine.is_fluid)
        first = _whole("first", first, 0)
        if engine.is_fluid:
            chance = {"n_gpus": n_gpus, "replications": replications, "key": key, "precision": precision}
            given = [name for name, value in chance.items() if value is not None]
            if given:
                raise InputError(f"{given[0]}: expected None with the fluid engine, which has no chance")
            return cls(None, *times, key=None, replications=1, first=first)
        n_gpus = _whole("n_gpus", n_gpus, 1)
        replications = _whole("replications", REPLICATIONS if replications is None else replications, 1)
        return cls(n_gpus, *times, key=_random_key(key), replications=replications, first=first)


def _found(
    instance: Instance,
    policy: Policy,
    engine: Engine,
    setting: _Setting,
    budget: _Budget,
    progress: Progress | None,
    out: Any,
) -> Result:
    """The result of a checked run, kept in `out` if there is one."""
    numbers = {name: getattr(setting, name) for name in ("n_gpus", "horizon", "warmup", "key")}
    run = functools.partial(engine.run, instance, policy, **numbers, progress=progress)
    known = {
        "instance": instance,
        "policy_name": policy.name,
        "horizon": setting.horizon,
        "warmup": setting.warmup,
        "key": "" if setting.key is None else _key_text(setting.key),
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


def _within(budget: _Budget, replications: int, source: _Source, result: Callable[..., Result]) -> Result:
    """Blocks of replications until the budget is spent."""
    done = 0
    while True:
        done = min(done + replications, budget.most)
        record, seconds = source.upto(done)
        found = result(record=record, seconds=seconds)
        reason = budget.spent(found)
        if reason is not None:
            return replace(found, stopped_because=reason)


@dataclass(frozen=True)
class _Budget:
    """When a run ends: `most` replications, and with a `precision` possibly sooner."""

    most: int
    precision: float | None
    seconds: float

    @classmethod
    def of(cls, replications: int, precision: Any, max_replications: Any, time_limit: Any) -> _Budget:
        """The checked limits."""
        if precision is None:
            for name, value in (("max_replications", max_replications), ("time_limit", time_limit)):
                if value is not None:
                    raise InputError(f"{name}: expected only together with precision; give precision as well")
            return cls(replications, None, math.inf)
        precision = _number("precision", precision)
        if not 0 < precision < 1:
            raise InputError(
                f"precision: expected a relative half-width above 0 and below 1, got {precision:g}"
            )
        most = MAX_BLOCKS * replications
        if max_replications is not None:
            most = _whole("max_replications", max_replications, replications)
        seconds = math.inf if time_limit is None else _number("time_limit", time_limit)
        if seconds <= 0:
            raise InputError(f"time_limit: expected a positive number of seconds, got {seconds:g}")
        return cls(most, precision, seconds)

    def spent(self, result: Result) -> str | None:
        """Why to stop after `result`; None to go on."""
        if self.precision is None:
            return "replications"
        enough = result.replications >= FEWEST_REPLICATIONS
        if enough and float(result.revenue.relative_half_width) <= self.precision:
            return "precision"
        if result.replications >= self.most:
            return "max_replications"
        return "time_limit" if result.seconds >= self.seconds else None


def _default_engine() -> Engine:
    from ._engine.cluster import ClusterEngine

    return ClusterEngine()


def _times(horizon: Any, warmup: Any, endless: bool) -> tuple[float, float]:
    """Horizon and warm-up in s, when they leave something to measure; a horizon without end if allowed."""
    warmup = _number("warmup", warmup)
    if endless and isinstance(horizon, float) and horizon == math.inf:
        return math.inf, warmup
    horizon = _number("horizon", horizon)
    if horizon <= 0:
        raise InputError(f"horizon: expected a positive number of seconds, got {horizon:g}")
    if not 0 <= warmup < horizon:
        raise InputError(
            f"warmup: expected 0 s or more and less than horizon ({horizon:g} s), got {warmup:g}"
        )
    return horizon, warmup


def _whole(name: str, value: Any, least: int) -> int:
    """A whole number of at least `least`."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or value < least:
        shown = value if isinstance(value, int | float) else type(value).__name__
        raise InputError(f"{name}: expected a whole number of at least {least}, got {shown}")
    return int(value)


def _number(name: str, value: Any) -> float:
    """A finite number."""
    numeric = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    if not numeric or not -LARGEST < value < LARGEST:
        shown = value if numeric else type(value).__name__
        raise InputError(f"{name}: expected a finite number, got {shown}")
    return float(value)


def _random_key(key: Any) -> jax.Array:
    """A JAX key from a seed; a key passes, in its old form (`jax.random.PRNGKey`) too."""
    if isinstance(key, jax.Array) and key.shape == () and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return key
    if isinstance(key, jax.Array) and key.ndim == 1 and key.dtype == jnp.uint32:
        return jax.random.wrap_key_data(key)
    seed = 0 if key is None else key
    if not isinstance(seed, int | np.integer) or isinstance(seed, bool) or not 0 <= seed < 2**32:
        raise InputError(f"key: expected a whole number from 0 to 2**32 - 1 or one JAX key, got {key!r:.40}")
    return jax.random.wrap_key_data(jnp.asarray([0, seed], jnp.uint32), impl="threefry2x32")


def _key_text(key: jax.Array) -> str:
    """The generator's name and the words of a key, in hexadecimal."""
    words = np.asarray(jax.random.key_data(key)).ravel()
    return ":".join([str(jax.random.key_impl(key)), *(f"{int(word):08x}" for word in words)])
