"""Exact optima and exact values of policies on tiny clusters, each against something independent."""

from __future__ import annotations

import functools
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
import pytest

import jaxq
from benchmarks.optimal_tiny import qualifies
from benchmarks.tiny_instances import SEEDS, random_tiny_instance
from jaxq import InputError, policies
from jaxq._tiny import policy_chain
from jaxq._tiny.choice_law import choice_law
from jaxq._tiny.control import Move

from . import decision_oracle, oracles
from .simulations import averages, run, standard_error

LIMIT = 4.9
"""Standard errors that a simulation may be off: a false alarm of 1e-6."""

CUT = 2e-4
"""What cutting queues at 5 may cost, relatively."""


@functools.cache
def evaluator(n_gpus: int, queue_limit: int) -> jaxq.PolicyEvaluator:
    """The tiny cluster, whose states are enumerated once for all tests."""
    return jaxq.PolicyEvaluator(oracles.tiny_cluster().instance(), n_gpus, queue_limit=queue_limit)


@functools.cache
def optimum(n_gpus: int, queue_limit: int, scheme: str = "bundled") -> jaxq.Optimum:
    """The best control of the tiny cluster."""
    instance = oracles.tiny_cluster().instance()
    return jaxq.optimal_control(instance, n_gpus, queue_limit=queue_limit, scheme=scheme)


# ------------------------------------------------------------------------------------------
# The value of a policy
# ------------------------------------------------------------------------------------------


LARGE = ("gate_fcfs", "sli_gate_and_route")
"""Presets under which two GPUs have tens of thousands of states."""


@pytest.mark.parametrize(
    "policy",
    [pytest.param(name, marks=pytest.mark.slow if name in LARGE else ()) for name in oracles.POLICIES],
)
def test_a_preset_has_the_revenue_of_the_published_table(policy):
    """Two GPUs, queues cut at 5; the table rounds to 0.01 and its queues are cut further out."""
    value = evaluator(2, 5).value(policies.PRESETS[policy](oracles.tiny_cluster().instance()))
    assert value == pytest.approx(oracles.TINY_REVENUE[policy], rel=1e-4, abs=0.005)


@pytest.mark.parametrize(
    "cluster",
    [oracles.tiny_cluster(), pytest.param(oracles.tiny_buffered_cluster(), marks=pytest.mark.slow)],
    ids=["tiny", "buffered"],
)
def test_a_preset_has_the_revenue_of_global_balance(cluster):
    """Both revenues of all presets on one GPU, against a chain written from the model alone."""
    tiny = jaxq.PolicyEvaluator(cluster.instance(), 1, queue_limit=2)
    for name in oracles.POLICIES:
        policy, expected = policies.PRESETS[name](cluster.instance()), oracles.stationary(cluster, name, 1, 2)
        assert tiny.value(policy) == pytest.approx(expected.revenue_bundled, rel=1e-5), name
        separate = tiny.value(policy, scheme="separate")
        assert separate == pytest.approx(expected.revenue_separate, rel=1e-5), name


@pytest.mark.slow
@pytest.mark.parametrize("policy", oracles.POLICIES)
@pytest.mark.parametrize("batch_size", [2, 3])
def test_a_preset_has_the_revenue_of_global_balance_on_two_gpus(policy, batch_size):
    """As above, with two groups of GPUs and a choice between GPUs."""
    cluster = oracles.tiny_cluster(batch_size=batch_size)
    expected = oracles.stationary(cluster, policy, 2, 2)
    value = jaxq.policy_value(
        cluster.instance(), policies.PRESETS[policy](cluster.instance()), 2, queue_limit=2
    )
    assert value == pytest.approx(expected.revenue_bundled, rel=1e-5)


def test_a_rule_in_the_limit_of_large_parameters_is_the_published_one():
    """A randomised gate and router that draw the published choices all but certainly."""
    instance = oracles.tiny_cluster().instance()
    for start in ("sarathi", "price_and_pack"):
        limit = policies.feedback(instance, start=start, sharpness=200.0)
        published = evaluator(1, 3).value(policies.PRESETS[start](instance))
        assert evaluator(1, 3).value(limit) == pytest.approx(published, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("start", ["gate_and_route", "gate_fcfs"])
def test_a_randomised_policy_has_the_revenue_of_its_simulation(start):
    """Soft choices everywhere, with a partition and without; the seed is fixed."""
    instance = oracles.tiny_cluster().instance()
    policy = policies.feedback(instance, start=start, sharpness=1.0)
    found = averages(run(instance, policy, 2, horizon=1000.0, warmup=20.0, replications=256), instance)
    for scheme in ("bundled", "separate"):
        simulated = found[f"revenue_{scheme}"]
        mean, error = float(simulated.mean()), float(standard_error(simulated)[0])
        off = abs(mean - evaluator(2, 5).value(policy, scheme=scheme))
        assert off < LIMIT * error + CUT * mean


class SlotCountingGate(policies.AbstractGate):
    """Starts the second class only while two GPUs could start."""

    def scores(self, observation, uniform):
        second = jnp.where(observation.idle_prefill_slots > 1, 2.0, -jnp.inf)
        return jnp.stack([jnp.ones_like(second), second])


class RoomCountingGate(policies.AbstractGate):
    """Starts the first class while two GPUs could, and either while at most one has room."""

    def scores(self, observation, uniform):
        tight = observation.available[0] < 2
        first = jnp.where((observation.idle_prefill_slots > 1) | tight, 2.0, -jnp.inf)
        return jnp.stack([first, jnp.where(tight, 1.0, -jnp.inf)])


class MixedOnlyRouter(policies.AbstractRouter):
    """The mixed group, else the buffer."""

    pools: ClassVar[tuple[policies.Pool, ...]] = (policies.Pool.MIXED, policies.Pool.WAIT)

    def preferences(self, observation, request_class, uniform):
        return jnp.stack([jnp.full(request_class.shape, 2.0), jnp.full(request_class.shape, 1.0)])


@pytest.mark.parametrize(
    "policy",
    [
        policies.Policy(SlotCountingGate(), policies.ImmediateRouter(), route_first=True),
        policies.Policy(RoomCountingGate(), MixedOnlyRouter(), policies.Partition(1.0), route_first=True),
        policies.Policy(RoomCountingGate(), MixedOnlyRouter(), policies.Partition(1.0)),
    ],
    ids=["own GPU", "mixed group, route first", "mixed group, gate first"],
)
def test_a_gate_sees_its_own_gpu_as_it_is(policy):
    """A gate that counts idle slots and room: the exact chain and global balance show it the same."""
    instance = oracles.tiny_cluster().instance()
    found = averages(run(instance, policy, 2, horizon=1000.0, warmup=20.0, replications=256), instance)
    simulated = found["revenue_bundled"]
    mean, error = float(simulated.mean()), float(standard_error(simulated)[0])
    assert abs(mean - evaluator(2, 5).value(policy)) < LIMIT * error + CUT * mean


def test_a_draw_by_inverse_distribution_has_its_weights_as_law():
    """Four choices, some of them impossible, some of probability 1e-4."""
    weights = np.random.default_rng(1).dirichlet([0.3] * 4, size=50)
    weights[:5, 2], weights[5:10, 1] = 0.0, 1e-4
    weights /= weights.sum(axis=1, keepdims=True)
    upto = np.cumsum(weights, axis=1)
    upto[:, -1] = 1.0
    law = choice_law(lambda u: (u[:, None] >= upto).sum(axis=1), 4, 50)
    np.testing.assert_allclose(law, weights, atol=3e-6)


def test_a_draw_without_intervals_is_integrated_on_a_grid():
    """A rule that takes the first choice on every other twentieth, and 0.3 of the rest."""
    law = choice_law(lambda u: ((20 * u) % 2 >= 1.3).astype(int), 2, 3)
    np.testing.assert_allclose(law, [[0.65, 0.35]] * 3, atol=1e-3)


class CoinGate(policies.AbstractGate):
    """Starts what waits on every other sixteenth of the random number: with probability one half."""

    def scores(self, observation, uniform):
        starts = jnp.floor(16.0 * uniform) % 2 < 1
        return jnp.broadcast_to(jnp.where(starts, 0.0, -jnp.inf), observation.prefill_queue.shape)


class HalfGate(policies.AbstractGate):
    """Starts what waits with probability one half."""

    def scores(self, observation, uniform):
        starts = uniform < 0.5
        return jnp.broadcast_to(jnp.where(starts, 0.0, -jnp.inf), observation.prefill_queue.shape)


def test_the_value_depends_on_the_law_of_a_users_gate_alone():
    """Two gates with the same law, one of which has no intervals."""
    values = [
        evaluator(1, 3).value(policies.Policy(gate, policies.ImmediateRouter(), route_first=True))
        for gate in (CoinGate(), HalfGate())
    ]
    assert values[0] == pytest.approx(values[1], rel=1e-6)


# ------------------------------------------------------------------------------------------
# The optimum
# ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["bundled", "separate"])
@pytest.mark.parametrize(
    "cluster", [oracles.tiny_cluster(), oracles.tiny_cluster(alpha=0.003, beta=0.0)], ids=["slow", "quick"]
)
def test_the_optimum_is_that_of_a_linear_program(cluster, scheme):
    """One GPU, queues cut at 2; prefills that slow decodes down, and prefills that speed them up."""
    expected = decision_oracle.best_revenue(cluster, 1, 2, scheme)
    best = jaxq.optimal_control(cluster.instance(), 1, queue_limit=2, scheme=scheme)
    assert best.lower * (1 - 1e-9) <= expected <= best.upper * (1 + 1e-9)
    assert best.value == pytest.approx(expected, rel=1e-5)
    assert best.upper - best.lower <= 1e-5 * best.upper


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["bundled", "separate"])
@pytest.mark.parametrize("n_gpus, queue_limit, batch_size", [(1, 2, 3), (2, 1, 2)])
def test_the_optimum_is_that_of_a_larger_linear_program(n_gpus, queue_limit, batch_size, scheme):
    """Three slots, or two GPUs."""
    cluster = oracles.tiny_cluster(batch_size=batch_size)
    expected = decision_oracle.best_revenue(cluster, n_gpus, queue_limit, scheme)
    best = jaxq.optimal_control(cluster.instance(), n_gpus, queue_limit=queue_limit, scheme=scheme)
    assert best.value == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("scheme", ["bundled", "separate"])
def test_the_optimum_is_between_every_policy_and_the_bound_of_the_plan(scheme):
    instance, best = oracles.tiny_cluster().instance(), optimum(1, 3, scheme)
    for name, preset in policies.PRESETS.items():
        assert evaluator(1, 3).value(preset(instance), scheme=scheme) <= best.upper, name
    assert best.lower <= best.value * (1 + 1e-9) <= best.upper * (1 + 2e-9)
    assert best.upper <= jaxq.upper_bound(instance, scheme)


@pytest.mark.slow
def test_the_optimum_of_two_gpus_is_above_every_policy():
    """The published table has price-and-pack at 89.88."""
    instance, best = oracles.tiny_cluster().instance(), optimum(2, 5)
    assert best.value == pytest.approx(92.326, abs=0.002)
    for preset in policies.PRESETS.values():
        assert evaluator(2, 5).value(preset(instance)) < best.value
    assert best.value < jaxq.upper_bound(instance)


def test_the_optimum_grows_with_the_queues_and_soon_no_more():
    values = [optimum(1, limit).value for limit in (2, 3, 4)]
    gains = np.diff(values)
    assert (gains > -2e-5 * values[-1]).all()
    assert gains[-1] < 1e-3 * values[-1]
    lost = [float(optimum(1, limit).lost.sum()) for limit in (2, 3, 4)]
    assert (np.diff(lost) < 0).all() and lost[-1] < 1e-3


def test_one_class_without_contention_is_best_served_at_once():
    """A prefill takes no speed from decodes and a decode can start where it was prefilled: never wait."""
    cluster = oracles.one_class(1.5, 0.4, 0.7, 2.0, batch_size=2)
    best = jaxq.optimal_control(cluster.instance(), 1, queue_limit=5)
    greedy = jaxq.policy_value(cluster.instance(), policies.sarathi(cluster.instance()), 1, queue_limit=5)
    assert greedy == pytest.approx(best.value, rel=2e-5)
    assert best.decisions([(None, (1,))], (2,), (0,)) == [Move("start", 0, 0)]
    both = {Move("place", 0, 0), Move("start", 0, 0)}
    assert set(best.decisions([(None, (0,))], (2,), (1,))) == both


def test_of_two_classes_that_differ_in_worth_alone_the_worthier_starts():
    """Decodes take almost no time, so a GPU is one server and the longer output pays more."""
    cluster = oracles.reference_cluster(
        **{"prompt_tokens": np.array([9000.0, 9000.0]), "output_tokens": np.array([0.2, 0.1])},
        **{"arrival_rate": np.array([0.5, 0.5]), "patience_rate": np.array([1.0, 1.0])},
        **{"batch_size": 2, "price_prefill": 0.0},
    )
    best = jaxq.optimal_control(cluster.instance(), 1, queue_limit=3)
    assert best.decisions([(None, (0, 0))], (1, 2), (0, 0)) == [Move("start", 0, 0)]
    assert best.decisions([(None, (0, 0))], (0, 2), (0, 0)) == [Move("start", 0, 1)]


def test_decisions_name_gpus_in_the_order_of_the_caller():
    """The full GPU gets nothing, wherever it stands."""
    best, full, empty = optimum(2, 2), (None, (2, 0)), (None, (0, 0))
    for gpus, free in (((full, empty), 1), ((empty, full), 0)):
        moves = best.decisions(gpus, (1, 1), (0, 0))
        assert moves and {move.gpu for move in moves} == {free}


def test_a_request_beyond_the_buffer_is_placed_or_dropped():
    """The decode buffer holds two; with a free GPU nobody is dropped, with full ones someone is."""
    best = optimum(2, 2)
    kinds = [move.kind for move in best.decisions([(None, (0, 0))] * 2, (0, 0), (2, 1))]
    assert "place" in kinds and "drop" not in kinds
    assert [m.kind for m in best.decisions([(None, (1, 1))] * 2, (0, 0), (2, 1))] == ["drop"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [11, 23])
def test_a_benchmark_instance_is_one_on_which_published_policies_fall_short(seed):
    """Two of the quicker ones of the list."""
    assert seed in SEEDS and qualifies(random_tiny_instance(seed))


# ------------------------------------------------------------------------------------------
# Bad input
# ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"n_gpus": 0}, "n_gpus: expected a whole number of at least 1, got 0"),
        ({"n_gpus": 1.5}, "n_gpus: expected a whole number of at least 1, got 1.5"),
        ({"queue_limit": 0}, "queue_limit: expected a whole number of at least 1, got 0"),
        ({"scheme": "both"}, "scheme: expected one of bundled, separate, got 'both'"),
        ({"tolerance": 0.0}, "tolerance: expected a positive number, got 0"),
        ({"n_gpus": 4, "queue_limit": 9}, "states, and the limit is 400,000; lower one of them"),
    ],
)
def test_bad_input_is_one_line(arguments, message):
    with pytest.raises(InputError) as caught:
        jaxq.optimal_control(oracles.tiny_cluster().instance(), **{"n_gpus": 1, **arguments})
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_too_many_states_under_a_policy_are_refused(monkeypatch):
    monkeypatch.setattr(policy_chain, "MAX_STATES", 1)
    instance = oracles.tiny_cluster().instance()
    with pytest.raises(InputError, match="more than 1 states under this policy at 5; lower it"):
        jaxq.policy_value(instance, policies.gate_fcfs(instance), 2)


def test_a_state_of_another_cluster_is_refused():
    best = optimum(2, 2)
    with pytest.raises(InputError, match="gpus: expected 2 GPUs, got 1"):
        best.decisions([(None, (0, 0))], (0, 0), (0, 0))
    with pytest.raises(InputError, match="prefill_queue"):
        best.decisions([(None, (0, 0))] * 2, (3, 0), (0, 0))
    with pytest.raises(InputError, match="gpus"):
        best.decisions([(0, (1, 1)), (None, (0, 0))], (0, 0), (0, 0))


def test_a_router_without_a_place_is_refused():
    """The gate acts first and takes the slot that the request needs."""
    policy = policies.Policy(policies.FcfsGate(), policies.ImmediateRouter())
    with pytest.raises(InputError, match="leaves a finished request without a place"):
        evaluator(1, 3).value(policy)
