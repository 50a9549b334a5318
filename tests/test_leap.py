"""The leap stepper: its counts' laws, its bias to first order in the step, and the corners that suit it.

Seeds are fixed; with new ones each test would fail by chance about once in a million (limits of 5 standard
errors, or a chi-square test at 1e-6).
"""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from benchmarks.leap_bias import Case
from jaxq import InputError
from jaxq._engine import counts
from jaxq._engine.cluster import ClusterEngine
from jaxq._engine.steppers import Exact, Leap, largest_gpu_rate
from jaxq._instance_file import load_instance
from jaxq._policy.presets import PRESETS
from jaxq.policies import AbstractGate, PackingRouter, Policy

from . import oracles
from .simulations import averages, run, standard_error
from .test_exact import CORNERS, REPLICATIONS, disagreements

FALSE_ALARM = 1e-6
DRAWS = 2**18
INSTANCES = Path(__file__).parents[1] / "experiments" / "instances"


def uniforms(seed: int) -> jnp.ndarray:
    """Numbers in [0, 1) of 24 bits, as the engine's."""
    words = np.random.default_rng(seed).integers(0, 2**24, DRAWS)
    return jnp.asarray(words, jnp.float32) * jnp.float32(2.0**-24)


def follows(drawn: np.ndarray, law) -> bool:
    """Chi-square test of whole numbers against a law of scipy; cells of fewer than 20 are merged."""
    top = int(law.isf(1e-12)) + 1
    assert 0 <= drawn.min() and drawn.max() <= top
    expected = DRAWS * law.pmf(np.arange(top + 1))
    seen = np.bincount(drawn, minlength=top + 1)
    common = np.flatnonzero(expected >= 20)
    first, last = common[0], common[-1]
    cells = [
        np.concatenate([[v[: first + 1].sum()], v[first + 1 : last], [v[last:].sum()]])
        for v in (seen, expected)
    ]
    off = ((cells[0] - cells[1]) ** 2 / cells[1]).sum()
    return off < stats.chi2.isf(FALSE_ALARM, len(cells[0]) - 1)


@pytest.mark.parametrize("mean", [0.004, 0.3, 2.0, 11.9])
def test_small_poisson_numbers_have_their_law(mean):
    drawn = np.asarray(counts.poisson(jnp.full(DRAWS, mean, jnp.float32), uniforms(1)))
    assert follows(drawn, stats.poisson(mean))


@pytest.mark.parametrize(
    ("trials", "chance"),
    [(1, 0.3), (7, 0.02), (40, 0.2), (250, 0.03), (16, 0.5), (13, 0.999), (40, 0.7), (9, 1)],
)
def test_small_binomial_numbers_have_their_law(trials, chance):
    drawn = counts.binomial(jnp.full(DRAWS, trials), jnp.full(DRAWS, chance, jnp.float32), uniforms(2))
    assert follows(np.asarray(drawn), stats.binom(trials, chance))


@pytest.mark.parametrize("mean", [12.1, 40.0, 900.0, 20_000.0])
def test_large_poisson_numbers_are_close_to_their_law(mean):
    """Above a mean of 12: mean and variance within 5 errors, Kolmogorov's distance below 0.005."""
    check_large(
        np.asarray(counts.poisson(jnp.full(DRAWS, mean, jnp.float32), uniforms(3))), stats.poisson(mean)
    )


@pytest.mark.parametrize(("trials", "chance"), [(2000, 0.01), (160_000, 0.0005), (8000, 0.3)])
def test_large_binomial_numbers_are_close_to_their_law(trials, chance):
    drawn = counts.binomial(jnp.full(DRAWS, trials), jnp.full(DRAWS, chance, jnp.float32), uniforms(4))
    check_large(np.asarray(drawn), stats.binom(trials, chance))


def check_large(drawn: np.ndarray, law) -> None:
    mean, variance = law.stats()
    assert abs(drawn.mean() - mean) < 5 * np.sqrt(variance / DRAWS) + 1e-4 * np.sqrt(variance)
    assert abs(drawn.var() / variance - 1) < 5 * np.sqrt(2 / DRAWS) + 2e-3
    values = np.unique(drawn)
    seen = np.searchsorted(np.sort(drawn), values, side="right") / DRAWS
    assert np.abs(seen - law.cdf(values)).max() < 0.005


def test_counts_at_the_ends():
    """Nothing of nothing; never more than there are; no negative number at the extreme uniforms."""
    ends = jnp.asarray([0.0, 1.0 - 2.0**-24], jnp.float32)
    for mean in (0.0, 1e-6, 5.0, 12.0, 1000.0):
        drawn = np.asarray(counts.poisson(jnp.full(2, mean, jnp.float32), ends))
        assert (drawn >= 0).all() and drawn[1] <= mean + 7 * np.sqrt(mean) + 10
    for trials in (0, 1, 30, 5000):
        drawn = np.asarray(counts.binomial(jnp.full(2, trials), jnp.full(2, 0.4, jnp.float32), ends))
        assert 0 <= drawn[0] <= drawn[1] <= trials
    assert not np.asarray(counts.poisson(jnp.zeros(2), ends)).any()


def edges(law) -> np.ndarray:
    """Where quantiles jump, 40 around the mean, and the numbers near: multiples of 2^-24, as random ones."""
    values = max(int(law.mean()) - 20, 0) + np.arange(40)
    at = np.floor(law.cdf(values) * 2.0**24)[:, None] + np.arange(-12, 13)
    return (np.clip(at, 0, 2**24 - 1) * 2.0**-24).astype(np.float32).ravel()


@pytest.mark.parametrize("draw", [counts.poisson, counts.binomial])
def test_a_number_does_not_depend_on_those_beside_it(draw, monkeypatch):
    """Whatever ways of drawing its neighbours need: results do not depend on how replications are batched.

    Alone: one mean at a time, and only uniform numbers below the one of 7, then of 17, then all, so that few
    terms are enough. An accelerator, which goes all ways at once, draws the same.
    """
    means = np.concatenate([np.geomspace(1e-3, 11.999, 400), np.geomspace(12.001, 1e5, 20)])
    laws, uniform = [], []
    for mean in means.tolist():
        trials = int(50 * max(mean, 1.0))
        known = stats.poisson(mean) if draw is counts.poisson else stats.binom(trials, mean / trials)
        uniform.append(edges(known))
        parts = (mean,) if draw is counts.poisson else (trials, np.float32(mean / trials))
        laws.append([jnp.full(uniform[-1].shape, part) for part in parts])
    as_needed = jax.jit(lambda *law: draw(*law))
    together = as_needed(
        *(jnp.concatenate(part) for part in zip(*laws, strict=True)), np.concatenate(uniform)
    )
    together = np.split(np.asarray(together), len(laws))
    for most in (7, 17, np.inf):
        for law, u, drawn in zip(laws, uniform, together, strict=True):
            few = drawn < most
            alone = np.asarray(as_needed(*law, np.where(few, u, np.float32(0))))
            np.testing.assert_array_equal(alone[few], drawn[few])
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *, cpu, default: default())
    at_once = jax.jit(lambda *law: draw(*law))
    drawn = [np.asarray(at_once(*law, u)) for law, u in zip(laws, uniform, strict=True)]
    np.testing.assert_array_equal(np.concatenate(drawn), np.concatenate(together))


@pytest.mark.slow
def test_bias_is_of_first_order_in_the_step():
    """M/M/1 before decodes, whose long queue is known in closed form: halving the step halves the bias.

    The largest step is near the largest allowed. Second order may take 15 % of the half.
    """
    corner = CORNERS["M/M/1 then M/M/3"]
    expected = corner.expected["q_prefill"][0]
    steps = (0.4, 0.2, 0.1)
    bias, error = {}, {}
    for dt in steps:
        record = run(
            corner.instance,
            corner.policy,
            corner.n_gpus,
            horizon=1600.0,
            warmup=400.0,
            replications=REPLICATIONS,
            key=21,
            stepper=Leap(dt),
        )
        assert not record.imbalance.any()
        queue = averages(record, corner.instance)["q_prefill"]
        bias[dt], error[dt] = queue.mean() - expected, standard_error(queue)[0]
    assert abs(bias[0.4]) > 10 * error[0.4]
    for dt in steps[:2]:
        doubt = 5 * np.hypot(error[dt] / 2, error[dt / 2])
        assert abs(bias[dt / 2] - bias[dt] / 2) < doubt + 0.15 * abs(bias[dt] / 2)


LEAP_CORNERS = ("M/M/2 then M/M/18", "prefill stage is M/M/M+M")


@pytest.mark.parametrize("name", [LEAP_CORNERS[0], pytest.param(LEAP_CORNERS[1], marks=pytest.mark.slow)])
def test_corner_is_a_classical_queue_at_a_small_step(name):
    """At a step of a fiftieth of a service time, within 3 % and the usual error."""
    corner = CORNERS[name]
    record = run(
        corner.instance,
        corner.policy,
        corner.n_gpus,
        horizon=400.0,
        warmup=100.0,
        replications=REPLICATIONS,
        key=22,
        stepper=Leap(0.02),
    )
    assert not record.imbalance.any()
    assert not disagreements(averages(record, corner.instance), corner.expected, perturbation=0.03)


def check_default_step(file: str, policy: str, n_gpus: int, measured: float, replications: int) -> None:
    """Bias in bundled revenue at the default step under 0.2 %, beyond 4.9 errors of the difference."""
    instance = load_instance(INSTANCES / file)
    means, errors = {}, {}
    for stepper in (Exact(), Leap()):
        record = run(
            instance,
            policy,
            n_gpus,
            horizon=200.0 + measured,
            warmup=200.0,
            replications=replications,
            key=23,
            stepper=stepper,
        )
        revenue = averages(record, instance)["revenue_bundled"]
        means[stepper], errors[stepper] = revenue.mean(), standard_error(revenue)[0]
    bias, error = means[Leap()] - means[Exact()], np.hypot(*errors.values())
    print(
        f"{file} {policy} n={n_gpus}: bias {100 * bias / means[Exact()]:.3f} "
        f"+- {196 * error / means[Exact()]:.3f} %"
    )
    assert abs(bias) < 0.002 * means[Exact()] + 4.9 * error


@pytest.mark.parametrize("policy", ["gate_immediate"])
def test_default_step_biases_revenue_by_less_than_a_fifth_of_a_percent(policy):
    check_default_step("a100_qwen8b_two_class.toml", policy, 10, measured=800.0, replications=128)


@pytest.mark.slow
def test_prefills_start_where_the_decisions_fell():
    """Where requests decode on their own GPU, spreading the starts of a step at random biases revenue by
    0.28 %. With control variates the interval is ten times narrower than that."""
    found = Case("azure_pair", "gate_immediate", 50, 0.1).bias()
    assert found.half_width < 0.03
    assert abs(found.bias) < 0.12


@pytest.mark.slow
@pytest.mark.parametrize("policy", oracles.POLICIES)
@pytest.mark.parametrize("file", ["a100_qwen8b_two_class.toml", "overload.toml"])
def test_default_step_is_good_enough_for_every_policy(file, policy):
    check_default_step(file, policy, 50, measured=1000.0, replications=64)


class LongestQueueGate(AbstractGate):
    """Starts the class of which most wait."""

    def scores(self, observation, uniform):
        return jnp.asarray(observation.prefill_queue, jnp.float32)


class ReservingGate(AbstractGate):
    """Starts nothing while fewer than 17 GPUs without a prefill have room."""

    def scores(self, observation, uniform):
        waiting = jnp.asarray(observation.prefill_queue, jnp.float32)
        return jnp.where(observation.available[1] < 17, -jnp.inf, waiting)


def test_gates_see_the_room_in_each_pool():
    """Running prefills of both steppers agree within 2 %.

    A gate that saw a constant would never start, or be free of its rule, which costs a quarter of the
    prefills; one that was asked again in every step would start a third more.
    """
    instance = load_instance(INSTANCES / "overload.toml")
    policy = Policy(ReservingGate(), PackingRouter(), route_first=True, name="reserving")

    def occupancy(policy: Policy, stepper: Exact | Leap) -> float:
        record = run(
            instance, policy, 20, horizon=150.0, warmup=50.0, replications=32, key=4, stepper=stepper
        )
        return averages(record, instance)["x"].sum(axis=1).mean()

    exact = occupancy(policy, Exact())
    np.testing.assert_allclose(occupancy(policy, Leap(0.002)), exact, rtol=0.02)
    free = Policy(LongestQueueGate(), PackingRouter(), route_first=True, name="free")
    assert occupancy(free, Exact()) > 1.1 * exact


def test_default_step_follows_the_quickest_rates():
    """Half an expected event of the busiest GPU: a prefill of the quickest class beside B - 1 decodes."""
    cluster = oracles.reference_cluster()
    instance = cluster.instance()
    busiest = max(cluster.mu_prefill.max() + 15 * cluster.mu_mixed.max(), 16 * cluster.mu_solo.max())
    assert largest_gpu_rate(instance) == pytest.approx(busiest)
    engine = ClusterEngine(Leap())
    for policy in (PRESETS["gate_and_route"](instance), PRESETS["gate_fcfs"](instance)):
        assert engine.step(instance, policy) == pytest.approx(engine.events_per_step(policy) / busiest)


@pytest.mark.parametrize("dt", [0.0, -0.1, float("nan"), float("inf")])
def test_steps_that_are_no_steps_are_refused(dt):
    with pytest.raises(InputError, match="^dt: expected a positive number of seconds"):
        Leap(dt)


def test_a_step_that_is_too_long_is_refused_with_the_longest_allowed():
    instance = oracles.reference_cluster().instance()
    with pytest.raises(InputError, match=r"^dt: 0.5 s is too long .* at most 0\.0\d+ s$"):
        run(instance, "sarathi", 5, stepper=Leap(0.5))
