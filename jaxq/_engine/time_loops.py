"""How steppers get through a window of time: event by event, or in steps of the same length."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from .base import Totals

STEPS_PER_CHECK = 16
"""Events between two looks at whether every replication has reached the end of the window."""

STEPS_PER_SUM = 128
"""Steps whose integrals are added up before they join those of the window."""

State = TypeVar("State")


def jump_through(
    jump: Callable[[tuple], tuple], state: State, totals: Totals, length: Float[Array, ""]
) -> tuple[State, Totals]:
    """Until every replication is at the end of a window of `length` s.

    `jump` brings (state, totals, clock in s, number of events) one event on, where the clock is before the
    end.
    """
    replications = totals.events.shape[0]
    clock, counter = jnp.zeros(replications, jnp.float32), jnp.zeros(replications, jnp.int32)

    def unfinished(carry: tuple) -> Array:
        return jnp.any(carry[2] < length)

    def several(carry: tuple) -> tuple:
        return lax.fori_loop(0, STEPS_PER_CHECK, lambda _, c: jump(c), carry)

    state, totals, _, _ = lax.while_loop(unfinished, several, (state, totals, clock, counter))
    return state, totals


def step_through(
    step: Callable[[Array, tuple[State, Totals]], tuple[State, Totals]],
    state: State,
    none: Totals,
    steps: Int[Array, ""],
) -> tuple[State, Totals]:
    """Through `steps` steps; `step` takes the number of a step, the state and the totals, from `none` on."""

    def several(group: Array, carry: tuple) -> tuple:
        # A small number added again and again to a large float32 sum rounds the same way each time.
        state, totals = carry
        first = group * STEPS_PER_SUM
        state, added = lax.fori_loop(first, jnp.minimum(first + STEPS_PER_SUM, steps), step, (state, none))
        return state, jax.tree.map(jnp.add, totals, added)

    return lax.fori_loop(0, -(-steps // STEPS_PER_SUM), several, (state, none))
