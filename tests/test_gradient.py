"""Gradient estimators against a derivative that is known in closed form.

Seeds are fixed; with new ones a comparison would fail by chance about once in a million (5 standard errors).
"""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from jaxq import InputError, policies
from jaxq._engine.cluster import ClusterEngine
from jaxq._engine.steppers import Exact
from jaxq._gradient.base import Experiment
from jaxq._gradient.finite_difference import FiniteDifference, _without_cliffs
from jaxq._gradient.flow_balance import FlowValues
from jaxq._policy.feedback import feedback

from . import oracles
from .simulations import counted_values

LIMIT = 5.0
GPUS = 6


class ThinnedLoss:
    """Erlang's loss system whose arrivals enter with the chance 1 / (1 + exp(-s)): s is `gate.start[0]`.

    Nobody waits for a prefill, so a request that the gate does not start is lost. With M servers and offered
    load A = p lambda / mu the throughput is mu A (1 - B), and dB/dA = B (M / A - 1 + B).
    """

    def __init__(self, log_odds: float):
        corner = oracles.loss_corner(GPUS, load=0.45)
        self.instance = corner.instance
        made = feedback(self.instance, start="fcfs_route")
        values = policies.parameters(made)
        self.index = policies.parameter_names(made).index("gate.start[0]")
        values[self.index] = log_odds
        self.policy = policies.with_parameters(made, values)
        self.servers, self.log_odds = made.mixed_gpus(GPUS), log_odds

    def revenue(self, log_odds: float, servers: int | None = None) -> float:
        """Per GPU and second."""
        offered = GPUS * 0.45 / (1 + np.exp(-log_odds))
        carried = offered * (1 - oracles.erlang_b(servers or self.servers, offered))
        return float(self.instance.request_value[0]) * carried / GPUS

    @property
    def slope(self) -> float:
        """Its derivative with respect to the log-odds."""
        chance = 1 / (1 + np.exp(-self.log_odds))
        offered = GPUS * 0.45 * chance
        blocked = oracles.erlang_b(self.servers, offered)
        slope = 1 - blocked - offered * blocked * (self.servers / offered - 1 + blocked)
        return float(self.instance.request_value[0]) * slope * GPUS * 0.45 * chance * (1 - chance) / GPUS

    def experiment(self, **changes) -> Experiment:
        made = Experiment(
            self.instance, GPUS, 400.0, 20.0, engine=ClusterEngine(Exact()), key=jax.random.key(5)
        )
        return dataclasses.replace(made, **changes)


def test_the_closed_form_is_the_derivative_of_erlangs_revenue():
    system = ThinnedLoss(0.4)
    numeric = (system.revenue(0.4 + 1e-5) - system.revenue(0.4 - 1e-5)) / 2e-5
    assert system.slope == pytest.approx(numeric, rel=1e-6)


@pytest.mark.parametrize("directions", [pytest.param(None, marks=pytest.mark.slow), 48])
def test_finite_differences_have_the_slope_of_erlangs_loss_system(directions):
    """The bias of a step of 0.5 is known too: the difference quotient of the closed form."""
    system = ThinnedLoss(0.4)
    gradient = FiniteDifference(step=0.5, directions=directions, replications=64)
    found = gradient.estimate(system.experiment(), system.policy)
    quotient = system.revenue(0.9) - system.revenue(-0.1)
    error = found.standard_error[system.index]
    assert error < 0.1 * quotient
    assert abs(found.gradient[system.index] - quotient) < LIMIT * error
    assert abs(quotient - system.slope) < 0.05 * system.slope


def steady_experiment(load: float) -> tuple[Experiment, policies.Policy]:
    """Three GPUs of the reference instance at a load, under an uncertain policy without a partition."""
    cluster = dataclasses.replace(oracles.reference_cluster(), arrival_rate=np.array([load, load]))
    instance = cluster.instance()
    policy = feedback(instance, start="price_and_pack", sharpness=1.0)
    return Experiment(instance, 3, 440.0, 200.0, key=jax.random.key(4)), policy


@pytest.mark.parametrize("load", [0.35, 0.75])
def test_flow_balance_keeps_the_means_and_takes_most_of_the_noise(load):
    experiment, policy = steady_experiment(load)
    plain = counted_values(experiment, policy, 128)
    steady = experiment.values([policy], 128)[0]
    assert steady.var(ddof=1) < 0.3 * plain.var(ddof=1)
    difference = plain - steady
    assert abs(difference.mean()) < LIMIT * difference.std(ddof=1) / np.sqrt(128) + 2e-3 * plain.mean()


def test_what_varies_with_imbalances_is_taken_out():
    rng = np.random.default_rng(2)
    balance, noise = rng.normal(size=(3, 2, 4000)), rng.normal(size=(3, 4000))
    values = np.array([[5.0], [6.0], [7.0]]) + np.einsum("mkr,k->mr", balance, [30.0, -20.0]) + noise
    left = FlowValues(values, balance).steadied()
    np.testing.assert_allclose(left.mean(axis=1), [5.0, 6.0, 7.0], atol=0.1)
    np.testing.assert_allclose(left.std(axis=1), 1.0, rtol=0.1)


def test_the_spread_is_widened_for_the_weights_that_were_fitted():
    """Of values that have nothing to do with eight imbalances, the variance stays on average."""
    rng = np.random.default_rng(3)
    found = [
        FlowValues(rng.normal(size=(1, 17)), rng.normal(size=(1, 8, 17))).steadied().var(ddof=1)
        for _ in range(2000)
    ]
    assert np.mean(found) == pytest.approx(1.0, abs=LIMIT * np.std(found) / np.sqrt(2000))


def test_too_few_replications_for_the_weights_change_nothing():
    rng = np.random.default_rng(4)
    values = rng.normal(size=(2, 4))
    np.testing.assert_array_equal(FlowValues(values, rng.normal(size=(2, 5, 4))).steadied(), values)


def test_a_policy_with_which_some_replications_halt_keeps_its_own_values():
    """Halted replications have flows out of balance and earn little, but no combination of the flows tells
    how little: what varies with them must not be credited to the policy."""
    rng = np.random.default_rng(5)
    halted, noise = rng.random(64) < 0.2, rng.normal(size=(2, 64))
    values = np.stack([500.0 - 60.0 * halted + noise[0], 500.0 + 3.0 * noise[0]])
    balance = np.stack([(0.2 * halted + 0.1 * noise[1] + 0.2)[None], noise[:1]])
    bad, good = FlowValues(values, balance).steadied_alone()
    np.testing.assert_array_equal(bad, values[0])
    assert good.std() < 0.1


def test_a_cliff_tells_the_way_and_not_how_far():
    slopes = np.array([0.1, -0.2, 0.1, 40.0, -0.3])
    np.testing.assert_allclose(_without_cliffs(slopes), [0.1, -0.2, 0.1, 4 * 0.2, -0.3])
    np.testing.assert_array_equal(_without_cliffs(np.zeros(4)), np.zeros(4))


def test_parameters_that_change_nothing_have_no_slope():
    """One class and one order of pools: the gate's choice among classes and the queues' weights are idle."""
    system = ThinnedLoss(0.4)
    found = FiniteDifference(step=0.5, replications=4).estimate(
        system.experiment(horizon=60.0), system.policy
    )
    slopes = dict(zip(policies.parameter_names(system.policy), found.gradient, strict=True))
    for name in ("gate.priority[0]", "gate.bid_price", "gate.below_plan", "gate.log_queue"):
        assert slopes[name] == 0.0, name
    assert slopes["gate.start[0]"] > 0


def test_an_objective_may_be_a_function_of_the_result():
    system = ThinnedLoss(0.4)
    revenue = system.experiment(horizon=40.0).values([system.policy], 4)
    halved = system.experiment(
        horizon=40.0, objective=lambda result: 0.5 * result.per_replication("revenue_bundled")
    )
    np.testing.assert_allclose(halved.values([system.policy], 4), 0.5 * revenue)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda s: s.experiment(objective="profit"),
            "^objective: expected 'bundled', 'separate' or a function",
        ),
        (lambda s: FiniteDifference(step=0.0), "^step: expected a positive number, got 0$"),
        (lambda s: FiniteDifference(directions=1), r"^directions: expected at least 2 \(or None\), got 1$"),
        (lambda s: FiniteDifference(replications=1), "^replications: expected at least 2, got 1$"),
        (
            lambda s: s.experiment(horizon=30.0, objective=lambda r: np.zeros(2)).values([s.policy], 4),
            r"^objective: expected one number for each of 4 replications, got shape \(2,\)$",
        ),
    ],
)
def test_what_makes_no_estimate_is_refused_in_one_line(make, message):
    with pytest.raises(InputError, match=message) as caught:
        make(ThinnedLoss(0.4))
    assert "\n" not in str(caught.value)
