"""Stochastic gradient ascent on a policy's value: one climb from each start."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float32, Float64

from ._gradient.base import AbstractGradient, Experiment, Values
from ._policy.base import Policy
from ._policy.parameters import Vector, parameter_scales, parameters, with_parameters
from ._search import SizedSearch
from ._statistics import Estimate

DIVERGED = 0.05
"""A check this part below the best (and 5 half-widths of its interval) sends the climb back to the best."""


@dataclass(frozen=True)
class Check:
    """A policy valued on the validation replications: after `step` steps, mean value and the half-width of
    its 95 % interval."""

    step: int
    value: float
    half_width: float


Report = Callable[["Climb"], None]


@dataclass
class Climb:
    """Where one start has got to.

    - `values`, `memory`: parameters now, and the optimiser's state; `best_values` and `best`: the best
      policy met, and its check.
    - `step`: steps taken; `ended`: whether it has stopped for good.
    - `checks`, `notes`: how it went, and what went wrong.
    """

    start: Policy
    label: str
    values: Vector
    best_values: Vector
    memory: Any
    best: Check | None = None
    step: int = 0
    ended: bool = False
    checks: list[Check] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def policy(self) -> Policy:
        """The best policy met."""
        return with_parameters(self.start, self.best_values)

    @property
    def best_value(self) -> float:
        """The best check's value; minus infinity before the first."""
        return self.best.value if self.best is not None else -np.inf


@dataclass(frozen=True)
class Ascent:
    """How every start climbs: slopes from `training`, checks on `validation` replications."""

    training: Experiment
    validation: Experiment
    gradient: AbstractGradient
    optimizer: optax.GradientTransformation
    search: SizedSearch

    def begin(self, start: Policy, label: str) -> Climb:
        """A climb that has not moved."""
        values = parameters(start)
        memory = self.optimizer.init(_in_scales(start, values))
        return Climb(start, label, values, values, memory)

    def climb(self, climb: Climb, until: int, report: Report) -> None:
        """Follow the gradient to step `until`; ends early when the best check is `patience` checks old.
        `report` is called after every step and check."""
        if not climb.checks:
            self.check(climb)
            report(climb)
        while climb.step < until and not climb.ended:
            climb.step += 1
            self.move(climb)
            if climb.step % self.search.check_every == 0 or climb.step == until:
                self.check(climb)
                best = max(range(len(climb.checks)), key=lambda k: climb.checks[k].value)
                climb.ended = len(climb.checks) - 1 - best >= self.search.patience
            report(climb)

    def move(self, climb: Climb) -> None:
        """One step of the optimiser, in units of `parameter_scales`."""
        scales = parameter_scales(climb.start)
        here = with_parameters(climb.start, climb.values)
        first = (climb.step - 1) * self.gradient.replications_used()
        found = self.gradient.estimate(self.training, here, first)
        slope = found.gradient * scales
        if not np.isfinite(slope).all():
            self.return_to_best(climb, "the gradient was not finite")
            return
        # Optimisers descend.
        downhill, position = jnp.asarray(-slope, jnp.float32), _in_scales(climb.start, climb.values)
        move, climb.memory = self.optimizer.update(downhill, climb.memory, position)
        moved = climb.values + scales * np.asarray(move, np.float64)
        if not np.isfinite(moved).all():
            self.return_to_best(climb, "the step was not finite")
            return
        climb.values = parameters(with_parameters(climb.start, moved))

    def check(self, climb: Climb) -> None:
        """Value the present policy, and keep it if it is the best; go back if it is far below."""
        self.note_check(climb, self.valued([with_parameters(climb.start, climb.values)])[0])

    def note_check(self, climb: Climb, values: Float64[np.ndarray, " replications"]) -> None:
        """What follows from the present policy's value in each validation replication."""
        estimate = Estimate.from_samples(values)
        found = Check(climb.step, float(estimate.mean), float(estimate.half_width))
        climb.checks.append(found)
        if found.value > climb.best_value:
            climb.best, climb.best_values = found, climb.values
        elif climb.best is not None:
            limit = max(DIVERGED * abs(climb.best.value), 5 * found.half_width)
            if not found.value > climb.best.value - limit:
                self.return_to_best(climb, f"the value fell to {found.value:g}")

    def valued(self, policies: Sequence[Policy]) -> Values:
        """The value of each policy in each validation replication."""
        return self.validation.values(policies, self.search.validation_replications)

    def return_to_best(self, climb: Climb, reason: str) -> None:
        """Start again from the best policy met, and say why."""
        climb.notes.append(f"{climb.label}, step {climb.step}: {reason}; back to the best so far")
        climb.values = climb.best_values
        climb.memory = self.optimizer.init(_in_scales(climb.start, climb.values))


def _in_scales(start: Policy, values: Vector) -> Float32[Array, " parameters"]:
    """Parameters in units of `parameter_scales`, as optimisers see them."""
    return jnp.asarray(values / parameter_scales(start), jnp.float32)
