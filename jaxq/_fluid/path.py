"""Paths of a fluid model, in double precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax
import numpy as np
import optimistix
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Float64

from .model import AbstractFluidModel, Stages, State, Width

Progress = Callable[[int, int], None]

TOLERANCE = 1e-4
"""Of a path: relative; absolute a hundredth of it, in requests per GPU."""

STEP_TOLERANCE = TOLERANCE / 10
"""Of one step of it, and of the equations within a step."""

MAX_STEPS = 100_000
"""Steps of a path between two moments that are kept."""

FIRST_STEP = 1e-3
"""The first step that is tried, s."""

FEW = 100
"""Numbers of a state up to which its Jacobian is a dense matrix; above it only multiplies vectors."""

LINEAR_TOLERANCE = 1e-3
"""Of the change in a step of Newton's method where it does."""

KRYLOV = 30
"""Vectors of its Krylov space: a cycle, of which it takes two at least."""


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
    report(progress, 0, len(times))
    for done, time in enumerate(times, 1):
        now, steps = _advance(model, now, width, *(jnp.asarray(number) for number in (reached, time, step)))
        kept.append(now)
        # As long as the steps before were, on average: the last of them may have been cut short.
        reached, step = time, (time - reached) / float(steps)
        report(progress, done, len(times))
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
        diffrax.Kvaerno5(root_finder=_newton(len(flat))),
        t0=start,
        t1=end,
        dt0=step,
        y0=flat,
        args=(model, width),
        saveat=diffrax.SaveAt(t1=True),
        stepsize_controller=diffrax.PIDController(rtol=STEP_TOLERANCE, atol=STEP_TOLERANCE / 100),
        max_steps=MAX_STEPS,
    )
    assert found.ys is not None
    return unflatten(found.ys[0]), found.stats["num_accepted_steps"]


def _newton(size: int) -> optimistix.Newton:
    """What finds the stages of a step.

    The slope is taken anew at each iteration: near an edge it changes within a step, and with one from before
    most steps would fail.
    """
    many = lineax.GMRES(
        rtol=LINEAR_TOLERANCE, atol=LINEAR_TOLERANCE * STEP_TOLERANCE / 100, restart=KRYLOV, max_steps=20
    )
    linear = lineax.LU() if size <= FEW else many
    return optimistix.Newton(rtol=STEP_TOLERANCE, atol=STEP_TOLERANCE / 100, linear_solver=linear)


def report(progress: Progress | None, done: int, total: int) -> None:
    if progress is not None:
        progress(done, total)
