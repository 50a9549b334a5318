"""Which parameters act through random decisions, and slopes along the others."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float64

from .._policy.base import Policy
from .._policy.parameters import parameter_names, parameter_scales
from .._policy.random_choice import is_random
from .base import Experiment
from .finite_difference import slopes_across


def acts_by_chance(policy: Policy) -> Bool[np.ndarray, " parameters"]:
    """Which parameters are those of a gate or a router that draws from stated chances."""
    parts = {"gate": is_random(policy.gate), "router": is_random(policy.router)}
    return np.asarray([parts.get(name.split(".")[0], False) for name in parameter_names(policy)])


def with_differences(
    experiment: Experiment,
    policy: Policy,
    drawn: Float64[np.ndarray, "drawn replications"],
    step: float,
    first: int,
) -> Float64[np.ndarray, "parameters replications"]:
    """The slopes of all parameters: those given of the ones that act by chance, and central differences of
    the others, one at a time, over `step` times their scales."""
    by_chance, replications = acts_by_chance(policy), drawn.shape[1]
    slopes = np.zeros((len(by_chance), replications))
    slopes[by_chance] = drawn
    if not by_chance.all():
        scales = parameter_scales(policy)
        moves = np.diag(step * scales)[~by_chance]
        _, differences = slopes_across(experiment, policy, moves, replications, first)
        slopes[~by_chance] = differences / (step * scales[~by_chance, None])
    return slopes
