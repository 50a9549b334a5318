"""Decisions taken one after another in every replication, in few vector loops a turn."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int

State = TypeVar("State")
"""A pytree of int32 arrays whose last axis is that of the replications."""

Decision = Int[Array, " replications"]
"""What is decided in a turn, as one whole number; negative where nothing is left to decide."""

FIELD_BITS = 10
"""Bits of each part of a decision, see `join`."""


def take_turns(
    propose: Callable[[Array, State], Decision], apply: Callable[[State, Decision], State], state: State
) -> State:
    """The state once no replication has anything left to decide.

    Each turn has two halves: `apply` brings the last decision into the state, and `propose(turn, state)`
    takes the next one. The state travels as one array (with the number of the turn) and the decision as one
    number, because each array that a loop writes costs XLA's CPU backend one call a turn, and each array that
    depends on a draw repeats that draw.
    """
    leaves, structure = jax.tree.flatten(state)
    replications = leaves[0].shape[-1]

    def rows(leaf: Array) -> Array:
        return leaf.reshape(leaf.size // replications, replications)

    def pack(state: State) -> Array:
        return jnp.concatenate([rows(leaf) for leaf in jax.tree.leaves(state)])

    def unpack(packed: Array) -> State:
        parts, first = [], 0
        for leaf in leaves:
            count = leaf.size // replications
            parts.append(packed[first : first + count].reshape(leaf.shape))
            first += count
        return jax.tree.unflatten(structure, parts)

    def unfinished(carry: tuple[Array, Array]) -> Array:
        return jnp.any(carry[1] >= 0)

    def turn(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        packed, decision = carry
        number = packed[0] + 1
        state = apply(unpack(packed[1:]), decision)
        return jnp.concatenate([number[None], pack(state)]), propose(number, state)

    first = jnp.zeros(replications, jnp.int32)
    start = jnp.concatenate([first[None], pack(state)])
    return unpack(lax.while_loop(unfinished, turn, (start, propose(first, state)))[0][1:])


def join(parts: list[Array], where: Array) -> Decision:
    """A decision of several small parts (0 to 1,022 each, at most three); -1 outside `where`."""
    joined = parts[0]
    for k, part in enumerate(parts[1:], start=1):
        joined = joined | (part << (FIELD_BITS * k))
    return jnp.where(where, joined, -1)


def split(decision: Decision, count: int) -> list[Array]:
    """The parts of a decision; each is 1,023 where nothing is decided."""
    return [(decision >> (FIELD_BITS * k)) & ((1 << FIELD_BITS) - 1) for k in range(count)]
