"""The fluid engine: closed forms, balance, the other level, the other way to a steady state, slopes."""

from __future__ import annotations

import functools
import json
import math
import warnings
from dataclasses import replace
from pathlib import Path

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from jaxq import (
    ClusterEngine,
    Exact,
    FluidEngine,
    InputError,
    Result,
    ServiceLevels,
    StatisticsWarning,
    compare,
    load_result,
    policies,
    simulate,
    solve_plan,
)
from jaxq._double_precision import double_precision
from jaxq._engine.base import choose_pool, choose_start
from jaxq._fluid.configuration_model import ConfigurationModel, ConfigurationState
from jaxq._fluid.configurations import MOST, configurations, count
from jaxq._fluid.path import TOLERANCE, path
from jaxq._fluid.pooled_model import PooledModel, PooledState
from jaxq._fluid.steady_state import LINEAR_ERROR, _step
from jaxq._policy.base import Observation, Partition
from jaxq.policies import PRESETS

from . import oracles

INSTANCES = Path(__file__).parents[1] / "experiments" / "instances"
QUICK_LEVELS = (pytest.param("configuration", marks=pytest.mark.slow), "pooled")
PARTITIONED = oracles.PARTITIONED


def small_reference(**changes):
    """The reference instance with four slots a GPU: 45 configurations under a partition."""
    return oracles.reference_cluster(batch_size=4, **changes).instance()


def steady(instance, policy, level="configuration", width=None) -> Result:
    """The steady state of a policy, by name."""
    made = PRESETS[policy](instance)
    return simulate(instance, made, horizon=math.inf, warmup=0, engine=FluidEngine(level=level, width=width))


def stages(result: Result) -> np.ndarray:
    """All stages, by class."""
    names = ("prefills", "decodes_mixed", "decodes_solo", "prefill_queue", "decode_queue")
    return np.stack([result.estimate(name).mean for name in names])


# Closed forms.


def test_gpus_that_are_never_starved_are_independent():
    """Under overload, with decodes on the GPU of their prefill, each GPU is a birth-death process of its own:
    it prefills until its slots are full of decodes."""
    cluster = oracles.one_class(5.0, 0.7, 1.3, 0.8, batch_size=4, contention=1.6)
    slots, prefill = cluster.batch_size, cluster.mu_prefill[0]
    weights = [1.0]
    for decodes in range(1, slots + 1):
        slow = decodes * (cluster.mu_solo[0] if decodes == slots else cluster.mu_mixed[0])
        weights.append(weights[-1] * prefill / slow)
    law = np.array(weights) / np.sum(weights)
    busy, decodes = 1 - law[-1], np.arange(slots) @ law[:-1]
    queue = (cluster.arrival_rate[0] - prefill * busy) / cluster.patience_rate[0]
    expected = [busy, decodes, slots * law[-1], queue, 0.0]
    found = stages(steady(cluster.instance(), "sarathi"))[:, 0]
    assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["price_and_pack", "gate_fcfs"])
def test_without_contention_for_slots_every_stage_has_its_offered_load(policy):
    """Where a prefill beside it does not slow a decode, and nobody waits."""
    cluster = oracles.one_class(0.3, 0.8, 2.0, 1.0, batch_size=4)
    result = steady(cluster.instance(), policy)
    assert result.prefills.mean[0] == pytest.approx(0.24, abs=1e-5)
    assert (result.decodes_mixed.mean + result.decodes_solo.mean)[0] == pytest.approx(0.6, abs=1e-5)
    assert abs(stages(result)[3:]).max() < 1e-5


@pytest.mark.parametrize("level", QUICK_LEVELS)
def test_a_partition_of_the_plan_follows_the_plan(level):
    """Under overload the prefill stage is a fluid queue: as many prefills as the mixed group has GPUs, and
    the rest abandons."""
    instance = small_reference(arrival_rate=[1.0, 1.0])
    for policy, scheme in (("gate_and_route", "bundled"), ("prioritize_and_route", "separate")):
        plan, result = oracles.plan(oracles.Cluster.of(instance), scheme), steady(instance, policy, level)
        assert result.prefills.mean == pytest.approx(plan.x, abs=1e-5)
        assert result.prefill_queue.mean == pytest.approx(plan.q_prefill, abs=1e-4)
        assert result.gap(scheme=scheme).mean == pytest.approx(0.0, abs=1e-5)


def test_steps_towards_a_steady_state_keep_the_gpus():
    """However long a step is, and wherever it ends: the shares of the GPUs add up to what they did."""
    instance = small_reference()
    with double_precision():
        model = ConfigurationModel.of(instance, PRESETS["prioritize_and_route"](instance))
        state = model.empty()
        flat, unflatten = ravel_pytree(state)
        for seconds in (1e-3, 1.0, 1e3):
            moved = unflatten(_step(model, np.asarray(flat), 1e-3, seconds)[0])
            assert float(jnp.sum(moved.gpus)) == pytest.approx(float(jnp.sum(state.gpus)), rel=1e-9)
            assert moved.prefill_queue.min() >= 0 and moved.decode_queue.min() >= 0


def test_a_step_solves_the_linear_system_that_it_never_writes_down():
    instance = small_reference()
    with double_precision():
        model = ConfigurationModel.of(instance, PRESETS["gate_and_route"](instance))
        state = _random_state(model, np.random.default_rng(3))
        # Queues that no step empties: one below zero is cut off.
        state = replace(state, prefill_queue=state.prefill_queue + 100, decode_queue=state.decode_queue + 100)
        flat, unflatten = ravel_pytree(state)

        def drift(flat):
            return ravel_pytree(model.drift(unflatten(flat), jnp.asarray(1e-3)))[0]

        before, slope = (np.asarray(each(flat)) for each in map(jax.jit, (drift, jax.jacfwd(drift))))
        for seconds in (1e-3, 0.1, 1.0):
            change = _step(model, np.asarray(flat), 1e-3, seconds)[0] - np.asarray(flat)
            left = change / seconds - slope @ change - before
            assert np.linalg.norm(left) < 2 * LINEAR_ERROR * np.linalg.norm(before)


def test_limits_on_fairness_are_met_in_the_limit():
    """The plan is reached, however tight the limit; two of these once had no steady state."""
    instance = oracles.reference_cluster().instance()
    for limit in (0.0, 0.015, 0.053, 0.1):
        plan = solve_plan(instance, "bundled", service_levels=ServiceLevels(prefill_fairness=limit))
        policy = PRESETS["sli_gate_and_route"](instance, plan)
        found = simulate(instance, policy, horizon=math.inf, warmup=0, engine=FluidEngine(level="pooled"))
        assert found.gap_to_plan(plan).mean == pytest.approx(0.0, abs=5e-6)
        assert np.ptp(found.prefills.mean) == pytest.approx(limit, abs=1e-6)


def test_the_bound_holds_and_smoothing_vanishes_in_proportion_to_the_width():
    reference = oracles.reference_cluster().instance()
    gaps = [float(steady(reference, "gate_and_route", "pooled", w).gap().mean) for w in (1e-3, 1e-4, 1e-5)]
    assert gaps[2] > 0
    assert gaps[0] / gaps[1] == pytest.approx(10, rel=0.1)
    assert gaps[1] / gaps[2] == pytest.approx(10, rel=0.02)


# One level against the other, and against the cluster engine.


QUICK_AGREEMENT = "prioritize_and_route"


@pytest.mark.parametrize(
    "policy",
    [name if name == QUICK_AGREEMENT else pytest.param(name, marks=pytest.mark.slow) for name in PARTITIONED],
)
def test_levels_agree_where_the_mixed_group_is_always_busy(policy):
    instance = small_reference(arrival_rate=[1.0, 1.0])
    assert stages(steady(instance, policy)) == pytest.approx(
        stages(steady(instance, policy, "pooled")), abs=1e-4
    )


@pytest.mark.slow
def test_levels_agree_for_thousands_of_configurations():
    instance = oracles.reference_cluster(batch_size=64, arrival_rate=[1.0, 1.0]).instance()
    assert count(64, 2, True) == 8_385
    assert stages(steady(instance, QUICK_AGREEMENT)) == pytest.approx(
        stages(steady(instance, QUICK_AGREEMENT, "pooled")), abs=1e-4
    )


def test_fluid_and_cluster_engine_agree():
    """GPUs that are never starved are independent, 400 as good as infinitely many: 0.2 % and three errors."""
    instance = small_reference(arrival_rate=[2.0, 2.0])
    policy = policies.sarathi(instance)
    times, engine = {"horizon": 90.0, "warmup": 60.0}, ClusterEngine(stepper=Exact())
    cluster = simulate(instance, policy, n_gpus=400, replications=8, key=41, engine=engine, **times)
    fluid = steady(instance, "sarathi")
    for name in ("revenue_bundled", "revenue_separate", "slot_utilisation"):
        error = 3 * cluster.estimate(name).standard_error
        expected = fluid.estimate(name).mean
        assert cluster.estimate(name).mean == pytest.approx(expected, abs=0.002 * expected + error)


# Two ways to a steady state.


@pytest.mark.parametrize(
    ("policy", "level"),
    [
        ("gate_and_route", "pooled"),
        pytest.param("gate_immediate", "configuration", marks=pytest.mark.slow),
    ],
)
def test_a_path_ends_in_the_steady_state(policy, level):
    instance = small_reference()
    engine = FluidEngine(level=level, width=1e-4)
    path = simulate(instance, PRESETS[policy](instance), horizon=3000.0, warmup=2900.0, engine=engine)
    assert stages(path) == pytest.approx(stages(steady(instance, policy, level, 1e-4)), rel=1e-5, abs=1e-7)
    assert abs(path.record.imbalance).max() < 1e-5
    assert not path.cautions()


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["gate_and_route", "fcfs_route"])
def test_a_path_is_as_accurate_at_every_moment_as_the_solver(policy):
    """Within two tolerances of a solution with 10,000 times narrower ones: no moment is interpolated."""
    instance = small_reference()
    times = np.linspace(1.0, 60.0, 12)
    with double_precision():
        model = FluidEngine(level="pooled").model(instance, PRESETS[policy](instance))
        found = path(model, model.empty(), jnp.asarray(1e-4), times)
        start = (model.empty(), jax.tree.map(jnp.zeros_like, model.stages(model.empty())))
        flat, unflatten = ravel_pytree(start)

        def slope(time, flat, _):
            state, _ = unflatten(flat)
            return ravel_pytree((model.drift(state, jnp.asarray(1e-4)), model.stages(state)))[0]

        exact = diffrax.diffeqsolve(
            diffrax.ODETerm(slope),
            diffrax.Kvaerno5(),
            t0=0.0,
            t1=times[-1],
            dt0=None,
            y0=flat,
            saveat=diffrax.SaveAt(ts=jnp.asarray(times)),
            stepsize_controller=diffrax.PIDController(rtol=1e-8, atol=1e-10),
            max_steps=100_000,
        ).ys
        reached = np.asarray(jax.vmap(lambda *leaves: ravel_pytree(leaves)[0])(*found))
        exact = np.asarray(exact)
    assert np.abs((reached - exact) / (TOLERANCE * (0.01 + np.abs(exact)))).max() < 2


@pytest.mark.parametrize("horizon", [200.0, math.inf])
def test_progress_is_told_in_windows_or_widths_and_changes_nothing(horizon):
    instance = small_reference()
    given = {"horizon": horizon, "warmup": 0 if horizon == math.inf else 100.0}
    given |= {"engine": FluidEngine(level="pooled")}
    seen = []
    policy = policies.gate_and_route(instance)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StatisticsWarning)
        told = simulate(instance, policy, **given, progress=lambda *now: seen.append(now))
        untold = simulate(instance, policy, **given)
    count = 11 if horizon == math.inf else 80
    assert seen == [(done, count) for done in range(count + 1)]
    assert told.to_dict() | {"seconds": 0} == untold.to_dict() | {"seconds": 0}


@pytest.mark.slow
def test_a_path_that_is_interrupted_ends_at_once():
    """Between two windows, as Ctrl-C does."""
    instance = small_reference()

    def interrupt(done, total):
        if done == 3:
            raise KeyboardInterrupt

    engine = FluidEngine(level="pooled")
    with pytest.raises(KeyboardInterrupt):
        simulate(
            instance,
            policies.gate_and_route(instance),
            horizon=1000.0,
            warmup=100.0,
            engine=engine,
            progress=interrupt,
        )


def test_a_path_that_still_moves_says_so():
    instance = small_reference()
    with pytest.warns(UserWarning, match="the path still moves"):
        simulate(
            instance,
            policies.gate_and_route(instance),
            horizon=20.0,
            warmup=10.0,
            engine=FluidEngine(level="pooled", width=1e-4),
        )


# Slopes.


@pytest.mark.parametrize("level", QUICK_LEVELS)
def test_slopes_of_the_steady_state_are_those_of_differences(level):
    instance = small_reference()
    policy = policies.gate_and_route(instance)
    engine = FluidEngine(level=level, width=1e-3)
    value, slopes = engine.steady_gradient(instance, policy)

    def revenue(share: float) -> float:
        moved = replace(policy, partition=Partition(share))
        result = simulate(instance, moved, horizon=math.inf, warmup=0, engine=engine)
        return float(result.revenue_bundled.mean)

    share = float(policy.partition.mixed_share)
    assert value == pytest.approx(revenue(share), rel=1e-9)
    difference = (revenue(share + 1e-6) - revenue(share - 1e-6)) / 2e-6
    assert slopes.partition.mixed_share == pytest.approx(difference, rel=1e-4)


@pytest.mark.slow
def test_slopes_of_a_tunable_policy_are_those_of_differences():
    instance = small_reference()
    policy = policies.feedback(instance, start="gate_immediate", sharpness=2.0)
    engine = FluidEngine(width=1e-3)
    _, slopes = engine.steady_gradient(instance, policy)
    for place in (lambda p: p.gate.below_plan, lambda p: p.gate.start_prefills):
        ends = []
        for change in (1e-5, -1e-5):
            moved = eqx.tree_at(place, policy, np.asarray(place(policy) + change))
            result = simulate(instance, moved, horizon=math.inf, warmup=0, engine=engine)
            ends.append(float(result.revenue_bundled.mean))
        assert place(slopes) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-3, abs=1e-6)


# Conservation.

MADE = {
    **{name: functools.partial(make) for name, make in PRESETS.items()},
    "feedback": policies.feedback,
    "feedback without partition": functools.partial(policies.feedback, start="price_and_pack"),
    "neural": policies.neural,
}


QUICK_STATES = [("sli_gate_and_route", "configuration"), ("sarathi", "configuration")]
"""One policy with and one without a partition; the pooled level takes next to no time."""


@pytest.mark.parametrize(
    ("name", "level"),
    [
        *((name, "pooled") for name in MADE),
        *QUICK_STATES,
        *(
            pytest.param(name, "configuration", marks=pytest.mark.slow)
            for name in MADE
            if (name, "configuration") not in QUICK_STATES
        ),
    ],
)
def test_requests_and_gpus_are_conserved(name, level):
    """In any state, whatever the policy: what changes is what arrives less what leaves."""
    instance = small_reference()
    policy = MADE[name](instance)
    if level == "pooled" and (policy.partition is None or name == "feedback"):
        with pytest.raises(InputError, match="use level 'configuration'"):
            PooledModel.of(instance, policy)
        return
    rng = np.random.default_rng(42)
    with double_precision():
        model = (PooledModel if level == "pooled" else ConfigurationModel).of(instance, policy)
        state = _random_state(model, rng)
        drift, now = model.drift(state, jnp.asarray(1e-3)), model.stages(state)
        if level == "configuration":
            assert drift.gpus @ model.table.solo == pytest.approx(0.0, abs=1e-12)
            assert drift.gpus @ ~model.table.solo == pytest.approx(0.0, abs=1e-12)
            grown = np.asarray(drift.gpus @ model.table.decodes) + drift.prefill_queue
            grown = grown + jnp.stack([drift.gpus @ (model.table.prefill == c + 1) for c in range(2)])
        else:
            grown = drift.prefills + drift.mixed + drift.solo + drift.prefill_queue
        grown = grown + drift.decode_queue.sum(axis=0)
        rates = model.rates
        left = rates.patience * (now.prefill_queue + now.decode_queue)
        left = left + rates.mu_mixed * now.decodes_mixed + rates.mu_solo * now.decodes_solo
        assert grown == pytest.approx(np.asarray(rates.arrival - left), abs=1e-10)


def _random_state(model: PooledModel | ConfigurationModel, rng: np.random.Generator):
    """Any state within capacity."""
    buffers = len(model.router.buffers)
    queues = jnp.asarray(rng.random(2)), jnp.asarray(rng.random((buffers, 2)))
    share = float(model.mixed_share)
    if isinstance(model, PooledModel):
        thirds = [jnp.asarray(rng.random(2) / 3) for _ in range(3)]
        return PooledState(thirds[0] * share, thirds[1] * share, thirds[2] * (1 - share), *queues)
    gpus, solo = rng.random(model.table.size), model.table.solo
    gpus = np.where(solo, (1 - share) * gpus / max(gpus @ solo, 1e-9), share * gpus / (gpus @ ~solo))
    return ConfigurationState(jnp.asarray(gpus), *queues)


# Chances of decisions.


@pytest.mark.parametrize("name", MADE)
def test_chances_are_those_of_the_decisions_of_the_stochastic_engines(name):
    """In the limit of narrow widths: frequencies of 4,096 decisions, within six errors of a coin's (false
    alarm 1e-6 in all)."""
    instance = small_reference()
    policy = MADE[name](instance)
    rng = np.random.default_rng(43)
    uniform = jnp.asarray((rng.permutation(4096) + 0.5) / 4096, jnp.float32)
    pools = len(policy.router.pools)
    for _ in range(5):
        counts = {
            "n_gpus": 1000,
            "mixed_gpus": policy.mixed_gpus(1000),
            "idle_prefill_slots": rng.integers(1, 50),
            "prefills": rng.integers(0, 150, 2),
            "decodes_mixed": rng.integers(0, 400, 2),
            "decodes_solo": rng.integers(0, 800, 2),
            "prefill_queue": rng.integers(0, 3, 2) * 200,
            "decode_queue": rng.integers(0, 50, (len(policy.router.buffers), 2)),
            "available": np.where(
                [pool.is_buffer for pool in policy.router.pools],
                1,
                rng.integers(0, 2, pools) * 90 + np.eye(pools, dtype=int)[0],
            ),
        }
        seen = Observation(**{key: _along(value, 4096) for key, value in counts.items()})
        one = Observation(**{key: _along(value, 1) for key, value in counts.items()})
        acting = _with_lanes(policy)
        starts = np.bincount(choose_start(acting, seen, uniform), minlength=3) / 4096
        chances = np.asarray(acting.gate.chances(one, jnp.float32(1e-6)))[:, 0]
        assert abs(chances - starts).max() < 6 * 0.5 / 64
        for c in range(2):
            request_class = jnp.full(4096, c)
            sent = np.bincount(choose_pool(acting, seen, request_class, uniform), minlength=pools) / 4096
            chances = np.asarray(acting.router.chances(one, request_class[:1], jnp.float32(1e-6)))[:, 0]
            assert abs(chances - sent).max() < 6 * 0.5 / 64


def _along(value, lanes: int):
    return jnp.broadcast_to(jnp.asarray(value)[..., None], (*np.shape(value), lanes))


def _with_lanes(policy):
    """A policy whose numbers have an axis for replications."""
    numbers, rest = eqx.partition((policy.gate, policy.router), eqx.is_inexact_array_like)
    wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32)[..., None], numbers)
    gate, router = eqx.combine(wide, rest)
    return replace(policy, gate=gate, router=router)


# Configurations.


@pytest.mark.parametrize("partitioned", [False, True])
def test_configurations_are_all_there_and_moves_are_inverse(partitioned):
    table = configurations(5, 3, partitioned)
    assert table.size == count(5, 3, partitioned)
    keys = {(s, p, *d) for s, p, d in zip(table.solo, table.prefill, table.decodes.tolist(), strict=True)}
    assert len(keys) == table.size
    used = table.decodes.sum(axis=1) + (table.prefill > 0)
    assert used.max() == 5 and (used[~table.solo & (table.prefill == 0)].max() == (4 if partitioned else 5))
    for there, back in ((table.more, table.fewer), (table.after_start, table.before_start)):
        rows, classes = np.nonzero(there < table.size)
        assert (back[there[rows, classes], classes] == rows).all()
        assert np.count_nonzero(back < table.size) == len(rows)
    assert (table.decodes[table.more[0]] == np.eye(3)).all()


def test_the_reference_instance_has_425_configurations():
    assert count(16, 2, False) == 425


# The border.


def test_what_chance_needs_is_refused():
    instance = small_reference()
    policy = policies.gate_and_route(instance)
    given = {"horizon": math.inf, "warmup": 0, "engine": FluidEngine()}
    for name, value in {"n_gpus": 5, "replications": 8, "key": 1, "precision": 0.1}.items():
        with pytest.raises(InputError, match=f"^{name}: expected None with the fluid engine"):
            simulate(instance, policy, **given, **{name: value})
    with pytest.raises(InputError, match="^horizon: expected a finite number"):
        simulate(instance, policy, n_gpus=5, horizon=math.inf, warmup=0)
    with pytest.raises(InputError, match="^n_gpus: expected a whole number"):
        simulate(instance, policy, horizon=10.0, warmup=0)
    with pytest.raises(InputError, match="^level: expected configuration or pooled, got 'cluster'"):
        FluidEngine(level="cluster")
    with pytest.raises(InputError, match="^width: expected above 0 and at most 0.1, got 1"):
        FluidEngine(width=1.0)


def test_too_many_configurations_are_refused_with_the_way_out():
    eight = oracles.reference_cluster(
        prompt_tokens=np.full(8, 300.0),
        output_tokens=np.full(8, 100.0),
        arrival_rate=np.full(8, 0.1),
        patience_rate=np.full(8, 0.1),
    ).instance()
    with pytest.raises(InputError, match=rf"more than {MOST:,}; use level 'pooled'"):
        simulate(eight, policies.sarathi(eight), horizon=math.inf, warmup=0, engine=FluidEngine())


def test_a_result_is_kept_and_compared_like_any_other(tmp_path):
    instance = small_reference(arrival_rate=[1.0, 1.0])
    results = [steady(instance, name, "pooled") for name in ("gate_and_route", "prioritize_and_route")]
    results[0].save(tmp_path / "fluid.nc")
    again = load_result(tmp_path / "fluid.nc")
    assert again.to_dict() == results[0].to_dict()
    assert again.n_gpus is None and again.horizon == math.inf
    paired = compare(results).to_dict()
    assert json.loads(json.dumps(paired)) == paired


def test_the_command_has_the_same_records_without_what_needs_chance(jaxq, workplace):
    file = INSTANCES / "a100_qwen8b_two_class.toml"
    shared = (
        "simulate",
        file,
        "--engine",
        "fluid",
        "--level",
        "pooled",
        "--policy",
        "gate_and_route,fcfs_route",
    )
    code, out, err = jaxq(*shared, "--horizon", "inf", "--json", "--out", "kept")
    assert code == 0, err
    record = json.loads(out)["records"][0]
    assert record["gpus"] is None and record["seed"] is None and record["horizon"] is None
    assert record["gap"]["mean"] == record["gap"]["ci95"][0] == record["gap"]["ci95"][1]
    assert record["gap"]["mean"] == pytest.approx(9.53e-7, rel=0.01)
    assert load_result("kept/fcfs_route_ninf").gap().mean == pytest.approx(0.0218823, rel=1e-5)
    for option in (("--gpus", "5"), ("--replications", "3"), ("--seed", "1"), ("--dt", "0.1")):
        code, out, err = jaxq(*shared, *option)
        assert (code, out) == (2, "")
        assert (
            err
            == f"jaxq: {option[0]}: expected only with --engine cluster or pooled; the fluid limit has none\n"
        )
    assert jaxq("simulate", file, "--level", "pooled")[0] == 2
    assert jaxq("simulate", file, "--engine", "magic")[0] == 2
