"""Steady states of a fluid model, in double precision, by linear systems that are never written down."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Float64
from scipy.sparse.linalg import LinearOperator, gmres

from .._errors import SimulationError
from .model import AbstractFluidModel, State
from .path import FIRST_STEP, Progress, report

Flat = Float64[np.ndarray, " size"]
"""The numbers of a state, or of its rates of change, in a row."""

STEADY = 1e-9
"""The drift that is left in a steady state, 1/s, per GPU."""

LADDER = 10**0.5
"""A steady state is approached by widths that fall by this factor, each from the state of the one before."""

WIDEST = 0.1
"""The first of these widths."""

NEXT_STEP, LONGEST_STEP = 1e3, 1e8
"""Steps towards a steady state, s: the first at each width after the widest, the longest."""

GROWTH, RETREAT = 1.6, 4.0
"""Factors by which steps grow, and shrink after one that failed."""

MOST_ERROR = 0.5
"""Error of a step, as a part of the drift before it, above which it failed."""

MOST_STEPS = 1_000
"""Steps at one width after which the search for a steady state is given up."""

MOST_CORRECTIONS = 16
"""Steps of Newton's method at the last width after which it is given up."""

LINEAR_ERROR, SLOPE_ERROR = 1e-8, 1e-10
"""What a linear system may leave of its right-hand side: on the way to a steady state, and for its slopes."""

MOST_SLOPE_ERROR = 1e-6
"""What is left of it above which slopes are refused."""

KRYLOV, CYCLES = 500, 4
"""Vectors of a Krylov space, and how many of these a linear system may take. (Two classes and B = 16 take
some 200 vectors at the narrowest widths.)"""


def steady_state(model: AbstractFluidModel, width: float, progress: Progress | None = None) -> State:
    """The steady state that is reached from an empty cluster, with slopes in the model's numbers.

    Linearly implicit Euler steps that grow until the drift is gone (pseudo-transient continuation), at widths
    from `WIDEST` down; Newton's method at the last, whose implicit derivative gives the slopes.

    **Arguments:** `progress`: called with how many of the widths are done, and all.

    **Raises:** `SimulationError` when the drift does not vanish.
    """
    fixed = jax.lax.stop_gradient(model)
    widths = _widths(width)
    empty, unflatten = ravel_pytree(fixed.empty())
    report(progress, 0, len(widths))
    flat = _settle(fixed, np.asarray(empty), widths[0], FIRST_STEP)
    for done, (wider, narrower) in enumerate(itertools.pairwise(widths), 1):
        report(progress, done, len(widths))
        flat = _settle(fixed, _narrowed(fixed, flat, wider, narrower), narrower, NEXT_STEP)
    found = _with_slopes(model, jnp.asarray(_root(fixed, flat, widths[-1])), jnp.asarray(widths[-1]))
    report(progress, len(widths), len(widths))
    return unflatten(found)


def _widths(width: float) -> Float64[np.ndarray, " widths"]:
    """From `WIDEST` down to the one that is asked for."""
    count = 1 + max(0, int(np.ceil(np.log(WIDEST / width) / np.log(LADDER) - 1e-9)))
    return np.geomspace(max(WIDEST, width), width, count)


def _settle(model: AbstractFluidModel, flat: Flat, width: float, seconds: float) -> Flat:
    """The state after steps until the drift is gone."""
    drift = np.inf
    for _ in range(MOST_STEPS):
        moved, left, error = _step(model, flat, width, seconds)
        if left < STEADY:
            return moved
        if not error < MOST_ERROR:
            seconds /= RETREAT
            continue
        flat, drift = moved, left
        seconds = min(seconds * GROWTH, LONGEST_STEP)
    raise _not_found(drift)


def _step(model: AbstractFluidModel, flat: Flat, width: float, seconds: float) -> tuple[Flat, float, float]:
    """The state after one linearly implicit Euler step, its largest drift, and the error of having taken the
    drift for linear, as a part of the drift before."""
    before = np.asarray(_drift(model, flat, width))
    change = _solved(lambda v: v / seconds - np.asarray(_along(model, flat, width, v, 0.0)), before)
    moved = np.asarray(_with_queues(model, flat + change))
    after = np.asarray(_drift(model, moved, width))
    error = np.max(np.abs((moved - flat) / seconds - after)) / np.max(np.abs(before))
    return moved, float(np.max(np.abs(after))), float(error)


def _narrowed(model: AbstractFluidModel, flat: Flat, width: float, narrower: float) -> Flat:
    """About the steady state at a smaller width: what is there for part of the decisions only is in
    proportion to the width."""
    by_width = np.asarray(_along(model, flat, width, np.zeros_like(flat), 1.0))
    slope = _solved(lambda v: np.asarray(_along(model, flat, width, v, 0.0)), by_width)
    return np.asarray(_with_queues(model, flat - (narrower - width) * slope))


def _root(model: AbstractFluidModel, flat: Flat, width: float) -> Flat:
    """The steady state close to a state, by Newton's method."""
    left = np.inf
    for _ in range(MOST_CORRECTIONS):
        balance = np.asarray(_balance(model, flat, width))
        left = np.max(np.abs(balance))
        change = _solved(lambda v, at=flat: np.asarray(_balance_along(model, at, width, v)), balance)
        flat = flat - change
        if max(left, np.max(np.abs(change))) < STEADY:
            return flat
    raise _not_found(left)


def _not_found(drift: float) -> SimulationError:
    return SimulationError(
        f"fluid: no steady state found (a drift of {drift:.1e} requests per GPU and second is left); "
        "give a finite horizon to see the path"
    )


@eqx.filter_custom_vjp
def _with_slopes(model: AbstractFluidModel, flat: Array, width: Array) -> Array:
    """A steady state, as a function of the model's numbers (the implicit function theorem)."""
    return flat


@_with_slopes.def_fwd
def _with_slopes_forward(
    perturbed: Any, model: AbstractFluidModel, flat: Array, width: Array
) -> tuple[Array, None]:
    return flat, None


@_with_slopes.def_bwd
def _with_slopes_backward(
    residuals: None, cotangent: Array, perturbed: Any, model: AbstractFluidModel, flat: Array, width: Array
) -> Any:
    right = np.asarray(cotangent)

    def across(weights: Flat) -> Flat:
        return np.asarray(_balance_across(model, flat, width, weights))

    weights = _solved(across, right, SLOPE_ERROR)
    left = np.linalg.norm(across(weights) - right)
    if not left <= MOST_SLOPE_ERROR * np.linalg.norm(right):
        raise SimulationError(
            f"fluid: the slopes of the steady state were not found (an equation is {left:.1e} off); "
            "use a wider width"
        )
    return _by_numbers(model, flat, width, jnp.asarray(-weights))


def _solved(matrix: Callable[[Flat], Flat], right: Flat, error: float = LINEAR_ERROR) -> Flat:
    """The solution of a linear system whose matrix is known by its products.

    By GMRES without a preconditioner: where a drift keeps the GPUs of each group, so does every vector of the
    Krylov space, and with it the solution, accurate or not.
    """
    restart = min(len(right), KRYLOV)
    return gmres(_Matrix(matrix, len(right)), right, rtol=error, atol=0.0, restart=restart, maxiter=CYCLES)[0]


class _Matrix(LinearOperator):
    """A square matrix that is known by its products, as SciPy wants it."""

    def __init__(self, product: Callable[[Flat], Flat], size: int):
        super().__init__(np.dtype(np.float64), (size, size))
        self.product = product

    def _matvec(self, x: Flat) -> Flat:
        # An array of its own: SciPy works in it.
        return np.array(self.product(x))


# What is compiled: numbers in a row in, numbers in a row out.


@jax.jit
def _drift(model: AbstractFluidModel, flat: Any, width: Any) -> Float[Array, " size"]:
    """The rate of change of each number of a state, 1/s."""
    return ravel_pytree(model.drift(_unflattened(model, flat), jnp.asarray(width, float)))[0]


@jax.jit
def _along(
    model: AbstractFluidModel, flat: Any, width: Any, change: Any, change_of_width: Any
) -> Float[Array, " size"]:
    """The drift's slope times a change of the state and of the width."""
    return jax.jvp(functools.partial(_drift, model), (flat, width), (change, change_of_width))[1]


@jax.jit
def _with_queues(model: AbstractFluidModel, flat: Any) -> Float[Array, " size"]:
    """The state with no queue below zero, where shares of what waits have no limit."""
    queues = lambda state: (state.prefill_queue, state.decode_queue)  # noqa: E731
    state = _unflattened(model, flat)
    state = eqx.tree_at(queues, state, jax.tree.map(lambda queue: jnp.maximum(queue, 0.0), queues(state)))
    return ravel_pytree(state)[0]


@jax.jit
def _balance(model: AbstractFluidModel, flat: Any, width: Any) -> Float[Array, " size"]:
    """What is 0 in a steady state, and nowhere else."""
    return ravel_pytree(model.balance(_unflattened(model, flat), width))[0]


@jax.jit
def _balance_along(model: AbstractFluidModel, flat: Any, width: Any, change: Any) -> Float[Array, " size"]:
    """The balance's slope times a change of the state."""
    return jax.jvp(lambda flat: _balance(model, flat, width), (flat,), (change,))[1]


@jax.jit
def _balance_across(model: AbstractFluidModel, flat: Any, width: Any, weights: Any) -> Float[Array, " size"]:
    """Weights of the balance's rows times its slope in the state."""
    return jax.vjp(lambda flat: _balance(model, flat, width), flat)[1](weights)[0]


@eqx.filter_jit
def _by_numbers(model: AbstractFluidModel, flat: Any, width: Any, weights: Any) -> AbstractFluidModel:
    """Weights of the balance's rows times its slope in the model's numbers."""
    return eqx.filter_vjp(lambda model: _balance(model, flat, width), model)[1](weights)[0]


def _unflattened(model: AbstractFluidModel, flat: Any) -> State:
    return ravel_pytree(model.empty())[1](jnp.asarray(flat))
