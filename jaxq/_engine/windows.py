"""The windows of time in which a run is recorded."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from .._instance import Instance

WINDOWS = 40
"""Windows of time after the warm-up that a record keeps, unless told otherwise."""

EVENTS_PER_WINDOW = 2.0**15
"""Largest expected number of events of one replication between two transfers to the host: float32 integrals
and clocks keep six digits over so many."""


@dataclasses.dataclass(frozen=True)
class Windows:
    """The windows of time of a run: `lengths` in s, the first `warmup` of them before the end of the
    warm-up; each runs in `parts` equal parts."""

    lengths: tuple[float, ...]
    warmup: int
    parts: int

    @classmethod
    def plan(
        cls, instance: Instance, n_gpus: int, horizon: float, warmup: float, measured: int, events: float
    ) -> Windows:
        """`measured` windows after the warm-up, and at most as many before, of about the same length; in
        parts of at most so many events, about."""
        lengths, before = window_lengths(horizon, warmup, measured)
        # Each request makes at most four events: arrival, two completions or an abandonment, and a null
        # event.
        rate = 4 * n_gpus * float(np.sum(instance.workload.arrival_rate))
        parts = max(1, math.ceil(max(lengths) * rate / events))
        return cls(lengths=lengths, warmup=before, parts=parts)


def window_lengths(horizon: float, warmup: float, measured: int) -> tuple[tuple[float, ...], int]:
    """Lengths in s of `measured` windows after the warm-up and at most as many before it, which come first,
    and how many those are."""
    length = (horizon - warmup) / measured
    before = min(measured, math.ceil(warmup / length - 1e-9))
    lengths = (warmup / before,) * before if before else ()
    return lengths + (length,) * measured, before


def pace(length: float, step: float | None) -> tuple[jax.Array, jax.Array]:
    """Seconds of a window and (for `Leap`) its number of steps, which share it evenly."""
    steps = 1 if step is None else max(1, math.ceil(length / step - 1e-9))
    return jnp.asarray(length / steps if step is not None else length, jnp.float32), jnp.asarray(
        steps, jnp.int32
    )
