"""One jump of an exact chain: the next arrival, the next other event, or the end of the window."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .random import Stream, to_exponential


class Jump(NamedTuple):
    """What comes first in each replication, and when.

    - `is_arrival`, `is_internal`: an arrival, or one of the other events; neither: the window ends.
    - `active`: whether the window had not ended before.
    - `elapsed`: seconds until then; `clock`: seconds since the window began, then.
    """

    is_arrival: Bool[Array, " replications"]
    is_internal: Bool[Array, " replications"]
    active: Bool[Array, " replications"]
    elapsed: Float[Array, " replications"]
    clock: Float[Array, " replications"]


def jump(
    rand: Stream,
    rate: Float[Array, " replications"],
    next_arrival: Float[Array, " replications"],
    clock: Float[Array, " replications"],
    length: Float[Array, ""],
) -> Jump:
    """The jump of a chain whose other events have a total `rate` (1/s), from `clock` in a window of
    `length` s; `next_arrival` is in s from now."""
    hold = jnp.where(rate > 0, to_exponential(rand.words(0)) / jnp.where(rate > 0, rate, 1.0), jnp.inf)
    left = length - clock
    active = left > 0
    is_arrival = active & (next_arrival <= hold) & (next_arrival < left)
    is_internal = active & ~is_arrival & (hold < left)
    elapsed = jnp.where(active, jnp.minimum(jnp.minimum(next_arrival, hold), left), 0.0)
    clock = jnp.where(is_arrival | is_internal, clock + elapsed, jnp.where(active, length, clock))
    return Jump(is_arrival, is_internal, active, elapsed, clock)
