"""The pathwise gradient: its chain against the exact one, its slopes against closed forms.

Seeds are fixed; with new ones a comparison would fail by chance about once in a million (5 standard errors).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxq
from jaxq import InputError, policies
from jaxq._gradient import pathwise
from jaxq._gradient.base import Experiment
from jaxq._gradient.finite_difference import slopes_across
from jaxq._gradient.pathwise import Pathwise
from jaxq._gradient.relaxed_chain import present
from jaxq._policy.feedback import feedback
from jaxq._policy.parameters import parameter_scales

LIMIT = 5.0
LOG_ODDS, RATE = 0.4, 0.9


def loss_instance() -> jaxq.Instance:
    """Prefills of one second, and nobody who waits for one."""
    workload = jaxq.Workload([256.0], [1.0], [RATE], [2e4])
    hardware = jaxq.IterationTime(0.5, 0.5 / 256, 0.5)
    return jaxq.Instance(workload, hardware, jaxq.Pricing(0.1, 0.2), 32, 256, name="M/M/1/1")


def tiny_instance() -> jaxq.Instance:
    """Two classes, batches of 3: what two GPUs do can be computed exactly."""
    workload = jaxq.Workload([300.0, 900.0], [60.0, 20.0], [0.5, 0.4], [0.5, 0.8])
    return jaxq.Instance(workload, jaxq.IterationTime(0.2, 0.001, 0.15), jaxq.Pricing(0.1, 0.2), 3, 256)


def moved(policy: jaxq.policies.Policy, name: str, value: float) -> jaxq.policies.Policy:
    """The policy with one parameter set."""
    at = np.asarray(policies.parameter_names(policy)) == name
    return policies.with_parameters(policy, np.where(at, value, policies.parameters(policy)))


def experiment(instance: jaxq.Instance, n_gpus: int, horizon: float, **changes) -> Experiment:
    made = Experiment(instance, n_gpus, horizon, 60.0, key=jax.random.key(3))
    return dataclasses.replace(made, **changes)


POLICIES = {
    "gate_and_route": {"start": "gate_and_route"},
    "solo group with its own buffer": {"start": "sli_gate_and_route"},
    "price_and_pack": {"start": "price_and_pack"},
    "gate_fcfs": {"start": "gate_fcfs"},
    "sarathi": {"start": "sarathi"},
}


CASES = [pytest.param(name, marks=[] if name == "gate_fcfs" else pytest.mark.slow) for name in POLICIES]


def soft(instance: jaxq.Instance, name: str) -> jaxq.policies.Policy:
    """A policy of each structure, with uncertain choices."""
    return feedback(instance, sharpness=0.7, **POLICIES[name])


@pytest.mark.parametrize("replications", [32, pytest.param(128, marks=pytest.mark.slow)])
def test_the_slope_of_a_loss_system_is_that_of_the_closed_form(replications: int):
    """M/M/1/1: a stream that enters with the chance p carries a / (1 + a), a = p RATE."""
    instance = loss_instance()
    policy = moved(feedback(instance, start="sarathi"), "gate.start[0]", LOG_ODDS)
    gradient = Pathwise(replications=replications, credit=10.0)
    found = gradient.estimate(experiment(instance, 1, 1_000.0), policy)
    chance = 1 / (1 + np.exp(-LOG_ODDS))
    value, offered = float(instance.request_value[0]), RATE * chance
    slope = value * RATE * chance * (1 - chance) / (1 + offered) ** 2
    place = policies.parameter_names(policy).index("gate.start[0]")
    assert found.standard_error[place] < 0.01 * slope * np.sqrt(128 / replications)
    assert abs(found.gradient[place] - slope) < LIMIT * found.standard_error[place]
    assert found.value == pytest.approx(value * offered / (1 + offered), rel=0.02)


@pytest.mark.parametrize("name", CASES)
def test_its_path_has_the_law_of_the_exact_chain(name: str):
    instance, n_gpus = tiny_instance(), 2
    policy = soft(instance, name)
    run = experiment(instance, n_gpus, 2_000.0)
    gradient = Pathwise(replications=64)
    pieces = pathwise._Pieces.of(run, 20.0)
    sums = jax.device_get(pathwise._spread(pathwise._path, gradient._chain(run, policy, 0), pieces))
    stages = np.asarray(sums.stages, np.float64) / np.asarray(sums.time, np.float64)
    exact = run.engine.run(
        instance, policy, n_gpus=n_gpus, horizon=2_000.0, warmup=60.0, key=jax.random.key(9), replications=64
    )
    for row, stage in zip(stages, pathwise.INTEGRALS, strict=True):
        other = exact.measured(stage).sum(axis=0) / exact.measured_durations.sum()
        error = np.hypot(row.std(axis=1, ddof=1), other.std(axis=1, ddof=1)) / 8
        assert (np.abs(row.mean(axis=1) - other.mean(axis=1)) <= LIMIT * error).all(), stage


@pytest.mark.parametrize("name", CASES)
def test_at_temperature_zero_the_relaxed_step_is_the_discrete_one(name: str):
    instance = tiny_instance()
    run, policy = experiment(instance, 2, 200.0), soft(instance, name)
    chain = Pathwise(replications=256)._chain(run, policy, 0)
    cold = dataclasses.replace(chain, straight_through=False, temperature=jnp.float32(1e-6))
    warm = dataclasses.replace(cold, temperature=jnp.float32(1.0))
    discrete, relaxed = (
        jax.jit(lambda state, index, c=c: c.step(state, jnp.int32(0), index)) for c in (chain, cold)
    )
    state, differ, steps = chain.empty(), 0, 40
    for index in range(steps):
        after, sums = discrete(state, index)
        other, other_sums = relaxed(state, index)
        apart = [
            np.abs(np.asarray(a) - np.asarray(b)).reshape(-1, 256).max(axis=0, initial=0.0)
            for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(other), strict=True)
        ]
        differ += int((np.max(apart, axis=0) > 1e-4).sum())
        np.testing.assert_allclose(sums.time, other_sums.time, rtol=1e-5)
        for leaf in jax.tree.leaves(after):
            assert (np.asarray(leaf) == np.round(leaf)).all()
        state = after
    fractions = np.asarray(warm.step(state, jnp.int32(0), jnp.int32(steps))[0].prefill_queue) % 1
    assert differ <= 2  # a tie within 1e-6, which softmax shares
    assert (fractions > 0).any()


@pytest.mark.slow
def test_an_objective_that_is_a_function_has_the_slopes_of_what_it_computes():
    instance = tiny_instance()
    run, policy = experiment(instance, 2, 120.0), soft(instance, "gate_fcfs")
    gradient = Pathwise(replications=8)
    named = gradient.estimate(run, policy)
    function = dataclasses.replace(run, objective=lambda result: result.per_replication("revenue_bundled"))
    found = gradient.estimate(function, policy)
    np.testing.assert_allclose(found.gradient, named.gradient, rtol=1e-4, atol=1e-6)
    assert np.abs(named.gradient).max() > 0


@pytest.mark.slow
def test_parameters_that_do_not_act_by_chance_get_differences():
    instance = tiny_instance()
    policy, run = soft(instance, "gate_and_route"), experiment(instance, 2, 120.0)
    found = Pathwise(replications=8, step=8.0).estimate(run, policy)  # long enough to move one of two GPUs
    place = policies.parameter_names(policy).index("partition.mixed_share")
    move = 8.0 * parameter_scales(policy)[place] * np.eye(len(found.gradient))[place]
    _, half = slopes_across(run, policy, move[None], 8, 0)
    assert found.gradient[place] == pytest.approx(half.mean() / move[place])
    assert found.gradient[place] != 0


@pytest.mark.slow
def test_slopes_stay_finite_over_ten_thousand_seconds():
    instance = tiny_instance()
    found = Pathwise(replications=8).estimate(experiment(instance, 2, 10_000.0), soft(instance, "gate_fcfs"))
    assert np.isfinite(found.gradient).all()


def test_a_slope_that_grew_along_a_path_is_bounded():
    slopes = np.ones((4, 1, 50), np.float32)
    slopes[0, 0, :2] = 1e30, np.nan
    found = pathwise._bounded(slopes)
    assert found.max() == pathwise.CLIFF
    assert found.sum() == 198 + pathwise.CLIFF
    slopes[0, 0, :20] = np.inf
    assert np.isnan(pathwise._bounded(slopes)).all()


def test_presence_is_an_indicator_with_one_sided_slopes():
    counts = jnp.arange(4.0)
    assert present(counts).tolist() == [0.0, 1.0, 1.0, 1.0]
    assert jax.vmap(jax.grad(present))(counts).tolist() == [1.0, 0.5, 0.0, 0.0]


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"temperature": 0.0}, "temperature"),
        ({"credit": float("nan")}, "credit"),
        ({"replications": 1}, "replications"),
        ({"step": -1.0}, "step"),
    ],
)
def test_a_number_out_of_range_is_refused_by_name(arguments: dict, field: str):
    with pytest.raises(InputError, match=f"^{field}: expected"):
        Pathwise(**arguments)


def test_a_policy_that_does_not_state_its_chances_is_refused():
    instance = tiny_instance()
    with pytest.raises(InputError, match="stated chances"):
        Pathwise().estimate(experiment(instance, 2, 120.0), policies.price_and_pack(instance))
