"""Relative value iteration: the largest long-run revenue of a decision process, between certified bounds."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Float64, Int, Int32

from .._double_precision import double_precision
from .control import Control

SPARE = 1.02
"""The clock's rate over the largest rate of events: above 1, so that no state is left in every tick."""

MAX_TICKS = 100_000


class Solution(NamedTuple):
    """What value iteration found.

    - `lower`, `upper`: bounds of the largest long-run revenue, money/s.
    - `ticks`: sweeps over all states.
    - `choice`: the best move in each state for decisions, by number; the number of moves means none.
    """

    lower: float
    upper: float
    ticks: int
    choice: Int32[np.ndarray, " decisions"]


class _Process(NamedTuple):
    """The arrays of a `Control` on the device."""

    rest: Int[Array, " decisions"]
    after: Int[Array, "moves decisions"]
    drop: Int[Array, "classes decisions"]
    target: Int[Array, "events states"]
    rate: Float[Array, "events states"]
    reward: Float[Array, " states"]


def solve(control: Control, tolerance: float) -> Solution:
    """Sweep until the bounds are within `tolerance` of each other, relatively, or `MAX_TICKS` sweeps."""
    with double_precision():
        process = _Process(*(jnp.asarray(getattr(control, name)) for name in _Process._fields))
        found = _iterate(process, jnp.float64(tolerance), control.levels)
        _, rested, best, lower, upper, ticks = (np.asarray(array) for array in found)
    return Solution(float(lower), float(upper), int(ticks), _choices(control, rested, best))


def _decide(
    process: _Process, values: Float[Array, " states"], levels: tuple[int, ...]
) -> Float[Array, " decisions_and_none"]:
    """The value of each state for decisions, from those of resting states; minus infinity past the last."""
    nothing = jnp.full((1,), -jnp.inf, values.dtype)
    best = jnp.concatenate([jnp.concatenate([values, nothing])[process.rest], nothing])
    # Starting and placing lead to a state with one more request on GPUs: from the fullest level down, each
    # state needs one look. Moves commute, so dropping can come first, from the state with nothing else done.
    for first, last in reversed(list(zip(levels[:-1], levels[1:], strict=True))):
        moved = [best[after[first:last]] for after in process.after]
        best = best.at[first:last].max(functools.reduce(jnp.maximum, moved))
    dropped = [best[drop] for drop in process.drop]
    return best.at[:-1].max(functools.reduce(jnp.maximum, dropped))


def _drift(
    process: _Process, values: Float[Array, " states"], best: Float[Array, " decisions_and_none"]
) -> Float[Array, " states"]:
    """Revenue plus the mean change of value under the best decisions, money/s, in each resting state.

    Whatever the values, its smallest and largest entries bound the largest long-run revenue.
    """
    # A loop over events runs ten times as fast on a CPU as a sum over an axis of the gathered values.
    drift = process.reward
    for target, rate in zip(process.target, process.rate, strict=True):
        drift = drift + rate * (best[target] - values)
    return drift


@functools.partial(jax.jit, static_argnames="levels")
def _iterate(process: _Process, tolerance: Float[Array, ""], levels: tuple[int, ...]) -> tuple[Array, ...]:
    """The next values, the values before them and what they make of states for decisions; the bounds that
    follow from those, and the number of sweeps."""
    clock = SPARE * jnp.max(jnp.sum(process.rate, axis=0))

    def unfinished(carry: tuple) -> Array:
        _, _, _, lower, upper, ticks = carry
        certain = upper - lower <= tolerance * jnp.abs(upper)
        return ((ticks == 0) | ~certain) & (ticks < MAX_TICKS)

    def sweep(carry: tuple) -> tuple:
        values, _, _, _, _, ticks = carry
        best = _decide(process, values, levels)
        drift = _drift(process, values, best)
        moved = values + drift / clock
        return moved - moved[0], values, best, jnp.min(drift), jnp.max(drift), ticks + 1

    values, zero = jnp.zeros_like(process.reward), jnp.float64(0.0)
    best = jnp.zeros(len(process.rest) + 1, values.dtype)
    return lax.while_loop(unfinished, sweep, (values, values, best, zero, zero, jnp.int32(0)))


def _choices(
    control: Control, values: Float64[np.ndarray, " states"], best: Float64[np.ndarray, " decisions_and_none"]
) -> Int32[np.ndarray, " decisions"]:
    """The best move of each state for decisions; none where resting is as good, up to rounding."""
    moved = best[np.concatenate([control.after, control.drop])]
    rested = np.append(values, -np.inf)[control.rest]
    rounding = 1e-9 * np.abs(values).max()
    return np.where(rested >= best[:-1] - rounding, len(moved), moved.argmax(axis=0)).astype(np.int32)
