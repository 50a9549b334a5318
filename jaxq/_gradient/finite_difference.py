"""Finite differences under common random numbers: one parameter at a time, or all at once in random signs."""

from __future__ import annotations

import equinox as eqx
import numpy as np
from jaxtyping import Float64

from .._errors import InputError
from .._policy.base import Policy
from .._policy.parameters import parameter_scales, parameters, with_parameters
from .base import AbstractGradient, Experiment, GradientEstimate

CLIFF = 4.0
"""Slopes of random directions are of one size; one that is so many times the median has met a cliff, such as
a run in which the cluster clogs: it says which way to go, not how far."""


class FiniteDifference(AbstractGradient):
    """Central differences: the policy is run a step up and a step down, in the same replications.

    All runs of an estimate go as one (`ClusterEngine.run_together`). What takes the noise down further:
    counts of events enter as integrals of their rates, and combinations of flows that are 0 in the long run
    ([Lin26] eq. 15-20) are subtracted so that the differences vary least. Biased of the order of the square
    of the step; for parameters in log-odds a step of 1 is short where choices are uncertain, and long enough
    to see a slope where they are not.

    **Arguments:**

    - `step`: up and down, in units of `parameter_scales`.
    - `directions`: None moves one parameter at a time. A number moves all parameters at once, each up or down
      at random (simultaneous perturbation), in so many random directions: cheaper for many parameters.
    - `replications`: of each run.

    **Raises:** `InputError` for a step that is not positive, or fewer than 2 directions or replications.
    """

    step: float = eqx.field(static=True, default=1.0)
    directions: int | None = eqx.field(static=True, default=None)
    replications: int = eqx.field(static=True, default=16)

    def __check_init__(self):
        if not (np.isfinite(self.step) and self.step > 0):
            raise InputError(f"step: expected a positive number, got {self.step:g}")
        if self.directions is not None and self.directions < 2:
            raise InputError(f"directions: expected at least 2 (or None), got {self.directions}")
        if self.replications < 2:
            raise InputError(f"replications: expected at least 2, got {self.replications}")

    def replications_used(self) -> int:
        return self.replications

    def estimate(self, experiment: Experiment, policy: Policy, first: int = 0) -> GradientEstimate:
        scales = parameter_scales(policy)
        if self.directions is None:
            signs = np.eye(len(scales))
        else:
            rng = np.random.default_rng([first, self.directions])
            signs = rng.choice([-1.0, 1.0], (self.directions, len(scales)))
        value, slopes = slopes_across(
            experiment, policy, self.step * scales * signs, self.replications, first
        )
        slopes = slopes / self.step
        if self.directions is None:
            gradient = slopes.mean(axis=1)
            error = slopes.std(axis=1, ddof=1) / np.sqrt(self.replications)
        else:
            # Each direction alone is an estimate: the other parameters' slopes cancel on average.
            each = _without_cliffs(slopes.mean(axis=1))[:, None] * signs
            gradient = each.mean(axis=0)
            error = each.std(axis=0, ddof=1) / np.sqrt(self.directions)
        return GradientEstimate(value, gradient / scales, error / scales)


def _without_cliffs(slopes: Float64[np.ndarray, " directions"]) -> Float64[np.ndarray, " directions"]:
    """The slopes of all directions, none larger than `CLIFF` times their median size."""
    limit = CLIFF * float(np.median(np.abs(slopes)))
    return np.clip(slopes, -limit, limit) if limit > 0 else slopes


def slopes_across(
    experiment: Experiment,
    policy: Policy,
    moves: Float64[np.ndarray, "moves parameters"],
    replications: int,
    first: int,
) -> tuple[float, Float64[np.ndarray, "moves replications"]]:
    """The mean value of all runs, and half the difference that each of `moves` makes, up against down.

    All run as one, in the same replications. Flow balance takes noise out of the differences
    (`FlowValues.steadied`).
    """
    centre = parameters(policy)
    moved = [with_parameters(policy, centre + sign * move) for move in moves for sign in (1, -1)]
    found = experiment.flow_values(moved, replications, first)
    return float(found.values.mean()), found.half_differences().steadied()
