"""Random words for the steppers: counter-based, keyed by replication, purpose and index.

A word depends only on its key and its counters, never on what was drawn before, so that policies under
comparison share their arrivals, and results do not depend on how replications are batched.
"""

from __future__ import annotations

import enum
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import threefry2x32_p
from jaxtyping import Array, Float, Int, Shaped, UInt32

Generator = Literal["hash", "threefry"]

_GOLDEN = 0x9E3779B9


class Purpose(enum.IntEnum):
    """What a stream is for; streams of different purposes are independent."""

    ARRIVAL = 1
    EVENT = 2
    GPU = 3
    ABANDONMENT = 4
    SOLO = 5
    GATE = 6
    ROUTE = 7
    ADMISSION = 8
    PLACE = 9


def replication_keys(key: jax.Array, numbers: np.ndarray) -> UInt32[Array, "2 replications"]:
    """Two words for each replication by its number: the same whatever the batch."""

    def words(number: Array) -> Array:
        return jax.random.bits(jax.random.fold_in(key, number), (2,), jnp.uint32)

    return jax.vmap(words, out_axes=1)(jnp.asarray(numbers, jnp.uint32))


def _mix(x: UInt32[Array, "*shape"], extra: UInt32[Array, "*#shape"] | int) -> UInt32[Array, "*shape"]:
    """A bijective avalanche of 32 bits (two odd multiplications, three shifts), with one more key word
    added midway."""
    x = x ^ (x >> 16)
    x = x * jnp.uint32(0x7FEB352D) + jnp.asarray(extra, jnp.uint32)
    x = x ^ (x >> 15)
    x = x * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


class Stream(eqx.Module):
    """The words of one purpose at one index: `lanes` numbers them.

    Made by `stream`; two key words a replication have absorbed the replication, the purpose and the index.
    """

    first: UInt32[Array, "*batch"]
    second: UInt32[Array, "*batch"]
    generator: Generator = eqx.field(static=True)

    def words(self, lanes: Int[Array, "*shape"] | int) -> UInt32[Array, "*words"]:
        """Random words at `lanes`, which broadcasts against the replications."""
        lanes = jnp.asarray(lanes).astype(jnp.uint32)
        if self.generator == "threefry":
            shape = jnp.broadcast_shapes(lanes.shape, self.first.shape)
            a, b, c = (jnp.broadcast_to(x, shape) for x in (self.first, self.second, lanes))
            return threefry2x32_p.bind(a, b, c, jnp.zeros_like(c))[0]
        return _mix((lanes * jnp.uint32(_GOLDEN)) ^ self.first, self.second)

    def uniforms(self, lanes: Int[Array, "*shape"] | int) -> Float[Array, "*words"]:
        """Uniform float32 numbers in [0, 1) at `lanes`."""
        return to_uniform(self.words(lanes))

    def expand(self, axis: int) -> Stream:
        """The same stream with one more axis, for words that broadcast over GPUs."""
        return Stream(jnp.expand_dims(self.first, axis), jnp.expand_dims(self.second, axis), self.generator)


def stream(
    keys: UInt32[Array, "2 replications"],
    purpose: Purpose,
    window: Shaped[Array, ""] | int,
    index: Shaped[Array, "*batch"],
    generator: Generator,
) -> Stream:
    """The stream of `purpose` at `index` (a step, an arrival's number) of a window of time."""
    first, second = keys
    window = jnp.asarray(window).astype(jnp.uint32)
    tag = window * jnp.uint32(16) + jnp.uint32(int(purpose))
    index = index.astype(jnp.uint32)
    if generator == "threefry":
        a, b, c, d = jnp.broadcast_arrays(first, second, tag, index)
        one, two = threefry2x32_p.bind(a, b, c, d)
        return Stream(one, two, generator)
    x = _mix(index * jnp.uint32(_GOLDEN) ^ first, tag)
    y = _mix(x ^ second, tag ^ jnp.uint32(0xA511E9B3))
    return Stream(x, _mix(y + index, first), generator)


def to_uniform(words: UInt32[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Uniform float32 in [0, 1) from the upper 24 bits."""
    return (words >> 8).astype(jnp.float32) * jnp.float32(2.0**-24)


def to_exponential(words: UInt32[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Standard exponential, never 0: -log of the midpoints of 2^23 cells (float32 has not those of 2^24)."""
    return -jnp.log((words >> 9).astype(jnp.float32) * jnp.float32(2.0**-23) + jnp.float32(2.0**-24))


def to_index(words: UInt32[Array, "*shape"], count: Int[Array, "*shape"]) -> Int[Array, "*shape"]:
    """A uniform integer in [0, count): the upper 32 bits of word * count (0 where count is 0)."""
    n = count.astype(jnp.uint32)
    a, b, c, d = words >> 16, words & 0xFFFF, n >> 16, n & 0xFFFF
    ad, bc = a * d, b * c
    carry = ((ad & 0xFFFF) + (bc & 0xFFFF) + ((b * d) >> 16)) >> 16
    return (a * c + (ad >> 16) + (bc >> 16) + carry).astype(jnp.int32)
