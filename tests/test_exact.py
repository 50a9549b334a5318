"""The exact chain against global balance of tiny clusters, and against closed forms of classical queues.

Seeds are fixed. Each comparison allows z standard errors such that, were the seed new, one test would fail by
chance once in a million runs whatever the number of its comparisons (Bonferroni).
"""

from __future__ import annotations

import functools

import numpy as np
import pytest
from scipy import stats

from jaxq._engine.steppers import AbstractStepper, Exact

from . import oracles
from .simulations import averages, run, standard_error

FALSE_ALARM = 1e-6
REPLICATIONS = 1024

NAMES = (
    "x",
    "y_mixed",
    "y_solo",
    "q_prefill",
    "q_decode",
    "prefill_completions",
    "decode_completions",
    "abandonment_prefill",
    "abandonment_decode",
    "revenue_bundled",
    "revenue_separate",
)


def disagreements(
    measured: dict[str, np.ndarray], expected: dict[str, np.ndarray], perturbation: float = 0.0
) -> dict[str, str]:
    """The averages that are further off than chance allows, beyond a relative `perturbation`."""
    means, errors, values = {}, {}, {}
    for name, value in expected.items():
        sample = sum(measured[part] for part in oracles.SUMS.get(name, (name,)))
        means[name], errors[name] = sample.mean(axis=0), standard_error(sample)
        values[name] = np.broadcast_to(value, means[name].shape)
    comparisons = sum(mean.size for mean in means.values())
    limit = stats.norm.isf(FALSE_ALARM / 2 / comparisons)
    wrong = {}
    for name, mean in means.items():
        # Sums of float32 integrals keep six digits.
        allowed = limit * errors[name] + (perturbation + 2e-6) * np.abs(values[name]) + 1e-12
        if (np.abs(mean - values[name]) > allowed).any():
            wrong[name] = f"{mean} +- {errors[name]}, expected {values[name]}"
    return wrong


@functools.cache
def tiny(policy: str) -> tuple[dict[str, np.ndarray], oracles.Averages]:
    """The tiny system of two GPUs: 1024 replications of 200 s, and its law (queues cut at 6)."""
    cluster = oracles.tiny_cluster()
    instance = cluster.instance()
    record = run(instance, policy, 2, horizon=210.0, warmup=10.0, replications=REPLICATIONS, key=11)
    assert not record.imbalance.any()
    return averages(record, instance), oracles.stationary(cluster, policy, 2, queue_limit=6)


@pytest.mark.parametrize("policy", oracles.POLICIES)
def test_tiny_system_has_the_law_of_global_balance(policy):
    """Cutting the queues at 6 costs less than 1e-4 of anything."""
    measured, law = tiny(policy)
    assert max(law.lost_prefill.max(), law.lost_decode.max()) < 1e-4
    assert not disagreements(measured, {name: getattr(law, name) for name in NAMES}, perturbation=2e-4)


@pytest.mark.parametrize("policy", oracles.POLICIES)
def test_tiny_system_has_the_published_revenue(policy):
    """Published to half a unit of the last digit, from queues cut at 5, which costs less than 1e-3."""
    measured, _ = tiny(policy)
    off = 0.005 / oracles.TINY_REVENUE[policy] + 1e-4
    assert not disagreements(measured, {"revenue_bundled": oracles.TINY_REVENUE[policy]}, perturbation=off)


def test_one_gpu_with_persistent_buffers_has_the_law_of_global_balance():
    """A plan with q_d* > 0 (gamma tau < (B - 1)/B): the randomised router serves buffers by planned flows."""
    cluster = oracles.tiny_buffered_cluster()
    assert oracles.policy_plan(cluster, "sli_gate_and_route").q_decode.max() > 0.01
    instance = cluster.instance()
    record = run(
        instance, "sli_gate_and_route", 1, horizon=210.0, warmup=10.0, replications=REPLICATIONS, key=12
    )
    law = oracles.stationary(cluster, "sli_gate_and_route", 1, queue_limit=9)
    expected = {name: getattr(law, name) for name in NAMES}
    assert not disagreements(averages(record, instance), expected, perturbation=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("policy", [p for p in oracles.POLICIES if p != "sli_gate_and_route"])
def test_two_gpus_whose_prefills_speed_decodes_up(policy):
    """The same hardware (gamma tau = 0.15) under the other policies; queues cut at 9 cost up to a percent."""
    cluster = oracles.tiny_buffered_cluster(patience_rate=[6.0, 8.0])
    instance = cluster.instance()
    record = run(instance, policy, 2, horizon=110.0, warmup=10.0, replications=REPLICATIONS, key=13)
    law = oracles.stationary(cluster, policy, 2, queue_limit=9)
    lost = max(
        (law.lost_prefill / cluster.arrival_rate).max(), (law.lost_decode / cluster.arrival_rate).max()
    )
    assert lost < 5e-3
    expected = {name: getattr(law, name) for name in ("x", "y_mixed", "y_solo", "revenue_bundled")}
    assert not disagreements(averages(record, instance), expected, perturbation=5 * lost)


def corner_run(corner: oracles.Corner, stepper: AbstractStepper) -> dict[str, np.ndarray]:
    """A corner from empty, for 2,000 mean times between arrivals; the first quarter is discarded."""
    horizon = 2000.0 / (corner.n_gpus * float(np.sum(corner.instance.workload.arrival_rate)))
    record = run(
        corner.instance,
        corner.policy,
        corner.n_gpus,
        horizon=horizon,
        warmup=horizon / 4,
        replications=REPLICATIONS,
        key=14,
        stepper=stepper,
    )
    assert not record.imbalance.any()
    return averages(record, corner.instance)


CORNERS = {corner.name: corner for corner in oracles.corners()}
QUICK_CORNERS = (
    "M/M/1 then M/M/3",
    "M/M/2 then M/M/18",
    "prefill stage is M/M/M+M",
    "sarathi: the cluster is M/M/nB+M",
    "solo group is M/M/12",
)


def check_corner(name: str) -> None:
    corner = CORNERS[name]
    assert not disagreements(corner_run(corner, Exact()), corner.expected, corner.perturbation)


@pytest.mark.parametrize("name", QUICK_CORNERS)
def test_corner_is_a_classical_queue(name):
    check_corner(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(CORNERS) - set(QUICK_CORNERS)))
def test_further_corner_is_a_classical_queue(name):
    check_corner(name)
