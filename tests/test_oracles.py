"""The oracles against each other and against published values: an oracle that is wrong tests nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import poisson

from . import oracles

# Closed forms.


@pytest.mark.parametrize(
    ("load", "servers", "blocking"), [(1.0, 1, 0.5), (2.0, 2, 0.4), (3.0, 4, 0.20610687)]
)
def test_erlang_b_matches_hand_computed_values(load, servers, blocking):
    assert oracles.erlang_b(servers, load) == pytest.approx(blocking, rel=1e-7)


def test_queues_agree_where_they_coincide():
    assert oracles.mmc(0.6, 1.0, 1) == pytest.approx(oracles.mm1(0.6, 1.0))
    assert oracles.erlang_a(2.4, 1.0, 3, 1e-7) == pytest.approx(oracles.mmc(2.4, 1.0, 3), rel=1e-5, abs=1e-5)
    assert oracles.erlang_a(2.4, 1.0, 200, 0.7) == pytest.approx(oracles.mminf(2.4, 1.0), abs=1e-9)
    lossless = oracles.erlang_a(2.4, 1.0, 3, 1e8)
    assert lossless == pytest.approx(oracles.mmcc(2.4, 1.0, 3), rel=1e-6, abs=1e-6)


def test_patience_equal_to_service_makes_a_poisson_number():
    """M/M/c+M with theta = mu dies at rate k mu in every state: the law is Poisson, as in M/M/infinity."""
    law = oracles.erlang_a(5.0, 1.0, 4, 1.0)
    k = np.arange(200)
    assert law.number == pytest.approx(5.0, rel=1e-12)
    assert law.queue == pytest.approx(np.maximum(k - 4, 0) @ poisson.pmf(k, 5.0), rel=1e-12)
    assert law.wait_probability == pytest.approx(poisson.sf(3, 5.0), rel=1e-12)


@pytest.mark.parametrize("arrival_rate", [2.0, 9.0, 60.0])
def test_erlang_a_balances_its_flows(arrival_rate):
    law = oracles.erlang_a(arrival_rate, 1.0, 6, 0.05)
    assert law.throughput + law.abandonment_rate == pytest.approx(arrival_rate, rel=1e-12)


# The plan.


def test_plan_has_the_published_optimum_of_the_reference_instance():
    bundled, separate = (
        oracles.plan(oracles.reference_cluster(), scheme) for scheme in ("bundled", "separate")
    )
    assert bundled.value == pytest.approx(297.716190, abs=1e-6)
    assert separate.value == pytest.approx(298.597983, abs=1e-6)
    np.testing.assert_allclose(bundled.x, [0.018261, 0.194953], atol=1e-6)
    np.testing.assert_allclose(separate.x, [0.019495, 0.194953], atol=1e-6)
    np.testing.assert_allclose(bundled.q_prefill, [0.316687, 0.0], atol=1e-6)
    np.testing.assert_allclose(bundled.y_mixed, [2.241133, 0.957072], atol=1e-6)
    np.testing.assert_allclose(bundled.y_solo, [8.821413, 3.767168], atol=1e-6)
    np.testing.assert_allclose(bundled.bid_prices, [0.0, 264.454], atol=1e-3)
    assert not bundled.q_decode.any()


@pytest.mark.parametrize(("batch", "value"), [(2, 81.5276), (4, 158.5615), (8, 220.5821), (32, 305.0)])
def test_plan_has_the_published_optimum_for_other_batches(batch, value):
    assert oracles.plan(oracles.reference_cluster(batch_size=batch)).value == pytest.approx(value, abs=5e-5)


def test_buffered_plan_satisfies_its_balance_and_keeps_decodes_waiting():
    cluster = oracles.tiny_buffered_cluster()
    plan = oracles.plan(cluster)
    prefilled = cluster.mu_prefill * plan.x
    decoded = cluster.mu_mixed * plan.y_mixed + cluster.mu_solo * plan.y_solo
    assert plan.q_decode.sum() > 0.05 and 0 < plan.x.sum() < 0.5
    np.testing.assert_allclose(
        prefilled + cluster.patience_rate * plan.q_prefill, cluster.arrival_rate, rtol=1e-7
    )
    np.testing.assert_allclose(decoded + cluster.patience_rate * plan.q_decode, prefilled, rtol=1e-7)
    assert (cluster.prefill_value + cluster.decode_value) @ decoded == pytest.approx(plan.value, rel=1e-7)


# The exact law of tiny clusters.


@pytest.mark.parametrize("policy", oracles.TINY_REVENUE)
def test_global_balance_gives_the_published_revenue_of_the_tiny_system(policy):
    """To the two published decimals; the queues are cut where that moves revenue by less than 1e-3."""
    limit = 7 if policy in ("sarathi", "gate_immediate", "price_and_pack") else 5
    averages = oracles.stationary(oracles.tiny_cluster(), policy, 2, limit)
    assert averages.revenue_bundled == pytest.approx(oracles.TINY_REVENUE[policy], abs=0.0065)


@pytest.mark.parametrize("policy", oracles.POLICIES)
@pytest.mark.parametrize("make", [oracles.tiny_cluster, oracles.tiny_buffered_cluster])
def test_stationary_law_obeys_capacity_balance_and_the_lp_bound(policy, make):
    cluster = make()
    got = oracles.stationary(cluster, policy, 2, 2)
    occupied = got.x.sum()
    assert occupied <= 1 and got.y_mixed.sum() <= (cluster.batch_size - 1) * occupied + 1e-12
    assert got.y_solo.sum() <= cluster.batch_size * (1 - occupied) + 1e-12
    assert (got.lost_prefill > -1e-9).all() and (got.lost_decode > -1e-9).all()
    assert got.revenue_bundled <= oracles.plan(cluster).value
    assert got.revenue_separate <= oracles.plan(cluster, "separate").value
    if oracles.ROUTERS[policy] in ("immediate", "packing"):
        assert not got.q_decode.any() and got.revenue_bundled == pytest.approx(got.revenue_separate)


def test_planned_weights_choose_who_leaves_a_buffer():
    """With q_d* > 0 the randomised router admits by mu y*, otherwise in proportion to counts: another law.

    One GPU is all mixed group; its buffer is long enough for the rule to show.
    """
    cluster = oracles.tiny_buffered_cluster()
    plan = oracles.plan(cluster)
    by_weight = oracles.stationary(cluster, "sli_gate_and_route", 1, 5, plan)
    no_queue = replace(plan, q_decode=np.zeros(2))
    by_count = oracles.stationary(cluster, "sli_gate_and_route", 1, 5, no_queue)
    assert by_weight.q_decode[0] / by_count.q_decode[0] > 1.03
    assert by_weight.revenue_bundled / by_count.revenue_bundled > 1.001


# The corners.


def relative_error(corner: oracles.Corner, averages: oracles.Averages) -> float:
    """The largest distance of the averages from the corner's, relative to each largest entry (or to 1)."""
    errors = []
    for name, expected in corner.expected.items():
        got = sum(np.atleast_1d(getattr(averages, part)) for part in oracles.SUMS.get(name, (name,)))
        errors.append(np.abs(got - expected).max() / (np.abs(expected).max() or 1.0))
    return max(errors)


SMALL_CORNERS = {
    "tandem, one GPU": (lambda: oracles.tandem_corner(1, 0.5, 2, 0.5), 40),
    "tandem, two GPUs": (lambda: oracles.tandem_corner(2, 0.3, 3, 0.8), 40),
    "patient prefill": (lambda: oracles.patient_prefill_corner(2), 20),
    "two classes": (lambda: oracles.two_class_prefill_corner(2, (0.1, 0.05), 2), 6),
    "loss": (lambda: oracles.loss_corner(2), 4),
    "solo group": (lambda: oracles.solo_group_corner(2, 0.3, 3, 0.8), 40),
    "patient decode": (lambda: oracles.patient_decode_corner(2, 2), 30),
    **{
        f"quick prefill, {p}": (lambda p=p: oracles.quick_prefill_corner(p, 2, 2), 24)
        for p in oracles.UNPARTITIONED
    },
    **{
        f"quick decode, {p}": (lambda p=p: oracles.quick_decode_corner(p, 1, 0.6), 20)
        for p in oracles.UNPARTITIONED
    },
}


@pytest.mark.parametrize("name", SMALL_CORNERS)
def test_corners_are_exact_or_as_close_as_they_say(name):
    """The closed forms against global balance of the model itself; 1e-6 is left to the cut of the queues."""
    make, limit = SMALL_CORNERS[name]
    corner = make()
    averages = oracles.stationary(oracles.Cluster.of(corner.instance), corner.policy, corner.n_gpus, limit)
    assert relative_error(corner, averages) < 1e-6 + corner.perturbation


def test_every_corner_has_plausible_expectations():
    for corner in oracles.corners():
        assert 0 <= corner.perturbation < 5e-3, corner.name
        assert all(np.isfinite(v).all() and (v >= 0).all() for v in corner.expected.values()), corner.name


def test_corner_instances_have_the_rates_that_the_oracle_computes():
    instance = oracles.patient_prefill_corner().instance
    cluster = oracles.Cluster.of(instance)
    for rate in ("mu_prefill", "mu_mixed", "mu_solo", "prefill_value", "decode_value"):
        np.testing.assert_allclose(getattr(instance, rate), getattr(cluster, rate), rtol=1e-14)
