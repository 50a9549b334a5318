"""The native chain against reference values, exact laws of tiny clusters, conservation; SimPy against it.

Every statistical test fixes its seed and allows 4.9 standard errors: a false alarm of 1e-6 a comparison
(where few runs make the error itself uncertain, the test says its own).
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest

from benchmarks import native
from benchmarks.native import POLICIES, InstanceNumbers, NativeUnavailable, PlanNumbers
from jaxq import InputError

from . import oracles

LIMIT = 4.9

# Long-run values of the reference instance from another simulator, 128 replications: policy, n, then bundled
# and separate revenue, each with the half-width of its 95 % interval.
REVENUES = """
gate_and_route       10 282.95 0.21 292.72 0.18
gate_and_route       50 288.56 0.14 292.98 0.10
sli_gate_and_route   10 263.24 0.23 283.50 0.19
sli_gate_and_route   50 286.60 0.13 292.13 0.09
prioritize_and_route 10 282.76 0.21 292.52 0.18
prioritize_and_route 50 287.36 0.16 293.32 0.11
sarathi              10 286.29 0.19 286.29 0.19
sarathi              50 290.52 0.15 290.52 0.15
gate_immediate       10 280.17 0.26 280.17 0.26
gate_immediate       50 292.90 0.10 292.90 0.10
gate_fcfs            10 285.91 0.23 294.83 0.19
gate_fcfs            50 290.21 0.15 297.91 0.11
fcfs_route           10 283.37 0.22 292.13 0.17
fcfs_route           50 288.77 0.13 292.64 0.10
price_and_pack       10 292.72 0.18 292.72 0.18
price_and_pack       50 296.60 0.11 296.60 0.11
"""

# The same runs: policy, n, then x, y_mixed, y_solo, q_prefill, q_decode, each of class 0 and of class 1.
OCCUPANCIES = """
gate_and_route       10 0.01939 0.1917 2.193 0.8052 8.822 3.534 0.03185 0.09102 0.3012 0.2959
gate_and_route       50 0.01908 0.1891 2.188 0.8365 9.017 3.600 0.1064 0.1506 0.1386 0.1337
sli_gate_and_route   10 0.01940 0.1913 1.455 0.5749 8.608 3.399 0.03172 0.08971 0.6243 0.6121
sli_gate_and_route   50 0.01908 0.1892 2.110 0.8360 8.992 3.569 0.1070 0.1511 0.1717 0.1669
prioritize_and_route 10 0.01939 0.1914 2.193 0.8026 8.831 3.528 0.03042 0.09036 0.3008 0.2949
prioritize_and_route 50 0.01943 0.1887 2.222 0.8388 9.088 3.542 0.01449 0.1612 0.1861 0.1799
sarathi              10 0.01828 0.1829 2.075 0.8391 8.950 3.578 0.3086 0.3081 0 0
sarathi              50 0.01857 0.1857 2.138 0.8648 9.072 3.620 0.2395 0.2395 0 0
gate_immediate       10 0.01883 0.1734 2.023 0.7652 9.291 3.408 0.1659 0.5540 0 0
gate_immediate       50 0.01840 0.1891 2.149 0.8985 8.964 3.672 0.2804 0.1489 0 0
gate_fcfs            10 0.01939 0.1936 2.233 0.8915 8.803 3.543 0.02882 0.03858 0.2982 0.2680
gate_fcfs            50 0.01946 0.1945 2.282 0.9107 8.954 3.585 0.00929 0.01003 0.2359 0.2327
fcfs_route           10 0.01919 0.1915 2.208 0.7652 8.753 3.585 0.08376 0.08368 0.2761 0.2647
fcfs_route           50 0.01892 0.1893 2.220 0.7677 8.934 3.662 0.1471 0.1472 0.1226 0.1171
price_and_pack       10 0.01779 0.1927 2.165 0.9524 8.588 3.719 0.4409 0.05881 0 0
price_and_pack       50 0.01816 0.1944 2.226 0.9584 8.778 3.752 0.3429 0.01615 0 0
"""


def table(text: str) -> dict[tuple[str, int], list[str]]:
    rows = (line.split() for line in text.strip().splitlines())
    return {(policy, int(n_gpus)): values for policy, n_gpus, *values in rows}


@pytest.fixture(scope="module", autouse=True)
def compiler():
    """Compiles the chain once, outside the tests' own time; skips them where there is no compiler."""
    try:
        native._library(2, False)
    except NativeUnavailable as error:
        pytest.skip(str(error))


def numbers(cluster: oracles.Cluster) -> InstanceNumbers:
    return InstanceNumbers.of(cluster.instance())


def plan_of(cluster: oracles.Cluster, policy: str) -> PlanNumbers:
    """The plan that the policy uses, from the oracle's own linear program."""
    return PlanNumbers.of(
        oracles.plan(cluster, "separate" if policy == "prioritize_and_route" else "bundled")
    )


@functools.cache
def reference(policy: str) -> tuple[InstanceNumbers, str, PlanNumbers]:
    """The first three arguments of `simulate` for the reference instance."""
    cluster = oracles.reference_cluster()
    return numbers(cluster), policy, plan_of(cluster, policy)


def standard_error(sample: np.ndarray) -> np.ndarray:
    return sample.std(axis=0, ddof=1) / np.sqrt(len(sample))


def three_classes() -> oracles.Cluster:
    """One class never abandons, and decodes run faster beside a prefill (gamma tau < 1)."""
    return oracles.reference_cluster(
        alpha=0.003,
        beta=1e-5,
        batch_size=4,
        prompt_tokens=[900.0, 300.0, 2500.0],
        output_tokens=[60.0, 25.0, 90.0],
        arrival_rate=[0.7, 1.5, 0.9],
        patience_rate=[0.5, 0.0, 1.0],
    )


HAND_PLAN = PlanNumbers(
    x=[0.2, 0.1, 0.25],
    y_mixed=[0.4, 0.2, 0.6],
    y_solo=[0.9, 0.3, 0.0],
    q_prefill=[0.1, 0.0, 0.4],
    q_decode=[0.2, 0.0, 0.1],
    bid_prices=[3.0, 9.0, 1.0],
)


@pytest.mark.parametrize("policy", POLICIES)
def test_conserves_requests_and_capacity(policy):
    """Exactly, by stage and class; and after every event the GPUs alone give all totals and pools."""
    for arguments, check in (
        (reference(policy), False),
        ((numbers(three_classes()), policy, HAND_PLAN), True),
    ):
        run = native.simulate(
            *arguments, n_gpus=9, horizon=150, warmup=40, seed=4, replications=3, check=check
        )
        assert (run["faults"] == 0).all() and (run["events"] > 2000).all()
        joined = run["start_q_prefill"] + run["arrivals"]
        started = joined - run["abandonments_prefill"] - run["end_q_prefill"]
        assert (run["start_x"] + started == run["prefill_completions"] + run["end_x"]).all()
        decodes = run["start_y"] + run["start_q_decode"] + run["prefill_completions"]
        left = run["completions"] + run["abandonments_decode"]
        assert (decodes == left + run["end_y"] + run["end_q_decode"]).all()
        assert (run["start_y"].sum(axis=1) > 0).all()


def test_starts_empty_without_a_warmup():
    run = native.simulate(*reference("gate_fcfs"), n_gpus=5, horizon=20)
    assert not any(run[name].any() for name in native.STATES if name.startswith("start"))


@pytest.mark.parametrize("policy", POLICIES)
def test_tiny_cluster_has_the_revenue_of_global_balance(policy):
    """The published values cut the queues at 5, which costs less than 1e-3, and are rounded to 0.01."""
    cluster = oracles.tiny_cluster()
    run = native.simulate(
        numbers(cluster),
        policy,
        plan_of(cluster, policy),
        n_gpus=2,
        horizon=8_000,
        warmup=50,
        seed=5,
        replications=64,
    )
    revenue = run["revenue_bundled"]
    allowed = LIMIT * standard_error(revenue) + 1e-3 * oracles.TINY_REVENUE[policy] + 0.005
    assert abs(revenue.mean() - oracles.TINY_REVENUE[policy]) < allowed < 0.01 * oracles.TINY_REVENUE[policy]


def assert_has_law(run: dict[str, np.ndarray], law: oracles.Averages, bias: float) -> None:
    """All occupancies within the limit, and `bias` (relative) for the cut of the queues in `law`."""
    for name in native.AVERAGES:
        exact = getattr(law, name)
        allowed = LIMIT * standard_error(run[name]) + bias * exact
        assert (np.abs(run[name].mean(axis=0) - exact) <= allowed).all(), name


@pytest.mark.parametrize("policy", ("sarathi", "gate_immediate", "price_and_pack"))
def test_decodes_may_run_faster_beside_a_prefill(policy):
    """With gamma tau < 1 it is the solo decodes that are thinned."""
    cluster = oracles.tiny_cluster(
        alpha=0.003, beta=0.0, solo=0.02, prompt_tokens=[3000.0, 2000.0], arrival_rate=[1.0, 1.0]
    )
    hand = oracles.Plan(
        "bundled", 0.0, *np.array([[0.2, 0.25], [0.3, 0.1], [0.2, 0.9], [0.1, 0.3], [0, 0], [1, 2]])
    )
    law = oracles.stationary(cluster, policy, 2, 9, hand)
    run = native.simulate(
        numbers(cluster),
        policy,
        PlanNumbers.of(hand),
        n_gpus=2,
        horizon=12_000,
        warmup=50,
        seed=6,
        replications=64,
    )
    assert_has_law(run, law, bias=1e-5)


@pytest.mark.slow
def test_persistent_buffers_are_drawn_from_by_planned_flow():
    """A plan with q_d* > 0 and flows far from equal; drawing in proportion to counts misses y_s by 0.6 %.

    The law cuts every queue at 3, which turns away less than 1e-3 of a class.
    """
    cluster = oracles.tiny_cluster(
        patience_rate=[9.0, 12.0], output_tokens=[120.0, 80.0], arrival_rate=[1.2, 1.2]
    )
    rows = [[0.2, 0.25], [0.2, 0.6], [0.1, 0.9], [0.1, 0.3], [0.2, 0.1], [1.0, 2.0]]
    hand = oracles.Plan("bundled", 0.0, *np.array(rows))
    law = oracles.stationary(cluster, "sli_gate_and_route", 2, 3, hand)
    assert max((law.lost_prefill / cluster.arrival_rate).max(), law.lost_decode.max()) < 1e-3
    arguments = dict(n_gpus=2, horizon=20_000, warmup=50, seed=7, replications=128)
    plan = PlanNumbers.of(hand)
    by_count = dataclasses.replace(plan, q_decode=None)
    weighted = native.simulate(numbers(cluster), "sli_gate_and_route", plan, **arguments)
    counted = native.simulate(numbers(cluster), "sli_gate_and_route", by_count, **arguments)
    assert_has_law(weighted, law, bias=3e-3)
    assert (np.abs(weighted["y_solo"].mean(axis=0) / law.y_solo - 1) < 3e-3).all()
    assert (np.abs(counted["y_solo"].mean(axis=0) / law.y_solo - 1) > 4e-3).all()


@pytest.mark.parametrize(("policy", "n_gpus"), table(REVENUES))
def test_reference_row_at_a_quarter_of_its_length(policy, n_gpus):
    """Occupancies come without intervals: ours stand in, at four times the length."""
    horizon = 300 + (1500 if n_gpus == 10 else 750)
    run = native.simulate(
        *reference(policy), n_gpus=n_gpus, horizon=horizon, warmup=300, seed=8, replications=128
    )
    revenues = np.array(table(REVENUES)[policy, n_gpus], dtype=np.float64).reshape(2, 2)
    for name, (mean, half_width) in zip(("revenue_bundled", "revenue_separate"), revenues, strict=True):
        error = np.hypot(standard_error(run[name]), half_width / 1.96)
        assert abs(run[name].mean() - mean) < LIMIT * error, name
    printed = np.array(table(OCCUPANCIES)[policy, n_gpus]).reshape(5, 2)
    for name, texts in zip(native.AVERAGES, printed, strict=True):
        rounding = np.array([0.5 * 10.0 ** -len(text.partition(".")[2]) for text in texts])
        error = LIMIT * np.sqrt(1.25) * standard_error(run[name]) + rounding
        assert (np.abs(run[name].mean(axis=0) - texts.astype(np.float64)) <= error).all(), name


def test_streams_depend_on_seed_and_replication_alone():
    arguments = dict(n_gpus=6, horizon=60)
    many = native.simulate(*reference("gate_and_route"), seed=1, replications=4, **arguments)
    few = native.simulate(*reference("gate_and_route"), seed=1, replications=2, **arguments)
    other = native.simulate(*reference("gate_and_route"), seed=2, replications=2, **arguments)
    for name, value in few.items():
        np.testing.assert_array_equal(value, many[name][:2])
    assert len({*many["events"], *other["events"]}) == 6


def test_a_partition_may_leave_one_group_empty():
    """Without planned prefills nothing starts; a share of 1 leaves the randomised router mixed GPUs only."""
    instance, plan = numbers(three_classes()), HAND_PLAN
    nothing = native.simulate(
        instance, "gate_and_route", dataclasses.replace(plan, x=[0.0] * 3), n_gpus=5, horizon=200, check=True
    )
    assert nothing["completions"].sum() == nothing["end_x"].sum() == nothing["faults"].sum() == 0
    assert nothing["arrivals"].sum() > 500
    assert (nothing["arrivals"] == nothing["abandonments_prefill"] + nothing["end_q_prefill"]).all()
    everywhere = dataclasses.replace(plan, x=[0.5] * 3)
    full = native.simulate(instance, "sli_gate_and_route", everywhere, n_gpus=5, horizon=200, check=True)
    assert full["completions"].sum() > 500 and full["faults"].sum() == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    (
        ({"policy": "gate_and_root"}, "policy: expected one of gate_and_route, "),
        ({"n_gpus": 0}, "n_gpus: expected at least 1, got 0"),
        ({"replications": 0}, "replications: expected at least 1, got 0"),
        ({"warmup": 10.0}, "warmup: expected from 0 to less than the horizon (10 s), got 10"),
        ({"plan": None}, "plan.x: gate_and_route needs it"),
        ({"plan": PlanNumbers([0.2])}, "x: expected 2 numbers (one a class), got 1"),
        (
            {"policy": "price_and_pack", "plan": PlanNumbers([0.2, 0.2])},
            "plan.bid_prices: price_and_pack needs it",
        ),
    ),
)
def test_refuses_bad_arguments_in_one_line(changes, message):
    instance, policy, plan = reference("gate_and_route")
    arguments = {"policy": policy, "plan": plan, "n_gpus": 2, "horizon": 10.0, **changes}
    with pytest.raises(InputError) as refusal:
        native.simulate(instance, **arguments)
    assert str(refusal.value).startswith(message) and "\n" not in str(refusal.value)


def test_says_in_one_line_that_there_is_no_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(NativeUnavailable, match=r"^native chain: no C\+\+ compiler found.*$"):
        native._compiled(2, False)


def test_says_in_one_line_why_compiling_failed(monkeypatch, tmp_path):
    broken = tmp_path / "chain.cpp"
    broken.write_text("int main( {\n")
    monkeypatch.setattr(native, "_SOURCE", broken)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(NativeUnavailable, match=r"^native chain: .* failed: .*error.*$"):
        native._compiled(2, False)
    assert not list(tmp_path.rglob("*.so"))


@pytest.mark.parametrize("policy", ("gate_and_route", "gate_immediate"))
def test_simpy_has_the_revenue_of_the_native_chain(policy):
    """40 short runs from an empty cluster; |t| with 39 degrees of freedom passes 6 with probability 5e-7."""
    simpy_model = pytest.importorskip("benchmarks.simpy_model", reason="simpy is not installed")
    instance, policy, plan = reference(policy)
    arguments = dict(n_gpus=10, horizon=130, warmup=50)
    runs = [simpy_model.simulate(instance, policy, plan, seed=seed, **arguments) for seed in range(40)]
    chain = native.simulate(instance, policy, plan, seed=9, replications=2000, **arguments)
    for name in ("revenue_bundled", "revenue_separate", "events"):
        sample = np.array([getattr(run, name) for run in runs], dtype=np.float64)
        error = np.hypot(standard_error(sample), standard_error(chain[name]))
        assert abs(sample.mean() - chain[name].mean()) < 6 * error, name
