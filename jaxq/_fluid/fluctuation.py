"""What n GPUs fluctuate about the fluid limit: on the scale of the square root of n, a Gaussian process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Float64
from scipy.linalg import expm, solve_continuous_lyapunov

from .model import Stages, Width
from .pooled_model import PooledModel
from .steady_state import steady_state

LARGEST_CHANGE, SMALLEST_CHANGE = 100.0, 0.01
"""Relative changes of rates, in widths, under which it is seen whether the drift has a kink: the largest, and
the first on the way there."""

CHANGES, NEWTON_STEPS = 40, 4
"""Changes on that way, each a factor above the last, and Newton's steps at each."""

KINK = 0.05
"""Asymmetry of the responses to opposite changes, as a part of their difference, from which there is a kink:
it is about 1 where a boundary is at hand, and below 1e-3 where none is."""

UNFELT = 1e-3
"""Responses smaller than this part of the largest do not count: those of stages that are as good as empty."""

STAGES = tuple(Stages.__dataclass_fields__)


@dataclass(frozen=True)
class Fluctuations:
    """The Gaussian process about a steady state: dU = A U dt + S dW, with U = sqrt(n) (Z/n - z), Z the counts
    of n GPUs and z the steady state (Kurtz's central limit theorem for density-dependent chains).

    That is the limit where the drift is differentiable at z. Where a queue or an idle GPU is about to appear
    (a critical stage), the drift has another slope on either side, and the limit is no Gaussian process: then
    `is_gaussian` is false, and the deviations below are those of neither side.

    - `steady`: the steady state, requests per GPU, by stage and class; stages in the order of `STAGES`.
    - `slope`: A, 1/s; `noise`: S S^T, 1/s; `covariance`: of U, from A V + V A^T + S S^T = 0; all in the
      counts of the pooled level (`PooledState`).
    - `stages`: how the numbers in each stage and class follow from these counts, linearly.
    - `asymmetry`: how differently the steady state answers to a small change of rates and to its opposite, as
      a part of the difference; the largest over changes.
    """

    steady: Float64[np.ndarray, "stages classes"]
    slope: Float64[np.ndarray, "size size"]
    noise: Float64[np.ndarray, "size size"]
    covariance: Float64[np.ndarray, "size size"]
    stages: Float64[np.ndarray, "stages classes size"]
    asymmetry: float

    @property
    def is_gaussian(self) -> bool:
        """Whether the limit is this process: the drift has no kink in the steady state."""
        return self.asymmetry < KINK

    def standard_deviation(self, window: float = 0.0) -> dict[str, Float64[np.ndarray, " classes"]]:
        """Of the number in each stage, by class, in units of sqrt(n).

        **Arguments:** `window`: seconds over which numbers are averaged; 0: at a moment.
        """
        every = self.stages @ self._averaged(window)
        variance = np.einsum("scu,scu->sc", every, self.stages)
        return dict(zip(STAGES, np.sqrt(np.maximum(variance, 0.0)), strict=True))

    def stage_covariance(self) -> Float64[np.ndarray, "stages classes stages classes"]:
        """Of the numbers in all stages and classes, in units of n."""
        return np.einsum("scu,uv,tdv->sctd", self.stages, self.covariance, self.stages)

    def correlation_time(self) -> dict[str, Float64[np.ndarray, " classes"]]:
        """The integral of the autocorrelation of the number in each stage, s; 0 where nothing fluctuates."""
        integral = np.linalg.solve(-self.slope, self.covariance)
        top = np.einsum("scu,uv,scv->sc", self.stages, integral, self.stages)
        variance = np.einsum("scu,uv,scv->sc", self.stages, self.covariance, self.stages)
        times = np.divide(top, variance, out=np.zeros_like(top), where=variance > 0)
        return dict(zip(STAGES, times, strict=True))

    def _averaged(self, window: float) -> Float64[np.ndarray, "size size"]:
        """The covariance of averages of U over a window."""
        if window == 0:
            return self.covariance
        inverse = np.linalg.inv(-self.slope)
        ending = np.eye(len(inverse)) - expm(window * self.slope)
        half = (inverse / window - inverse @ inverse @ ending / window**2) @ self.covariance
        return half + half.T


class _Place(NamedTuple):
    """The model at a state: its drift and noise, the numbers in each stage, and slopes."""

    drift: Array
    slope: Array
    noise: Array
    stages: Array
    stage_slope: Array


def fluctuations(model: PooledModel, width: float) -> Fluctuations:
    """Those about the steady state that is reached from an empty cluster. **Raises:** as `steady_state`."""
    state = np.asarray(ravel_pytree(steady_state(model, width))[0])
    smoothing = jnp.asarray(width, float)
    at = jax.tree.map(lambda leaf: np.asarray(leaf)[0], _places(model, jnp.asarray(state[None]), smoothing))
    return Fluctuations(
        steady=at.stages,
        slope=at.slope,
        noise=at.noise,
        covariance=solve_continuous_lyapunov(at.slope, -at.noise),
        stages=at.stage_slope,
        asymmetry=_asymmetry(model, state, at.noise, width),
    )


def _asymmetry(model: PooledModel, state: np.ndarray, noise: np.ndarray, width: float) -> float:
    """The largest asymmetry of the steady state's responses to changes of rates, as `Fluctuations` says.

    A row of the noise is the drift that arises when jumps into a stage become more frequent, and jumps out of
    it rarer, in proportion: no change is larger than the flow that it changes.
    """
    pushes, smoothing = np.concatenate([noise, -noise]), jnp.asarray(width, float)
    states = np.tile(state, (len(pushes), 1))
    try:
        for change in width * np.geomspace(SMALLEST_CHANGE, LARGEST_CHANGE, CHANGES):
            for _ in range(NEWTON_STEPS):
                at = _places(model, jnp.asarray(states), smoothing)
                left = np.asarray(at.drift) + change * pushes
                states = states - np.linalg.solve(np.asarray(at.slope), left[..., None])[..., 0]
    except np.linalg.LinAlgError:
        # Newton's method fails at kinks only: the drift is as good as linear elsewhere, for changes so small.
        return 1.0
    if not np.isfinite(states).all():
        return 1.0
    up, down = np.split(states - state, 2)
    together, apart = abs(up + down).max(axis=1), abs(up - down).max(axis=1)
    felt = apart > UNFELT * apart.max()
    return float(np.max(together[felt] / apart[felt]))


@eqx.filter_jit
def _places(model: PooledModel, states: Float[Array, "states size"], width: Width) -> _Place:
    """The model at several states."""
    _, unflatten = ravel_pytree(model.empty())

    def stages(flat: Array) -> Array:
        return jnp.stack(jax.tree.leaves(model.stages(unflatten(flat))))

    def place(flat: Array) -> _Place:
        def parts(flat: Array) -> tuple[Array, tuple[Array, Array]]:
            found = model.transitions(unflatten(flat), width)
            return found.drift(), (found.drift(), found.noise())

        slope, (here, noise) = jax.jacfwd(parts, has_aux=True)(flat)
        return _Place(here, slope, noise, stages(flat), jax.jacfwd(stages)(flat))

    return jax.vmap(place)(states)
