"""The planning problem under service levels: its optimum, or which level cannot be met."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from ._errors import PlanError
from ._instance import Instance
from ._linear_program import InfeasibleError, LinearProgram, Optimum
from ._mixed_share_search import best_mixed_share, with_mixed_share
from ._planning_program import planning_program
from ._service_level_program import mixed_share_weights, with_service_levels
from ._service_levels import INDICATORS, ServiceLevels
from ._token_time import TokenTime

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
        """The linear program: everything but the penalty of eq. 48."""
        program = planning_program(self.instance, self.scheme, self.no_decode_queue)
        return with_service_levels(program, self.instance, self.levels)

    def solve(self) -> Solution:
        """An optimum. **Raises:** `InfeasibleError`, `SolverError`."""
        program, time = self.program(), TokenTime(self.instance)
        penalty = self.levels.penalty("time_per_output_token")
        if penalty == 0 or time.bend == 0:
            optimum = program.standard.maximise()
            objective = optimum.objective * program.value_scale - penalty * time.at(0.0)
            return Solution(self, program, optimum, program, optimum, objective)
        weights = mixed_share_weights(program, self.instance)
        share = best_mixed_share(program, weights, time, penalty)
        # Where the penalty is replaced by its tangent at the best X, optima remain optima, and the dual
        # solutions are the derivatives of the problem's own objective. Other X may then tie with the best.
        slope = penalty * time.slope(share)
        tangent = replace(program, value=program.value - slope * weights)
        fixed = with_mixed_share(tangent, weights, share)
        optimum = fixed.standard.maximise()
        objective = optimum.objective * fixed.value_scale + slope * share - penalty * time.at(share)
        return Solution(self, fixed, optimum, tangent, tangent.standard.maximise(), objective)

    def refusal(self) -> PlanError:
        """Why there is no optimum: the first limit that cannot be met beside those before it."""
        met = replace(self, levels=ServiceLevels())
        if not met._feasible():
            cause = "the limit on fairness requires q_d = 0" if self.levels.forbid_decode_queue else ""
            return PlanError(
                f"planning LP: {cause or 'q_d = 0 is required'}, and no such plan exists; allow q_d > 0"
            )
        for name in INDICATORS:
            limit = self.levels.limit(name)
            if limit is None:
                continue
            tried = replace(met, levels=ServiceLevels(**met.levels.numbers() | {name: limit}))
            if not tried._feasible():
                return _unmet(met, name, limit)
            met = tried
        return PlanError("sli: no plan attains these limits together; raise one of them")

    def _feasible(self) -> bool:
        try:
            self.program().standard.maximise()
        except InfeasibleError:
            return False
        return True

    def tightest(self, name: str) -> float:
        """The least value of an indicator on which there is no limit. **Raises:** `InfeasibleError`."""
        if name == "time_per_output_token":
            program, time = self.program(), TokenTime(self.instance)
            weights = mixed_share_weights(program, self.instance)
            least = replace(program, value=-math.copysign(1.0, time.bend) * weights)
            return time.at(float(weights @ least.variables(least.standard.maximise().point)))
        penalised = ServiceLevels(**self.levels.numbers() | {f"{name}_penalty": 1.0})
        program = replace(self, levels=penalised).program()
        only = replace(program, value=np.minimum(program.value, 0.0))
        return -only.standard.maximise().objective * only.value_scale


@dataclass(frozen=True)
class Solution:
    """An optimum of a planning problem.

    **Arguments:**

    - `program`: its optima are the problem's; `optimum` is one of them.
    - `priced`: the dual solutions of its `priced_optimum` are the derivatives of the objective.
    - `objective`: revenue less penalties, money per GPU and second.
    """

    problem: PlanningProblem
    program: LinearProgram
    optimum: Optimum
    priced: LinearProgram
    priced_optimum: Optimum
    objective: float


def _unmet(met: PlanningProblem, name: str, limit: float) -> PlanError:
    """One line that says what the tightest value of a limit is beside the limits that are met."""
    unit = INDICATORS[name]
    beside = ", ".join(f"{other} {value:g}" for other, value in met.levels.numbers().items())
    condition = f" beside {beside}" if beside else ""
    tightest = _rounded_up(met.tightest(name))
    return PlanError(
        f"sli.{name}: no plan attains {limit:g} {unit}{condition}; "
        f"expected at least {tightest:.{_DIGITS}g}, the tightest that one can"
    )


def _rounded_up(value: float) -> float:
    """A number with `_DIGITS` significant digits that is not below another, short of rounding errors."""
    if value < _ROUNDING:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(value)) + 1 - _DIGITS)
    return math.ceil(value / unit * (1 - _ROUNDING)) * unit
