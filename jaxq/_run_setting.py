"""The checked arguments of a run, and when it ends."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from ._errors import InputError
from ._result import Result

MAX_BLOCKS = 64
"""How many times `replications` a run to a precision may take, when `max_replications` is not given."""

REPLICATIONS = 64
"""Replications when none are asked for."""

FEWEST_REPLICATIONS = 8
"""Replications before an interval is trusted to stop a run."""

LARGEST = 1e300
"""Beyond this a number of seconds is taken for infinite."""


@runtime_checkable
class _Kind(Protocol):
    """What the checks need of an engine."""

    @property
    def is_fluid(self) -> bool: ...


@dataclass(frozen=True)
class RunSetting:
    """The checked arguments of a run; `n_gpus` is None in the fluid limit.

    - `key`: as it was given. A key on a device is made of it when the run starts: whoever only checks a run
      must not take a device.
    """

    n_gpus: int | None
    horizon: float
    warmup: float
    key: Any
    replications: int
    first: int

    @classmethod
    def of(
        cls,
        engine: _Kind,
        n_gpus: Any,
        horizon: Any,
        warmup: Any,
        replications: Any,
        key: Any,
        first: Any,
        precision: Any,
    ) -> RunSetting:
        """Those of a call, checked."""
        times = checked_times(horizon, warmup, engine.is_fluid)
        first = checked_whole("first", first, 0)
        if engine.is_fluid:
            chance = {"n_gpus": n_gpus, "replications": replications, "key": key, "precision": precision}
            given = [name for name, value in chance.items() if value is not None]
            if given:
                raise InputError(f"{given[0]}: expected None with the fluid engine, which has no chance")
            return cls(None, *times, key=None, replications=1, first=first)
        n_gpus = checked_whole("n_gpus", n_gpus, 1)
        replications = checked_whole(
            "replications", REPLICATIONS if replications is None else replications, 1
        )
        return cls(n_gpus, *times, key=_checked_key(key), replications=replications, first=first)


@dataclass(frozen=True)
class Budget:
    """When a run ends: `most` replications, and with a `precision` possibly sooner."""

    most: int
    precision: float | None
    seconds: float

    @classmethod
    def of(cls, replications: int, precision: Any, max_replications: Any, time_limit: Any) -> Budget:
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
            most = checked_whole("max_replications", max_replications, replications)
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


def checked_times(horizon: Any, warmup: Any, endless: bool) -> tuple[float, float]:
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


def checked_whole(name: str, value: Any, least: int) -> int:
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


def _checked_key(key: Any) -> Any:
    """A seed in range, one JAX key in its new or old form (`jax.random.PRNGKey`), or None."""
    if isinstance(key, jax.Array):
        one = key.shape == () and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
        accepted = one or (key.ndim == 1 and key.dtype == jnp.uint32)
    else:
        whole = isinstance(key, int | np.integer) and not isinstance(key, bool)
        accepted = key is None or (whole and 0 <= key < 2**32)
    if not accepted:
        raise InputError(f"key: expected a whole number from 0 to 2**32 - 1 or one JAX key, got {key!r:.40}")
    return key


def random_key(key: Any) -> jax.Array:
    """The JAX key of what `_checked_key` let pass."""
    if isinstance(key, jax.Array):
        return key if key.shape == () else jax.random.wrap_key_data(key)
    words = jnp.asarray([0, 0 if key is None else key], jnp.uint32)
    return jax.random.wrap_key_data(words, impl="threefry2x32")


def key_text(key: jax.Array) -> str:
    """The generator's name and the words of a key, in hexadecimal."""
    words = np.asarray(jax.random.key_data(key)).ravel()
    return ":".join([str(jax.random.key_impl(key)), *(f"{int(word):08x}" for word in words)])
