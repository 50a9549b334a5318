"""Service levels against an LP typed a second time, finite differences, and the published optima."""

import itertools
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog

from jaxq import InputError, Instance, PlanError, ServiceLevels
from jaxq._instance_file import instance_to_toml, load_instance, save_instance
from jaxq._plan import Plan, solve_plan, upper_bound

from .test_plan import SLOW_SOLO, instances, random_test, reference, standard_form

REFERENCE = Path(__file__).parents[1] / "experiments" / "instances" / "a100_qwen8b_two_class.toml"
INDICATORS = ("prefill_fairness", "decode_fairness", "time_per_output_token")
PENALTIES = tuple(f"{name}_penalty" for name in INDICATORS)
THREE = {
    "prompt_tokens": (300.0, 3000.0, 900.0),
    "output_tokens": (1000.0, 400.0, 600.0),
    "arrival_rate": (0.5, 0.5, 0.3),
    "patience_rate": (0.1, 0.1, 0.2),
}
SLOW = SLOW_SOLO | {"arrival_rate": (0.6, 0.3)}
"""gamma tau < 1: more GPUs with a prefill make tokens faster, and eq. 47 is concave."""


# An independent solution: every pair of classes has a row, and eq. 47 is multiplied out.


def mean_time(instance, share):
    batch, tau = float(instance.batch_size), float(instance.mixed_iteration_time)
    gamma = 1 / float(instance.iteration_time.solo)
    return (tau * (batch - 1) * share + batch / gamma * (1 - share)) / (
        (batch - 1) * share + batch * (1 - share)
    )


def optimum(instance, levels, decode_queue, scheme="bundled", share=None):
    """The best objective, less the penalty of eq. 48 when X = `share`; None where there is no plan."""
    gain, matrix, right, use = standard_form(instance, scheme, decode_queue=decode_queue)
    n, limits = instance.n_classes, levels.numbers()
    pairs = list(itertools.permutations(range(n), 2))
    gain = np.concatenate([gain, [-limits.get(name, 0.0) for name in PENALTIES[:2]]])
    above, bounds = [], [(0, None if used else 0) for used in use]
    for column, block in ((0, 0), (1, 2)):
        bounds.append((0, limits.get(INDICATORS[column])))
        for i, j in pairs:
            row = np.zeros(len(gain))
            row[[block * n + i, block * n + j, len(gain) - 2 + column]] = 1.0, -1.0, -1.0
            above.append(row)
    top, loose = np.reshape(above, (-1, len(gain))), np.zeros(len(above))
    if "time_per_output_token" in limits:
        limit, batch = limits["time_per_output_token"], float(instance.batch_size)
        tau, solo = float(instance.mixed_iteration_time), float(instance.iteration_time.solo)
        row = np.zeros(len(gain))
        row[:n] = tau * (batch - 1) - batch * solo + limit
        top, loose = np.vstack([top, row]), np.append(loose, batch * (limit - solo))
    matrix = np.hstack([matrix, np.zeros((len(matrix), 2))])
    if share is not None:
        matrix = np.vstack([matrix, np.arange(len(gain)) < n])
        right = np.append(right, share)
    solution = linprog(-gain, A_ub=top, b_ub=loose, A_eq=matrix, b_eq=right, bounds=bounds)
    return -solution.fun if solution.status == 0 else None


def penalised(instance, levels, decode_queue, share, scheme="bundled"):
    """The objective at X = `share`, the penalty of eq. 48 included."""
    value = optimum(instance, levels, decode_queue, scheme, share)
    weight = float(levels.time_per_output_token_penalty)
    return None if value is None else value - weight * mean_time(instance, share)


def assert_keeps(instance, plan, levels):
    """Feasible, worth what it says, within its limits, and with the indicators of its occupancies."""
    _, matrix, right, _ = standard_form(instance, plan.scheme)
    gain = standard_form(instance, plan.scheme)[0][:-3]
    point = np.concatenate([plan.x, plan.y_mixed, plan.y_solo, plan.q_prefill, plan.q_decode])
    used = matrix[:, :-3] * point
    slack, size = right - used.sum(axis=1), np.abs(used).sum(axis=1) + np.abs(right)
    assert (point >= 0).all()
    assert (slack[:3] >= -1e-9 * size[:3] - 1e-9).all()
    assert (np.abs(slack[3:]) <= 1e-8 * size[3:] + 1e-10).all()
    measured = {
        "prefill_fairness": plan.x.max() - plan.x.min(),
        "decode_fairness": plan.y_solo.max() - plan.y_solo.min(),
        "time_per_output_token": mean_time(instance, plan.x.sum()),
    }
    scale = {"prefill_fairness": 1.0, "decode_fairness": float(instance.batch_size)}
    cost = 0.0
    for name in INDICATORS:
        assert float(plan.indicators[name]) == pytest.approx(measured[name], rel=1e-9, abs=1e-12)
        assert levels.limit(name) is None or measured[name] <= levels.limit(name) + 1e-9 * scale.get(
            name, 0.1
        )
        cost += levels.penalty(name) * measured[name]
    revenue = float(plan.revenue)
    assert gain @ point == pytest.approx(float(plan.plan_revenue), rel=1e-8, abs=1e-8 * revenue)
    assert gain @ point - cost == pytest.approx(float(plan.objective), rel=1e-8, abs=1e-8 * revenue)
    if levels.forbid_decode_queue:
        assert plan.no_decode_queue and (plan.q_decode == 0).all()


def against_the_oracle(instance, levels, scheme="bundled"):
    """A plan whose objective nothing exceeds, attained by its own occupancies."""
    plan = solve_plan(instance, scheme, service_levels=levels)
    assert_keeps(instance, plan, levels)
    decode_queue, best = not plan.no_decode_queue, float(plan.objective)
    scale = max(float(plan.revenue), abs(best))
    if levels.penalty("time_per_output_token") == 0:
        assert best == pytest.approx(optimum(instance, levels, decode_queue, scheme), abs=1e-8 * scale)
        return plan
    share = plan.x.sum()
    assert best == pytest.approx(penalised(instance, levels, decode_queue, share, scheme), abs=1e-8 * scale)
    near = share + np.array([-1e-2, -1e-3, -1e-4, 1e-4, 1e-3, 1e-2])
    for other in np.clip(np.concatenate([np.linspace(0.0, 1.0, 13), near]), 0.0, 1.0):
        value = penalised(instance, levels, decode_queue, other, scheme)
        assert value is None or value <= best + 1e-8 * scale
    return plan


@pytest.mark.parametrize(
    "limit, value",
    [
        ({"prefill_fairness": 0.0}, 134.0),
        ({"prefill_fairness": 0.1}, 231.4594),
        ({"decode_fairness": 0.0}, 257.3996),
        ({"decode_fairness": 2.0}, 278.6828),
        ({"time_per_output_token": 0.0225}, 141.9768),
        ({"time_per_output_token": 0.023}, 187.6833),
    ],
)
def test_published_values(limit, value):
    instance, levels = reference(), ServiceLevels(**limit)
    plan = solve_plan(instance, service_levels=levels)
    assert float(plan.plan_revenue) == pytest.approx(value, rel=1e-6)
    assert float(plan.revenue) == pytest.approx(297.716190, abs=5.1e-7)
    assert plan.no_decode_queue and float(plan.objective) == float(plan.plan_revenue)
    against_the_oracle(instance, levels)


LEVELS = {
    "prefill penalty": {"prefill_fairness_penalty": 300.0},
    "large prefill penalty": {"prefill_fairness_penalty": 2000.0},
    "decode penalty": {"decode_fairness_penalty": 5.0},
    "large decode penalty": {"decode_fairness_penalty": 30.0},
    "small time penalty": {"time_per_output_token_penalty": 3e3},
    "time penalty": {"time_per_output_token_penalty": 6e4},
    "large time penalty": {"time_per_output_token_penalty": 3e5},
    "all limits": {"prefill_fairness": 0.12, "decode_fairness": 4.0, "time_per_output_token": 0.0238},
    "all penalties": dict(zip(PENALTIES, (200.0, 4.0, 3e4), strict=True)),
    "limits and penalties": {
        "prefill_fairness": 0.1,
        "decode_fairness": 6.0,
        "decode_fairness_penalty": 3.0,
        "time_per_output_token_penalty": 5e4,
    },
}


@pytest.mark.parametrize("scheme", ["bundled", "separate"])
@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize("numbers", [{}, THREE], ids=["two classes", "three classes"])
def test_levels_alone_and_together(numbers, name, scheme):
    against_the_oracle(reference(**numbers), ServiceLevels(**LEVELS[name]), scheme)


@pytest.mark.parametrize("limit", [0.0225, 0.023, 0.0238])
@pytest.mark.parametrize("numbers", [{}, THREE], ids=["two classes", "three classes"])
def test_a_penalty_at_a_limits_price_makes_the_same_plan(numbers, limit):
    """Eq. 47 is strictly convex here, and the best X lies inside a linear piece of the LP's value."""
    instance = reference(**numbers)
    limited = solve_plan(instance, service_levels=ServiceLevels(time_per_output_token=limit))
    price = float(limited.shadow_prices["time_per_output_token"][0])
    levels = ServiceLevels(time_per_output_token_penalty=price)
    plan = against_the_oracle(instance, levels)
    assert float(plan.indicators["time_per_output_token"]) == pytest.approx(limit, rel=1e-9)
    np.testing.assert_allclose(plan.x, limited.x, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(plan.bid_prices, limited.bid_prices, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "numbers, penalties, jumps",
    [
        ({"solo": 0.04, "batch_size": 4, "arrival_rate": (1.0, 1.0)}, (1e3, 3e3), (0.09655, 0.42890)),
        (THREE | {"solo": 0.05, "batch_size": 2, "arrival_rate": (1.0,) * 3}, (3e2, 1e3), (0.03862, 0.54587)),
    ],
    ids=["two classes", "three classes"],
)
def test_penalty_on_a_concave_time(numbers, penalties, jumps):
    """gamma tau < 1: as the penalty grows, the best X leaps between breakpoints of the LP's value."""
    instance = reference(**numbers)
    assert float(instance.mixed_iteration_time) < float(instance.iteration_time.solo)
    for penalty, share in zip(penalties, jumps, strict=True):
        levels = ServiceLevels(time_per_output_token_penalty=penalty)
        plan = against_the_oracle(instance, levels)
        assert float(plan.mixed_share) == pytest.approx(share, abs=1e-5)
        decode_queue, best = not plan.no_decode_queue, float(plan.objective)
        values = [penalised(instance, levels, decode_queue, x) for x in np.linspace(0.0, 1.0, 61)]
        assert max(value for value in values if value is not None) <= best + 1e-7 * abs(best)


def test_equal_times_leave_nothing_to_choose():
    tau = 0.0174 + 6.2e-5 * 256
    instance = reference(solo=tau)
    plan = solve_plan(instance, service_levels=ServiceLevels(time_per_output_token_penalty=1e3))
    assert float(plan.objective) == pytest.approx(float(plan.revenue) - 1e3 * tau, rel=1e-12)
    assert float(
        solve_plan(instance, service_levels=ServiceLevels(time_per_output_token=tau)).plan_revenue
    ) == (pytest.approx(float(plan.revenue), rel=1e-12))


@st.composite
def cases(draw):
    """Numbers for `reference`, and which levels to set, as shares of what the unconstrained plan has."""
    shares = st.one_of(st.none(), st.floats(0.0, 1.0))
    weights = st.one_of(st.just(0.0), st.floats(0.01, 10.0))
    limits = {name: share for name in INDICATORS if (share := draw(shares)) is not None}
    return draw(instances(max_classes=4)), limits, {name: draw(weights) for name in PENALTIES}


@given(cases(), st.sampled_from(["bundled", "separate"]))
@random_test(10)
def test_random_instances(case, scheme):
    numbers, shares, weights = case
    instance = reference(**numbers)
    plain = solve_plan(instance, scheme)
    times = sorted([float(instance.mixed_iteration_time), float(instance.iteration_time.solo)])
    largest = {
        "prefill_fairness": max(float(plain.indicators["prefill_fairness"]), 1e-3),
        "decode_fairness": max(float(plain.indicators["decode_fairness"]), 1e-2),
        "time_per_output_token": times[1] - times[0],
    }
    limits = {name: largest[name] * share for name, share in shares.items()}
    if "time_per_output_token" in limits:
        limits["time_per_output_token"] += times[0]
    weight = {f"{name}_penalty": plain.revenue / max(size, 1e-4) for name, size in largest.items()}
    levels = ServiceLevels(**limits, **{name: weight[name] * weights[name] for name in PENALTIES})
    try:
        against_the_oracle(instance, levels, scheme)
    except PlanError as error:
        assert str(error).startswith("sli.time_per_output_token: ")
        assert optimum(instance, levels, not levels.forbid_decode_queue, scheme) is None


# Derivatives.


@pytest.mark.parametrize("numbers", [{}, THREE, SLOW], ids=["two classes", "three classes", "slow solo"])
@pytest.mark.parametrize("name", INDICATORS)
def test_the_derivative_by_a_penalty_is_the_indicator(numbers, name):
    instance = reference(**numbers)
    weight = {"prefill_fairness": 211.0, "decode_fairness": 4.3, "time_per_output_token": 2.3e3}[name]

    def solved(factor):
        levels = ServiceLevels(**{f"{name}_penalty": weight * factor})
        return solve_plan(instance, service_levels=levels, require_no_decode_queue=True)

    slope = float(solved(1 + 1e-4).objective - solved(1 - 1e-4).objective) / (2e-4 * weight)
    assert slope == pytest.approx(-float(solved(1.0).indicators[name]), rel=1e-5)


@pytest.mark.parametrize(
    "levels",
    [
        {"prefill_fairness": 0.1},
        {"decode_fairness": 2.0},
        {"time_per_output_token": 0.023},
        {"prefill_fairness": 0.05, "decode_fairness": 3.0, "time_per_output_token": 0.0235},
        {"prefill_fairness": 0.1, "time_per_output_token_penalty": 4e4},
        {"decode_fairness": 3.0, "decode_fairness_penalty": 2.0, "prefill_fairness_penalty": 50.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("numbers", [{}, THREE], ids=["two classes", "three classes"])
def test_shadow_prices_are_derivatives_by_the_limits(numbers, levels):
    instance = reference(**numbers)
    plan = solve_plan(instance, service_levels=ServiceLevels(**levels))
    assert set(plan.shadow_prices) & set(INDICATORS) == set(levels) & set(INDICATORS)
    for name in set(levels) & set(INDICATORS):
        step = 1e-4 * levels[name]

        def objective(limit, name=name):
            changed = ServiceLevels(**levels | {name: limit})
            return float(solve_plan(instance, service_levels=changed).objective)

        slope = (objective(levels[name] + step) - objective(levels[name] - step)) / (2 * step)
        # The step's own error is what eq. 47 and 48 bend.
        assert float(plan.shadow_prices[name][0]) == pytest.approx(slope, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("name", ["prefill_fairness", "decode_fairness"])
@pytest.mark.parametrize("numbers", [{}, THREE], ids=["two classes", "three classes"])
def test_at_the_tightest_limit_a_price_is_what_a_wider_one_brings(numbers, name):
    instance, step = reference(**numbers), 1e-4
    tight, wide = (
        solve_plan(instance, service_levels=ServiceLevels(**{name: limit})) for limit in (0.0, step)
    )
    slope = float(wide.objective - tight.objective) / step
    assert float(tight.shadow_prices[name][0]) == pytest.approx(slope, rel=1e-6)


@pytest.mark.parametrize("name", ["time penalty", "all penalties", "limits and penalties"])
def test_bid_prices_are_derivatives_of_the_objective(name):
    instance, levels = reference(**THREE), ServiceLevels(**LEVELS[name])
    plan = solve_plan(instance, service_levels=levels)
    for i, price in enumerate(plan.bid_prices):
        rates = [np.array(THREE["arrival_rate"]) + step * np.eye(3)[i] for step in (-1e-4, 1e-4)]
        below, above = (
            float(solve_plan(reference(**THREE | {"arrival_rate": rate}), service_levels=levels).objective)
            for rate in rates
        )
        assert price == pytest.approx((above - below) / 2e-4, rel=2e-3, abs=1e-3)


# Which plan.


def test_the_argument_goes_before_the_instances_own_levels():
    instance = replace(reference(), service_levels=ServiceLevels(prefill_fairness=0.0))
    assert float(solve_plan(instance).plan_revenue) == pytest.approx(134.0, rel=1e-9)
    wider = solve_plan(instance, service_levels=ServiceLevels(prefill_fairness=0.1))
    assert float(wider.plan_revenue) == pytest.approx(231.4594, rel=1e-6)
    plain = solve_plan(instance, service_levels=ServiceLevels())
    assert float(plain.plan_revenue) == float(plain.revenue) and plain.service_levels is None
    assert upper_bound(instance) == upper_bound(reference())


def test_without_levels_a_plan_has_indicators_and_no_price_for_them():
    plan = solve_plan(reference())
    assert set(plan.indicators) == set(INDICATORS) and not set(plan.shadow_prices) & set(INDICATORS)
    assert float(plan.objective) == float(plan.plan_revenue)
    assert float(plan.indicators["prefill_fairness"]) == pytest.approx(0.194953 - 0.018261, abs=1e-6)


def test_a_limit_on_fairness_forbids_a_decode_queue_and_a_penalty_does_not():
    instance = reference(**SLOW_SOLO)
    limited = solve_plan(instance, "separate", service_levels=ServiceLevels(prefill_fairness=1.0))
    assert limited.no_decode_queue and (limited.q_decode == 0).all()
    penalty = ServiceLevels(prefill_fairness_penalty=1e-3, decode_fairness_penalty=1e-3)
    assert solve_plan(instance, "separate", service_levels=penalty).q_decode.sum() > 0
    timed = ServiceLevels(time_per_output_token=0.08)
    assert solve_plan(instance, "separate", service_levels=timed).q_decode.sum() > 0
    with pytest.raises(InputError, match="require_no_decode_queue: a limit on fairness"):
        solve_plan(instance, None, False, ServiceLevels(decode_fairness=1.0))


def least_deviation(plan, instance, limit):
    """The smallest largest deviation from decodes in proportion to tokens per second, by another LP."""
    tau, solo = float(instance.mixed_iteration_time), float(instance.iteration_time.solo)
    tokens = plan.y_mixed / tau + plan.y_solo / solo
    n, wanted = len(tokens), tokens / tokens.sum() * plan.y_solo.sum()
    above = [np.append(sign * np.eye(n)[i], -1.0) for i in range(n) for sign in (1, -1)]
    right = [sign * wanted[i] for i in range(n) for sign in (1, -1)]
    for i, j in itertools.permutations(range(n), 2):
        above.append(np.append(np.eye(n)[i] - np.eye(n)[j], 0.0))
        right.append(limit)
    solution = linprog(
        np.append(np.zeros(n), 1.0),
        A_ub=np.array(above),
        b_ub=right,
        A_eq=[np.append(np.ones(n), 0.0)],
        b_eq=[plan.y_solo.sum()],
        bounds=[*((0, solo * rate) for rate in tokens), (0, None)],
    )
    return solution.fun, np.abs(plan.y_solo - wanted).max()


@pytest.mark.parametrize("limit", [0.0, 1.0, 4.0, 20.0])
@pytest.mark.parametrize("numbers", [{}, THREE, THREE | {"arrival_rate": (0.2, 0.1, 0.2)}], ids=str)
def test_the_tie_break_under_decode_fairness(numbers, limit):
    """As many solo decodes as the limit and the slots allow, and as near to proportion as they can be."""
    instance, levels = reference(**numbers), ServiceLevels(decode_fairness=limit)
    plan = solve_plan(instance, service_levels=levels)
    assert_keeps(instance, plan, levels)
    tau, solo = float(instance.mixed_iteration_time), float(instance.iteration_time.solo)
    most = (plan.y_mixed / tau + plan.y_solo / solo) * solo
    slots = float(instance.batch_size) * (1 - plan.x.sum())
    together = np.minimum(most, most.min() + limit).sum()
    assert plan.y_solo.sum() == pytest.approx(min(slots, together, most.sum()), rel=1e-9)
    least, found = least_deviation(plan, instance, limit)
    assert found == pytest.approx(least, abs=1e-8)


def test_plans_under_different_limits_stack():
    plans = [solve_plan(reference(), service_levels=ServiceLevels(prefill_fairness=f)) for f in (0.0, 0.1)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *plans)
    np.testing.assert_array_equal(stacked.service_levels.prefill_fairness, [0.0, 0.1])
    numbers = [leaf for leaf in jax.tree.leaves(plans[0]) if leaf.dtype != bool]
    assert all(isinstance(leaf, np.ndarray) and leaf.dtype == np.float64 for leaf in numbers)
    assert Plan(x=[0.1], y_mixed=[1.0], y_solo=[1.0], revenue=3.0).objective == 3.0


# What cannot be met.


@pytest.mark.parametrize(
    "numbers, levels, name",
    [
        ({}, {"time_per_output_token": 0.0219}, "time_per_output_token"),
        (SLOW, {"time_per_output_token": 0.0333}, "time_per_output_token"),
        (
            {"patience_rate": (0.1, 0.0)},
            {"prefill_fairness": 0.01, "decode_fairness": 1.0},
            "prefill_fairness",
        ),
        ({"patience_rate": (0.1, 0.0)}, {"decode_fairness": 0.5, "time_per_output_token": 0.023}, None),
        ({"patience_rate": (0.0, 0.1)}, {"prefill_fairness": 0.0, "decode_fairness": 1.0}, "decode_fairness"),
    ],
    ids=str,
)
def test_what_cannot_be_met_is_refused_with_the_tightest_that_can(numbers, levels, name):
    instance = reference(**numbers)
    name = name or "time_per_output_token"
    with pytest.raises(PlanError) as caught:
        solve_plan(instance, service_levels=ServiceLevels(**levels))
    message = str(caught.value)
    assert message.startswith(f"sli.{name}: no plan attains ") and "\n" not in message
    tightest = float(message.split("expected at least ")[1].split(",")[0])
    before = dict(itertools.takewhile(lambda item: item[0] != name, levels.items()))
    assert levels[name] < tightest

    def feasible(limit):
        return optimum(
            instance, ServiceLevels(**before, **{name: limit}), not before and name == INDICATORS[2]
        )

    assert feasible(tightest) is not None and feasible(tightest * (1 - 1e-4)) is None
    plan = solve_plan(instance, service_levels=ServiceLevels(**before, **{name: tightest}))
    assert float(plan.indicators[name]) == pytest.approx(tightest, rel=1e-6)


@pytest.mark.parametrize(
    "arguments, field, expected",
    [
        ({"prefill_fairness": -0.1}, "sli.prefill_fairness", "at least 0"),
        ({"decode_fairness": np.inf}, "sli.decode_fairness", "finite"),
        ({"decode_fairness": True}, "sli.decode_fairness", "a number"),
        ({"time_per_output_token": 0.0}, "sli.time_per_output_token", "positive"),
        ({"time_per_output_token": "fast"}, "sli.time_per_output_token", "a number"),
        ({"time_per_output_token_penalty": np.nan}, "sli.time_per_output_token_penalty", "finite"),
        ({"prefill_fairness_penalty": None}, "sli.prefill_fairness_penalty", "a number"),
    ],
)
def test_bad_levels_are_refused(arguments, field, expected):
    with pytest.raises(InputError) as caught:
        ServiceLevels(**arguments)
    assert str(caught.value).startswith(f"{field}: expected ") and expected in str(caught.value)


# Instances and their files.


def with_levels(tmp_path, lines):
    path = tmp_path / "levels.toml"
    path.write_text(REFERENCE.read_text() + "\n[sli]\n" + lines)
    return path


def test_a_file_may_hold_levels(tmp_path):
    lines = "prefill_fairness = 0.1  # prefills per GPU\ntime_per_output_token_penalty = 100\n"
    instance = load_instance(with_levels(tmp_path, lines))
    levels = instance.service_levels
    assert levels is not None
    assert levels.numbers() == {"prefill_fairness": 0.1, "time_per_output_token_penalty": 100.0}
    assert levels.decode_fairness is None and levels.any and levels.forbid_decode_queue
    save_instance(instance, tmp_path / "saved.toml")
    loaded = load_instance(tmp_path / "saved.toml")
    assert instance_to_toml(loaded) == instance_to_toml(replace(instance))
    assert jax.tree.structure(loaded) == jax.tree.structure(instance)
    assert loaded.fingerprint() == instance.fingerprint() != reference().fingerprint()


def test_an_empty_table_sets_nothing(tmp_path):
    instance = load_instance(with_levels(tmp_path, ""))
    assert instance.service_levels is not None and not instance.service_levels.any
    assert instance.fingerprint() == load_instance(REFERENCE).fingerprint()
    save_instance(instance, tmp_path / "saved.toml")
    assert load_instance(tmp_path / "saved.toml").service_levels is not None
    assert load_instance(REFERENCE).service_levels is None
    assert "[sli]" not in instance_to_toml(load_instance(REFERENCE))


@pytest.mark.parametrize(
    "line, message",
    [
        ("prefil_fairness = 0.1", "sli.prefil_fairness: unknown key; did you mean 'prefill_fairness'?"),
        ("decode_fairness = -1", "sli.decode_fairness: expected a finite number of at least 0, got -1"),
        ("time_per_output_token = 'fast'", "sli.time_per_output_token: expected a number, got 'fast'"),
    ],
)
def test_mistakes_in_a_file_are_named(tmp_path, line, message):
    path = with_levels(tmp_path, line)
    with pytest.raises(InputError) as caught:
        load_instance(path)
    assert str(caught.value) == f"{path}: {message}"


def test_an_instance_without_levels_is_what_it_was():
    instance = reference()
    assert instance.service_levels is None
    assert instance.fingerprint() == load_instance(REFERENCE).fingerprint() == "a786a7ebbbb4"
    assert len(jax.tree.leaves(instance)) == 11
    assert isinstance(instance, Instance)
