"""What holds on every path of every policy: conservation, capacity, bookkeeping, the LP bound."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats

from jaxq._engine import exact
from jaxq._engine.base import device_policy, gpu_pools, numbers_of
from jaxq._engine.cluster import ClusterEngine
from jaxq._engine.random import replication_keys
from jaxq._engine.steppers import AbstractStepper, Exact, Leap
from jaxq._engine.windows import pace
from jaxq._instance import Instance
from jaxq._policy.base import Policy, Pool
from jaxq.policies import load_policy

from . import oracles

REPLICATIONS = 16
WINDOWS = 5

QUICK = {
    "exact": ("gate_fcfs", "price_and_pack"),
    "leap": ("gate_and_route",),
}
CASES = [
    pytest.param(kind, policy, marks=() if policy in QUICK[kind] else pytest.mark.slow)
    for kind in QUICK
    for policy in oracles.POLICIES
]


@st.composite
def clusters(draw: Any) -> oracles.Cluster:
    """Two classes, 3 or 4 slots (one padded shape), loads from idle to flooded, gamma tau from 0.5 to 3."""

    def two(low: float, high: float) -> np.ndarray:
        return np.array([draw(st.floats(low, high)) for _ in range(2)])

    solo = 0.02
    mixed = solo * draw(st.floats(0.5, 3.0))
    chunk = 100
    return oracles.Cluster(
        prompt_tokens=chunk / mixed * two(0.1, 2.0),
        output_tokens=two(0.2, 5.0) / solo,
        arrival_rate=two(0.05, 3.0),
        patience_rate=two(0.05, 5.0),
        alpha=mixed,
        beta=0.0,
        solo=solo,
        batch_size=draw(st.sampled_from([3, 4])),
        chunk_size=chunk,
    )


class Snapshot(NamedTuple):
    """A state of the engine on the host, with its GPUs as plain arrays.

    `prefill` (replications, gpus): class from 1, 0: none; `decodes` (classes, replications, gpus); `totals`:
    events since the start.
    """

    state: Any
    prefill: np.ndarray
    decodes: np.ndarray
    totals: dict[str, np.ndarray]


def unpacked(state: Any, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Prefills and decodes of each GPU in either stepper's state."""
    if not isinstance(state, exact.ExactState):
        return np.asarray(state.prefill, int), np.asarray(state.decodes, int)
    mask = (1 << exact.FIELD_BITS) - 1
    fields = [
        state.table[..., f // exact.FIELDS] >> (exact.FIELD_BITS * (f % exact.FIELDS)) & mask
        for f in range(classes + 1)
    ]
    return fields[0], np.stack(fields[1:])


def path(
    instance: Instance,
    policy: Policy,
    n_gpus: int,
    stepper: AbstractStepper,
    seed: int,
    replications: int = REPLICATIONS,
) -> list[Snapshot]:
    """The engine's state after each of a few windows of growing length."""
    engine = ClusterEngine(stepper)
    program = engine.program_of(instance, policy, n_gpus, replications)
    fixed = program.place(
        jax.tree.leaves(device_policy(policy)),
        numbers_of(instance, n_gpus, policy.mixed_gpus(n_gpus)),
        replication_keys(jax.random.key(seed), np.arange(replications)),
    )
    state, summed, taken = program.start(*fixed), {}, []
    step = engine.step(instance, policy)
    for window in range(WINDOWS):
        state, totals = program.advance(*fixed, state, jnp.int32(window), *pace(0.05 * 3.0**window, step))
        for name in (
            "arrivals",
            "abandoned_prefill",
            "abandoned_decode",
            "completions",
            "prefills_completed",
        ):
            summed[name] = summed.get(name, 0) + np.asarray(getattr(totals, name), int)
        host = jax.device_get(state)
        taken.append(Snapshot(host, *unpacked(host, instance.n_classes), dict(summed)))
    return taken


def check_balance(taken: Snapshot) -> None:
    """Nothing is created or lost, and no count is negative."""
    levels, totals = taken.state.levels, taken.totals
    inside = levels.prefills + levels.decodes_mixed + levels.decodes_solo + levels.prefill_queue
    inside = inside + levels.decode_queue.sum(axis=0)
    left = totals["abandoned_prefill"] + totals["abandoned_decode"] + totals["completions"]
    assert (totals["arrivals"] == left + inside).all()
    before = totals["arrivals"] - totals["abandoned_prefill"] - totals["prefills_completed"]
    assert (before == levels.prefills + levels.prefill_queue).all()
    for counts in (*jax.tree.leaves(levels), taken.state.solo, taken.decodes):
        assert (np.asarray(counts) >= 0).all()


def check_gpus(taken: Snapshot, instance: Instance, policy: Policy, n_gpus: int) -> None:
    """Every GPU holds what fits, and the totals are those of the GPUs."""
    batch, usable = int(instance.batch_size), policy.mixed_gpus(n_gpus)
    busy, load_of = taken.prefill > 0, taken.decodes.sum(axis=0)
    assert (taken.prefill <= instance.n_classes).all()
    assert not busy[:, usable:].any() and not load_of[:, usable:].any()
    reserved = 1 if policy.partition is not None else busy
    assert (load_of + reserved <= batch)[:, :usable].all()
    assert (taken.state.solo.sum(axis=0) <= batch * (n_gpus - usable)).all()
    levels = taken.state.levels
    for c in range(instance.n_classes):
        assert ((taken.prefill == c + 1).sum(axis=1) == levels.prefills[c]).all()
    mixed = np.where(busy, taken.decodes, 0).sum(axis=2)
    assert (mixed == levels.decodes_mixed).all()
    assert (taken.decodes.sum(axis=2) - mixed + taken.state.solo == levels.decodes_solo).all()
    assert not taken.state.status.any()


def check_work_conservation(taken: Snapshot, instance: Instance, policy: Policy, n_gpus: int) -> None:
    """No GPU that could start a prefill idles while someone waits, whatever the preset."""
    usable, batch = policy.mixed_gpus(n_gpus), int(instance.batch_size)
    full = policy.partition is None and taken.decodes.sum(axis=0) >= batch
    idle = ((taken.prefill == 0) & ~np.asarray(full))[:, :usable].any(axis=1)
    waiting = taken.state.levels.prefill_queue.sum(axis=0) > 0
    assert not (idle & waiting).any()


def bits(words: np.ndarray, gpus: int) -> np.ndarray:
    """Membership (replications, gpus) of a set that is kept in bits."""
    lanes = (np.asarray(words)[:, None, :] >> np.arange(32, dtype=np.uint32)[:, None]) & 1
    return lanes.reshape(-1, lanes.shape[-1]).T[:, :gpus].astype(bool)


def check_bookkeeping(taken: Snapshot, instance: Instance, policy: Policy, n_gpus: int) -> None:
    """The exact chain's item lists and sets of GPUs say what its table says."""
    state, shape = taken.state, ClusterEngine().shape(instance, policy, n_gpus)
    on_gpus = state.levels.decodes_mixed + state.levels.decodes_solo - state.solo
    prefills_from = shape.classes * shape.gpus * shape.batch
    for c in range(shape.classes):
        for r in range(REPLICATIONS):
            start = c * shape.gpus * shape.batch
            listed = np.bincount(state.items[r, start : start + on_gpus[c, r]], minlength=shape.gpus)
            assert (listed == taken.decodes[c, r]).all()
            start = prefills_from + c * shape.gpus
            listed = np.bincount(
                state.items[r, start : start + state.levels.prefills[c, r]], minlength=shape.gpus
            )
            assert (listed == (taken.prefill[r] == c + 1)).all()
    busy, decodes = taken.prefill > 0, taken.decodes.sum(axis=0)
    exists = np.arange(shape.gpus) < policy.mixed_gpus(n_gpus)
    partitioned = policy.partition is not None
    room = exists & (decodes + (1 if partitioned else busy) < int(instance.batch_size))
    startable = exists & ~busy & (partitioned | (decodes < int(instance.batch_size)))
    assert (bits(state.start, shape.gpus) == startable).all()
    member = {Pool.MIXED: room, Pool.WITH_PREFILL: room & busy, Pool.WITHOUT_PREFILL: room & ~busy}
    for pool, words in zip(gpu_pools(policy), state.sets, strict=True):
        assert (bits(words, shape.gpus) == member[pool]).all()


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_path_keeps_the_rules(kind, name):
    stepper = Exact() if kind == "exact" else Leap()

    @settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(cluster=clusters(), n_gpus=st.integers(1, 20), seed=st.integers(0, 2**31 - 1))
    def check(cluster: oracles.Cluster, n_gpus: int, seed: int) -> None:
        instance = cluster.instance()
        policy = load_policy(name, instance)
        for taken in path(instance, policy, n_gpus, stepper, seed):
            check_balance(taken)
            check_gpus(taken, instance, policy, n_gpus)
            if kind == "exact":
                check_work_conservation(taken, instance, policy, n_gpus)
                check_bookkeeping(taken, instance, policy, n_gpus)
        check_bound(taken, cluster, n_gpus)

    check()


def check_bound(taken: Snapshot, cluster: oracles.Cluster, n_gpus: int) -> None:
    """From an empty start mean revenue is at most the LP's; by Student's law, 1e-8 an example."""
    gpu_seconds = n_gpus * sum(0.05 * 3.0**window for window in range(WINDOWS))
    done, prefilled = taken.totals["completions"], taken.totals["prefills_completed"]
    earned = {
        "bundled": (cluster.prefill_value + cluster.decode_value) @ done,
        "separate": cluster.prefill_value @ prefilled + cluster.decode_value @ done,
    }
    for scheme, money in earned.items():
        revenue = money / gpu_seconds
        error = revenue.std(ddof=1) / np.sqrt(REPLICATIONS)
        bound = oracles.plan(cluster, scheme).value
        assert revenue.mean() <= bound * (1 + 1e-6) + stats.t.isf(1e-8, REPLICATIONS - 1) * error


@pytest.mark.parametrize("stepper", [Exact(), Leap()], ids=["exact", "leap"])
def test_gpus_are_chosen_uniformly(stepper):
    """Where a cluster holds one prefill, or one decode, any of its ten GPUs holds it (chi-square at 1e-6)."""
    cluster = oracles.tiny_cluster(
        prompt_tokens=[9000.0, 12000.0], arrival_rate=[0.02, 0.02], patience_rate=[0.1, 0.1], batch_size=4
    )
    instance = cluster.instance()
    policy = load_policy("gate_fcfs", instance)
    taken = path(instance, policy, 10, stepper, seed=7, replications=1024)[-1]
    for held in (taken.prefill > 0, taken.decodes.sum(axis=0)):
        lone = held[held.sum(axis=1) == 1][:, :10].sum(axis=0)
        assert lone.sum() > 200
        assert stats.chisquare(lone).pvalue > 1e-6
