"""The planning LP: the best long-run revenue per GPU, and a plan that attains it in the fluid limit."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Bool, Float, Int

from ._errors import InputError, PlanError
from ._hardware import scalar
from ._instance import Instance
from ._linear_program import InfeasibleError, LinearProgram, Optimum, Row, SolverError, varying
from ._pricing import SCHEMES
from ._workload import class_vector

SAME_VALUE = 1e-9
"""Relative difference below which two values of the LP are the same."""

SAME_DIRECTION = 1e-7
"""A component of a unit direction below this counts as 0."""

_SLOTS = ("prefill_slots", "mixed_decode_slots", "solo_decode_slots")
_VARIABLES = ("x", "y_mixed", "y_solo", "q_prefill", "q_decode")


class Plan(eqx.Module):
    """Occupancies per GPU that a policy aims at, with the value and the prices of the LP they come from.

    Made by `solve_plan`; one made by hand needs the occupancies only. Every number is a float64 leaf on the
    host.

    **Arguments:**

    - `x`: running prefills of each class.
    - `y_mixed`, `y_solo`: decodes of each class on GPUs that run a prefill, and on GPUs that do not.
    - `q_prefill`, `q_decode`: requests of each class waiting for prefill, and for decode (0 when left out).
    - `bid_prices`: value of one more arrival of each class, money per request: the price of its prefill
      balance (0 when left out).
    - `revenue`: R*, money per GPU and second: the optimum of `scheme`'s LP as written ([Lin26] eq. 40, 42).
    - `plan_revenue`: value of this plan, money per GPU and second: `revenue`, or less when q_d = 0 was
      required.
    - `unique`: whether the optimum has one solution (x, y_m, y_s, q_p, q_d).
    - `flows_unique`: whether it has one (x, q_p, q_d); decodes of two classes may often be exchanged between
      mixed and solo GPUs without any change of flow or value, so that `unique` is rarely true with several
      classes.
    - `no_decode_queue`: whether q_d = 0 was imposed.
    - `shadow_prices`: the derivative of `plan_revenue` by the right-hand side of each constraint; see
      `solve_plan`.
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
    unique: Bool[Any, ""]
    flows_unique: Bool[Any, ""]
    no_decode_queue: Bool[Any, ""]
    shadow_prices: dict[str, Any]
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
        unique: Any = False,
        flows_unique: Any = False,
        no_decode_queue: Any = False,
        shadow_prices: dict[str, Any] | None = None,
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
        self.unique = _flag(unique)
        self.flows_unique = _flag(flows_unique)
        self.no_decode_queue = _flag(no_decode_queue)
        self.shadow_prices = dict(shadow_prices or {})
        self.scheme = scheme

    def __check_init__(self):
        if self.scheme not in SCHEMES:
            raise InputError(f"scheme: expected one of {', '.join(SCHEMES)}, got {self.scheme!r}")
        for name in (*_VARIABLES, "bid_prices"):
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
    instance: Instance, scheme: str | None = None, require_no_decode_queue: bool | None = None
) -> Plan:
    """The optimum of the steady-state planning LP ([Lin26] eq. 40, 42), by HiGHS in float64.

    **Which plan.** `revenue` is always the LP as written. The plan itself has q_d = 0 if
    `require_no_decode_queue`; with None a bundled plan has it whenever that costs nothing (relative 1e-9),
    which holds for gamma tau >= (B - 1)/B (Prop. 3.2), and a separate one never requires it.

    **Tie-break**, independent of the solver: the smallest sum of q_d; the lexicographically largest x; the
    lexicographically smallest q_d; the largest sum of y_s; within each total of decodes, classes in
    proportion to the tokens per second that they decode.

    **Uniqueness** is decided on the plan's LP (with q_d = 0 where it was required): one linear program at a
    time finds the columns, slacks included, that are positive at some optimum; the optimum is unique if and
    only if the constraint matrix has independent columns there, and x, q_p, q_d are unique if and only if its
    null space leaves them alone. The dual solution is unique if and only if its rows are independent there.

    **Shadow prices** are derivatives of `plan_revenue`: `prefill_slots` (sum x <= 1), `mixed_decode_slots`
    (sum y_m <= (B - 1) sum x), `solo_decode_slots` (sum y_s <= B (1 - sum x)), all per slot and GPU;
    `prefill_balance` and `decode_balance`, one a class (one more request per second and GPU before prefill:
    the bid price; before decode); `no_decode_queue`, one a class, when q_d = 0 was imposed (one waiting
    decode of the class, per GPU, if it were allowed). Where the dual solution is not unique they are those of
    the same instance with all arrival rates slightly lower (the left derivative); among those with the
    smallest sum of `no_decode_queue`, then the smallest `solo_decode_slots`, `mixed_decode_slots` and
    `prefill_slots`, then the smallest sum of the balances' prices. (The order gives `prefill_slots` a price
    when sum x = 1, where `solo_decode_slots` binds as well.)

    **Arguments:**

    - `instance`: numbers on the host (not traced).
    - `scheme`: `"bundled"` or `"separate"`; the instance's own when None.
    - `require_no_decode_queue`: True imposes q_d = 0, False does not; see above for None.

    **Returns:** a `Plan`.

    **Raises:** `PlanError` when classes that never abandon (patience_rate 0) bring more work than the cluster
    can serve, or q_d = 0 is required and impossible; `InputError` for an unknown scheme.
    """
    scheme = _checked_scheme(instance, scheme)
    try:
        return _solve(instance, scheme, require_no_decode_queue)
    except SolverError as error:
        raise PlanError(f"planning LP: the solver stopped: {error}") from None


def _solve(instance: Instance, scheme: str, require_no_decode_queue: bool | None) -> Plan:
    """The LP as written, the LP with q_d = 0 where that is wanted, and the plan of one of them."""
    written = _program(instance, scheme)
    try:
        optimum = written.standard.maximise()
    except InfeasibleError:
        raise PlanError(_infeasible_message(instance)) from None
    revenue = optimum.objective * written.value_scale
    required = bool(require_no_decode_queue)
    if not required and (require_no_decode_queue is False or scheme == "separate"):
        return _finish(instance, scheme, written, optimum, revenue)
    constrained = _program(instance, scheme, no_decode_queue=True)
    try:
        candidate = constrained.standard.maximise()
    except InfeasibleError:
        if required:
            raise PlanError(
                "planning LP: q_d = 0 is required, and no such plan exists; allow q_d > 0"
            ) from None
        return _finish(instance, scheme, written, optimum, revenue)
    if not required and candidate.objective * constrained.value_scale < revenue * (1 - SAME_VALUE):
        return _finish(instance, scheme, written, optimum, revenue)
    return _finish(instance, scheme, constrained, candidate, revenue, no_decode_queue=True)


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
    program = _program(instance, _checked_scheme(instance, scheme), growing_queues=True)
    try:
        return program.standard.maximise().objective * program.value_scale
    except SolverError as error:
        raise PlanError(f"planning LP: the solver stopped: {error}") from None


def _checked_scheme(instance: Instance, scheme: str | None) -> str:
    scheme = instance.pricing.scheme if scheme is None else scheme
    if scheme not in SCHEMES:
        raise InputError(f"scheme: expected one of {', '.join(SCHEMES)}, got {scheme!r}")
    return scheme


def _program(
    instance: Instance, scheme: str, no_decode_queue: bool = False, growing_queues: bool = False
) -> LinearProgram:
    """The planning LP on (x, y_m, y_s, q_p, q_d), a block of classes each.

    A class that never abandons has no q: with `growing_queues` its columns there hold the rate (1/s) at which
    its queue grows, else they are 0.
    """
    patience = instance.workload.patience_rate
    loss_rate = np.where(patience > 0, patience, 1.0)
    may_lose = (patience > 0) | growing_queues
    always = np.ones(instance.n_classes, dtype=bool)
    rows = _slot_rows(instance) + _balance_rows(instance, loss_rate)
    return LinearProgram(
        value=_objective(instance, scheme),
        rows=rows + (_no_decode_queue_rows(instance),) if no_decode_queue else rows,
        scale=_scale(instance, loss_rate),
        allowed=np.concatenate([always, always, always, may_lose, may_lose]),
    )


def _objective(instance: Instance, scheme: str) -> Float[np.ndarray, " variables"]:
    """Money per second that one unit of each variable earns: eq. 40 (bundled), eq. 42 (separate)."""
    zeros = np.zeros(instance.n_classes)
    prefill = instance.prefill_value * instance.mu_prefill if scheme == "separate" else zeros
    value = instance.decode_value if scheme == "separate" else instance.request_value
    return np.concatenate([prefill, value * instance.mu_mixed, value * instance.mu_solo, zeros, zeros])


def _slot_rows(instance: Instance) -> tuple[Row, ...]:
    """Capacity (eq. 12-14, divided by n)."""
    ones, zeros = np.ones(instance.n_classes), np.zeros(instance.n_classes)
    batch_size = float(instance.batch_size)

    def row(name: str, x: float, y_mixed: float, y_solo: float, right: float) -> Row:
        coefficients = np.concatenate([x * ones, y_mixed * ones, y_solo * ones, zeros, zeros])[None]
        return Row(name, coefficients, np.array([right]), equality=False)

    return (
        row(_SLOTS[0], 1.0, 0.0, 0.0, 1.0),
        row(_SLOTS[1], 1.0 - batch_size, 1.0, 0.0, 0.0),
        row(_SLOTS[2], batch_size, 0.0, 1.0, batch_size),
    )


def _balance_rows(instance: Instance, loss_rate: Float[np.ndarray, " classes"]) -> tuple[Row, ...]:
    """What enters a stage leaves it (eq. 40): a right-hand side is an arrival rate from outside."""
    none = np.zeros((instance.n_classes, instance.n_classes))
    prefill, mixed, solo = (np.diag(mu) for mu in (instance.mu_prefill, instance.mu_mixed, instance.mu_solo))
    loss = np.diag(loss_rate)
    arrivals = instance.workload.arrival_rate
    return (
        Row("prefill_balance", np.hstack([prefill, none, none, loss, none]), arrivals, equality=True),
        Row("decode_balance", np.hstack([-prefill, mixed, solo, none, loss]), 0.0 * arrivals, equality=True),
    )


def _no_decode_queue_rows(instance: Instance) -> Row:
    """q_d <= 0, class by class: rows rather than absent columns, so that each has a price."""
    classes = instance.n_classes
    coefficients = np.hstack([np.zeros((classes, 4 * classes)), np.eye(classes)])
    return Row("no_decode_queue", coefficients, np.zeros(classes), equality=False)


def _scale(instance: Instance, loss_rate: Float[np.ndarray, " classes"]) -> Float[np.ndarray, " variables"]:
    """The largest value that each variable can take by its own class's flow and its own stage's slots."""
    arrivals = instance.workload.arrival_rate
    x = np.minimum(1.0, arrivals / instance.mu_prefill)
    flow = x * instance.mu_prefill
    y_mixed = np.minimum(instance.batch_size, flow / instance.mu_mixed)
    y_solo = np.minimum(instance.batch_size, flow / instance.mu_solo)
    return np.concatenate([x, y_mixed, y_solo, arrivals / loss_rate, flow / loss_rate])


def _finish(
    instance: Instance,
    scheme: str,
    program: LinearProgram,
    optimum: Optimum,
    revenue: float,
    no_decode_queue: bool = False,
) -> Plan:
    """Uniqueness, tie-break and prices of an optimum, as a `Plan`."""
    form = program.standard
    support = form.support(optimum)
    directions = form.directions(support)
    flows_unique = not (np.abs(directions[_flow_columns(instance)]) > SAME_DIRECTION).any()
    point = optimum.point if flows_unique else _break_ties(program, optimum, directions)
    prices = _prices(instance, program, optimum, support)
    return Plan(
        *_spread_decodes(instance, program.variables(point)),
        bid_prices=prices["prefill_balance"],
        revenue=revenue,
        plan_revenue=optimum.objective * program.value_scale,
        unique=directions.shape[1] == 0,
        flows_unique=flows_unique,
        no_decode_queue=no_decode_queue,
        shadow_prices=prices,
        scheme=scheme,
    )


def _flow_columns(instance: Instance) -> Int[np.ndarray, " flows"]:
    """Where x, q_p and q_d stand among the variables."""
    blocks = np.arange(len(_VARIABLES) * instance.n_classes).reshape(len(_VARIABLES), -1)
    return blocks[[0, 3, 4]].ravel()


def _break_ties(
    program: LinearProgram, optimum: Optimum, directions: Float[np.ndarray, "columns directions"]
) -> Float[np.ndarray, " columns"]:
    """The optimal point with the smallest sum of q_d, then the largest x, the smallest q_d, class 0 first."""
    units = np.eye(len(program.value))
    x, _, _, _, q_decode = np.split(units, len(_VARIABLES))
    weights = [-q_decode.sum(axis=0), *x, *(-q_decode)]
    objectives = varying([program.columns(weight) for weight in weights], directions)
    return program.standard.successively(optimum.point, optimum.face, objectives)


def _prices(
    instance: Instance, program: LinearProgram, optimum: Optimum, support: Bool[np.ndarray, " columns"]
) -> dict[str, np.ndarray]:
    """Shadow prices, by the rule that `solve_plan` describes where the dual solution is not unique."""
    if not program.standard.dual_directions(support).size:
        return program.prices(optimum.dual)
    one = np.ones(1)
    lower_arrivals = {"prefill_balance": instance.workload.arrival_rate}
    smallest = [{name: -one} for name in ("no_decode_queue", *reversed(_SLOTS))]
    balances = {"prefill_balance": -one, "decode_balance": -one}
    return program.best_prices(optimum, support, [lower_arrivals, *smallest, balances])


def _spread_decodes(instance: Instance, variables: Float[np.ndarray, " variables"]) -> tuple[np.ndarray, ...]:
    """x, y_m, y_s, q_p, q_d with as many solo decodes as fit and classes in proportion to their tokens per
    second.

    It changes no flow: a class that decodes r_i tokens per second needs y_m,i / tau + gamma y_s,i = r_i.
    """
    x, _, _, q_prefill, q_decode = np.split(variables, len(_VARIABLES))
    patience, tau, solo = (
        instance.workload.patience_rate,
        instance.mixed_iteration_time,
        instance.iteration_time.solo,
    )
    completions = np.maximum(instance.mu_prefill * x - patience * q_decode, 0.0)
    tokens = instance.workload.output_tokens * completions
    total = tokens.sum()
    total_solo = min(instance.batch_size * max(1.0 - x.sum(), 0.0), total * solo)
    total_mixed = tau * max(total - total_solo / solo, 0.0)
    share = tokens / total if total > 0 else np.zeros(len(x))
    return x, total_mixed * share, total_solo * share, q_prefill, q_decode


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
