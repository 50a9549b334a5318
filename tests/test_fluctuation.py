"""Fluctuations about the fluid limit: closed forms, where the limit is Gaussian, and the pooled engine."""

from __future__ import annotations

import math

import jax
import numpy as np
import pytest
from scipy import stats

from jaxq import Exact, FluidEngine, InputError, PooledEngine, policies
from jaxq.policies import PRESETS

from . import oracles

ENGINE = FluidEngine(level="pooled")
FALSE_ALARM = 1e-6
OVERLOAD = {"arrival_rate": [1.0, 1.0]}


def quick_decodes(arrival_rate: float) -> oracles.Cluster:
    """Decodes so short that the solo group has room for all."""
    return oracles.reference_cluster(output_tokens=np.array([100.0, 40.0]), arrival_rate=[arrival_rate] * 2)


def found(cluster: oracles.Cluster):
    """The fluctuations of a cluster under the plan of the reference instance, whose prefills it fills with
    twice the arrivals and does not with half of them."""
    planned = oracles.reference_cluster().instance()
    return ENGINE.fluctuations(cluster.instance(), policies.gate_and_route(planned))


def test_a_tandem_with_room_for_all_is_poisson_in_every_stage():
    """M/M/infinity twice: variances are means and nothing is correlated; each stage forgets at its service
    rate, and averages over a window are those of an Ornstein-Uhlenbeck process."""
    cluster = quick_decodes(0.25)
    limit = found(cluster)
    mean = np.zeros((5, 2))
    mean[0], mean[2] = cluster.arrival_rate / cluster.mu_prefill, cluster.arrival_rate / cluster.mu_solo
    assert limit.is_gaussian
    assert limit.steady == pytest.approx(mean, abs=1e-5)
    covariance = limit.stage_covariance().reshape(10, 10)
    assert covariance == pytest.approx(np.diag(mean.ravel()), abs=1e-4)
    assert limit.correlation_time()["prefills"] == pytest.approx(1 / cluster.mu_prefill, rel=1e-3)
    scaled = 3.0 * cluster.mu_solo
    averaged = mean[2] * 2 / scaled * (1 - (1 - np.exp(-scaled)) / scaled)
    assert limit.standard_deviation(3.0)["decodes_solo"] == pytest.approx(np.sqrt(averaged), rel=1e-3)


def test_overloaded_queues_fluctuate_as_erlang_a():
    """M/M/c+M above its servers is M/M/infinity at the patience rate: a variance of lambda/theta whatever
    the service, independent for classes whose starts the gate holds to the plan. Prefills end as a Poisson
    process of rate f: decodes have the variance f/mu, and the covariance -f/(theta + mu) with the queue."""
    cluster = quick_decodes(1.0)
    flow = cluster.mu_prefill * oracles.plan(oracles.reference_cluster(), "bundled").x
    limit = found(cluster)
    assert limit.is_gaussian
    expected = np.zeros((5, 2, 5, 2))
    for c in range(2):
        expected[2, c, 2, c] = flow[c] / cluster.mu_solo[c]
        expected[3, c, 3, c] = cluster.arrival_rate[c] / cluster.patience_rate[c]
        shared = -flow[c] / (cluster.patience_rate[c] + cluster.mu_solo[c])
        expected[2, c, 3, c] = expected[3, c, 2, c] = shared
    assert limit.stage_covariance() == pytest.approx(expected, abs=2e-3)
    assert limit.correlation_time()["prefill_queue"] == pytest.approx(1 / cluster.patience_rate, rel=1e-3)


@pytest.mark.parametrize(
    ("policy", "gaussian"),
    [
        ("gate_and_route", False),
        pytest.param("sli_gate_and_route", False, marks=pytest.mark.slow),
        pytest.param("prioritize_and_route", False, marks=pytest.mark.slow),
        pytest.param("fcfs_route", True, marks=pytest.mark.slow),
    ],
)
def test_the_limit_is_gaussian_where_no_stage_is_critical(policy, gaussian):
    """The plan prefills all of a class, and fills the slots, with nothing to spare; only the queues of
    `fcfs_route` are all in excess."""
    for changes in ({}, OVERLOAD):
        instance = oracles.reference_cluster(**changes).instance()
        assert ENGINE.fluctuations(instance, PRESETS[policy](instance)).is_gaussian == gaussian


def critical_queues(cluster: oracles.Cluster) -> np.ndarray:
    """Mean deviations of the two queues of the reference instance under `gate_and_route`, over sqrt(n).

    Z = N_2 - n x_2 reverts at mu_2 below 0 and at theta_2 above, with noise 2 lambda_2: two halves of normal
    laws that are as high at 0. Of class 2, Z^+ waits; class 1 runs Z^- more prefills than planned.
    """
    below, above = (
        math.sqrt(cluster.arrival_rate[1] / rate[1]) for rate in (cluster.mu_prefill, cluster.patience_rate)
    )
    half = math.sqrt(2 / math.pi) / (below + above)
    return np.array([-cluster.mu_prefill[0] / cluster.patience_rate[0] * half * below**2, half * above**2])


def test_the_critical_prefill_stage_has_its_closed_form():
    """256 paths, 8 windows of 10 s each after 40 s: means within 5.1 standard errors (false alarm 1e-6 for
    both), and 3 % for the time step."""
    cluster = oracles.reference_cluster()
    limit = ENGINE.prefill_limit(cluster.instance(), policies.gate_and_route(cluster.instance()))
    paths = limit.queues(jax.random.key(3), np.full(12, 10.0), 256)[4:].mean(axis=0)
    error = paths.std(axis=1, ddof=1) / 16
    expected = critical_queues(cluster)
    assert (abs(paths.mean(axis=1) - expected) < 5.1 * error + 0.03 * abs(expected)).all()


@pytest.mark.slow
def test_a_thousand_gpus_fluctuate_as_the_limit_says():
    """512 replications of `fcfs_route` on the overload instance, event by event: each variance within the
    bounds of chi-squared (false alarm 1e-6 in all) and 3 %, for terms of the order of 1/sqrt(n)."""
    n_gpus, count = 1000, 512
    instance = oracles.reference_cluster(**OVERLOAD).instance()
    policy = policies.fcfs_route(instance)
    limit = ENGINE.fluctuations(instance, policy).standard_deviation()
    final = at_end(instance, policy, n_gpus, count)
    low, high = stats.chi2.ppf([FALSE_ALARM / 12, 1 - FALSE_ALARM / 12], count - 1) / (count - 1)
    for name in ("prefills", "prefill_queue", "decode_queue"):
        ratio = np.var(final[name], axis=1, ddof=1) / (n_gpus * limit[name] ** 2)
        assert (ratio > low - 0.03).all() and (ratio < high + 0.03).all(), (name, ratio)


@pytest.mark.slow
def test_a_critical_prefill_stage_is_off_the_plan_as_the_limit_says():
    """256 replications of `gate_and_route`, event by event, with so many arrivals of the first class that its
    queue is far from empty: means to 5.1 errors (false alarm 1e-6) and 10 % for terms of the order of
    1/sqrt(n); the law against paths of the limit by Kolmogorov and Smirnov (1e-6)."""
    cluster = oracles.reference_cluster(arrival_rate=[2.0, 0.5])
    instance, plan = cluster.instance(), oracles.plan(cluster, "bundled")
    policy = policies.gate_and_route(instance)
    sizes = np.arange(1500, 2500)
    # The mixed group is rounded up, which at other sizes is more than what fluctuates.
    n_gpus = int(sizes[np.argmax(sizes * plan.x.sum() % 1)])
    queue = at_end(instance, policy, n_gpus, 256)["prefill_queue"]
    scaled = (queue - n_gpus * plan.q_prefill[:, None]) / math.sqrt(n_gpus)
    paths = ENGINE.prefill_limit(instance, policy).queues(jax.random.key(4), np.full(1000, 0.1), 256)[-1]
    expected, error = critical_queues(cluster), scaled.std(axis=1, ddof=1) / 16
    assert (abs(scaled.mean(axis=1) - expected) < 5.1 * error + 0.1 * abs(expected)).all()
    for measured, drawn in zip(scaled, paths, strict=True):
        assert stats.ks_2samp(measured, drawn).pvalue > FALSE_ALARM / 2


def at_end(instance, policy, n_gpus: int, count: int) -> dict[str, np.ndarray]:
    """Numbers in each stage after 100 s, by class and replication."""
    times = {"horizon": 100.0, "warmup": 99.0, "n_windows": 1}
    key, engine = jax.random.key(71), PooledEngine(Exact())
    record = engine.run(instance, policy, n_gpus=n_gpus, replications=count, key=key, **times)
    return {name: np.asarray(final, float) for name, final in record.final.items()}


def test_what_has_no_known_limit_is_refused():
    instance = oracles.reference_cluster().instance()
    with pytest.raises(
        InputError, match="^level: expected pooled, whose jumps are known, got 'configuration'"
    ):
        FluidEngine().fluctuations(instance, policies.gate_and_route(instance))
    with pytest.raises(InputError, match="use level 'configuration'"):
        ENGINE.fluctuations(instance, policies.sarathi(instance))
