"""The best plan under convex costs, by cutting planes (Kelley's method)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.optimize import root_scalar

from .._errors import InputError
from .._linear_program import InfeasibleError, LinearProgram, Row, SolverError
from .program import with_rows, with_variables
from .tangents import Tangent, with_levels

TOLERANCE = 1e-8
"""How far the objective may stay below the best one, relative to the larger of it and the costs."""

CLOSE = 1e-9
"""The same below which rounds go on only while they halve it."""

SHARP = 1e-12
"""The same below which rounding errors rule."""

MOST_ROUNDS = 200

ADVICE = "expected costs that bend less over the levels that a plan can have"

FIRST_LEVELS = 33
"""Levels at which every cost is looked at before the first program, evenly spread over those that are met."""

BENT = 1e-8
"""How far a cost may lie below one of its tangents, relative to the costs and to what slopes make of them."""


class Found(NamedTuple):
    """An optimum of a program: its variables, its shadow prices by name of the rows, and its value."""

    variables: Float[np.ndarray, " variables"]
    prices: dict[str, np.ndarray]
    objective: float


Maximise = Callable[[LinearProgram], Found]


@dataclass(frozen=True)
class Curve:
    """A convex cost of a linear function of a program's first variables.

    **Arguments:** `name`: of the level; `field`: what messages call the cost; `cost`, `slope`: of a level.
    """

    name: str
    field: str
    weights: Float[np.ndarray, " some"]
    cost: Callable[[float], float]
    slope: Callable[[float], float]

    def tangent(self, level: float) -> Tangent:
        """Its tangent at a level. **Raises:** `InputError` when it is not finite."""
        cost, slope = float(self.cost(level)) + 0.0, float(self.slope(level)) + 0.0  # no -0 in messages
        if not (math.isfinite(cost) and math.isfinite(slope)):
            raise InputError(
                f"{self.field}: expected a finite cost and slope at level {level:g}, "
                f"got {cost:g} and {slope:g}"
            )
        return Tangent(self.name, self.weights, level, cost, slope)

    def level_of(self, slope: float, start: Tangent, range_: tuple[float, float]) -> float:
        """A level that has a slope, or where the slope leaps over it; that of `start` if it is one."""
        low, high = range_
        if self.slope(start.level) == slope or not self.slope(low) < slope < self.slope(high):
            return start.level
        root = root_scalar(
            lambda level: self.slope(level) - slope, bracket=range_, xtol=1e-300, method="brentq"
        )
        return float(root.root)


@dataclass(frozen=True)
class _Model:
    """A curve from below: its tangents at some levels of the range that a program meets.

    `worth`: the largest term of the program's objective.
    """

    curve: Curve
    range_: tuple[float, float]
    worth: float
    cuts: tuple[Tangent, ...]

    def at(self, level: float) -> float:
        return max(cut.at(level) for cut in self.cuts)

    @cached_property
    def height(self) -> float:
        """How far above its least cost a best point may have it, at most the program's worth; positive."""
        apart = max(cut.cost for cut in self.cuts) - self._least
        return min(apart, self.worth) if apart > 0 else self.worth

    @property
    def base(self) -> float:
        """A cost that it stays above, so that a variable for what is above is positive, and the tangents have
        prices."""
        return self._least - self.height

    @cached_property
    def _least(self) -> float:
        """A cost that it nowhere undercuts."""
        ordered = sorted(self.cuts, key=lambda cut: cut.level)
        crossings = [cut.cost for cut in (ordered[0], ordered[-1])]
        for left, right in zip(ordered, ordered[1:], strict=False):
            if left.slope < right.slope:
                rise = left.cost - right.at(left.level)
                crossings.append(left.cost + left.slope * rise / (right.slope - left.slope))
        return min(crossings)

    def with_cut(self, cut: Tangent) -> _Model:
        """With one more tangent. **Raises:** `InputError` when the cost is not convex between them."""
        self._check(cut)
        return replace(self, cuts=(*self.cuts, cut))

    def _check(self, new: Tangent) -> None:
        for old in self.cuts:
            for one, other in ((new, old), (old, new)):
                size = abs(one.cost) + abs(other.cost) + abs(other.slope * (one.level - other.level))
                if one.cost < other.at(one.level) - BENT * size:
                    raise InputError(
                        f"{self.curve.field}: expected a convex cost, and its derivative as slope; at level "
                        f"{one.level:g} it costs {one.cost:g}, less than {other.at(one.level):g} on the line "
                        f"of slope {other.slope:g} from {other.cost:g} at level {other.level:g}"
                    )


def best_tangents(program: LinearProgram, curves: Sequence[Curve], maximise: Maximise) -> Sequence[Tangent]:
    """The costs' tangents at the best point of a program less all costs.

    Each round adds the tangents at the optimum of the program less the largest of the tangents so far. It
    ends when the optimum's objective is close to what no point exceeds, and rounds no longer bring it nearer;
    the slopes are then those by which the program's own value changes, and each level is moved to where its
    cost has that slope, unless that is worse.

    **Arguments:** `maximise`: finds the best point of a program, which the costs are no part of.

    **Raises:** `InputError` for a cost that is not convex or not finite, `InfeasibleError`, `SolverError`.
    """
    models = [_first_model(program, curve) for curve in curves]
    before = math.inf
    for _ in range(MOST_ROUNDS):
        found = maximise(_with_models(program, models))
        cuts = [
            model.curve.tangent(float(model.curve.weights @ found.variables[: len(model.curve.weights)]))
            for model in models
        ]
        excess = sum(cut.cost - model.at(cut.level) for model, cut in zip(models, cuts, strict=True))
        bound = found.objective - sum(model.base for model in models)
        size = max(abs(bound), sum(abs(cut.cost) for cut in cuts))
        if excess <= SHARP * size or (excess <= CLOSE * size and 2 * excess >= before):
            tangents = [_priced(model, cut, found.prices) for model, cut in zip(models, cuts, strict=True)]
            return _moved(program, models, tangents, maximise)
        models = [model.with_cut(cut) for model, cut in zip(models, cuts, strict=True)]
        before = excess
    names = ", ".join(curve.field for curve in curves)
    raise SolverError(
        f"{names}: found no plan within {TOLERANCE:g} of the best objective in {MOST_ROUNDS} rounds of "
        f"cutting planes; {ADVICE}"
    )


def check_optimal(curves: Sequence[Tangent], objective: float, bound: float) -> None:
    """Refuse an objective that is not close to a bound which nothing exceeds: that of the tangents.

    **Raises:** `SolverError`.
    """
    size = max(abs(objective), sum(abs(one.cost) for one in curves))
    if bound > objective + TOLERANCE * size:
        names = ", ".join(one.name for one in curves)
        raise SolverError(
            f"{names}: the plan found may stay {bound - objective:.2g} below the best objective; {ADVICE}"
        )


def _first_model(program: LinearProgram, curve: Curve) -> _Model:
    """A curve by its tangents at `FIRST_LEVELS` levels that the program can have."""
    weights = np.pad(curve.weights, (0, len(program.value) - len(curve.weights)))
    ends = []
    for sign in (-1.0, 1.0):
        extreme = replace(program, value=sign * weights)
        ends.append(float(weights @ extreme.variables(extreme.standard.maximise().point)))
    low, high = ends[0], max(ends)
    model = _Model(curve, (low, high), program.value_scale, ())
    for level in np.unique(np.linspace(low, high, FIRST_LEVELS)):
        model = model.with_cut(curve.tangent(float(level)))
    return model


def _with_models(program: LinearProgram, models: Sequence[_Model]) -> LinearProgram:
    """A program less the largest tangent of each curve, by a variable for how far that is above its base."""
    for model in models:
        program = with_variables(program, [-1.0], [model.height])
        slopes, costs = (np.array([getattr(cut, name) for cut in model.cuts]) for name in ("slope", "cost"))
        levels = np.array([cut.level for cut in model.cuts])
        wide = len(program.value) - len(model.curve.weights)
        lines = slopes[:, None] * np.pad(model.curve.weights, (0, wide))
        lines[:, -1] = -1.0
        right = slopes * levels - costs + model.base
        program = with_rows(program, Row(f"{model.curve.name}: tangents", lines, right, equality=False))
    return program


def _priced(model: _Model, cut: Tangent, prices: dict[str, np.ndarray]) -> Tangent:
    """A tangent whose slope is the mean of those that bind, by their prices."""
    weights = prices[f"{model.curve.name}: tangents"]
    if not weights.sum() > 0:
        raise SolverError(f"{model.curve.field}: too large for the solver")
    slopes = np.array([line.slope for line in model.cuts])
    return replace(cut, slope=float(slopes @ weights / weights.sum()))


def _moved(
    program: LinearProgram, models: Sequence[_Model], tangents: Sequence[Tangent], maximise: Maximise
) -> Sequence[Tangent]:
    """The tangents, each moved to the level that has its slope, unless that is worse."""
    moved = []
    for model, tangent in zip(models, tangents, strict=True):
        level = model.curve.level_of(tangent.slope, tangent, model.range_)
        moved.append(replace(model.curve.tangent(level), slope=tangent.slope))

    def objective(kept: Sequence[Tangent]) -> float:
        return maximise(with_levels(program, kept)).objective - sum(one.cost for one in kept)

    # Not the objective of the program with all tangents, which its tolerance may put too high.
    try:
        return moved if objective(moved) >= objective(tangents) else tangents
    except InfeasibleError:
        return tangents
