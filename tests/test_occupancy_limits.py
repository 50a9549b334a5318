"""Limits on sums of occupancies against an LP typed a second time, finite differences and duality."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog

from jaxq import (
    InputError,
    OccupancyLimit,
    PlanError,
    ServiceLevels,
    load_instance,
    save_instance,
    solve_plan,
)
from jaxq._plan import upper_bound

from .test_plan import SLOW_SOLO, instances, random_test, reference, standard_form

REFERENCE = Path(__file__).parents[1] / "experiments" / "instances" / "a100_qwen8b_two_class.toml"
STAGES = ("prefill", "decode_mixed", "decode_solo", "prefill_queue", "decode_queue")
THREE = {
    "prompt_tokens": (300.0, 3000.0, 900.0),
    "output_tokens": (1000.0, 400.0, 600.0),
    "arrival_rate": (0.5, 0.5, 0.3),
    "patience_rate": (0.1, 0.1, 0.2),
}


# An independent solution: limits and penalties by stage and class number, fairness by pairs of classes.


def optimum(instance, limits, decode_queue, scheme="bundled", prefill_fairness=None):
    """The best objective; None where there is no plan. `limits`: (coefficients, at_most, penalty, above)."""
    gain, matrix, right, use = standard_form(instance, scheme, decode_queue=decode_queue)
    n, wide = instance.n_classes, len(gain)
    gain = np.append(gain, [-penalty for _, _, penalty, _ in limits])
    matrix = np.hstack([matrix, np.zeros((len(matrix), len(limits)))])
    above, most = [], []
    for k, (coefficients, at_most, _, threshold) in enumerate(limits):
        row = np.zeros(len(gain))
        for stage, numbers in coefficients.items():
            row[STAGES.index(stage) * n : (STAGES.index(stage) + 1) * n] = numbers
        if at_most is not None:
            above.append(row.copy())
            most.append(at_most)
        row[wide + k] = -1.0
        above.append(row)
        most.append(threshold)
    for i, j in itertools.permutations(range(n), 2) if prefill_fairness is not None else ():
        row = np.zeros(len(gain))
        row[[i, j]] = 1.0, -1.0
        above.append(row)
        most.append(prefill_fairness)
    bounds = [(0, None if used else 0) for used in (*use, *(True for _ in limits))]
    solution = linprog(-gain, A_ub=np.array(above), b_ub=most, A_eq=matrix, b_eq=right, bounds=bounds)
    return -solution.fun if solution.status == 0 else None


def made(limits):
    """The same for `solve_plan`, called a, b, ..."""
    return [
        OccupancyLimit(name, coefficients, at_most, penalty=penalty, penalty_above=above if penalty else 0.0)
        for name, (coefficients, at_most, penalty, above) in zip("abcdef", limits, strict=False)
    ]


def level(plan, coefficients):
    stages = dict(
        zip(STAGES, (plan.x, plan.y_mixed, plan.y_solo, plan.q_prefill, plan.q_decode), strict=True)
    )
    return sum(float(np.sum(stages[stage] * numbers)) for stage, numbers in coefficients.items())


def assert_right(instance, limits, scheme="bundled", prefill_fairness=None):
    """The plan is feasible, keeps the limits, is worth what it says, and nothing is worth more."""
    levels = ServiceLevels(prefill_fairness=prefill_fairness, limits=made(limits))
    plan = solve_plan(instance, scheme, service_levels=levels)
    gain, matrix, right, _ = standard_form(instance, scheme)
    point = np.concatenate([plan.x, plan.y_mixed, plan.y_solo, plan.q_prefill, plan.q_decode])
    used = matrix[:, :-3] * point
    slack, size = right - used.sum(axis=1), np.abs(used).sum(axis=1) + np.abs(right)
    assert (point >= 0).all() and (slack[:3] >= -1e-9 * size[:3] - 1e-9).all()
    assert (np.abs(slack[3:]) <= 1e-8 * size[3:] + 1e-10).all()
    cost = 0.0
    for name, (coefficients, at_most, penalty, above) in zip("abcdef", limits, strict=False):
        found = level(plan, coefficients)
        largest = level(plan, {stage: np.abs(numbers) for stage, numbers in coefficients.items()})
        assert float(plan.indicators[name]) == pytest.approx(found, rel=1e-12, abs=1e-12 * largest)
        assert at_most is None or found <= at_most + 1e-8 * (largest + abs(at_most))
        cost += penalty * max(0.0, found - above)
        # Complementary slackness: a limit that does not bind has no price, a threshold not reached neither.
        scale = float(plan.revenue) / max(largest, 1e-3)
        if at_most is not None and found < at_most - 1e-5 * max(1.0, abs(at_most), largest):
            assert abs(plan.shadow_prices[name][0]) <= 1e-6 * scale
        if penalty > 0:
            price = float(plan.shadow_prices[f"{name}_penalty"][0])
            assert -1e-6 * scale <= price <= penalty * (1 + 1e-9)
            if found > above + 1e-5 * max(1.0, abs(above), largest):
                assert price == pytest.approx(penalty, rel=1e-6)
    best, size = float(plan.objective), max(float(plan.revenue), abs(float(plan.objective)), cost)
    assert gain[:-3] @ point - cost == pytest.approx(best, abs=1e-8 * size)
    expected = optimum(instance, limits, not plan.no_decode_queue, scheme, prefill_fairness)
    assert best == pytest.approx(expected, abs=1e-8 * size)
    assert float(plan.revenue) == pytest.approx(upper_bound(instance, scheme), rel=1e-9)
    return plan


LIMITS = {
    "queue": [({"prefill_queue": [1.0, 1.0]}, 0.2, 0.0, 0.0)],
    "one class": [({"prefill_queue": [1.0, 0.0]}, None, 50.0, 0.05)],
    "mixed decodes": [({"decode_mixed": [1.0, 1.0]}, 2.0, 0.0, 0.0)],
    "mixed decodes of a class": [({"decode_mixed": [0.0, 1.0]}, 0.2, 0.0, 0.0)],
    "least solo decodes": [({"decode_solo": [0.0, -1.0]}, -4.0, 0.0, 0.0)],
    "stages": [
        ({"prefill": [40.0, -3.0], "decode_solo": [0.1, 0.2], "decode_queue": [1.0, 1.0]}, 0.8, 0.0, 0.0)
    ],
    "limit and penalty": [({"decode_solo": [1.0, -1.0]}, 4.5, 2.0, 1.0)],
    "two": [
        ({"decode_solo": [1.0, -1.0]}, 3.0, 0.0, 0.0),
        ({"prefill": [1.0, 0.0], "prefill_queue": [0.1, 0.3]}, None, 90.0, 0.01),
    ],
}


@pytest.mark.parametrize("numbers", [{}, SLOW_SOLO], ids=["reference", "slow solo"])
@pytest.mark.parametrize("name", LIMITS)
def test_limits_against_another_program(name, numbers):
    assert_right(reference(**numbers), LIMITS[name], "separate" if numbers else "bundled")


def test_beside_fairness():
    plan = assert_right(reference(), [({"prefill_queue": [1.0, 0.5]}, 1.2, 20.0, 0.5)], prefill_fairness=0.11)
    assert float(plan.indicators["prefill_fairness"]) <= 0.11 + 1e-10


def test_a_limit_that_states_fairness_has_the_same_optimum_and_price():
    """x_1 - x_0 <= 0.1 is all of eq. 43 here: the published 231.4594."""
    limit = OccupancyLimit("gap", {"prefill": {"1": 1.0, "class-0": -1.0}}, 0.1)
    plan = solve_plan(reference(), service_levels=ServiceLevels(limits=[limit]))
    fair = solve_plan(reference(), service_levels=ServiceLevels(prefill_fairness=0.1))
    assert float(plan.plan_revenue) == pytest.approx(231.4594, rel=1e-6)
    np.testing.assert_allclose(plan.x, fair.x, rtol=1e-9)
    assert plan.shadow_prices["gap"] == pytest.approx(fair.shadow_prices["prefill_fairness"], rel=1e-9)


@st.composite
def cases(draw):
    """Numbers for `reference`, and up to three limits, relative to what the plain plan has."""
    numbers = draw(instances(max_classes=3))
    n = len(numbers["arrival_rate"])
    coefficient = st.one_of(st.just(0.0), st.floats(0.1, 3.0), st.floats(-1.0, -0.1))
    rows = st.dictionaries(
        st.sampled_from(STAGES), st.lists(coefficient, min_size=n, max_size=n), min_size=1, max_size=3
    ).filter(lambda found: any(any(row) for row in found.values()))
    share, weight = st.floats(0.0, 1.3), st.one_of(st.just(0.0), st.floats(0.01, 10.0))
    limit = st.tuples(rows, st.one_of(st.none(), share), weight, share)
    return numbers, draw(st.lists(limit, min_size=1, max_size=3))


@given(cases(), st.sampled_from(["bundled", "separate"]))
@random_test(8)
def test_random_limits(case, scheme):
    check_random(case, scheme)


@pytest.mark.slow
@given(cases(), st.sampled_from(["bundled", "separate"]))
@random_test(300)
def test_many_random_limits(case, scheme):
    check_random(case, scheme)


def check_random(case, scheme):
    numbers, given_limits = case
    instance = reference(**numbers)
    plain, limits = solve_plan(instance, scheme), []
    for coefficients, share, weight, above in given_limits:
        size = level(plain, {stage: np.abs(row) for stage, row in coefficients.items()})
        size = size if size > 1e-6 else 1.0
        if share is None and weight == 0:
            share = 0.5
        at_most = None if share is None else share * size
        limits.append((coefficients, at_most, weight * float(plain.revenue) / size, above * size))
    try:
        assert_right(instance, limits, scheme)
    except PlanError as error:
        assert str(error).startswith("sli.limits.") and "the tightest that one can" in str(error)
        assert optimum(instance, limits, True, scheme) is None


# Prices.


@pytest.mark.parametrize("name", ["queue", "mixed decodes", "stages", "limit and penalty", "two"])
def test_shadow_prices_are_derivatives(name):
    """By the limit and by the threshold; the optimum is linear near each of these."""
    limits = LIMITS[name]
    plan = assert_right(reference(), limits)
    for k, (coefficients, at_most, penalty, above) in enumerate(limits):
        label, step = "abcdef"[k], 1e-4

        def objective(most, free, k=k, coefficients=coefficients, penalty=penalty):
            changed = [*limits[:k], (coefficients, most, penalty, free), *limits[k + 1 :]]
            return optimum(reference(), changed, not plan.no_decode_queue)

        if at_most is not None:
            slope = (objective(at_most + step, above) - objective(at_most - step, above)) / (2 * step)
            assert float(plan.shadow_prices[label][0]) == pytest.approx(slope, rel=1e-4, abs=1e-5)
        if penalty > 0:
            slope = (objective(at_most, above + step) - objective(at_most, above - step)) / (2 * step)
            price = float(plan.shadow_prices[f"{label}_penalty"][0])
            assert price == pytest.approx(slope, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("name", ["prefill_fairness", "decode_fairness"])
def test_a_penalty_that_forces_fairness_is_worth_less_than_it_asks(name):
    """The spread is 0, and a little of it free of charge is worth what the limit 0 is priced at."""
    asked = 1e5
    plan = solve_plan(reference(), None, True, ServiceLevels(**{f"{name}_penalty": asked}))
    limited = solve_plan(reference(), service_levels=ServiceLevels(**{name: 0.0}))
    assert float(plan.indicators[name]) == pytest.approx(0.0, abs=1e-10)
    price = float(plan.shadow_prices[f"{name}_penalty"][0])
    assert price == pytest.approx(float(limited.shadow_prices[name][0]), rel=1e-6) and price < asked


def test_a_penalty_that_leaves_a_level_is_worth_what_it_asks():
    for name, asked in (
        ("prefill_fairness", 100.0),
        ("decode_fairness", 2.0),
        ("time_per_output_token", 9.0),
    ):
        plan = solve_plan(reference(), service_levels=ServiceLevels(**{f"{name}_penalty": asked}))
        assert float(plan.shadow_prices[f"{name}_penalty"][0]) == pytest.approx(asked, rel=1e-9)


# Which plan.


@pytest.mark.parametrize("most", [0.3, 0.9, 2.0])
def test_the_tie_break_under_a_limit_on_decodes(most):
    """With the flows of the plan: as many solo decodes as can be, then as near to proportion as can be."""
    instance, limit = reference(**THREE), ({"decode_mixed": [1.0, 0.5, 0.0]}, most, 0.0, 0.0)
    plan = assert_right(instance, [limit])
    tau, solo, n = float(instance.mixed_iteration_time), float(instance.iteration_time.solo), 3
    tokens = plan.y_mixed / tau + plan.y_solo / solo
    # y_m = tau (tokens - y_s / solo) below the limit, in terms of y_s.
    weights = np.array([1.0, 0.5, 0.0])
    rows = [-tau / solo * weights, np.ones(n), -tau / solo * np.ones(n)]
    right = [
        most - tau * weights @ tokens,
        float(instance.batch_size) * (1 - plan.x.sum()),
        (float(instance.batch_size) - 1) * plan.x.sum() - tau * tokens.sum(),
    ]
    bounds = [(0, solo * rate) for rate in tokens]
    total = -linprog(-np.ones(n), A_ub=rows, b_ub=right, bounds=bounds).fun
    assert plan.y_solo.sum() == pytest.approx(total, rel=1e-8)
    wanted = tokens / tokens.sum() * total
    deviations = [np.append(sign * np.eye(n)[i], -1.0) for i in range(n) for sign in (1, -1)]
    least = linprog(
        np.append(np.zeros(n), 1.0),
        A_ub=[*(np.append(row, 0.0) for row in rows), *deviations],
        b_ub=[*right, *(sign * wanted[i] for i in range(n) for sign in (1, -1))],
        A_eq=[np.append(np.ones(n), 0.0)],
        b_eq=[plan.y_solo.sum()],
        bounds=[*bounds, (0, None)],
    ).fun
    assert np.abs(plan.y_solo - wanted).max() == pytest.approx(least, abs=1e-6)


def test_a_limit_that_does_not_bind_changes_nothing():
    limit = OccupancyLimit("loose", {"decode_mixed": 1.0, "prefill_queue": [1, 2]}, 1e3)
    plain, plan = (
        solve_plan(reference()),
        solve_plan(reference(), service_levels=ServiceLevels(limits=[limit])),
    )
    for name in ("x", "y_mixed", "y_solo", "q_prefill", "q_decode", "bid_prices"):
        np.testing.assert_allclose(getattr(plan, name), getattr(plain, name), rtol=1e-9, atol=1e-12)
    assert float(plan.shadow_prices["loose"][0]) == 0


def test_a_limit_may_ask_for_a_decode_queue():
    limit = OccupancyLimit("wait", {"decode_queue": -1.0}, -0.5)
    plan = solve_plan(reference(), service_levels=ServiceLevels(limits=[limit]))
    assert not plan.no_decode_queue and plan.q_decode.sum() == pytest.approx(0.5)
    fair = ServiceLevels(prefill_fairness=0.2, limits=[limit])
    with pytest.raises(PlanError, match="wait.at_most: no plan attains -0.5 beside .* at least 0,"):
        solve_plan(reference(), service_levels=fair)


# What cannot be met.


@pytest.mark.parametrize(
    "numbers, coefficients, at_most, fairness",
    [
        ({}, {"prefill_queue": [1.0, 0.5]}, 0.3, 0.1),
        ({}, {"decode_solo": [-1.0, 0.0]}, -12.0, None),
        ({"patience_rate": (0.1, 0.0)}, {"prefill": [0.0, 1.0]}, 0.1, None),
        (THREE, {"prefill": [-1.0, 2.0, 0.0], "prefill_queue": [0.0, 0.0, 1.0]}, -0.5, None),
    ],
)
def test_what_cannot_be_met_is_refused_with_the_tightest_that_can(numbers, coefficients, at_most, fairness):
    instance = reference(**numbers)
    levels = ServiceLevels(
        prefill_fairness=fairness,
        limits=[
            OccupancyLimit("loose", {"prefill": 1.0}, 1.0),
            OccupancyLimit("tight", coefficients, at_most, penalty=3.0),
        ],
    )
    with pytest.raises(PlanError) as caught:
        solve_plan(instance, service_levels=levels)
    message = str(caught.value)
    assert message.startswith(f"sli.limits.tight.at_most: no plan attains {at_most:g} beside ")
    assert "\n" not in message
    tightest = float(message.split("expected at least ")[1].split(",")[0])

    def feasible(limit):
        return optimum(instance, [(coefficients, limit, 0.0, 0.0)], fairness is None, "bundled", fairness)

    assert feasible(tightest) is not None and feasible(tightest - 1e-4 * abs(tightest)) is None
    met = replace(levels, limits=[OccupancyLimit("tight", coefficients, tightest)])
    assert float(solve_plan(instance, service_levels=met).indicators["tight"]) == pytest.approx(
        tightest, rel=1e-6
    )


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"name": "two words"}, "sli.limits: expected a name of letters"),
        ({"coefficients": {"waiting": 1.0}}, "sli.limits.w: expected a stage of prefill, "),
        ({"coefficients": {"prefill": 0.0}}, "sli.limits.w: expected a coefficient other than 0"),
        ({"coefficients": {"prefill": [1.0, np.inf]}}, "sli.limits.w: expected finite coefficients"),
        ({"coefficients": {"prefill": {"a": "b"}}}, "sli.limits.w.prefill.a: expected a number, got 'b'"),
        ({"coefficients": 1.0}, "sli.limits.w.coefficients: expected numbers by stage"),
        ({"at_most": np.nan}, "sli.limits.w.at_most: expected a finite number, got nan"),
        ({"penalty": -1.0}, "sli.limits.w.penalty: expected a finite number of at least 0, got -1"),
        ({"penalty_above": 1.0}, "sli.limits.w.penalty_above: expected a penalty above 0 beside it"),
        ({"at_most": None}, "sli.limits.w: expected at_most, a penalty above 0, or both"),
        ({"convex_penalty": 3.0}, "sli.limits.w.convex_penalty: expected an AbstractConvexPenalty"),
    ],
)
def test_bad_limits_are_refused(arguments, message):
    given_arguments = {"name": "w", "coefficients": {"prefill": 1.0}, "at_most": 1.0} | arguments
    with pytest.raises(InputError) as caught:
        OccupancyLimit(**given_arguments)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["prefill_fairness", "no_decode_queue", "decode_fairness_penalty"])
def test_names_that_are_taken_are_refused(name):
    with pytest.raises(InputError, match=f"sli.limits.{name}: the name is taken"):
        ServiceLevels(limits=[OccupancyLimit(name, {"prefill": 1.0}, 1.0)])
    twice = [OccupancyLimit("w", {"prefill": 1.0}, 1.0)] * 2
    with pytest.raises(InputError, match="sli.limits.w: the name is taken"):
        ServiceLevels(limits=twice)


@pytest.mark.parametrize(
    "classes, message",
    [
        ({"chat": 1.0}, "expected a class of 'class-0', 'class-1', or its number from 0 on; got 'chat'"),
        ({2: 1.0}, "got '2'"),
        ({"class-0": 1.0, 0: 2.0}, "class 'class-0' has two coefficients"),
    ],
)
def test_classes_that_are_not_there_are_refused(classes, message):
    levels = ServiceLevels(limits=[OccupancyLimit("w", {"prefill": classes}, 1.0)])
    for refused in (
        lambda: solve_plan(reference(), service_levels=levels),
        lambda: replace(reference(), service_levels=levels),
    ):
        with pytest.raises(InputError) as caught:
            refused()
        assert str(caught.value).startswith("sli.limits.w.prefill: ") and message in str(caught.value)


# Instances and their files.

FILE = """
[sli]
decode_fairness = 8.0

[[sli.limits]]
name = "queues"
at_most = 0.9
penalty = 5
penalty_above = 0.1
prefill_queue = { decode-heavy = 1.0, 1 = 0.5 }
decode_queue = 1.0

[[sli.limits]]
name = "prefills"
at_most = 0.5
prefill = [1, 2]
"""


def with_limits(tmp_path, lines=FILE):
    path = tmp_path / "limits.toml"
    path.write_text(REFERENCE.read_text() + lines)
    return path


def test_a_file_may_hold_limits(tmp_path):
    instance = load_instance(with_limits(tmp_path))
    one, other = instance.service_levels.limits
    expected = np.zeros((5, 2))
    expected[3:] = [[1.0, 0.5], [1.0, 1.0]]
    np.testing.assert_array_equal(one.weights(instance.workload), expected)
    assert one.numbers() == {"at_most": 0.9, "penalty": 5.0, "penalty_above": 0.1}
    assert other.numbers() == {"at_most": 0.5}
    save_instance(instance, tmp_path / "saved.toml")
    loaded = load_instance(tmp_path / "saved.toml")
    np.testing.assert_array_equal(loaded.service_levels.limits[1].weights(loaded.workload)[0], [1.0, 2.0])
    assert jax.tree.structure(loaded) == jax.tree.structure(load_instance(tmp_path / "saved.toml"))
    assert loaded.fingerprint() == instance.fingerprint() != load_instance(REFERENCE).fingerprint()
    other_number = load_instance(with_limits(tmp_path, FILE.replace("[1, 2]", "[1, 3]")))
    assert other_number.fingerprint() != instance.fingerprint()


@pytest.mark.parametrize(
    "old, new, message",
    [
        ('name = "queues"\n', "", "sli.limits.0.name: expected a text"),
        ("at_most = 0.9", "at_mst = 0.9", "sli.limits.0.at_mst: unknown key; did you mean 'at_most'?"),
        ("0.9", "'low'", "sli.limits.0.at_most: expected a number, got 'low'"),
        ("1 = 0.5", "1 = 'x'", "sli.limits.0.prefill_queue.1: expected a number, got 'x'"),
        (
            "decode-heavy",
            "decode-hvy",
            "sli.limits.queues.prefill_queue: expected a class of 'decode-heavy', ",
        ),
        ('[[sli.limits]]\nname = "queues"', '[sli.limits]\nname = "queues"', "not valid TOML"),
    ],
)
def test_mistakes_in_a_file_are_named(tmp_path, old, new, message):
    assert old in FILE
    path = with_limits(tmp_path, FILE.replace(old, new))
    with pytest.raises(InputError) as caught:
        load_instance(path)
    assert str(caught.value).startswith(f"{path}: {message}")


def test_plan_shows_limits(jaxq, workplace):
    path = with_limits(workplace)
    code, out, _ = jaxq("plan", path, "--json")
    shown = json.loads(out)
    plan = solve_plan(load_instance(path))
    queues = shown["service_levels"]["queues"]
    assert code == 0 and queues["value"] == pytest.approx(float(plan.indicators["queues"]))
    assert queues["limit"] == 0.9 and queues["penalty"] == 5 and queues["penalty_above"] == 0.1
    assert queues["shadow_price"] == pytest.approx(float(plan.shadow_prices["queues"][0]))
    assert queues["penalty_shadow_price"] == pytest.approx(float(plan.shadow_prices["queues_penalty"][0]))
    costs = sum(level["cost"] for level in shown["service_levels"].values())
    assert shown["objective"] == pytest.approx(shown["plan_revenue"] - costs)
    assert "queues" in jaxq("plan", path)[1]


def test_plans_under_limits_stack():
    plans = [
        solve_plan(
            reference(),
            service_levels=ServiceLevels(limits=made([({"prefill": [1.0, 0.0]}, most, 0.0, 0.0)])),
        )
        for most in (0.01, 0.015)
    ]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *plans)
    np.testing.assert_array_equal(stacked.service_levels.limits[0].at_most, [0.01, 0.015])
