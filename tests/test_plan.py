"""The planning LP against vertex enumeration, duality, hand computations and the published optima."""

import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from jaxq import InputError, Instance, IterationTime, PlanError, Pricing, Workload
from jaxq._instance_file import load_instance
from jaxq._plan import Plan, solve_plan, upper_bound

INSTANCES = Path(__file__).parents[1] / "experiments" / "instances"
SCHEMES = ("bundled", "separate")


def reference(**changes):
    numbers = {
        "prompt_tokens": (300.0, 3000.0),
        "output_tokens": (1000.0, 400.0),
        "arrival_rate": (0.5, 0.5),
        "patience_rate": (0.1, 0.1),
        "alpha": 0.0174,
        "beta": 6.2e-5,
        "solo": 0.022,
        "batch_size": 16,
        "chunk_size": 256,
        "prefill": 0.1,
        "decode": 0.2,
    } | changes
    keys = ("prompt_tokens", "output_tokens", "arrival_rate", "patience_rate")
    return Instance(
        Workload(*(numbers[key] for key in keys)),
        IterationTime(numbers["alpha"], numbers["beta"], numbers["solo"]),
        Pricing(numbers["prefill"], numbers["decode"]),
        numbers["batch_size"],
        numbers["chunk_size"],
    )


SLOW_SOLO = {"solo": 0.08, "arrival_rate": (1.0, 1.0)}
"""gamma tau = 0.42 < 15/16: prefills speed decodes up, so an optimal plan lets prefilled requests abandon."""


# An independent solution: every vertex of the LP of MODEL.md section 3, in its own units.


def standard_form(instance, scheme, decode_queue=True, growing=False):
    """Objective, matrix and right-hand side of the LP with slacks, typed from eq. 40 once more."""
    workload, tau, batch = instance.workload, float(instance.mixed_iteration_time), float(instance.batch_size)
    prompt, output = workload.prompt_tokens, workload.output_tokens
    n, theta = len(prompt), workload.patience_rate
    mu_p = float(instance.chunk_size) / (prompt * tau)
    mu_m, mu_s = 1 / (output * tau), 1 / (output * float(instance.iteration_time.solo))
    pay_p, pay_d = float(instance.pricing.prefill) * prompt, float(instance.pricing.decode) * output
    loss = np.where(theta > 0, theta, 1.0)
    open_queue = (theta > 0) | growing
    rows, right = [], []
    block = np.eye(n)
    zero = np.zeros(n)
    ones = np.ones(n)
    for coefficients, slack, value in (
        ((ones, zero, zero, zero, zero), (1, 0, 0), 1.0),
        (((1 - batch) * ones, ones, zero, zero, zero), (0, 1, 0), 0.0),
        ((batch * ones, zero, ones, zero, zero), (0, 0, 1), batch),
    ):
        rows.append(np.concatenate([*coefficients, slack]))
        right.append(value)
    for i in range(n):
        e = block[i]
        rows.append(np.concatenate([mu_p * e, zero, zero, loss * e, zero, [0, 0, 0]]))
        right.append(workload.arrival_rate[i])
        rows.append(np.concatenate([-mu_p * e, mu_m * e, mu_s * e, zero, loss * e, [0, 0, 0]]))
        right.append(0.0)
    bundled = scheme == "bundled"
    pay = pay_d + pay_p * bundled
    gain = np.concatenate([pay_p * mu_p * (not bundled), pay * mu_m, pay * mu_s, zero, zero, [0, 0, 0]])
    use = np.concatenate([np.ones(3 * n, bool), open_queue, open_queue & decode_queue, np.ones(3, bool)])
    return gain, np.array(rows), np.array(right), use


def vertices(instance, scheme, **options):
    """All feasible basic solutions and their values."""
    gain, matrix, right, use = standard_form(instance, scheme, **options)
    columns, m = np.flatnonzero(use), len(right)
    scale = np.abs(matrix).max(axis=1)
    bases = np.array(list(itertools.combinations(columns, m)))
    square = (matrix / scale[:, None])[:, bases].transpose(1, 0, 2)
    width = np.maximum(np.abs(square).max(axis=1), 1e-300)
    regular = np.linalg.cond(square / width[:, None, :]) < 1e10
    basic = np.linalg.solve(square[regular], (right / scale)[None, :, None])[..., 0]
    feasible = (basic >= -1e-9).all(axis=1)
    points = np.zeros((int(feasible.sum()), len(gain)))
    np.put_along_axis(points, bases[regular][feasible], np.maximum(basic[feasible], 0.0), axis=1)
    return points, points @ gain


def enumerated(instance, scheme, **options):
    """The optimum by enumeration: value, the optimal vertices as (vertices, 5, classes)."""
    points, values = vertices(instance, scheme, **options)
    best = values.max()
    optimal = points[values >= best * (1 - 1e-10)]
    return best, optimal[:, : 5 * instance.n_classes].reshape(len(optimal), 5, instance.n_classes)


def tie_broken(optimal):
    """Smallest sum of q_d, then the largest x, class 0 first, over optimal vertices."""
    keys = [(-point[4].sum(), *point[0]) for point in optimal]
    return optimal[max(range(len(keys)), key=lambda i: tuple(np.round(keys[i], 9)))]


def distinct(points):
    return len(np.unique(np.round(points.reshape(len(points), -1), 8), axis=0))


CASES = {
    "reference": {},
    "overload": {"arrival_rate": (0.75, 0.75)},
    "underload": {"arrival_rate": (0.1, 0.1)},
    "one class": {
        "prompt_tokens": 500.0,
        "output_tokens": 300.0,
        "arrival_rate": 3.0,
        "patience_rate": 0.2,
    },
    "identical classes": {"prompt_tokens": (600.0, 600.0), "output_tokens": (500.0, 500.0)},
    "same worth of a slot": {
        "prompt_tokens": (600.0, 300.0),
        "output_tokens": (600.0, 300.0),
        "arrival_rate": (2.0, 2.0),
    },
    "slow solo": SLOW_SOLO,
    "slow solo, light load": {"solo": 0.06, "arrival_rate": (0.3, 0.3)},
    "free prompts": {"prefill": 0.0},
    "free answers": {"decode": 0.0},
    "one never abandons": {"patience_rate": (0.0, 0.1)},
    "batch of two": {"batch_size": 2},
}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("case", CASES)
def test_against_every_vertex(case, scheme):
    instance = reference(**CASES[case])
    plan = solve_plan(instance, scheme)
    best, _ = enumerated(instance, scheme)
    assert float(plan.revenue) == pytest.approx(best, rel=1e-11)
    taken, optimal = enumerated(instance, scheme, decode_queue=not plan.no_decode_queue)
    assert float(plan.plan_revenue) == pytest.approx(taken, rel=1e-11)
    assert bool(plan.unique) == (distinct(optimal) == 1)
    assert bool(plan.flows_unique) == (distinct(optimal[:, [0, 3, 4]]) == 1)
    expected = tie_broken(optimal)
    np.testing.assert_allclose(plan.x, expected[0], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(plan.q_prefill, expected[3], rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(plan.q_decode, expected[4], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("case", CASES)
def test_prices_are_left_derivatives_along_the_arrivals(case, scheme):
    instance = reference(**CASES[case])
    plan = solve_plan(instance, scheme)
    options = {"decode_queue": not plan.no_decode_queue}
    step = 1e-4
    lower = reference(**CASES[case] | {"arrival_rate": instance.workload.arrival_rate * (1 - step)})
    slope = (enumerated(instance, scheme, **options)[0] - enumerated(lower, scheme, **options)[0]) / step
    assert plan.bid_prices @ instance.workload.arrival_rate == pytest.approx(slope, rel=1e-7)


# The published optima (MODEL.md section 5).


@pytest.mark.parametrize(
    "name, bundled, separate",
    [
        ("a100_qwen8b_two_class", 297.716190, 298.597983),
        ("overload", 363.829799, 375.169702),
        ("azure_pair", 724.267063, 806.116783),
        ("dolly_eight", 513.955225, 516.314119),
        ("h100_llama70b", 1472.378430, 1503.488873),
    ],
)
def test_published_values(name, bundled, separate):
    instance = load_instance(INSTANCES / f"{name}.toml")
    # The published values have six decimals, which is 1e-9 to 2e-9 of them.
    assert float(solve_plan(instance).revenue) == pytest.approx(bundled, abs=5.1e-7)
    assert float(solve_plan(instance, "separate").revenue) == pytest.approx(separate, abs=5.1e-7)


@pytest.mark.parametrize("batch_size, value", [(2, 81.5276), (4, 158.5615), (8, 220.5821), (32, 305.0)])
def test_published_values_by_batch_size(batch_size, value):
    assert float(solve_plan(reference(batch_size=batch_size)).revenue) == pytest.approx(value, abs=5.1e-5)


def test_the_reference_plan():
    plan = solve_plan(reference())
    np.testing.assert_allclose(plan.x, (0.018261, 0.194953), atol=5.1e-7)
    np.testing.assert_allclose(plan.y_mixed, (2.241133, 0.957072), atol=5.1e-7)
    np.testing.assert_allclose(plan.y_solo, (8.821413, 3.767168), atol=5.1e-7)
    np.testing.assert_allclose(plan.q_prefill, (0.316687, 0.0), atol=5.1e-7)
    np.testing.assert_array_equal(plan.q_decode, (0.0, 0.0))
    np.testing.assert_allclose(plan.bid_prices, (0.0, 264.454), atol=5.1e-4)
    assert plan.no_decode_queue and plan.flows_unique and not plan.unique
    assert float(plan.mixed_share) == pytest.approx(0.21321, abs=5.1e-6)
    separate = solve_plan(reference(), "separate")
    np.testing.assert_allclose(separate.x, (0.019495, 0.194953), atol=5.1e-7)
    assert separate.scheme == "separate" and not separate.no_decode_queue and not separate.flows_unique


def test_the_scheme_is_the_instances_own_unless_named():
    instance = load_instance(INSTANCES / "a100_qwen8b_two_class.toml")
    assert solve_plan(instance).scheme == "bundled"
    with pytest.raises(InputError, match="scheme: expected one of bundled, separate"):
        solve_plan(instance, "both")
    with pytest.raises(InputError, match="scheme: expected one of bundled, separate"):
        upper_bound(instance, "both")


# Corner cases by hand.


def test_light_load_serves_everyone():
    instance = reference(arrival_rate=(0.1, 0.05))
    plan = solve_plan(instance)
    assert float(plan.revenue) == pytest.approx(0.1 * 230 + 0.05 * 380, rel=1e-12)
    np.testing.assert_allclose(plan.x, instance.workload.arrival_rate / instance.mu_prefill, rtol=1e-12)
    np.testing.assert_allclose(plan.bid_prices, (230.0, 380.0), rtol=1e-9)
    np.testing.assert_allclose(plan.y_mixed, 0.0, atol=1e-12)
    np.testing.assert_allclose(plan.y_solo, instance.workload.arrival_rate / instance.mu_solo, rtol=1e-12)
    assert plan.flows_unique and not plan.unique
    assert all(float(plan.shadow_prices[name][0]) == 0 for name in ("prefill_slots", "solo_decode_slots"))


def test_one_class_above_capacity_has_one_optimum():
    """Slots of both kinds are full: (B - 1) x / tau + gamma B (1 - x) = D mu_prefill x fixes x."""
    instance = reference(prompt_tokens=500.0, output_tokens=300.0, arrival_rate=9.0, patience_rate=0.2)
    plan = solve_plan(instance)
    tau, gamma = 0.033272, 1 / 0.022
    x = 16 * gamma / (300 * 256 / (500 * tau) - 15 / tau + 16 * gamma)
    assert float(plan.x[0]) == pytest.approx(x, rel=1e-10)
    assert float(plan.revenue) == pytest.approx((50 + 60) * 256 / (500 * tau) * x, rel=1e-10)
    assert float(plan.q_prefill[0]) == pytest.approx((9.0 - 256 / (500 * tau) * x) / 0.2, rel=1e-10)
    assert plan.unique
    np.testing.assert_allclose(plan.bid_prices, 0.0, atol=1e-9)


def test_identical_classes_serve_class_0_first():
    plan = solve_plan(
        reference(prompt_tokens=(600.0, 600.0), output_tokens=(500.0, 500.0), arrival_rate=(2.0, 2.0))
    )
    assert not plan.flows_unique
    assert plan.x[0] > 0
    assert plan.x[1] == 0 or plan.q_prefill[0] == pytest.approx(0, abs=1e-10)


def test_at_exactly_critical_load_a_bid_price_is_what_the_last_request_brings():
    """One class that fills every slot: one more arrival brings nothing, one fewer loses its whole value."""
    times = {"prompt_tokens": 500.0, "output_tokens": 300.0, "patience_rate": 0.2}
    full = solve_plan(reference(arrival_rate=9.0, **times))
    critical = float(full.x[0]) * 256 / (500 * 0.033272)
    plan = solve_plan(reference(arrival_rate=critical, **times))
    assert float(plan.bid_prices[0]) == pytest.approx(110.0, rel=1e-6)
    assert float(plan.shadow_prices["solo_decode_slots"][0]) == pytest.approx(0.0, abs=1e-6)


def test_slow_solo_decodes_make_a_decode_queue_worth_its_losses():
    instance = reference(**SLOW_SOLO)
    plan = solve_plan(instance)
    without = solve_plan(instance, require_no_decode_queue=True)
    assert plan.q_decode.sum() > 0 and not plan.no_decode_queue
    assert float(plan.revenue) == float(plan.plan_revenue)
    assert without.no_decode_queue and float(without.revenue) == float(plan.revenue)
    assert float(without.plan_revenue) < 0.9 * float(plan.revenue)
    np.testing.assert_array_equal(without.q_decode, 0.0)
    assert without.shadow_prices["no_decode_queue"].max() > 0
    assert "no_decode_queue" not in plan.shadow_prices


def test_the_price_of_the_decode_queue_is_a_derivative():
    """Against the LP with q_d allowed up to a little, class by class."""
    instance = reference(**SLOW_SOLO)
    plan = solve_plan(instance, require_no_decode_queue=True)
    gain, matrix, right, _ = standard_form(instance, "bundled")
    from scipy.optimize import linprog

    for i, price in enumerate(plan.shadow_prices["no_decode_queue"]):
        limits = [(0, None)] * len(gain)
        for j in range(2):
            limits[8 + j] = (0, 1e-4 if i == j else 0)
        allowed = -linprog(-gain, A_eq=matrix, b_eq=right, bounds=limits).fun
        assert (allowed - float(plan.plan_revenue)) / 1e-4 == pytest.approx(price, rel=1e-5, abs=1e-6)


def test_false_lets_the_queue_be_where_none_would_require_it_away():
    plan = solve_plan(reference(), require_no_decode_queue=False)
    assert not plan.no_decode_queue
    assert float(plan.revenue) == pytest.approx(297.716190, abs=5.1e-7)
    np.testing.assert_allclose(plan.bid_prices, (0.0, 264.454), atol=5.1e-4)


def test_prefill_slots_have_a_price_when_they_bind():
    """Answers so short that prefill is the bottleneck: the marginal class 1 earns w_1 mu_prefill_1 a slot."""
    instance = reference(output_tokens=(5.0, 5.0), arrival_rate=(9.0, 9.0))
    plan = solve_plan(instance)
    assert float(plan.mixed_share) == pytest.approx(1.0, rel=1e-9)
    assert float(plan.shadow_prices["prefill_slots"][0]) == pytest.approx(
        301 * 256 / (3000 * 0.033272), rel=1e-9
    )
    assert float(plan.shadow_prices["solo_decode_slots"][0]) == pytest.approx(0.0, abs=1e-7)
    assert float(plan.bid_prices[0]) == pytest.approx(31 - 301 / 10, rel=1e-9)


# Classes that never abandon.


def test_a_load_that_cannot_be_served_is_refused_by_class():
    with pytest.raises(PlanError) as caught:
        solve_plan(reference(arrival_rate=(0.5, 3.0), patience_rate=(0.1, 0.0)))
    message = str(caught.value)
    assert "class-1" in message and "class-0" not in message and "\n" not in message
    assert "1.16972" in message  # 3 * 3000 * 0.033272 / 256, its prefill load
    with pytest.raises(PlanError, match="'class-0', 'class-1'.*decode 700 tokens per second"):
        solve_plan(reference(patience_rate=(0.0, 0.0)))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_upper_bound(scheme):
    patient, never = reference(), reference(patience_rate=(0.0, 0.0))
    assert upper_bound(patient, scheme) == pytest.approx(
        float(solve_plan(patient, scheme).revenue), rel=1e-12
    )
    # Without abandonment an infeasible plan still has a bound: queues that grow instead of losing requests.
    assert upper_bound(never, scheme) == pytest.approx(upper_bound(patient, scheme), rel=1e-12)
    assert upper_bound(never, scheme) == pytest.approx(enumerated(never, scheme, growing=True)[0], rel=1e-11)


def test_an_unpaying_class_that_must_be_served_costs_revenue_against_the_bound():
    instance = reference(
        prompt_tokens=(6000.0, 3000.0),
        output_tokens=(1.0, 400.0),
        arrival_rate=(0.5, 2.0),
        patience_rate=(0.0, 0.1),
        prefill=0.0,
    )
    plan = solve_plan(instance)
    assert float(plan.q_prefill[0]) == 0 and float(plan.q_decode[0]) == 0
    assert float(plan.revenue) < 0.9 * upper_bound(instance)


# Properties of random instances.


PATIENT = st.floats(1e-3, 5.0)


@st.composite
def instances(draw, min_classes=1, max_classes=4, patience_rates=PATIENT):
    """Numbers for `reference`."""
    n = draw(st.integers(min_classes, max_classes))

    def column(low, high):
        exponents = st.floats(np.log10(low), np.log10(high))
        return tuple(10.0**e for e in draw(st.lists(exponents, min_size=n, max_size=n)))

    return {
        "prompt_tokens": column(5, 2e4),
        "output_tokens": column(2, 5e3),
        "arrival_rate": column(1e-3, 20),
        "patience_rate": tuple(draw(st.lists(patience_rates, min_size=n, max_size=n))),
        "alpha": draw(st.floats(0.0, 0.03)),
        "beta": draw(st.floats(1e-6, 1e-3)),
        "solo": draw(st.floats(0.005, 0.1)),
        "prefill": draw(st.floats(0.0, 1.0)),
        "decode": draw(st.floats(0.01, 1.0)),
        "batch_size": draw(st.integers(2, 256)),
        "chunk_size": draw(st.integers(16, 2048)),
    }


def assert_optimal(instance, plan):
    """Feasible, of the value it says, and optimal by its own prices: weak duality leaves nothing else."""
    decode_queue = not bool(plan.no_decode_queue)
    gain, matrix, right, use = standard_form(instance, plan.scheme)
    n = instance.n_classes
    point = np.concatenate([plan.x, plan.y_mixed, plan.y_solo, plan.q_prefill, plan.q_decode])
    used = matrix[:, :-3] * point
    slack = right - used.sum(axis=1)
    size = np.abs(used).sum(axis=1) + np.abs(right)
    assert (point >= 0).all()
    assert (slack[:3] >= -1e-9 * size[:3] - 1e-10).all()
    assert (np.abs(slack[3:]) <= 1e-9 * size[3:]).all()
    assert gain[:-3] @ point == pytest.approx(float(plan.plan_revenue), rel=1e-9)
    prices = plan.shadow_prices
    balances = np.stack([prices["prefill_balance"], prices["decode_balance"]], axis=1).ravel()
    slots = [float(prices[name][0]) for name in ("prefill_slots", "mixed_decode_slots", "solo_decode_slots")]
    dual = np.concatenate([slots, balances])
    assert right @ dual == pytest.approx(float(plan.plan_revenue), rel=1e-7)
    cost = matrix.T @ dual - gain
    if not decode_queue:
        cost[4 * n : 5 * n] += prices["no_decode_queue"]
    # What a column could gain at its largest conceivable value is nothing against the whole.
    arrivals, theta = instance.workload.arrival_rate, instance.workload.patience_rate
    x = np.minimum(1.0, arrivals / instance.mu_prefill)
    flow = x * instance.mu_prefill
    batch = float(instance.batch_size)
    y = [np.minimum(batch, flow / mu) for mu in (instance.mu_mixed, instance.mu_solo)]
    loss = np.where(theta > 0, theta, 1.0)
    largest = np.concatenate([x, *y, arrivals / loss, flow / loss, [1.0, batch, batch]])
    assert ((cost * largest)[use] >= -1e-8 * float(plan.plan_revenue)).all()


def random_test(examples):
    return settings(deadline=None, max_examples=examples, derandomize=True)


@given(instances(), st.sampled_from(SCHEMES), st.sampled_from([None, True, False]))
@random_test(50)
def test_plans_are_feasible_and_optimal(numbers, scheme, required):
    instance = reference(**numbers)
    plan = solve_plan(instance, scheme, required)
    assert_optimal(instance, plan)
    revenue = float(plan.revenue)
    assert float(plan.plan_revenue) <= revenue * (1 + 1e-9)
    assert revenue <= instance.workload.arrival_rate @ instance.request_value * (1 + 1e-9)
    assert upper_bound(instance, scheme) == pytest.approx(revenue, rel=1e-9)
    if required is None:
        assert float(plan.plan_revenue) == pytest.approx(revenue, rel=2e-9)
    share, batch = float(plan.mixed_share), float(instance.batch_size)
    completions = instance.mu_prefill * plan.x - instance.workload.patience_rate * plan.q_decode
    work = (instance.workload.output_tokens * completions).sum() * float(instance.iteration_time.solo)
    assert plan.y_solo.sum() == pytest.approx(min(batch * (1 - share), work), rel=1e-8, abs=1e-10)


@given(instances(patience_rates=st.sampled_from([0.0, 0.0, 0.3])), st.sampled_from(SCHEMES))
@random_test(40)
def test_with_classes_that_never_abandon(numbers, scheme):
    instance = reference(**numbers)
    bound = upper_bound(instance, scheme)
    try:
        plan = solve_plan(instance, scheme)
    except PlanError as error:
        assert 0.0 in numbers["patience_rate"] and "\n" not in str(error)
        return
    assert_optimal(instance, plan)
    assert float(plan.revenue) <= bound * (1 + 1e-9)


@given(instances(max_classes=2), st.sampled_from(SCHEMES))
@random_test(30)
def test_random_instances_against_every_vertex(numbers, scheme):
    instance = reference(**numbers)
    assert float(solve_plan(instance, scheme).revenue) == pytest.approx(
        enumerated(instance, scheme)[0], rel=1e-8
    )


@given(instances(max_classes=3), st.floats(1.0, 3.0), st.integers(0, 2), st.sampled_from(SCHEMES))
@random_test(20)
def test_what_is_monotone(numbers, factor, i, scheme):
    """More arrivals never hurt while queues shed; separate charging pays no less; theta is no matter."""
    arrivals = np.array(numbers["arrival_rate"])
    more, patience = arrivals.copy(), np.array(numbers["patience_rate"])
    more[i % len(more)] *= factor

    def revenue(scheme=scheme, **changes):
        return float(
            solve_plan(reference(**numbers | changes), scheme, require_no_decode_queue=False).revenue
        )

    base = revenue()
    assert revenue("bundled") <= revenue("separate") * (1 + 1e-9)
    grown = revenue(arrival_rate=more)
    # Concave in the arrivals and 0 without any, so at most in proportion.
    assert base * (1 - 1e-9) <= grown <= base * factor * (1 + 1e-9)
    assert revenue(patience_rate=7 * patience) == pytest.approx(base, rel=1e-8)


@given(instances())
@random_test(30)
def test_no_decode_queue_costs_nothing_unless_prefills_speed_decodes_up(numbers):
    """Prop. 3.2."""
    instance = reference(**numbers)
    batch = float(instance.batch_size)
    ratio = float(instance.mixed_iteration_time) / float(instance.iteration_time.solo)
    assume(ratio >= (batch - 1) / batch)
    plan = solve_plan(instance)
    assert plan.no_decode_queue
    assert (plan.q_decode == 0).all()
    np.testing.assert_allclose(plan.shadow_prices["no_decode_queue"], 0.0, atol=1e-6 * float(plan.revenue))


@given(instances(min_classes=2), st.permutations(range(4)), st.sampled_from(SCHEMES))
@random_test(20)
def test_a_plan_does_not_depend_on_the_order_of_classes(numbers, order, scheme):
    order = [i for i in order if i < len(numbers["arrival_rate"])]
    columns = ("prompt_tokens", "output_tokens", "arrival_rate", "patience_rate")
    shuffled = {key: tuple(numbers[key][i] for i in order) for key in columns}
    one, other = solve_plan(reference(**numbers), scheme), solve_plan(reference(**numbers | shuffled), scheme)
    assert float(one.revenue) == pytest.approx(float(other.revenue), rel=1e-9)
    assert bool(one.flows_unique) == bool(other.flows_unique)
    if one.flows_unique:
        np.testing.assert_allclose(one.x[order], other.x, rtol=1e-6, atol=1e-9)


# The object.


def test_a_plan_can_be_made_by_hand():
    plan = Plan(x=[0.1, 0.05], y_mixed=[1.0, 0.5], y_solo=[3.0, 2.0])
    np.testing.assert_array_equal(plan.q_decode, [0.0, 0.0])
    assert np.isnan(float(plan.revenue))
    assert plan.mixed_share == pytest.approx(0.15)


@pytest.mark.parametrize(
    "changes, field",
    [
        ({"x": [0.1, -0.1]}, "plan.x"),
        ({"x": [0.1, np.nan]}, "plan.x"),
        ({"y_solo": [1.0]}, "plan.y_solo"),
        ({"bid_prices": [1.0]}, "plan.bid_prices"),
        ({"y_mixed": ["a", 1.0]}, "plan.y_mixed"),
        ({"scheme": "both"}, "scheme"),
    ],
)
def test_bad_plans_are_refused(changes, field):
    with pytest.raises(InputError) as caught:
        Plan(**{"x": [0.1, 0.1], "y_mixed": [1.0, 1.0], "y_solo": [1.0, 1.0]} | changes)
    assert str(caught.value).startswith(f"{field}: ")


@pytest.mark.parametrize(
    "x, n_gpus, size",
    [
        ([0.0, 0.0], 10, 0),
        ([0.1, 0.1], 10, 2),
        ([0.1, 0.1 + 1e-9], 10, 2),  # rounding of the LP starts no GPU of its own
        ([0.1, 0.11], 10, 3),
        ([0.5, 0.5 + 1e-9], 7, 7),
        ([0.018260542, 0.194953125], 500, 107),
        ([1e-4, 0.0], 1, 1),
        ([0.2, 0.1], 1_000_000, 300_000),
    ],
)
def test_partition_size(x, n_gpus, size):
    assert Plan(x=x, y_mixed=[0.0, 0.0], y_solo=[0.0, 0.0]).partition_size(n_gpus) == size


def test_plans_are_float64_on_the_host_and_stack():
    plans = [solve_plan(reference(arrival_rate=(rate, 0.5))) for rate in (0.3, 0.5)]
    numbers = [leaf for leaf in jax.tree.leaves(plans[0]) if leaf.dtype != bool]
    assert all(isinstance(leaf, np.ndarray) and leaf.dtype == np.float64 for leaf in numbers)
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *plans)
    assert stacked.x.shape == (2, 2) and stacked.unique.shape == (2,)
    shares = jax.jit(jax.vmap(lambda plan: plan.mixed_share))(jax.tree.map(jnp.asarray, stacked))
    np.testing.assert_allclose(shares, [float(plan.mixed_share) for plan in plans], rtol=1e-6)


def test_eight_classes_and_a_batch_of_256():
    instance = load_instance(INSTANCES / "dolly_eight.toml")
    large = Instance(instance.workload, instance.iteration_time, instance.pricing, 256, 512)
    assert_optimal(large, solve_plan(large))
    assert_optimal(instance, solve_plan(instance, "separate"))


def test_a_plan_is_solved_once_for_equal_instances_and_cannot_be_changed():
    """Policies, bounds and figures of an instance ask for its plan again and again."""
    plan = solve_plan(reference(), "bundled")
    again = solve_plan(reference(), "bundled")
    assert again.x is plan.x and again.shadow_prices is not plan.shadow_prices
    for other in (
        solve_plan(reference(), "separate"),
        solve_plan(reference(), "bundled", require_no_decode_queue=True),
        solve_plan(reference(arrival_rate=(0.5, 0.500001)), "bundled"),
    ):
        assert other.x is not plan.x
    with pytest.raises(ValueError, match="read-only"):
        plan.x[0] = 0.5
