"""The planning problem under service levels: its optimum, or which level cannot be met."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ._errors import PlanError
from ._instance import Instance
from ._linear_program import InfeasibleError, LinearProgram, Optimum
from ._planning_program import planning_program
from ._service_level.cutting_planes import Curve, Found, best_tangents, check_optimal
from ._service_level.levels import INDICATORS, ServiceLevels
from ._service_level.mixed_share_search import best_mixed_share
from ._service_level.program import mixed_share_weights, with_service_levels
from ._service_level.tangents import Tangent, left_out, linearised, with_levels
from ._service_level.token_time import TokenTime

_DIGITS = 7
"""Significant digits of a level in a message."""

_ROUNDING = 1e-12
"""Relative error of a level for rounding."""


@dataclass(frozen=True)
class PlanningProblem:
    """The planning LP of an instance, with its service levels and perhaps without a decode queue."""

    instance: Instance
    scheme: str
    levels: ServiceLevels = ServiceLevels()
    no_decode_queue: bool = False

    def program(self) -> LinearProgram:
        """The linear program: everything but the penalty of eq. 48 and convex penalties."""
        program = planning_program(self.instance, self.scheme, self.no_decode_queue)
        return with_service_levels(program, self.instance, self.levels)

    def solve(self) -> Solution:
        """An optimum. **Raises:** `InfeasibleError`, `SolverError`, `InputError` for a bad cost."""
        program = self.program()
        tangents = self._tangents(program)
        priced = linearised(program, tangents)
        fixed = with_levels(priced, tangents)
        optimum = fixed.standard.maximise()
        objective = optimum.objective * fixed.value_scale + left_out(tangents) - self._constant_cost
        priced_optimum = priced.standard.maximise() if tangents else optimum
        if tangents and not (self._time_costs and TokenTime(self.instance).bend < 0):
            bound = priced_optimum.objective * priced.value_scale + left_out(tangents) - self._constant_cost
            check_optimal(tangents, objective, bound)
        prices = {f"{one.name}_convex_penalty": one.slope for one in tangents if one.name not in INDICATORS}
        if (price := self.levels.penalty("time_per_output_token")) > 0:
            prices["time_per_output_token_penalty"] = price
        return Solution(self, fixed, optimum, priced, priced_optimum, objective, prices)

    @property
    def _time_costs(self) -> bool:
        """Whether there is a penalty of eq. 48 and it depends on the plan."""
        return self.levels.penalty("time_per_output_token") > 0 and TokenTime(self.instance).bend != 0

    @property
    def _constant_cost(self) -> float:
        """The penalty of eq. 48 where every plan has the same."""
        penalty, time = self.levels.penalty("time_per_output_token"), TokenTime(self.instance)
        return penalty * time.at(0.0) if time.bend == 0 else 0.0

    def _tangents(self, program: LinearProgram) -> Sequence[Tangent]:
        """The tangents, at the best point, of all costs that are no part of the linear program."""
        workload, time = self.instance.workload, TokenTime(self.instance)
        curves = [
            Curve(
                one.name,
                f"{one.field}.convex_penalty",
                one.weights(workload).ravel(),
                one.convex_penalty.cost,
                one.convex_penalty.slope,
            )
            for one in self.levels.limits
            if one.convex_penalty is not None
        ]
        if not self._time_costs:
            return best_tangents(program, curves, _best) if curves else []
        if not curves:
            return [self._time_tangent(program)]
        if time.bend > 0:
            return best_tangents(program, [*curves, self._time_curve(program)], _best)
        # Concave, so that no tangents bound the time from below: the search beside the others' tangents.
        tangents = best_tangents(program, curves, self._best_beside_time)
        return [*tangents, self._time_tangent(with_levels(linearised(program, tangents), tangents))]

    def _time_curve(self, program: LinearProgram) -> Curve:
        """The penalty of eq. 48, where it is convex."""
        name, time = "time_per_output_token", TokenTime(self.instance)
        penalty, weights = self.levels.penalty(name), mixed_share_weights(program, self.instance)
        return Curve(
            name,
            f"sli.{name}_penalty",
            weights,
            lambda share: penalty * time.at(share),
            lambda share: penalty * time.slope(share),
        )

    def _time_tangent(self, program: LinearProgram) -> Tangent:
        """The tangent of the penalty of eq. 48 at the best X of a program without other costs that bend."""
        curve, time = self._time_curve(program), TokenTime(self.instance)
        penalty = self.levels.penalty("time_per_output_token")
        return curve.tangent(best_mixed_share(program, curve.weights, time, penalty))

    def _best_beside_time(self, program: LinearProgram) -> Found:
        """The best point of a program less the penalty of eq. 48."""
        tangent = self._time_tangent(program)
        linear = linearised(program, [tangent])
        found = _best(with_levels(linear, [tangent]))
        return Found(found.variables, _best(linear).prices, found.objective + left_out([tangent]))

    def refusal(self) -> PlanError:
        """Why there is no optimum: the first limit that cannot be met beside those before it."""
        met = replace(self, levels=ServiceLevels())
        if not met._feasible():
            cause = "the limit on fairness requires q_d = 0" if self.levels.forbid_decode_queue else ""
            return PlanError(
                f"planning LP: {cause or 'q_d = 0 is required'}, and no such plan exists; allow q_d > 0"
            )
        before: list[str] = []
        for name in self.levels.names:
            if self.levels.limit(name) is None:
                continue
            tried = replace(self, levels=self.levels.limits_on([*before, name]))
            if not tried._feasible():
                return self._unmet(name, before)
            before.append(name)
        return PlanError("sli: no plan attains these limits together; raise one of them")

    def _feasible(self) -> bool:
        try:
            self.program().standard.maximise()
        except InfeasibleError:
            return False
        return True

    def _unmet(self, name: str, before: Sequence[str]) -> PlanError:
        """One line that says what the tightest value of a limit is beside the limits that are met."""
        levels = self.levels
        beside = ", ".join(f"{other} {levels.limit(other):g}" for other in before)
        condition = f" beside {beside}" if beside else ""
        unit = f" {levels.unit(name)}" if levels.unit(name) else ""
        tightest = _rounded_up(self._tightest(name, before))
        return PlanError(
            f"{levels.field(name)}: no plan attains {levels.limit(name):g}{unit}{condition}; "
            f"expected at least {tightest:.{_DIGITS}g}, the tightest that one can"
        )

    def _tightest(self, name: str, before: Sequence[str]) -> float:
        """The least value of a level under the limits on some others. **Raises:** `InfeasibleError`."""
        met = replace(self, levels=self.levels.limits_on(before))
        if name in ("prefill_fairness", "decode_fairness"):
            penalised = ServiceLevels(
                **met.levels.numbers() | {f"{name}_penalty": 1.0}, limits=met.levels.limits
            )
            program = replace(met, levels=penalised).program()
            only = replace(program, value=np.minimum(program.value, 0.0))
            return -only.standard.maximise().objective * only.value_scale
        program, time = met.program(), TokenTime(self.instance)
        if name == "time_per_output_token":
            weights = math.copysign(1.0, time.bend) * mixed_share_weights(program, self.instance)
        else:
            (weights,) = (
                one.weights(self.instance.workload).ravel() for one in self.levels.limits if one.name == name
            )
            weights = np.pad(weights, (0, len(program.value) - len(weights)))
        least = replace(program, value=-weights)
        level = float(weights @ least.variables(least.standard.maximise().point))
        return time.at(abs(level)) if name == "time_per_output_token" else level


def _best(program: LinearProgram) -> Found:
    """The best point of a linear program."""
    optimum = program.standard.maximise()
    return Found(
        program.variables(optimum.point),
        program.prices(optimum.dual),
        optimum.objective * program.value_scale,
    )


@dataclass(frozen=True)
class Solution:
    """An optimum of a planning problem.

    **Arguments:**

    - `program`: its optima are the problem's; `optimum` is one of them.
    - `priced`: the dual solutions of its `priced_optimum` are the derivatives of the objective.
    - `objective`: revenue less penalties, money per GPU and second.
    - `cost_prices`: what a unit free of charge is worth under each cost that is no part of the programs, by
      name, money per GPU and second over the level's unit.
    """

    problem: PlanningProblem
    program: LinearProgram
    optimum: Optimum
    priced: LinearProgram
    priced_optimum: Optimum
    objective: float
    cost_prices: dict[str, float]


def _rounded_up(value: float) -> float:
    """A number with `_DIGITS` significant digits that is not below another, short of rounding errors."""
    if abs(value) < _ROUNDING:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(abs(value))) + 1 - _DIGITS)
    return math.ceil((value - abs(value) * _ROUNDING) / unit) * unit
