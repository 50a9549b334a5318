"""All GPUs of a replication at once: sets of them as bits, 32 a word, and sums over them.

Sums go by words of 32 GPUs, several counts packed in one integer: XLA's CPU backend fuses a sum over 32 with
what it sums, while it writes out the operands of a longer one and reduces them in a slow loop.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int, UInt32

from .base import PerClass
from .random import to_index

WORD = 32

Mask = Bool[Array, "replications gpus"]
PerReplication = Int[Array, " replications"]
Words = UInt32[Array, "replications words"]


def bits(mask: Mask) -> Words:
    """A set of GPUs as bits."""
    lanes = jnp.arange(WORD, dtype=jnp.uint32)
    by_word = mask.reshape(mask.shape[0], -1, WORD)
    return jnp.sum(jnp.where(by_word, jnp.uint32(1) << lanes, jnp.uint32(0)), axis=2, dtype=jnp.uint32)


def mask(words: Words) -> Mask:
    """A set of GPUs as one truth value each."""
    lanes = jnp.arange(WORD, dtype=jnp.uint32)
    return (((words[:, :, None] >> lanes) & 1) > 0).reshape(words.shape[0], -1)


def lowest(words: Words, count: Int[Array, "replications words"]) -> Words:
    """The `count` lowest members in each word; `count` from 0 to the number of members."""
    position = jnp.zeros_like(words)
    for step in (16, 8, 4, 2, 1):
        below = (jnp.uint32(1) << (position + step)) - 1
        fits = lax.population_count(words & below).astype(jnp.int32) <= count
        position = jnp.where(fits, position + step, position)
    all_of_them = lax.population_count(words).astype(jnp.int32) == count
    return jnp.where(all_of_them, words, words & ((jnp.uint32(1) << position) - 1))


def size(words: Words) -> PerReplication:
    """Number of members of a set."""
    return jnp.sum(lax.population_count(words).astype(jnp.int32), axis=1)


def before(number: Int[Array, "replications words"]) -> Int[Array, "replications words"]:
    """Sum of all earlier words' numbers."""
    count = number.shape[1]
    if count > WORD:
        return jnp.cumsum(number, axis=1) - number
    earlier = jnp.arange(count)[None, :] < jnp.arange(count)[:, None]
    return jnp.sum(jnp.where(earlier, number[:, None, :], 0), axis=2)


def tally(code: Int[Array, "replications gpus"], kinds: int) -> Int[Array, "kinds replications"]:
    """How many GPUs have each code from 1 to `kinds`."""
    per_word, bits = 5, 6
    by_word = code.reshape(code.shape[0], -1, WORD).astype(jnp.int32)
    rows = []
    for first in range(1, kinds + 1, per_word):
        here = (by_word >= first) & (by_word < first + per_word)
        shift = jnp.where(here, bits * (by_word - first), 0)
        packed = jnp.sum(jnp.where(here, jnp.int32(1) << shift, 0), axis=2, dtype=jnp.int32)
        for k in range(min(per_word, kinds + 1 - first)):
            rows.append(jnp.sum((packed >> (bits * k)) & ((1 << bits) - 1), axis=1))
    return jnp.stack(rows)


def sums(counts: list[Int[Array, "replications gpus"]]) -> PerClass:
    """The sum over GPUs of small counts (up to 256), by class."""
    by_word = [count.reshape(count.shape[0], -1, WORD).astype(jnp.int32) for count in counts]
    rows = []
    for first in range(0, len(counts), 2):
        pair = by_word[first]
        if first + 1 < len(counts):
            pair = pair + (by_word[first + 1] << 16)
        packed = jnp.sum(pair, axis=2, dtype=jnp.int32)
        rows.append(jnp.sum(packed & 0xFFFF, axis=1))
        if first + 1 < len(counts):
            rows.append(jnp.sum(packed >> 16, axis=1))
    return jnp.stack(rows)


def members(
    once: Callable[[Any], Any],
    words: Words,
    size: PerReplication,
    amounts: PerClass,
    word: UInt32[Array, " replications"],
) -> list[Words]:
    """The members of a set of GPUs that take a request of each class, as sets.

    Members are numbered from a random one on; the first so many take class 0, the next class 1, and so on.
    Each member has the same chance of every class. `once`: see `AbstractChain.once`.
    """
    number = lax.population_count(words).astype(jnp.int32)
    earlier, first = before(number), to_index(word, size)
    edges = [first]
    for amount in amounts:
        edges.append(edges[-1] + amount)
    number, earlier, edges, size = once((number, earlier, edges, size))

    def up_to(edge: PerReplication) -> Words:
        return lowest(words, jnp.clip(edge[:, None] - earlier, 0, number))

    # Members with numbers below each edge; beyond the last member the count goes on from the first.
    direct = [up_to(edge) for edge in edges]
    around = [up_to(edge - size) for edge in edges]
    return [(direct[c + 1] & ~direct[c]) | (around[c + 1] & ~around[c]) for c in range(amounts.shape[0])]
