"""What a cluster is sized for: how much it earns of what is offered, or how few requests abandon."""

from __future__ import annotations

import abc
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Float64

from ._errors import InputError, PlanError
from ._instance import Instance
from ._linear_program import InfeasibleError, LinearProgram, Row, SolverError
from ._planning_program import VARIABLES, planning_program
from ._result import Result

ROUNDING = 1e-9
"""Relative error of a linear program's value for rounding."""

Samples = Float64[np.ndarray, "replications *classes"]


@dataclass(frozen=True)
class AbstractTarget(abc.ABC):
    """A limit on a long-run share that a cluster is to keep, between 0 and 1.

    What is measured of a replication is what it loses, less what is lost at the limit of all that arrives
    above the mean, over the mean arrivals. Its mean is the long-run share, since the mean of arrivals is
    known and what is not lost is served; it varies less than what is served does, which hangs on the work in
    progress at both ends and on how much happens to arrive.

    - `share`: the limit.
    - `name`: of the quantity; `at_least`: whether the limit is a lower one.
    """

    share: float

    name: ClassVar[str]
    at_least: ClassVar[bool]
    _limits: ClassVar[str]

    def __post_init__(self):
        if not 0 < self.share < 1:
            raise InputError(
                f"{self.name}: expected a share above 0 and below 1, got {self.share:g}; {self._limits}"
            )

    @property
    @abc.abstractmethod
    def text(self) -> str:
        """What is asked, to go on after 'n GPUs serve the load with'."""

    @property
    @abc.abstractmethod
    def measure(self) -> str:
        """What is measured, as a heading."""

    @abc.abstractmethod
    def lost_rate(self, load: Float64[np.ndarray, " classes"]) -> float:
        """Requests per second of a total load that are lost where the limit is just kept, about."""

    @abc.abstractmethod
    def best(self, instance: Instance) -> float:
        """The most that any policy attains, by the planning LP (the least, unless `at_least`).

        A class that never abandons (patience_rate 0) must be served in full; where that is impossible this is
        0 (or 1).

        **Raises:** `PlanError` when the solver fails.
        """

    @abc.abstractmethod
    def samples(self, result: Result) -> Samples:
        """What is measured of each replication; one number a class where each class has the limit."""

    def within_reach(self, instance: Instance) -> bool:
        """Whether the planning LP leaves the limit possible."""
        best = self.best(instance)
        if self.at_least:
            return best >= self.share * (1 - ROUNDING)
        return best <= self.share * (1 + ROUNDING)


@dataclass(frozen=True)
class RevenueTarget(AbstractTarget):
    """At least a share of the offered value is earned: n R(n) >= share * sum w_i Lambda_i, w_i of [Lin26]
    eq. 21, R of the instance's scheme (eq. 22, 23).

    **Arguments:** `share`: above 0 and below 1.

    **Raises:** `InputError` for another number.
    """

    name = "revenue"
    at_least = True
    _limits = "no cluster earns more than what is offered, and none is sure to lose nothing of it"

    @property
    def text(self) -> str:
        return f"at least {100 * self.share:g} % of the offered value earned"

    @property
    def measure(self) -> str:
        return "share of the offered value"

    def lost_rate(self, load: Float64[np.ndarray, " classes"]) -> float:
        return float((1 - self.share) * load.sum())

    def best(self, instance: Instance) -> float:
        revenue = _optimal_value(planning_program(instance, instance.pricing.scheme))
        if revenue is None:
            return 0.0
        return min(1.0, revenue / float(instance.workload.arrival_rate @ instance.request_value))

    def samples(self, result: Result) -> Samples:
        instance = result.instance
        value = instance.request_value
        offered = float(instance.workload.arrival_rate @ value)
        before, after = _lost(result)
        unpaid = instance.decode_value if instance.pricing.scheme == "separate" else value
        arrived = result.per_replication("arrival_rate") @ value
        excess = before @ value + after @ unpaid - (1 - self.share) * (arrived - offered)
        return 1 - excess / offered


@dataclass(frozen=True)
class AbandonmentTarget(AbstractTarget):
    """At most a share of the requests abandons, before or after their prefill.

    Requests of a class that never abandons (patience_rate 0) count as lost as far as they queue without end.

    **Arguments:**

    - `share`: above 0 and below 1.
    - `each_class`: whether the limit holds for each class on its own, and not for all requests together.

    **Raises:** `InputError` for another share.
    """

    each_class: bool = False

    name = "abandonment"
    at_least = False
    _limits = "some requests find a queue and may leave it, however many GPUs there are"

    @property
    def text(self) -> str:
        whose = "each class's" if self.each_class else "all"
        return f"at most {100 * self.share:g} % of {whose} requests abandoning"

    @property
    def measure(self) -> str:
        return "share of the requests that abandon"

    def lost_rate(self, load: Float64[np.ndarray, " classes"]) -> float:
        return float(self.share * (load.min() if self.each_class else load.sum()))

    def best(self, instance: Instance) -> float:
        program = planning_program(instance, "bundled")
        completions, arrivals = _completions(instance), instance.workload.arrival_rate
        if self.each_class:
            served = _optimal_value(_with_least_served(program, completions, arrivals))
        else:
            served = _optimal_value(replace(program, value=completions.sum(axis=0) / arrivals.sum()))
        return 1.0 if served is None else min(1.0, max(0.0, 1.0 - served))

    def samples(self, result: Result) -> Samples:
        arrivals = result.instance.workload.arrival_rate
        excess = sum(_lost(result)) - self.share * (result.per_replication("arrival_rate") - arrivals)
        return excess / arrivals if self.each_class else excess.sum(axis=1) / arrivals.sum()


def _lost(result: Result) -> tuple[Samples, Samples]:
    """Requests of each class lost before and after their prefill in each replication, 1/s per GPU; of a class
    that never abandons those that stay in a stage."""
    rate, leaves = result.per_replication, result.instance.workload.patience_rate > 0
    arrived, prefilled, done = rate("arrival_rate"), rate("prefill_rate"), rate("completion_rate")
    return (
        np.where(leaves, rate("abandonment_rate_prefill"), arrived - prefilled),
        np.where(leaves, rate("abandonment_rate_decode"), prefilled - done),
    )


def _completions(instance: Instance) -> Float[np.ndarray, "classes variables"]:
    """The completion rate of each class as a linear function of the planning LP's variables."""
    blocks = {name: np.zeros((instance.n_classes, instance.n_classes)) for name in VARIABLES}
    blocks |= {"y_mixed": np.diag(instance.mu_mixed), "y_solo": np.diag(instance.mu_solo)}
    return np.hstack([blocks[name] for name in VARIABLES])


def _with_least_served(program: LinearProgram, completions: Any, arrivals: Any) -> LinearProgram:
    """The planning LP that maximises one more variable: the share of its requests that every class has
    served at least."""
    rows = [replace(row, coefficients=np.pad(row.coefficients, ((0, 0), (0, 1)))) for row in program.rows]
    served = np.hstack([-completions, arrivals[:, None]])
    rows.append(Row("least_served", served, np.zeros(len(arrivals)), equality=False))
    return LinearProgram(
        value=np.append(np.zeros(len(program.value)), 1.0),
        rows=tuple(rows),
        scale=np.append(program.scale, 1.0),
        allowed=np.append(program.allowed, True),
    )


def _optimal_value(program: LinearProgram) -> float | None:
    """The optimum of a planning LP; None when classes that never abandon bring more than can be served."""
    try:
        return program.optimal_value()
    except InfeasibleError:
        return None
    except SolverError as error:
        raise PlanError(f"planning LP: the solver stopped: {error}") from None
