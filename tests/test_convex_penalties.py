"""Convex penalties against a search over the levels themselves, and what they cannot be."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import linprog, minimize_scalar

from jaxq import (
    AbstractConvexPenalty,
    InputError,
    OccupancyLimit,
    PlanError,
    QuadraticPenalty,
    ServiceLevels,
    solve_plan,
)
from jaxq._plan import upper_bound
from jaxq._service_level import cutting_planes

from .test_occupancy_limits import STAGES, THREE, level
from .test_plan import reference, standard_form
from .test_service_levels import SLOW, mean_time

ABANDONMENT = {"prefill_queue": [0.1, 0.1], "decode_queue": [0.1, 0.1]}
"""Requests that give up, 1/s per GPU, where every theta is 0.1."""


class Exponential(AbstractConvexPenalty):
    """Money that grows e-fold every `scale`."""

    scale: float

    def cost(self, level):
        return float(np.exp(level / self.scale))

    def slope(self, level):
        return float(np.exp(level / self.scale)) / self.scale


class Kinked(AbstractConvexPenalty):
    """No derivative at `at`: 1 a unit below, `steep` a unit above."""

    at: float
    steep: float

    def cost(self, level):
        return level + (self.steep - 1) * max(0.0, level - self.at)

    def slope(self, level):
        return self.steep if level > self.at else 1.0


class Hill(AbstractConvexPenalty):
    """A bump: not convex, though every tangent of a level far from it is below."""

    def cost(self, level):
        return level + 0.1 * np.exp(-(((level - 0.8) / 0.1) ** 2))

    def slope(self, level):
        return 1.0 - 20 * (level - 0.8) * 0.1 * np.exp(-(((level - 0.8) / 0.1) ** 2)) / 0.1


class WrongSlope(AbstractConvexPenalty):
    def cost(self, level):
        return level**2

    def slope(self, level):
        return level


class Endless(AbstractConvexPenalty):
    def cost(self, level):
        return 1.0 / (0.05 - level) if level < 0.05 else np.inf

    def slope(self, level):
        return 1.0 / (0.05 - level) ** 2


def limit(coefficients, curve, name="w", **arguments):
    return OccupancyLimit(name, coefficients, convex_penalty=curve, **arguments)


# An independent solution: the LP's value at each level, and a search over the levels.


def value_at(instance, fixed, decode_queue, share=None):
    """The most that is earned at given levels, pairs of coefficients and a number; None without a plan."""
    gain, matrix, right, use = standard_form(instance, "bundled", decode_queue=decode_queue)
    n, rows = instance.n_classes, []
    for coefficients, _ in fixed:
        rows.append(np.zeros(len(gain)))
        for stage, numbers in coefficients.items():
            rows[-1][STAGES.index(stage) * n : (STAGES.index(stage) + 1) * n] = numbers
    right = np.append(right, [at for _, at in fixed])
    if share is not None:
        rows.append((np.arange(len(gain)) < n).astype(float))
        right = np.append(right, share)
    bounds = [(0, None if used else 0) for used in use]
    solution = linprog(-gain, A_eq=np.vstack([matrix, *rows]), b_eq=right, bounds=bounds)
    return -solution.fun if solution.status == 0 else None


def best_of(instance, coefficients, penalty, decode_queue):
    """The best objective by golden section over the level: a concave function of it."""

    def loss(at):
        value = value_at(instance, [(coefficients, at)], decode_queue)
        return 1e9 if value is None else penalty.cost(at) - value

    gain, matrix, right, use = standard_form(instance, "bundled", decode_queue=decode_queue)
    weights = np.zeros(len(gain))
    for stage, numbers in coefficients.items():
        k = STAGES.index(stage) * instance.n_classes
        weights[k : k + instance.n_classes] = numbers
    bounds = [(0, None if used else 0) for used in use]
    low, high = (
        sign * linprog(sign * weights, A_eq=matrix, b_eq=right, bounds=bounds).fun for sign in (1, -1)
    )
    inside = (low + 1e-9 * (high - low), high - 1e-9 * (high - low))
    found = minimize_scalar(loss, bounds=inside, method="bounded", options={"xatol": 1e-12, "maxiter": 45})
    return -min(found.fun, loss(inside[0]), loss(inside[1]))


CASES = {
    "abandonment": (ABANDONMENT, QuadraticPenalty(100.0)),
    "steep abandonment": (ABANDONMENT, QuadraticPenalty(1e5)),
    "above a threshold": ({"prefill_queue": [1.0, 1.0]}, QuadraticPenalty(30.0, above=0.1)),
    "decodes": ({"decode_mixed": [1.0, 0.0], "decode_solo": [0.1, 0.5]}, QuadraticPenalty(20.0)),
    "exponential": ({"decode_mixed": [1.0, 1.0]}, Exponential(0.5)),
    "steep exponential": ({"decode_mixed": [1.0, 1.0]}, Exponential(0.1)),
    "kinked": ({"decode_mixed": [1.0, 1.0]}, Kinked(1.5, 50.0)),
    "does not matter": ({"prefill": [-1.0, -1.0]}, QuadraticPenalty(5.0)),
}


@pytest.mark.parametrize("name", CASES)
def test_the_best_objective_against_a_search(name):
    instance, (coefficients, penalty) = reference(), CASES[name]
    plan = solve_plan(instance, service_levels=ServiceLevels(limits=[limit(coefficients, penalty)]))
    best, found = float(plan.objective), level(plan, coefficients)
    size = max(float(plan.revenue), abs(best))
    assert float(plan.indicators["w"]) == pytest.approx(found, rel=1e-12)
    assert float(plan.plan_revenue) - penalty.cost(found) == pytest.approx(best, abs=1e-9 * size)
    decode_queue = not plan.no_decode_queue
    value = value_at(instance, [(coefficients, found)], decode_queue)
    assert value == pytest.approx(float(plan.plan_revenue), abs=1e-8 * size)
    assert best >= best_of(instance, coefficients, penalty, decode_queue) - 1e-8 * size
    assert float(plan.revenue) == pytest.approx(upper_bound(instance), rel=1e-12)


@pytest.mark.parametrize("name", ["above a threshold", "exponential"])
def test_the_shadow_price_is_the_penaltys_slope_and_what_the_level_earns(name):
    """First-order conditions: the slope lies between what a little more and a little less of it earn."""
    instance, (coefficients, penalty) = reference(), CASES[name]
    plan = solve_plan(instance, service_levels=ServiceLevels(limits=[limit(coefficients, penalty)]))
    price, found = float(plan.shadow_prices["w_convex_penalty"][0]), level(plan, coefficients)
    assert price == pytest.approx(penalty.slope(found), rel=1e-6)
    step = 1e-4 * max(1.0, abs(found))
    below, at, above = (
        value_at(instance, [(coefficients, found + k * step)], not plan.no_decode_queue) for k in (-1, 0, 1)
    )
    assert (above - at) / step - 1e-3 * price <= price <= (at - below) / step + 1e-3 * price


def test_at_a_kink_the_price_lies_between_its_sides():
    coefficients, penalty = CASES["kinked"]
    plan = solve_plan(reference(), service_levels=ServiceLevels(limits=[limit(coefficients, penalty)]))
    assert level(plan, coefficients) == pytest.approx(1.5, abs=1e-8)
    assert 1.0 < float(plan.shadow_prices["w_convex_penalty"][0]) < 50.0


def test_a_limit_at_its_level_makes_the_same_plan_at_the_same_price():
    """With the same bid prices, too: the penalty is worth its tangent there."""
    coefficients, penalty = CASES["exponential"]
    curved = solve_plan(reference(), service_levels=ServiceLevels(limits=[limit(coefficients, penalty)]))
    most = OccupancyLimit("w", coefficients, level(curved, coefficients))
    limited = solve_plan(reference(), service_levels=ServiceLevels(limits=[most]))
    np.testing.assert_allclose(curved.x, limited.x, rtol=1e-7)
    np.testing.assert_allclose(curved.bid_prices, limited.bid_prices, rtol=1e-6, atol=1e-6)
    assert float(limited.shadow_prices["w"][0]) == pytest.approx(
        float(curved.shadow_prices["w_convex_penalty"][0]), rel=1e-6
    )


@pytest.mark.parametrize(
    "numbers", [{}, pytest.param(SLOW, marks=pytest.mark.slow)], ids=["convex time", "concave time"]
)
def test_beside_other_levels_and_the_time_per_token(numbers):
    """No plan at nearby levels and shares is better, nor at any of a coarse grid of them."""
    instance = reference(**numbers)
    one, other = {"decode_mixed": [1.0, 1.0]}, {"prefill_queue": [1.0, 0.0], "decode_queue": [0.5, 1.0]}
    curve, weight = QuadraticPenalty(4.0), 2e3
    levels = ServiceLevels(
        time_per_output_token_penalty=weight,
        limits=[limit(one, curve), limit(other, QuadraticPenalty(10.0), "v")],
    )
    plan = solve_plan(instance, service_levels=levels)
    size = float(plan.revenue)
    at = (level(plan, one), level(plan, other), float(plan.x.sum()))

    def objective(first, second, share):
        value = value_at(instance, [(one, first), (other, second)], not plan.no_decode_queue, share)
        costs = 4.0 * max(0.0, first) ** 2 + 10.0 * max(0.0, second) ** 2
        return -np.inf if value is None else value - costs - weight * mean_time(instance, share)

    best = float(plan.objective)
    assert objective(*at) == pytest.approx(best, abs=1e-7 * size)
    rng = np.random.default_rng(0)
    for spread in (1e-3, 1e-2, 1e-1, 1.0):
        for _ in range(5):
            first, second, share = np.array(at) * (1 + spread * rng.uniform(-1, 1, 3))
            assert objective(first, second, share) <= best + 1e-8 * size


def test_beside_a_time_per_token_that_no_plan_changes():
    tau = 0.0174 + 6.2e-5 * 256
    instance, (coefficients, penalty) = reference(solo=tau), CASES["above a threshold"]
    limits = [limit(coefficients, penalty)]
    alone = solve_plan(instance, service_levels=ServiceLevels(limits=limits))
    levels = ServiceLevels(time_per_output_token_penalty=1e5, limits=limits)
    both = solve_plan(instance, service_levels=levels)
    assert float(both.objective) == pytest.approx(float(alone.objective) - 1e5 * tau, rel=1e-12)
    np.testing.assert_allclose(both.x, alone.x, rtol=1e-12)


def test_three_classes_and_a_limit_beside():
    instance, queue = reference(**THREE), {"prefill_queue": [1.0, 1.0, 1.0]}
    levels = ServiceLevels(
        decode_fairness=6.0,
        limits=[limit(queue, QuadraticPenalty(50.0), at_most=2.5, penalty=3.0, penalty_above=1.0)],
    )
    plan = solve_plan(instance, service_levels=levels)
    found = level(plan, queue)
    cost = 50 * found**2 + 3 * max(0.0, found - 1)
    assert float(plan.plan_revenue - plan.objective) == pytest.approx(cost, rel=1e-9)
    assert found <= 2.5 + 1e-9 and float(plan.indicators["decode_fairness"]) <= 6.0 + 1e-8
    assert {"w", "w_penalty", "w_convex_penalty"} <= set(plan.shadow_prices)


@pytest.mark.parametrize(
    "penalty, message",
    [
        (Hill(), "expected a convex cost, and its derivative as slope; at level "),
        (WrongSlope(), "expected a convex cost, and its derivative as slope; at level "),
        (Endless(), "expected a finite cost and slope at level "),
    ],
)
def test_what_is_not_convex_or_not_finite_is_refused(penalty, message):
    with pytest.raises(InputError) as caught:
        solve_plan(reference(), service_levels=ServiceLevels(limits=[limit(ABANDONMENT, penalty)]))
    assert str(caught.value).startswith(f"sli.limits.w.convex_penalty: {message}")
    assert "\n" not in str(caught.value)


def test_what_does_not_converge_is_refused(monkeypatch):
    monkeypatch.setattr(cutting_planes, "MOST_ROUNDS", 2)
    coefficients, penalty = CASES["exponential"]
    with pytest.raises(
        PlanError, match="w.convex_penalty: found no plan within 1e-08 of the best objective in 2 "
    ):
        solve_plan(reference(), service_levels=ServiceLevels(limits=[limit(coefficients, penalty)]))


def test_a_limit_beside_it_that_cannot_be_met_is_named():
    limits = [limit(ABANDONMENT, QuadraticPenalty(1.0)), OccupancyLimit("low", {"decode_solo": -1.0}, -17.0)]
    with pytest.raises(PlanError, match="sli.limits.low.at_most: no plan attains -17; expected at least "):
        solve_plan(reference(), service_levels=ServiceLevels(limits=limits))


def test_an_instance_cannot_hold_one():
    with pytest.raises(InputError, match="sli.limits.w.convex_penalty: no file can hold it"):
        replace(reference(), service_levels=ServiceLevels(limits=[limit(ABANDONMENT, QuadraticPenalty(1.0))]))


@pytest.mark.parametrize(
    "arguments", [{"weight": -1.0}, {"weight": np.inf}, {"weight": 1.0, "above": np.nan}]
)
def test_bad_quadratic_penalties_are_refused(arguments):
    with pytest.raises(InputError, match="expected a finite number"):
        QuadraticPenalty(**arguments)
