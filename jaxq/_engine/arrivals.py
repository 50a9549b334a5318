"""The arrival stream: it depends on the key, the replication and the number of the arrival alone, so that
policies and engines under comparison share it."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt32

from .base import Numbers, draw
from .random import Generator, Purpose, stream, to_exponential


def arrival(
    numbers: Numbers, keys: UInt32[Array, "2 replications"], generator: Generator, index: Array
) -> tuple[Float[Array, " replications"], Int[Array, " replications"]]:
    """The time from the arrival before to arrival number `index` (s), and its class."""
    rand = stream(keys, Purpose.ARRIVAL, 0, index, generator)
    rates = [jnp.broadcast_to(rate, index.shape) for rate in numbers.arrival_rate]
    request_class, _ = draw(jnp.stack(rates), rand.uniforms(1))
    return to_exponential(rand.words(0)) * numbers.mean_interarrival_time, request_class
