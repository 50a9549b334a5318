"""Sets of GPUs as bits: 32 GPUs a word, from which a uniformly random member is drawn in a few vector
operations."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int, UInt32

WORD = 32

Words = UInt32[Array, "words replications"]
Gpu = Int[Array, " replications"]


def size(words: Words) -> Gpu:
    """Number of members."""
    return jnp.sum(lax.population_count(words), axis=0).astype(jnp.int32)


def contains(words: Words, gpu: Gpu) -> Bool[Array, " replications"]:
    """Whether `gpu` is a member."""
    here = jnp.arange(words.shape[0])[:, None] == gpu // WORD
    word = jnp.sum(jnp.where(here, words, 0), axis=0).astype(jnp.uint32)
    return (word >> (gpu % WORD).astype(jnp.uint32)) & 1 == 1


def put(
    words: Words, gpu: Gpu, member: Bool[Array, " replications"], where: Bool[Array, " replications"]
) -> Words:
    """The set with `gpu` made a member or not; replications outside `where` keep theirs."""
    bit = jnp.uint32(1) << (gpu % WORD).astype(jnp.uint32)
    here = (jnp.arange(words.shape[0])[:, None] == gpu // WORD) & where
    return jnp.where(here, jnp.where(member, words | bit, words & ~bit), words)


def member(words: Words, rank: Gpu) -> Gpu:
    """The member number `rank` (from 0, in order of index); meaningless unless 0 <= rank < size."""
    counts = lax.population_count(words).astype(jnp.int32)
    word, index, rank = _word_of_rank(words, counts, rank)
    position = index * WORD
    for step in (16, 8, 4, 2, 1):
        low = lax.population_count(word & jnp.uint32((1 << step) - 1)).astype(jnp.int32)
        upper = rank >= low
        rank = jnp.where(upper, rank - low, rank)
        word = jnp.where(upper, word >> step, word)
        position = jnp.where(upper, position + step, position)
    return position


def _word_of_rank(
    words: Words, counts: Int[Array, "words replications"], rank: Gpu
) -> tuple[Array, Array, Array]:
    """The word that holds the member of that rank, its index, and the rank within it."""
    if words.shape[0] <= WORD:
        # Unrolled, this is one fused loop over replications; a prefix sum would be several kernels.
        word, index, inside = jnp.zeros_like(words[0]), jnp.zeros_like(rank), jnp.zeros_like(rank)
        for i in range(words.shape[0]):
            here = (rank >= 0) & (rank < counts[i])
            word, index = jnp.where(here, words[i], word), jnp.where(here, i, index)
            inside = jnp.where(here, rank, inside)
            rank = rank - counts[i]
        return word, index, inside
    upto = jnp.cumsum(counts, axis=0)
    index = jnp.sum(upto <= rank, axis=0)
    here = jnp.arange(words.shape[0])[:, None] == index
    word = jnp.sum(jnp.where(here, words, 0), axis=0).astype(jnp.uint32)
    before = jnp.sum(jnp.where(here, upto - counts, 0), axis=0)
    return word, index, rank - before


def first(count: Gpu, words: int) -> Words:
    """The set of the GPUs 0, 1, ..., count - 1."""
    left = jnp.clip(count - WORD * jnp.arange(words)[:, None], 0, WORD).astype(jnp.uint32)
    full = jnp.uint32(0xFFFFFFFF)
    return jnp.where(left == WORD, full, (jnp.uint32(1) << (left % WORD)) - jnp.uint32(1))
