"""The score-function gradient: scores that average to zero, and slopes against closed forms and differences.

Seeds are fixed; with new ones a comparison would fail by chance about once in a million (5 standard errors).
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float, Int

from jaxq import ClusterEngine, InputError, Leap, Record, ScoreFunction, policies
from jaxq._engine.base import device_policy
from jaxq._engine.record import COUNTS
from jaxq._engine.score import count_scores, score
from jaxq._gradient.base import Experiment
from jaxq._gradient.finite_difference import FiniteDifference
from jaxq._gradient.flow_balance import expected_counts, imbalances
from jaxq._gradient.score_function import score_slopes
from jaxq._policy.base import Observation, Pool

from . import oracles
from .conftest import cache_folder
from .simulations import counted_values, identical, run
from .test_gradient import ThinnedLoss
from .test_policies import observe

LIMIT = 5.0
GPUS = 3

BLOCK = 8
"""Replications a call and device, so that runs of any number of them share one program."""


def reference():
    return oracles.reference_cluster().instance()


def undecided(start: str = "gate_and_route", spread: float = 0.25) -> policies.Policy:
    """A point of the feedback family where every choice is uncertain: parameters about zero.

    No choice may be so rare that a few hundred windows hardly see it: until then its scores are far from
    normal, and their mean is many of its estimated standard errors from zero.
    """
    made = policies.feedback(reference(), start=start)
    names = policies.parameter_names(made)
    values = np.random.default_rng(3).normal(0.0, spread, len(names))
    # Terms that see large numbers get small factors.
    factor = {"gate.below_plan": 0.1, "gate.prefill_queue": 0.1}
    values = values * [factor.get(name, 1.0) for name in names]
    # Two of three GPUs are mixed: a gate that is asked sees the other's prefill.
    share = np.array([name == "partition.mixed_share" for name in names])
    return policies.with_parameters(made, np.where(share, 0.6, values))


def scored_run(**given: Any) -> Record:
    """24 replications of 20 s of the reference instance on 3 GPUs, with scores."""
    arguments = {"horizon": 20.0, "warmup": 5.0, "replications": 24, "n_windows": 4, "scores": True}
    return run(reference(), undecided(), GPUS, **arguments | {"key": 3, "block": BLOCK} | given)


def counted(record: Record) -> str:
    """A fingerprint of every bit of the scores and of the counts of events."""
    whole = hashlib.sha256()
    for values in (record.scores, record.events, *(getattr(record, name) for name in COUNTS)):
        whole.update(np.ascontiguousarray(values).tobytes())
    return whole.hexdigest()


class AdmittingRouter(policies.AbstractRandomRouter):
    """Sends a request to a slot of the solo group with the log-odds `admit`; it is lost where it is not sent
    there, or there is none."""

    pools: ClassVar[tuple[Pool, ...]] = (Pool.SOLO, Pool.WAIT)
    admit: Float[Any, "*batch"]

    def weights(
        self, observation: Observation, request_class: Int[Array, "*batch"]
    ) -> Float[Array, "pools *batch"]:
        chance = jnp.where(observation.available[0] > 0, jax.nn.sigmoid(self.admit), 0.0)
        return jnp.stack([chance, 1.0 - chance])

    def admission(self, observation: Observation, group: Pool) -> Float[Array, "buffers classes *batch"]:
        return jnp.zeros(observation.decode_queue.shape, jnp.float32)


class RandomlyAdmitted:
    """Erlang's loss system of the solo group's slots, which a Poisson stream (Burke) enters with a chance.

    The chance is 1 / (1 + exp(-s)) with s the router's `admit`; with c slots and offered load A = p lambda D
    the throughput is A (1 - B) / D, and dB/dA = B (c / A - 1 + B).
    """

    gpus, load, decode_time, log_odds = 4, 0.3, 12.0, 0.3

    def __init__(self):
        cluster = oracles.one_class(self.load, 1.0, self.decode_time, 0.0)
        self.instance = cluster.instance()
        self.policy = policies.Policy(
            policies.FcfsGate(), AdmittingRouter(np.float64(self.log_odds)), policies.Partition(0.5)
        )

    def experiment(self, horizon: float, warmup: float, **given: Any) -> Experiment:
        engine = ClusterEngine(block=BLOCK)
        return Experiment(
            self.instance, self.gpus, horizon, warmup, **{"engine": engine, "key": jax.random.key(6)} | given
        )

    @property
    def slope(self) -> float:
        """The derivative of the revenue per GPU and second with respect to the log-odds."""
        chance = 1 / (1 + np.exp(-self.log_odds))
        stream, slots = self.gpus * self.load, 4 * (self.gpus - 2)
        offered = stream * chance * self.decode_time
        blocked = oracles.erlang_b(slots, offered)
        slope = 1 - blocked - offered * blocked * (slots / offered - 1 + blocked)
        return float(self.instance.request_value[0]) * slope * stream * chance * (1 - chance) / self.gpus


def test_scores_are_derivatives_of_the_logarithms_of_chances():
    """Of one decision of the gate and one of the router, against difference quotients of the logarithm."""
    made = undecided()
    seen, one = observe([3, 8], [1, 0], available=[9, 0, 2, 1]), jnp.asarray([1])
    everywhere, choice = jnp.asarray([True]), 2

    @jax.jit
    def log_chance(policy: policies.Policy) -> Array:
        chances = [policy.gate.weights(seen), policy.router.weights(seen, one)]
        return sum(jnp.log(chance[choice, 0] / jnp.sum(chance)) for chance in chances)

    lowered = device_policy(made)
    scores = [
        score(lowered.gate, lambda gate: gate.weights(seen), jnp.asarray([choice]), everywhere),
        score(lowered.router, lambda router: router.weights(seen, one), jnp.asarray([choice]), everywhere),
    ]
    scores = np.concatenate(scores)[:, 0]
    values, step = policies.parameters(made), 1e-2
    assert len(scores) == count_scores(made) == len(values) - 1
    for k, slope in enumerate(scores):
        moved = [values + sign * step * (np.arange(len(values)) == k) for sign in (1, -1)]
        up, down = (log_chance(device_policy(policies.with_parameters(made, value))) for value in moved)
        assert slope == pytest.approx(float(up - down) / (2 * step), rel=2e-3, abs=1e-3), k
    nowhere = score(lowered.gate, lambda gate: gate.weights(seen), jnp.asarray([2]), ~everywhere)
    assert not np.asarray(nowhere).any()


def test_scores_average_to_zero_and_know_nothing_of_what_came_before():
    """Window by window, and as products with the window before: its scores, and its queues and decodes."""
    record = scored_run(horizon=60.0, warmup=0.0, n_windows=12, replications=256)
    assert record.scores is not None and np.isfinite(record.scores).all()

    def within(samples: np.ndarray) -> None:
        error = samples.std(axis=-1, ddof=1) / np.sqrt(samples.shape[-1])
        assert (np.abs(samples.mean(axis=-1)) <= LIMIT * error + 1e-6).all()

    assert (record.scores.std(axis=(0, 2)) > 1e-3).sum() >= 20
    within(record.scores)
    within(record.scores.mean(axis=0))
    within((record.scores[1:] * record.scores[:-1]).mean(axis=0))
    for before in (record.prefill_queue, record.decodes_mixed, record.decodes_solo):
        centred = before - before.mean(axis=-1, keepdims=True)
        within((record.scores[1:, :, None] * centred[:-1, None]).mean(axis=0))


def test_scores_leave_every_other_bit_of_a_run_alone():
    plain = scored_run(scores=False)
    assert plain.scores is None
    assert identical(plain, dataclasses.replace(scored_run(), scores=None))


def test_blocks_change_no_bit_of_the_scores():
    whole = scored_run()
    assert identical(whole, scored_run(block=None))
    parts = [scored_run(replications=10), scored_run(first=10, replications=14)]
    assert identical(whole, Record.concatenate(parts))
    with pytest.raises(InputError, match="^records: expected the same windows, .* scores in all or none$"):
        Record.concatenate([parts[0], scored_run(scores=False)])


@pytest.mark.slow
def test_one_device_gives_the_scores_of_two():
    assert len(jax.devices()) == 2
    answer = subprocess.run(
        [sys.executable, "-m", "tests.test_score_function"],
        cwd=Path(__file__).parents[1],
        env=os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache_folder())},
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.strip() == counted(scored_run())


def test_slope_of_erlangs_loss_system_behind_a_random_gate():
    """The credit window is eight times the mean service time: what is earned later is 1e-3 of the slope."""
    system = ThinnedLoss(0.4)
    gradient = ScoreFunction(credit=8.0, replications=64)
    found = gradient.estimate(system.experiment(horizon=220.0), system.policy)
    error = found.standard_error[system.index]
    assert error < 0.06 * system.slope
    assert abs(found.gradient[system.index] - system.slope) < LIMIT * error + 1e-3 * system.slope
    assert abs(found.value - system.revenue(0.4)) < 0.01 * found.value
    others = np.delete(found.gradient, system.index)
    assert np.isfinite(others).all() and np.isfinite(found.standard_error).all()
    names = policies.parameter_names(system.policy)
    for name in ("gate.priority[0]", "gate.bid_price", "gate.below_plan", "gate.log_queue"):
        assert abs(found.gradient[names.index(name)]) < 1e-4, name


def test_slope_of_erlangs_loss_system_behind_a_random_router():
    """A gate that does not draw, a router of the user's own, requests that wait without limit."""
    system = RandomlyAdmitted()
    experiment = system.experiment(500.0, 100.0)
    gradient = ScoreFunction(credit=60.0, replications=96)
    record = gradient._run(experiment, system.policy, 60.0, 0)
    (slopes,) = score_slopes(experiment, system.policy, record, 60.0)
    error = slopes.std(ddof=1) / np.sqrt(len(slopes))
    assert error < 0.1 * system.slope
    assert abs(slopes.mean() - system.slope) < LIMIT * error + 0.005 * system.slope


def test_an_objective_may_be_a_function_of_the_result():
    """A linear one has the slopes of the revenue that it is; a smooth one those of its linearisation."""
    system = RandomlyAdmitted()
    experiment = system.experiment(60.0, 20.0)
    record = ScoreFunction(replications=8)._run(experiment, system.policy, 12.0, 0)

    def slopes(objective: Any) -> np.ndarray:
        changed = dataclasses.replace(experiment, objective=objective)
        return score_slopes(changed, system.policy, record, 12.0)

    def revenue(result: Any) -> np.ndarray:
        return result.per_replication("revenue_bundled")

    np.testing.assert_allclose(slopes(revenue), slopes("bundled"), rtol=1e-6)
    doubled = slopes(lambda result: 2.0 * revenue(result) + 7.0)
    np.testing.assert_allclose(doubled, 2.0 * slopes("bundled"), rtol=1e-6)


def test_parameters_without_chances_get_finite_differences():
    system = RandomlyAdmitted()
    experiment = system.experiment(60.0, 20.0)
    found = ScoreFunction(replications=8, step=6.0).estimate(experiment, system.policy, first=4)
    assert policies.parameter_names(system.policy) == ("router.admit", "partition.mixed_share")
    expected = FiniteDifference(step=6.0, replications=8).estimate(experiment, system.policy, first=4)
    assert found.gradient[1] == pytest.approx(expected.gradient[1])
    assert found.gradient[1] != 0.0 and found.gradient[0] != 0.0


def test_counts_replaced_by_integrals_of_rates_have_the_same_means():
    record = scored_run(horizon=80.0, warmup=20.0, replications=256, scores=False)
    smooth = expected_counts(reference(), record)
    names = ("arrivals", "abandoned_prefill", "prefills_completed", "abandoned_decode", "completions")
    for name in names:
        counts, integrals = (kept.measured(name).sum(axis=0) for kept in (record, smooth))
        error = (counts - integrals).std(axis=-1, ddof=1) / np.sqrt(256)
        assert (np.abs((counts - integrals).mean(axis=-1)) <= LIMIT * error).all(), name
    assert imbalances(reference(), record).shape == (4, 4, 256)


OVERLOAD = dataclasses.replace(oracles.reference_cluster(), arrival_rate=np.array([0.75, 0.75]))


def plain_differences(
    experiment: Experiment, policy: policies.Policy, index: int, step: float, replications: int
) -> np.ndarray:
    """Central differences of the revenue as it is counted, replication by replication."""
    move = step * np.eye(len(policies.parameters(policy)))[index]
    centre = policies.parameters(policy)
    up, down = (
        counted_values(experiment, policies.with_parameters(policy, centre + sign * move), replications)
        for sign in (1, -1)
    )
    return (up - down) / (2 * step)


@pytest.mark.slow
@pytest.mark.parametrize(("start", "n_gpus"), [("sarathi", 4), ("gate_and_route", 5), ("price_and_pack", 2)])
def test_slopes_of_the_feedback_family_are_those_of_finite_differences(start, n_gpus):
    """Nine parameters of long runs, each within the combined errors; some slopes are far from zero."""
    instance = OVERLOAD.instance()
    made = policies.feedback(instance, start=start, sharpness=1.0)
    names = policies.parameter_names(made)
    compared = [
        "gate.priority[0]",
        "gate.bid_price",
        "gate.log_queue",
        "gate.start[0]",
        "gate.start[1]",
        "gate.start_idle",
        "router.preference[0]",
        "router.preference[1]",
        "router.beside_prefill[1]",
    ]
    index = [names.index(name) for name in compared]
    experiment = Experiment(instance, n_gpus, 566.0, 66.0, key=jax.random.key(8))
    # Twice the longest mean time: what is earned later is small against the errors.
    record = ScoreFunction(replications=512)._run(experiment, made, 66.0, 0)
    slopes = score_slopes(experiment, made, record, 66.0)[index]
    step = 0.3
    other = dataclasses.replace(experiment, key=jax.random.key(9))
    quotients = np.stack([plain_differences(other, made, k, step, 96) for k in index])
    mean, quotient = slopes.mean(axis=1), quotients.mean(axis=1)
    errors = [sample.std(axis=1, ddof=1) / np.sqrt(sample.shape[1]) for sample in (slopes, quotients)]
    assert (np.abs(mean - quotient) < LIMIT * np.hypot(*errors)).all(), (mean, quotient, errors)
    assert (np.abs(mean) > LIMIT * errors[0]).any()


@pytest.mark.slow
@pytest.mark.parametrize("sharpness", [1.0, 100.0])
@pytest.mark.parametrize("start", ["gate_and_route", "sli_gate_and_route", "price_and_pack"])
def test_scores_stay_finite_over_1e4_seconds(start, sharpness):
    made = policies.feedback(OVERLOAD.instance(), start=start, sharpness=sharpness)
    record = run(OVERLOAD.instance(), made, 2, horizon=1e4, n_windows=100, replications=16, scores=True)
    assert record.scores is not None and np.isfinite(record.scores).all()
    assert np.abs(record.scores).max() < 1e5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ScoreFunction(credit=0.0), "^credit: expected a positive number of seconds, got 0$"),
        (lambda: ScoreFunction(step=-1.0), "^step: expected a positive number, got -1$"),
        (lambda: ScoreFunction(replications=1), "^replications: expected at least 2, got 1$"),
        (
            lambda: ScoreFunction().estimate(
                Experiment(reference(), 2, 20.0, 5.0), policies.gate_and_route(reference())
            ),
            "^scores: policy 'gate_and_route' has no parameters that act through random decisions; ",
        ),
        (lambda: scored_run(stepper=Leap()), "^scores: expected the exact chain; a time step takes many"),
    ],
)
def test_what_has_no_scores_is_refused_in_one_line(call, message):
    with pytest.raises(InputError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_the_estimator_runs_the_exact_chain_whatever_the_stepper():
    system = RandomlyAdmitted()
    gradient = ScoreFunction(replications=8)
    steps = system.experiment(60.0, 20.0, engine=ClusterEngine(Leap(), block=BLOCK))
    runs = [gradient._run(made, system.policy, 12.0, 0) for made in (steps, system.experiment(60.0, 20.0))]
    assert identical(*runs) and runs[0].dt is None


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 1)
    print(counted(scored_run()))
