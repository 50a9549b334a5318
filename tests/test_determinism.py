"""Bit-identical records whatever the number of devices and the chunking; no drift of the clock over 1e5 s."""

from __future__ import annotations

import dataclasses
import functools
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxq import InputError, PooledEngine, load_instance, policies
from jaxq._engine import replicated
from jaxq._engine.cluster import ClusterEngine
from jaxq._engine.group import Case
from jaxq._engine.program import program
from jaxq._engine.record import Record
from jaxq._engine.steppers import Exact, Leap
from jaxq._policy.base import Observation
from jaxq.policies import feedback

from . import oracles
from .processes import join, lines_of, started_together
from .simulations import digest, identical, run

STEPPERS = {"exact": Exact(), "leap": Leap()}
POLICY = {"exact": "gate_fcfs", "leap": "gate_and_route"}
REPLICATIONS = 24
INSTANCES = Path(__file__).parents[1] / "experiments" / "instances"
KINDS = (*STEPPERS, "undecided")
"""What a fresh process simulates."""


def small_run(kind: str, **given) -> Record:
    """24 replications of 20 s of the reference instance on 10 GPUs."""
    arguments = {
        "horizon": 20.0,
        "warmup": 5.0,
        "replications": REPLICATIONS,
        "key": 3,
        "n_windows": 4,
    } | given
    return run(oracles.reference_cluster().instance(), POLICY[kind], 10, stepper=STEPPERS[kind], **arguments)


def digests_on(devices: int, processes: int = 1, kinds: tuple[str, ...] = KINDS) -> dict[str, str]:
    """The same runs with so many (forced host) devices, in fresh processes that share the replications."""
    running = started_together("tests.test_determinism", devices, processes, *kinds)
    found = [dict(lines) for lines in lines_of(running, "digest")]
    assert all(answer == found[0] for answer in found)
    return found[0]


def undecided_run() -> Record:
    """A policy whose decisions are draws, on three GPUs: once its first arrivals hung on the devices."""
    instance = oracles.reference_cluster().instance()
    policy = feedback(instance, sharpness=1.0)
    return ClusterEngine().run(
        instance, policy, n_gpus=3, horizon=40.0, warmup=10.0, replications=64, key=jax.random.key(3)
    )


def device_digests(kinds: tuple[str, ...] = KINDS) -> dict[str, str]:
    runs = {kind: functools.partial(small_run, kind) for kind in STEPPERS} | {"undecided": undecided_run}
    return {kind: digest(runs[kind]()) for kind in kinds}


def check_devices(devices: int, processes: int = 1, kinds: tuple[str, ...] = KINDS) -> None:
    assert len(jax.devices()) == 2
    assert digests_on(devices, processes, kinds) == device_digests(kinds)


@pytest.mark.parametrize("kind", ["exact", pytest.param("leap", marks=pytest.mark.slow)])
def test_policies_that_run_together_give_the_bits_of_separate_runs(kind):
    """Three partitions and plans, in blocks that cut through the replications of one."""
    instance = oracles.reference_cluster().instance()
    made = policies.gate_and_route(instance)
    several = [
        eqx.tree_at(
            lambda p: (p.partition.mixed_share, p.gate.prefills),
            made,
            (np.float64(share), share * np.asarray(weights)),
        )
        for share, weights in ((0.2, (0.5, 0.5)), (0.45, (0.9, 0.1)), (0.3, (0.0, 1.0)))
    ]
    arguments = dict(n_gpus=10, horizon=20.0, warmup=5.0, replications=20, key=jax.random.key(3))
    engine = ClusterEngine(STEPPERS[kind], block=16)
    together = engine.run_together(instance, several, first=2, **arguments)
    for policy, record in zip(several, together, strict=True):
        assert identical(record, engine.run(instance, policy, first=2, **arguments))
    assert not identical(together[0], together[1])


def cases_of(make) -> list[Case]:
    """Instances of different rates and batch sizes, at sizes of different padding."""
    quiet, busy = oracles.reference_cluster().instance(), load_instance(INSTANCES / "overload.toml")
    small = dataclasses.replace(quiet, batch_size=6)
    sizes = [(quiet, 10), (busy, 90), (small, 7), (busy, 12)]
    return [Case(instance, make(instance), n_gpus) for instance, n_gpus in sizes]


@pytest.mark.parametrize(
    ("engine", "make"),
    [
        pytest.param(ClusterEngine(block=16), policies.price_and_pack, marks=pytest.mark.slow),
        pytest.param(ClusterEngine(block=16), policies.gate_and_route, marks=pytest.mark.slow),
        pytest.param(ClusterEngine(block=16), policies.sli_gate_and_route, marks=pytest.mark.slow),
        pytest.param(ClusterEngine(Leap(), block=16), policies.sarathi, marks=pytest.mark.slow),
        pytest.param(PooledEngine(Leap(), block=16), policies.gate_and_route, marks=pytest.mark.slow),
    ],
)
def test_cases_of_different_instances_and_sizes_give_the_bits_of_separate_runs(engine, make, monkeypatch):
    monkeypatch.setattr(replicated, "EVENTS_PER_WINDOW", 30.0)
    cases = cases_of(make)
    arguments = dict(horizon=20.0, warmup=8.0, replications=5, first=2, key=jax.random.key(3))
    before = program.cache_info().misses
    together = engine.run_cases(cases, **arguments)
    (alone,) = engine.run_cases(cases, only=[2], **arguments)
    assert program.cache_info().misses == before + 1
    assert identical(alone, together[2])
    for case, record in zip(cases, together, strict=True):
        separate = engine.run(case.instance, case.policy, n_gpus=case.n_gpus, **arguments)
        assert identical(record, separate)
        assert (record.n_gpus, record.dt) == (case.n_gpus, separate.dt)


def test_numbers_per_gpu_are_those_of_one_cluster_among_many():
    """XLA divides by a number that all replications share with another rounding than by one of each."""
    counts = jnp.asarray(np.random.default_rng(5).integers(0, 1000, (2, 64)), jnp.float32)

    def per_gpu(n_gpus, counts):
        room = jnp.ones((3, 64))
        seen = Observation(n_gpus, n_gpus, counts, counts, counts, counts, counts[None], counts[0], room)
        return seen.per_gpu().idle_prefill_slots

    for n_gpus in (3, 37, 90):
        each = [jnp.full(size, n_gpus, jnp.float32) for size in (1, 64)]
        np.testing.assert_array_equal(*(jax.jit(per_gpu)(n, counts) for n in each))


def test_policies_of_different_structure_cannot_run_together():
    instance = oracles.reference_cluster().instance()
    pair = [policies.gate_and_route(instance), policies.sarathi(instance)]
    arguments = dict(n_gpus=10, horizon=20.0, warmup=5.0, replications=20, key=jax.random.key(3))
    with pytest.raises(InputError, match="^policies: expected the same gate, router"):
        ClusterEngine().run_together(instance, pair, **arguments)


def test_one_device_gives_the_bits_of_two():
    """The exact chain is in the quick tests too: see the run that two processes keep."""
    check_devices(1, kinds=("leap", "undecided"))


@pytest.mark.slow
def test_one_device_gives_the_bits_of_two_with_the_exact_chain():
    check_devices(1, kinds=("exact",))


@pytest.mark.slow
@pytest.mark.parametrize("devices", [4, 8])
def test_more_devices_give_the_bits_of_two(devices):
    check_devices(devices)


@pytest.mark.slow
@pytest.mark.parametrize(("devices", "processes"), [(1, 2), (2, 2), (1, 3)])
def test_more_processes_give_the_bits_of_one(devices, processes):
    """One kind of run is in the quick tests too: see the run that two processes keep."""
    check_devices(devices, processes)


@pytest.mark.parametrize("kind", STEPPERS)
def test_blocks_and_splits_of_the_replications_change_no_bit(kind):
    """Also replications 5, 6, ... alone are those of the whole run, and another key gives another run."""
    whole = small_run(kind)
    assert identical(whole, small_run(kind, block=8))
    parts = [
        small_run(kind, block=8, first=0, replications=10),
        small_run(kind, block=8, first=10, replications=14),
    ]
    assert identical(whole, Record.concatenate(parts))
    alone = small_run(kind, block=8, first=5, replications=1)
    assert np.array_equal(alone.completions[..., 0], whole.completions[..., 5])
    other = small_run(kind, block=8, key=4)
    assert not np.array_equal(other.completions, whole.completions)
    assert len(np.unique(whole.decodes_solo.sum(axis=0)[0])) == REPLICATIONS


@pytest.mark.slow
@pytest.mark.parametrize("block", [1, 3, 16])
@pytest.mark.parametrize("kind", STEPPERS)
def test_further_blocks_change_no_bit(kind, block):
    assert identical(small_run(kind), small_run(kind, block=block))


BUSY = oracles.one_class(arrival_rate=2.0, prefill_time=1.0, decode_time=0.5, patience_rate=0.01)
"""One GPU that someone always waits for: about 100 in the queue, so that it prefills all the time."""


@pytest.mark.parametrize(
    "stepper", [pytest.param(Exact(), marks=pytest.mark.slow, id="exact"), pytest.param(Leap(0.1), id="leap")]
)
def test_clock_does_not_drift_over_1e5_seconds(stepper):
    """The GPU is always busy, so its integral of prefills is a clock; arrivals are Poisson in every window.

    False alarms: 1e-6 each, by exact laws (chi-square over 16 x 100 windows and over replications).
    """
    horizon = 1e5
    record = run(
        BUSY.instance(), "gate_and_route", 1, horizon=horizon, warmup=0.0, n_windows=100, stepper=stepper
    )
    assert not record.imbalance.any()
    assert record.durations.sum() == pytest.approx(horizon, rel=1e-12)
    busy = record.prefills[1:, 0] / record.durations[1:, None]
    np.testing.assert_allclose(busy, 1.0, atol=2e-5)
    np.testing.assert_allclose(busy[-10:].mean(), busy[:10].mean(), rtol=1e-5)
    arrivals = record.arrivals[:, 0]
    expected = 2.0 * record.durations[:, None]
    dispersion = ((arrivals - expected) ** 2 / expected).sum()
    low, high = stats.chi2.interval(1 - 1e-6, arrivals.size)
    assert low < dispersion < high
    assert abs(arrivals.sum() - expected.sum() * 16) < 4.9 * np.sqrt(expected.sum() * 16)
    completed = record.prefills_completed.sum()
    assert abs(completed - horizon * 16) < 4.9 * np.sqrt(horizon * 16)


if __name__ == "__main__":
    join(*map(int, sys.argv[1:5]))
    for name, value in device_digests(tuple(sys.argv[5:])).items():
        print("digest", name, value)
