"""The planning LP: the best long-run revenue per GPU, and a plan that attains it in the fluid limit."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, replace
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from ._errors import InputError, PlanError
from ._hardware import scalar
from ._instance import Instance
from ._linear_program import InfeasibleError, SolverError
from ._planning_problem import PlanningProblem, Solution
from ._planning_program import SLOTS, VARIABLES, planning_program
from ._pricing import SCHEMES
from ._service_level.levels import ServiceLevels
from ._service_level.program import attained
from ._tie_break import plan_variables
from ._workload import class_vector

SAME_VALUE = 1e-9
"""Relative difference below which two values of the LP are the same."""

SAME_DIRECTION = 1e-7
"""A component of a unit direction below this counts as 0."""


class Plan(eqx.Module):
    """Occupancies per GPU that a policy aims at, with the value and the prices of the LP they come from.

    Made by `solve_plan`; one made by hand needs the occupancies only. Every number is a float64 leaf on the
    host.

    **Uniqueness** is decided on the plan's LP (with q_d = 0 where it was required): one linear program at a
    time finds the columns, slacks included, that are positive at some optimum; the null space of the
    constraint matrix there holds the directions within the face of all optima, and the optimum is unique, or
    x, q_p, q_d are, if and only if all of them leave it alone. The dual solution is unique if and only if the
    matrix has independent rows there.

    **Shadow prices** are derivatives of `objective`: `prefill_slots` (sum x <= 1), `mixed_decode_slots`
    (sum y_m <= (B - 1) sum x), `solo_decode_slots` (sum y_s <= B (1 - sum x)), all per slot and GPU;
    `prefill_balance` and `decode_balance`, one a class (one more request per second and GPU before prefill:
    the bid price; before decode); `no_decode_queue`, one a class, when q_d = 0 was imposed (one waiting
    decode of the class, per GPU, if it were allowed); each limit on a service level, by the level's name
    (`prefill_fairness`, ...), per unit of the limit; each penalty, by that name and `_penalty`, per unit of
    the level that is free of charge (the penalty itself, or less where the level stays at what is free); each
    convex penalty, by that name and `_convex_penalty`, likewise: its slope at the plan. Where the dual
    solution is not unique, the prices of these limits and thresholds are those of slightly wider ones (right
    derivatives, the first first), and the others those of the same instance with all arrival rates slightly
    lower (the left derivative); among those with the smallest sum of `no_decode_queue`, then the smallest
    `solo_decode_slots`, `mixed_decode_slots` and `prefill_slots`, then the smallest sum of the balances'
    prices. (The order gives `prefill_slots` a price when sum x = 1, where `solo_decode_slots` binds as well.)

    **Arguments:**

    - `x`: running prefills of each class.
    - `y_mixed`, `y_solo`: decodes of each class on GPUs that run a prefill, and on GPUs that do not.
    - `q_prefill`, `q_decode`: requests of each class waiting for prefill, and for decode (0 when left out).
    - `bid_prices`: value of one more arrival of each class, money per request: the price of its prefill
      balance (0 when left out).
    - `revenue`: R*, money per GPU and second: the optimum of `scheme`'s LP as written ([Lin26] eq. 40, 42).
    - `plan_revenue`: what this plan earns, money per GPU and second: `revenue`, or less under service levels
      or when q_d = 0 was required.
    - `objective`: `plan_revenue` less the penalties for service levels, money per GPU and second.
    - `unique`: whether the optimum has one solution (x, y_m, y_s, q_p, q_d).
    - `flows_unique`: whether it has one (x, q_p, q_d); decodes of two classes may often be exchanged between
      mixed and solo GPUs without any change of flow or value, so that `unique` is rarely true with several
      classes.
    - `no_decode_queue`: whether q_d = 0 was imposed.
    - `shadow_prices`: the derivative of `objective` by the right-hand side of each constraint, limits on
      service levels included; see above.
    - `indicators`: the value of each service level, further limits included, by name, in the units of
      `ServiceLevels`; none in a plan made by hand.
    - `service_levels`: the limits and penalties that it was made under; None without any.
    - `scheme`: `"bundled"` or `"separate"`: what the LP maximised.

    **Raises:** `InputError` for occupancies that are negative, not finite or of different lengths.
    """

    x: Float[Any, " classes"]
    y_mixed: Float[Any, " classes"]
    y_solo: Float[Any, " classes"]
    q_prefill: Float[Any, " classes"]
    q_decode: Float[Any, " classes"]
    bid_prices: Float[Any, " classes"]
    revenue: Float[Any, ""]
    plan_revenue: Float[Any, ""]
    objective: Float[Any, ""]
    unique: Bool[Any, ""]
    flows_unique: Bool[Any, ""]
    no_decode_queue: Bool[Any, ""]
    shadow_prices: dict[str, Any]
    indicators: dict[str, Any]
    service_levels: ServiceLevels | None
    scheme: str = eqx.field(static=True)

    def __init__(
        self,
        x: Any,
        y_mixed: Any,
        y_solo: Any,
        q_prefill: Any = None,
        q_decode: Any = None,
        *,
        bid_prices: Any = None,
        revenue: Any = np.nan,
        plan_revenue: Any = None,
        objective: Any = None,
        unique: Any = False,
        flows_unique: Any = False,
        no_decode_queue: Any = False,
        shadow_prices: dict[str, Any] | None = None,
        indicators: dict[str, Any] | None = None,
        service_levels: ServiceLevels | None = None,
        scheme: str = "bundled",
    ):
        self.x = class_vector(x, "plan.x")
        zeros = np.zeros(self.x.shape)
        self.y_mixed = class_vector(y_mixed, "plan.y_mixed")
        self.y_solo = class_vector(y_solo, "plan.y_solo")
        self.q_prefill = class_vector(zeros if q_prefill is None else q_prefill, "plan.q_prefill")
        self.q_decode = class_vector(zeros if q_decode is None else q_decode, "plan.q_decode")
        self.bid_prices = class_vector(zeros if bid_prices is None else bid_prices, "plan.bid_prices")
        self.revenue = scalar(revenue, "plan.revenue")
        self.plan_revenue = scalar(revenue if plan_revenue is None else plan_revenue, "plan.plan_revenue")
        self.objective = scalar(self.plan_revenue if objective is None else objective, "plan.objective")
        self.unique = _flag(unique)
        self.flows_unique = _flag(flows_unique)
        self.no_decode_queue = _flag(no_decode_queue)
        self.shadow_prices = dict(shadow_prices or {})
        self.indicators = dict(indicators or {})
        self.service_levels = service_levels
        self.scheme = scheme

    def __check_init__(self):
        if self.scheme not in SCHEMES:
            raise InputError(f"scheme: expected one of {', '.join(SCHEMES)}, got {self.scheme!r}")
        for name in (*VARIABLES, "bid_prices"):
            value = getattr(self, name)
            if not isinstance(value, np.ndarray):
                continue
            if value.shape != self.x.shape:
                raise InputError(
                    f"plan.{name}: expected {self.x.shape[0]} numbers (one a class), got {value.size}"
                )
            if not np.isfinite(value).all() or (name != "bid_prices" and (value < 0).any()):
                raise InputError(f"plan.{name}: expected finite numbers of at least 0, got {value.tolist()}")

    @property
    def mixed_share(self) -> Any:
        """Share of the GPUs that run a prefill, sum of x."""
        return self.x.sum(axis=-1)

    def partition_size(self, n_gpus: int) -> int:
        """GPUs of the mixed group in a cluster of `n_gpus`: min(n, ceil(n sum x - 1e-6)), in float64."""
        share = np.asarray(self.x, dtype=np.float64).sum()
        return int(min(n_gpus, np.ceil(n_gpus * share - 1e-6)))


def _flag(value: Any) -> Any:
    """A host truth value becomes a boolean array, so that plans can be stacked."""
    return np.asarray(value) if isinstance(value, bool | np.bool_) else value


def solve_plan(
    instance: Instance,
    scheme: str | None = None,
    require_no_decode_queue: bool | None = None,
    service_levels: ServiceLevels | None = None,
) -> Plan:
    """The optimum of the steady-state planning LP ([Lin26] eq. 40, 42), by HiGHS in float64.

    **Which plan.** `revenue` is always the LP as written. The plan itself has q_d = 0 if
    `require_no_decode_queue` or a limit on fairness says so; with None a bundled plan has it whenever that
    costs nothing (relative 1e-9), which holds for gamma tau >= (B - 1)/B without service levels (Prop. 3.2),
    and a separate one never requires it.

    **Service levels** (eq. 43-48, and further limits) are limits on the plan and penalties in its objective,
    not in `revenue`. For the penalty of eq. 48 the best X = sum x is found exactly. Convex penalties are
    solved by cutting planes until the objective is within 1e-8 of the best, relative to it and to the costs
    (and mostly far closer). Uniqueness is among plans with the X, or the level, that these penalties choose.

    **Tie-break**, independent of the solver: the smallest sum of q_d; the lexicographically largest x; the
    lexicographically smallest q_d; the largest sum of y_s; within each total of decodes, classes in
    proportion to the tokens per second that they decode, or, where a service level forbids that or would cost
    more, the y_s with the smallest largest deviation from it (then the smallest sum of deviations, then the
    lexicographically largest).

    **Arguments:**

    - `instance`: numbers on the host (not traced).
    - `scheme`: `"bundled"` or `"separate"`; the instance's own when None.
    - `require_no_decode_queue`: True imposes q_d = 0, False does not; see above for None.
    - `service_levels`: in place of the instance's own; `ServiceLevels()` is none.

    **Returns:** a `Plan`.

    **Raises:** `PlanError` when classes that never abandon (patience_rate 0) bring more work than the cluster
    can serve, q_d = 0 is required and impossible, or a limit cannot be met (with the tightest that can);
    `InputError` for an unknown scheme, q_d allowed beside a limit that forbids it, a level of a class that is
    not there, or a penalty that is not convex.
    """
    scheme = _checked_scheme(instance, scheme)
    levels = (instance.service_levels if service_levels is None else service_levels) or ServiceLevels()
    if levels.forbid_decode_queue and require_no_decode_queue is False:
        raise InputError(
            "require_no_decode_queue: a limit on fairness imposes q_d = 0; expected None or True, got False"
        )
    required = True if levels.forbid_decode_queue else require_no_decode_queue
    for one in levels.limits:
        one.weights(instance.workload)  # refuses a class that is not there
    if levels.any:
        return _solved(instance, scheme, required, levels)
    found = _solved_once(_Asked(instance.fingerprint(), scheme, required, instance))
    return jax.tree.map(lambda number: number, found)  # with dictionaries of its own


@dataclass(frozen=True)
class _Asked:
    """What a plan without service levels is asked for; equal where all its numbers are."""

    fingerprint: str
    scheme: str
    required: bool | None
    instance: Instance = field(compare=False)


@functools.lru_cache(maxsize=1024)
def _solved_once(asked: _Asked) -> Plan:
    """The plan, solved once however many policies and results of an instance ask for it; read-only."""
    plan = _solved(asked.instance, asked.scheme, asked.required, ServiceLevels())
    for leaf in jax.tree.leaves(plan):
        if isinstance(leaf, np.ndarray):
            leaf.setflags(write=False)
    return plan


def _solved(instance: Instance, scheme: str, required: bool | None, levels: ServiceLevels) -> Plan:
    try:
        written = _written(instance, scheme)
        return _finish(
            _solve(PlanningProblem(instance, scheme, levels), required, written), written.objective
        )
    except SolverError as error:
        raise PlanError(f"planning LP: the solver stopped: {error}") from None


def _written(instance: Instance, scheme: str) -> Solution:
    """The LP as written."""
    try:
        return PlanningProblem(instance, scheme).solve()
    except InfeasibleError:
        raise PlanError(_infeasible_message(instance)) from None


def _solve(problem: PlanningProblem, required: bool | None, written: Solution) -> Solution:
    """The problem with q_d = 0 where that is required or costs nothing, else as it is."""
    constrained = replace(problem, no_decode_queue=True)
    if required:
        return _solve_or_refuse(constrained)
    free = _solve_or_refuse(problem) if problem.levels.any else written
    if required is False or problem.scheme == "separate":
        return free
    try:
        candidate = constrained.solve()
    except InfeasibleError:
        return free
    costs = free.objective - candidate.objective
    return free if costs > SAME_VALUE * max(written.objective, abs(free.objective)) else candidate


def _solve_or_refuse(problem: PlanningProblem) -> Solution:
    try:
        return problem.solve()
    except InfeasibleError:
        raise problem.refusal() from None


def upper_bound(instance: Instance, scheme: str | None = None) -> float:
    """The most that any policy can earn in the long run, at any number of GPUs; money per GPU and second.

    With every patience_rate positive this is `solve_plan(instance, scheme).revenue`. A class with
    patience_rate 0 may be left to queue without end where it pays too little, which the equalities of the
    plan forbid; for it the bound takes `lambda_i >= mu_prefill_i x_i`, and likewise for decode, in their
    place. Then the bound holds for every policy and exists for every load, while the plan's `revenue` bounds
    only the policies that keep those queues stable.

    **Arguments:**

    - `instance`: numbers on the host (not traced).
    - `scheme`: the revenue that is bounded, `"bundled"` or `"separate"`; the instance's own when None.

    **Raises:** `InputError` for an unknown scheme, `PlanError` when the solver fails.
    """
    program = planning_program(instance, _checked_scheme(instance, scheme), growing_queues=True)
    try:
        return program.optimal_value()
    except SolverError as error:
        raise PlanError(f"planning LP: the solver stopped: {error}") from None


def _checked_scheme(instance: Instance, scheme: str | None) -> str:
    scheme = instance.pricing.scheme if scheme is None else scheme
    if scheme not in SCHEMES:
        raise InputError(f"scheme: expected one of {', '.join(SCHEMES)}, got {scheme!r}")
    return scheme


def _finish(solution: Solution, revenue: float) -> Plan:
    """Uniqueness, tie-break and prices of an optimum, as a `Plan`."""
    problem, form = solution.problem, solution.program.standard
    instance, levels = problem.instance, problem.levels
    directions = form.directions(form.support(solution.optimum))

    def unmoved(*blocks: str) -> bool:
        return not (np.abs(directions[_columns(instance, blocks)]) > SAME_DIRECTION).any()

    flows_unique = unmoved("x", "q_prefill", "q_decode")
    variables = plan_variables(solution, directions, flows_unique)
    indicators = attained(instance, levels, variables)
    penalties = sum(levels.cost(name, value) for name, value in indicators.items())
    prices = _prices(solution)
    return Plan(
        *variables,
        bid_prices=prices["prefill_balance"],
        revenue=revenue,
        plan_revenue=solution.objective + penalties,
        objective=solution.objective,
        unique=unmoved(*VARIABLES),
        flows_unique=flows_unique,
        no_decode_queue=problem.no_decode_queue,
        shadow_prices=prices,
        indicators={name: np.asarray(value) for name, value in indicators.items()},
        service_levels=levels if levels.any else None,
        scheme=problem.scheme,
    )


def _columns(instance: Instance, blocks: tuple[str, ...]) -> Int[np.ndarray, " columns"]:
    """Where some of `VARIABLES` stand among the columns."""
    columns = np.arange(len(VARIABLES) * instance.n_classes).reshape(len(VARIABLES), -1)
    return columns[[VARIABLES.index(name) for name in blocks]].ravel()


def _prices(solution: Solution) -> dict[str, np.ndarray]:
    """Shadow prices, by the rule that `Plan` describes where the dual solution is not unique."""
    program, optimum = solution.priced, solution.priced_optimum
    support = program.standard.support(optimum)
    levels = [row for name in solution.problem.levels.names for row in (name, f"{name}_penalty")]
    if program.standard.dual_directions(support).size:
        one = np.ones(1)
        wider = [{name: -one} for name in levels]
        lower_arrivals = {"prefill_balance": solution.problem.instance.workload.arrival_rate}
        smallest = [{name: -one} for name in ("no_decode_queue", *reversed(SLOTS))]
        balances = {"prefill_balance": -one, "decode_balance": -one}
        prices = program.best_prices(optimum, support, [*wider, lower_arrivals, *smallest, balances])
    else:
        prices = program.prices(optimum.dual)
    reported = (*SLOTS, "prefill_balance", "decode_balance", "no_decode_queue", *levels)
    costs = {name: np.array([price]) for name, price in solution.cost_prices.items()}
    return {name: prices[name] for name in reported if name in prices} | costs


def _infeasible_message(instance: Instance) -> str:
    """One line that names the classes that never abandon and the load that does not fit."""
    workload = instance.workload
    patient = workload.patience_rate == 0
    names = ", ".join(repr(name) for name, never in zip(workload.names, patient, strict=True) if never)
    prefill = workload.arrival_rate / instance.mu_prefill
    load = prefill[patient].sum()
    demand = f"patience_rate = 0 for {names}: their prefills occupy {load:.6g} of each GPU (at most 1)"
    if load <= 1:
        decodes = (workload.arrival_rate * workload.output_tokens)[patient].sum()
        shares = np.array([load, min(1.0, prefill.sum())])
        mixed, solo = instance.mixed_iteration_time, instance.iteration_time.solo
        most = ((instance.batch_size - 1) * shares / mixed + instance.batch_size * (1 - shares) / solo).max()
        demand += (
            f" and they decode {decodes:.6g} tokens per second and GPU (at most {most:.6g} beside those)"
        )
    return f"planning LP: no stable plan exists; {demand}; lower arrival_rate or set patience_rate above 0"
