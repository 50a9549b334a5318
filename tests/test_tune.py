"""Tuning: it climbs to what is known to be best, keeps the best it met, and repeats itself bit for bit."""

from __future__ import annotations

import equinox as eqx
import numpy as np
import optax
import pytest

from jaxq import InputError, policies
from jaxq._engine.cluster import ClusterEngine
from jaxq._engine.steppers import Exact
from jaxq._gradient.base import AbstractGradient, GradientEstimate
from jaxq._gradient.finite_difference import FiniteDifference
from jaxq._tune import slowest_time, tune

from . import oracles
from .test_gradient import GPUS, ThinnedLoss

QUICK = dict(n_gpus=GPUS, engine=ClusterEngine(Exact()), steps=6, check_every=2)


@pytest.fixture(scope="module")
def tuned():
    """Erlang's loss system that lets half of its arrivals in: letting all in earns the most."""
    system = ThinnedLoss(0.0)
    gradient = FiniteDifference(directions=8, replications=4)
    return system, tune(system.instance, system.policy, gradient=gradient, **QUICK)


def test_it_climbs_towards_what_is_known_to_be_best(tuned):
    """Six steps of 0.5 in the log-odds, from 0: at least 2; more servers are worth something too."""
    system, found = tuned
    log_odds = policies.parameters(found.policy)[system.index]
    assert 2.0 < log_odds <= 3.5
    assert found.gain.ci95[0] > 0
    servers = found.policy.mixed_gpus(GPUS)
    expected = [system.revenue(0.0), system.revenue(log_odds, servers)]
    assert servers >= system.servers and expected[1] > 1.4 * expected[0]
    for estimate, revenue in zip((found.start_value, found.value), expected, strict=True):
        assert abs(estimate.mean - revenue) < 5 * estimate.standard_error
    assert [check.step for check in found.history[0]] == [0, 2, 4, 6]


def test_the_same_key_gives_the_same_bits(tuned):
    system, found = tuned
    again = tune(
        system.instance, system.policy, gradient=FiniteDifference(directions=8, replications=4), **QUICK
    )
    np.testing.assert_array_equal(policies.parameters(again.policy), policies.parameters(found.policy))
    assert again.history == found.history and again.value.mean == found.value.mean


class Adverse(AbstractGradient):
    """Says the opposite of the truth, or nothing at all."""

    slope: float = eqx.field(static=True)

    def estimate(self, experiment, policy, first=0):
        count = len(policies.parameters(policy))
        return GradientEstimate(0.0, np.full(count, self.slope), np.zeros(count))

    def replications_used(self):
        return 1


@pytest.mark.parametrize("slope", [-1.0, np.nan])
def test_it_keeps_the_best_policy_that_it_met(slope):
    """Going downhill, or nowhere, the start stays the best."""
    system = ThinnedLoss(2.0)
    found = tune(system.instance, system.policy, gradient=Adverse(slope), optimizer=optax.sgd(0.5), **QUICK)
    np.testing.assert_array_equal(policies.parameters(found.policy), policies.parameters(system.policy))
    assert found.gain.mean == 0
    assert len(found.notes) == (6 if np.isnan(slope) else 0)
    assert all("the gradient was not finite" in note for note in found.notes)


def test_the_best_of_several_starts_is_kept():
    poor, good = ThinnedLoss(-3.0), ThinnedLoss(2.0)
    found = tune(poor.instance, [poor.policy, good.policy], gradient=Adverse(0.0), **QUICK)
    np.testing.assert_array_equal(policies.parameters(found.start), policies.parameters(good.policy))
    assert len(found.history) == 2


def test_the_slowest_time_is_that_of_a_decode_beside_a_prefill():
    cluster = oracles.reference_cluster()
    assert slowest_time(cluster.instance()) == pytest.approx(1 / cluster.mu_mixed.min())


@pytest.mark.parametrize(
    ("starts", "changes", "message"),
    [
        ([], {}, "^starts: expected at least one policy$"),
        ("sarathi", {}, "^starts: 'sarathi' has no parameters"),
        ("gate_and_route", {"steps": 0}, "^steps: expected a whole number of at least 1, got 0$"),
        ("gate_and_route", {"patience": -1}, "^patience: expected a whole number of at least 1, got -1$"),
        (
            "gate_and_route",
            {"objective": "profit"},
            "^objective: expected 'bundled', 'separate' or a function",
        ),
    ],
)
def test_what_cannot_be_tuned_is_refused_in_one_line(starts, changes, message):
    instance = oracles.reference_cluster().instance()
    policy = policies.load_policy(starts, instance) if isinstance(starts, str) else starts
    with pytest.raises(InputError, match=message) as caught:
        tune(instance, policy, **(QUICK | changes))
    assert "\n" not in str(caught.value)
