"""Paths and steady states of a fluid model, in double precision."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Float64

from .._errors import SimulationError
from .model import AbstractFluidModel, Stages, State, Width

Progress = Callable[[int, int], None]

TOLERANCE = 1e-4
"""Of a path: relative; absolute a hundredth of it, in requests per GPU."""

MAX_STEPS = 100_000
"""Steps of a path between two moments that are kept."""

STEADY = 1e-9
"""The drift that is left in a steady state, 1/s, per GPU."""

LADDER = 10**0.5
"""A steady state is approached by widths that fall by this factor, each from the state of the one before."""

WIDEST = 0.1
"""The first of these widths."""

FIRST_STEP, NEXT_STEP, LONGEST_STEP = 1e-3, 1e3, 1e8
"""Steps towards a steady state, s: the first at the first width (and of a path), the first at the next ones,
the longest."""

GROWTH, RETREAT = 1.6, 4.0
"""Factors by which steps grow, and shrink after one that failed."""

MOST_ERROR = 0.5
"""Error of a step, as a part of the drift before it, above which it failed."""

MOST_STEPS = 1_000
"""Steps at one width after which the search for a steady state is given up."""


class Path(NamedTuple):
    """A path at some moments: the state, and the integrals of `Stages` from time 0 up to then."""

    states: State
    integrals: Stages


def path(
    model: AbstractFluidModel,
    state: State,
    width: Width,
    times: Float64[np.ndarray, " times"],
    progress: Progress | None = None,
) -> Path:
    """From `state` at time 0, through increasing `times`, s.

    It is integrated from one of these moments to the next: a step ends at each, and none is interpolated.

    **Arguments:** `progress`: called with how many of the moments are reached, and all.
    """
    now = (state, jax.tree.map(jnp.zeros_like, model.stages(state)))
    reached, step, kept = np.float64(0.0), np.float64(FIRST_STEP), []
    _report(progress, 0, len(times))
    for done, time in enumerate(times, 1):
        now, steps = _advance(model, now, width, *(jnp.asarray(number) for number in (reached, time, step)))
        kept.append(now)
        # As long as the steps before were, on average: the last of them may have been cut short.
        reached, step = time, (time - reached) / float(steps)
        _report(progress, done, len(times))
    return Path(*jax.tree.map(lambda *moments: jnp.stack(moments), *kept))


@eqx.filter_jit
def _advance(
    model: AbstractFluidModel,
    now: tuple[State, Stages],
    width: Width,
    start: Float[Array, ""],
    end: Float[Array, ""],
    step: Float[Array, ""],
) -> tuple[tuple[State, Stages], Any]:
    """State and integrals from one moment to another, and the number of steps; `step` is tried first, s."""
    flat, unflatten = ravel_pytree(now)

    def slope(time: Any, flat: Array, given: tuple[AbstractFluidModel, Width]) -> Array:
        model, width = given
        state, _ = unflatten(flat)
        return ravel_pytree((model.drift(state, width), model.stages(state)))[0]

    found = diffrax.diffeqsolve(
        diffrax.ODETerm(slope),
        diffrax.Kvaerno5(),
        t0=start,
        t1=end,
        dt0=step,
        y0=flat,
        args=(model, width),
        saveat=diffrax.SaveAt(t1=True),
        stepsize_controller=diffrax.PIDController(rtol=TOLERANCE, atol=TOLERANCE / 100),
        max_steps=MAX_STEPS,
    )
    assert found.ys is not None
    return unflatten(found.ys[0]), found.stats["num_accepted_steps"]


def _report(progress: Progress | None, done: int, total: int) -> None:
    if progress is not None:
        progress(done, total)


def steady_state(model: AbstractFluidModel, width: float, progress: Progress | None = None) -> State:
    """The steady state that is reached from an empty cluster, with slopes in the model's numbers.

    Linearly implicit Euler steps that grow until the drift is gone (pseudo-transient continuation), at widths
    from `WIDEST` down; Newton's method at the last, whose implicit derivative gives the slopes.

    **Arguments:** `progress`: called with how many of the widths are done, and all.

    **Raises:** `SimulationError` when the drift does not vanish.
    """
    fixed = jax.lax.stop_gradient(model)
    widths = [jnp.asarray(w, float) for w in _widths(width)]
    _report(progress, 0, len(widths))
    state = _settle(fixed, fixed.empty(), widths[0], FIRST_STEP)
    for done, (wider, narrower) in enumerate(itertools.pairwise(widths), 1):
        _report(progress, done, len(widths))
        state = _settle(fixed, _narrowed(fixed, state, wider, narrower), narrower, NEXT_STEP)
    found = _root(model, state, jnp.asarray(width, float))
    _report(progress, len(widths), len(widths))
    return found


def _widths(width: float) -> Float64[np.ndarray, " widths"]:
    """From `WIDEST` down to the one that is asked for."""
    count = 1 + max(0, int(np.ceil(np.log(WIDEST / width) / np.log(LADDER) - 1e-9)))
    return np.geomspace(max(WIDEST, width), width, count)


def _settle(model: AbstractFluidModel, state: State, width: Width, seconds: float) -> State:
    """The state after steps until the drift is gone."""
    drift = np.inf
    for _ in range(MOST_STEPS):
        moved, left, error = _step(model, state, width, jnp.asarray(seconds, float))
        if float(left) < STEADY:
            return moved
        if not float(error) < MOST_ERROR:
            seconds /= RETREAT
            continue
        state, drift = moved, float(left)
        seconds = min(seconds * GROWTH, LONGEST_STEP)
    raise SimulationError(
        f"fluid: no steady state found (a drift of {drift:.1e} requests per GPU and second is left); "
        "give a finite horizon to see the path"
    )


@eqx.filter_jit
def _step(
    model: AbstractFluidModel, state: State, width: Width, seconds: Float[Array, ""]
) -> tuple[State, Float[Array, ""], Float[Array, ""]]:
    """The state after one linearly implicit Euler step, its largest drift, and the error of having taken the
    drift for linear, as a part of the drift before."""
    flat, unflatten = ravel_pytree(state)

    def drift(flat: Array) -> Array:
        return ravel_pytree(model.drift(unflatten(flat), width))[0]

    before = drift(flat)
    moved = flat + jnp.linalg.solve(jnp.eye(len(flat)) / seconds - jax.jacfwd(drift)(flat), before)
    moved = ravel_pytree(_with_queues(unflatten(moved)))[0]
    after = drift(moved)
    error = jnp.max(jnp.abs((moved - flat) / seconds - after)) / jnp.max(jnp.abs(before))
    return unflatten(moved), jnp.max(jnp.abs(after)), error


@eqx.filter_jit
def _narrowed(model: AbstractFluidModel, state: State, width: Width, narrower: Width) -> State:
    """About the steady state at a smaller width: what is there for part of the decisions only is in
    proportion to the width."""
    flat, unflatten = ravel_pytree(state)

    def balance(flat: Array, width: Width) -> Array:
        return ravel_pytree(model.balance(unflatten(flat), width))[0]

    slope = jnp.linalg.solve(jax.jacfwd(balance)(flat, width), jax.jacfwd(balance, 1)(flat, width))
    return _with_queues(unflatten(flat - (narrower - width) * slope))


def _with_queues(state: State) -> State:
    """The state with no queue below zero, where shares of what waits have no limit."""
    queues = lambda state: (state.prefill_queue, state.decode_queue)  # noqa: E731
    return eqx.tree_at(queues, state, jax.tree.map(lambda queue: jnp.maximum(queue, 0.0), queues(state)))


@eqx.filter_jit
def _root(model: AbstractFluidModel, state: State, width: Width) -> State:
    """The steady state close to a state."""
    flat, unflatten = ravel_pytree(state)

    def balance(flat: Array, given: tuple[AbstractFluidModel, Width]) -> Array:
        model, width = given
        return ravel_pytree(model.balance(unflatten(flat), width))[0]

    solver = optimistix.Newton(rtol=STEADY, atol=STEADY)
    found = optimistix.root_find(balance, solver, flat, args=(model, width), max_steps=64, throw=False)
    return unflatten(found.value)
