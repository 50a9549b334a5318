"""The pooled engine: closed forms where it is exact, the cluster engine where it is not, and any size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxq import Exact, InputError, Leap, PooledEngine
from jaxq._engine import counts
from jaxq._engine.record import Record
from jaxq._pooled import leap
from jaxq._pooled.bias import MEASURED, bias_line
from jaxq._pooled.chain import Counts, Event
from jaxq.policies import PRESETS, SoloFirstRouter, feedback

from . import oracles
from .simulations import averages, identical, run, standard_error
from .test_exact import disagreements
from .test_leap import DRAWS, uniforms

PARTITIONED = oracles.PARTITIONED
"""The presets whose stages follow from counts by group."""

CORNERS = {corner.name: corner for corner in oracles.corners() if corner.policy in PARTITIONED}
QUICK_CORNERS = ("M/M/2 then M/M/18", "prefill stage is M/M/M+M of two classes", "solo group is M/M/12")

FALSE_ALARM = 1e-6


def check_corner(name: str, stepper: Exact | Leap, perturbation: float) -> None:
    corner = CORNERS[name]
    horizon = 2000.0 / (corner.n_gpus * float(np.sum(corner.instance.workload.arrival_rate)))
    record = run(
        corner.instance,
        corner.policy,
        corner.n_gpus,
        horizon=horizon,
        warmup=horizon / 4,
        replications=512,
        key=31,
        stepper=stepper,
        engine=PooledEngine,
    )
    assert not record.imbalance.any()
    assert not disagreements(averages(record, corner.instance), corner.expected, perturbation)


@pytest.mark.parametrize("name", QUICK_CORNERS)
def test_corner_is_a_classical_queue(name):
    """Where decodes are as quick beside a prefill as without one, counts by group are the whole state."""
    check_corner(name, Exact(), CORNERS[name].perturbation)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(CORNERS) - set(QUICK_CORNERS)))
def test_further_corner_is_a_classical_queue(name):
    check_corner(name, Exact(), CORNERS[name].perturbation)


@pytest.mark.parametrize(
    "name", [QUICK_CORNERS[0], *(pytest.param(name, marks=pytest.mark.slow) for name in QUICK_CORNERS[1:])]
)
def test_corner_is_a_classical_queue_at_a_small_step(name):
    """At a step of a fiftieth of a service time, within 3 % and the usual error."""
    check_corner(name, Leap(0.02), 0.03)


def revenues(record: Record) -> np.ndarray:
    """Both revenues of the reference instance in each replication, over R* of the same scheme."""
    cluster = oracles.reference_cluster()
    means = averages(record, cluster.instance())
    schemes = ("bundled", "separate")
    return np.concatenate(
        [means[f"revenue_{scheme}"] / oracles.plan(cluster, scheme).value for scheme in schemes], axis=1
    )


def check_agreement(policy: str, n_gpus: int, stepper: Exact | Leap, **given) -> None:
    """Revenues of the pooled and the cluster engine differ by less than 0.2 % of R* and three errors."""
    instance = oracles.reference_cluster().instance()
    pooled = run(instance, policy, n_gpus, key=32, stepper=stepper, engine=PooledEngine, **given)
    cluster = run(instance, policy, n_gpus, key=32, **given)
    difference = revenues(pooled) - revenues(cluster)
    assert (np.abs(difference.mean(axis=0)) < 0.002 + 3 * standard_error(difference)).all()


def test_pooled_and_cluster_engine_agree():
    check_agreement("gate_and_route", 50, Exact(), horizon=300.0, warmup=100.0, replications=64)


@pytest.mark.slow
@pytest.mark.parametrize("policy", PARTITIONED)
@pytest.mark.parametrize("stepper", [Exact(), Leap()], ids=["exact", "leap"])
def test_pooled_and_cluster_engine_agree_on_a_thousand_gpus(policy, stepper):
    check_agreement(policy, 1000, stepper, horizon=300.0, warmup=100.0, replications=64)


def test_engines_share_their_arrivals():
    """With the exact chain, replication by replication."""
    instance = oracles.reference_cluster().instance()
    records = [run(instance, "gate_and_route", 20, key=33)]
    records.append(run(instance, "gate_and_route", 20, key=33, engine=PooledEngine))
    assert np.array_equal(records[0].arrivals.sum(axis=0), records[1].arrivals.sum(axis=0))


SLOW = [
    ("gate_and_route", 1),
    ("gate_and_route", 30),
    ("sli_gate_and_route", 1),
    ("sli_gate_and_route", 30),
    ("sli_gate_and_route", 1_000_000),
]


@pytest.mark.parametrize(
    ("policy", "n_gpus"),
    [
        ("gate_and_route", 1_000_000),
        ("fcfs_route", 1_000),
        *(pytest.param(*further, marks=pytest.mark.slow) for further in SLOW),
    ],
)
def test_a_step_keeps_requests_and_capacities(policy, n_gpus):
    """Whatever the counts, within capacity: decisions of one step break no limit and lose nobody."""
    instance = oracles.reference_cluster().instance()
    made = PRESETS[policy](instance)
    mixed, replications = made.mixed_gpus(n_gpus), 64
    chain = chain_of(instance, made, n_gpus, replications)
    rng = np.random.default_rng(34)

    def within(most: int) -> np.ndarray:
        """Counts of two classes that make at most so many."""
        total = rng.integers(0, most + 1, replications)
        first = rng.binomial(total, 0.5)
        return jnp.asarray(np.stack([first, total - first]), jnp.int32)

    before = Counts(
        prefills=within(mixed),
        mixed=within(15 * mixed),
        solo=within(16 * (n_gpus - mixed)),
        prefill_queue=within(2 * n_gpus),
        decode_queue=jnp.stack([within(n_gpus) for _ in made.router.buffers]),
    )
    state = leap.LeapState(before, jnp.zeros(replications, jnp.int32))
    none = leap.Totals.zeros(2, replications)
    step = jax.jit(lambda s, t: chain.step(s, t, jnp.int32(0), jnp.int32(0), jnp.float32(0.01)))
    after, totals = jax.tree.map(np.asarray, step(state, none))
    now = after.counts
    assert not after.status.any()
    assert all((np.asarray(leaf) >= 0).all() for leaf in jax.tree.leaves(now))
    assert (now.prefills.sum(axis=0) <= mixed).all()
    assert (now.mixed.sum(axis=0) <= 15 * mixed).all()
    assert (now.solo.sum(axis=0) <= 16 * (n_gpus - mixed)).all()

    def requests(of: Counts) -> np.ndarray:
        stages = of.prefills + of.mixed + of.solo + of.prefill_queue
        return np.asarray(stages + of.decode_queue.sum(axis=0), np.int64)

    gone = totals.abandoned_prefill + totals.abandoned_decode + totals.completions
    np.testing.assert_array_equal(requests(now) - requests(before), totals.arrivals - gone)
    # The occupancy gate leaves no slot idle while someone waits, if it was asked often enough.
    idle, waiting = mixed - now.prefills.sum(axis=0), now.prefill_queue.sum(axis=0)
    finished = totals.prefills_completed.sum(axis=0)
    asked = finished + totals.arrivals.sum(axis=0) >= mixed - before.prefills.sum(axis=0) + finished
    assert asked.any() and ((idle == 0) | (waiting == 0))[asked].all()


def chain_of(instance, policy, n_gpus: int, replications: int) -> leap.Chain:
    """The time-stepped chain as the engine makes it."""
    from jaxq._engine.base import device_policy, numbers_of
    from jaxq._engine.random import replication_keys

    engine = PooledEngine()
    numbers = numbers_of(instance, n_gpus, policy.mixed_gpus(n_gpus))
    keys = replication_keys(jax.random.key(35), np.arange(replications))
    shape = engine.shape(instance, policy, n_gpus)
    return leap.Chain(device_policy(policy), numbers, keys, shape, "hash")


@pytest.mark.parametrize(
    ("policy", "stepper"),
    [
        ("gate_and_route", Exact()),
        pytest.param("gate_and_route", Leap(), marks=pytest.mark.slow),
        pytest.param("fcfs_route", Leap(), marks=pytest.mark.slow),
        pytest.param("sli_gate_and_route", Leap(), marks=pytest.mark.slow),
    ],
)
def test_results_do_not_depend_on_blocks(policy, stepper):
    instance = oracles.reference_cluster().instance()
    given = {"horizon": 5.0, "warmup": 1.0, "replications": 24, "engine": PooledEngine, "n_windows": 4}
    whole = run(instance, policy, 100, stepper=stepper, **given)
    assert identical(whole, run(instance, policy, 100, stepper=stepper, block=8, **given))


@pytest.mark.parametrize("mean", [300.0, 5e3, 1e6])
def test_poisson_numbers_of_a_million_gpus_have_their_law(mean):
    drawn = np.asarray(counts.poisson(jnp.full(DRAWS, mean, jnp.float32), uniforms(41)))
    assert close(drawn, stats.poisson(mean))


@pytest.mark.parametrize(("trials", "chance"), [(200_000, 0.04), (12_000_000, 1e-4), (3_000_000, 0.3)])
def test_binomial_numbers_of_a_million_gpus_have_their_law(trials, chance):
    drawn = counts.binomial(jnp.full(DRAWS, trials), jnp.full(DRAWS, chance, jnp.float32), uniforms(42))
    assert close(np.asarray(drawn), stats.binom(trials, np.float64(np.float32(chance))))


def close(drawn: np.ndarray, law) -> bool:
    """Mean and variance within 5 errors, beyond 1e-4, and a distribution function that Kolmogorov and Smirnov
    would not tell from the law's."""
    mean, deviation, size = law.mean(), law.std(), len(drawn)
    centred = (drawn.astype(np.float64) - mean) / deviation
    steps = stats.kstest(drawn + np.random.default_rng(1).random(size), lambda x: smoothed(law, x)).pvalue
    near = abs(centred.mean()) < 5 / np.sqrt(size) + 1e-4
    return near and abs(centred.var() - 1) < 5 * np.sqrt(2 / size) + 1e-4 and steps > FALSE_ALARM


def smoothed(law, x: np.ndarray) -> np.ndarray:
    """The distribution function of a whole number plus a uniform one."""
    below = np.floor(x)
    return law.cdf(below - 1) + (x - below) * law.pmf(below)


@pytest.mark.parametrize("name", oracles.UNPARTITIONED)
def test_a_policy_without_a_partition_is_refused(name):
    instance = oracles.reference_cluster().instance()
    with pytest.raises(InputError, match=f"{name}.*needs a partition"):
        run(instance, name, 10, engine=PooledEngine)


def test_scores_are_refused():
    instance = oracles.reference_cluster().instance()
    with pytest.raises(InputError, match="scores: expected the cluster engine"):
        run(instance, "gate_and_route", 10, engine=PooledEngine, scores=True)


def test_a_router_that_tells_mixed_gpus_apart_is_refused():
    instance = oracles.reference_cluster().instance()
    with pytest.raises(InputError, match="WITH_PREFILL"):
        run(instance, feedback(instance, start="gate_and_route"), 10, engine=PooledEngine)


def test_slots_are_shared_out_by_weight_and_none_is_left():
    """100,000 draws of 40 slots for queues of 10, 50 and 60 with weights 1, 2 and 0; and of 70, for which
    both positive queues are not enough."""
    slots = jnp.repeat(jnp.asarray([40, 70], jnp.int32), 50_000)
    rows = jnp.ones((3, 100_000))
    queue = (rows * jnp.asarray([[10], [50], [60]])).astype(jnp.int32)
    drawn = jax.random.uniform(jax.random.key(36), (3, 100_000))
    taken = np.asarray(leap.shared_out(slots, rows * jnp.asarray([[1.0], [2.0], [0.0]]), queue, drawn))
    assert (taken[:, 50_000:] == [[10], [50], [0]]).all()
    first = np.minimum(stats.binom(40, 1 / 3).rvs(200_000, random_state=37), 10)
    assert (taken[:, :50_000].sum(axis=0) == 40).all() and not taken[2].any()
    assert abs(taken[0, :50_000].mean() - first.mean()) < 5 * first.std() * np.sqrt(1 / 50_000 + 1 / 200_000)


def first_words(chain):
    """The random words of a first step."""
    return lambda purpose: leap.stream(chain.keys, purpose, jnp.int32(0), jnp.int32(0), "hash")


@pytest.mark.parametrize("slots", [0, 1, 7, 40_003, 100_000])
def test_slots_are_shared_in_proportion_to_those_who_want_one(slots):
    """At 1,000 evenly spread uniform numbers, and the largest."""
    wanted = np.asarray([3, 0, 9] if slots < 100 else [50_001, 3, 20_000])
    uniform = jnp.concatenate([(jnp.arange(1000) + 0.5) / 1000, jnp.asarray([1.0 - 2.0**-24])])
    given = jnp.full(1001, slots, jnp.int32)
    taken = np.asarray(
        leap.shared_evenly(given, jnp.asarray(wanted)[:, None] + jnp.zeros_like(given), uniform)
    )
    assert (taken.sum(axis=0) == min(slots, wanted.sum())).all()
    assert (taken >= 0).all() and (taken <= wanted[:, None]).all()
    share = wanted * min(1.0, slots / wanted.sum())
    np.testing.assert_allclose(taken[:, :1000].mean(axis=1), share, atol=0.02)


class OneByOne(SoloFirstRouter):
    """Decides as its parent does, but an engine cannot know: a subclass may have preferences of its own."""


@pytest.mark.parametrize(("room", "mixed_room"), [(0, 20_000), (300, 400), (300, 0), (5000, 0)])
def test_places_in_a_fixed_order_are_those_of_decisions_in_turn(room, mixed_room):
    """Where 1,500 and 500 requests finish and both groups have some room: as many go to each pool, and
    classes share the room evenly up to blocks of an eighth, which share it by turns."""
    instance = oracles.reference_cluster().instance()
    made = PRESETS["gate_and_route"](instance)
    slow = replace(made, router=OneByOne())
    finished = jnp.asarray([[1500] * 8, [500] * 8], jnp.int32)
    nothing = jnp.zeros((2, 8), jnp.int32)
    placed = []
    for policy in (made, slow):
        chain = chain_of(instance, policy, 10_000, 8)
        full = chain.numbers.solo_capacity - room + nothing[0]
        taken = 15 * chain.numbers.mixed_gpus - mixed_room + nothing[0]
        before = replace(
            Counts.none(2, 1, 8),
            solo=jnp.stack([full, nothing[0]]),
            mixed=jnp.stack([jnp.maximum(taken, 0), nothing[0]]),
        )
        event = Event(nothing, nothing, nothing[None], finished, nothing, nothing, nothing)

        after = chain.route(leap.LeapState(before, nothing[0]), event, first_words(chain))
        assert not np.asarray(after.status).any()
        grown = [after.counts.solo - before.solo, after.counts.mixed - before.mixed]
        new = [*grown, after.counts.decode_queue[0]]
        placed.append(np.stack([np.asarray(part) for part in new]))
    np.testing.assert_array_equal(placed[0].sum(axis=1), placed[1].sum(axis=1))
    np.testing.assert_array_equal(placed[0].sum(axis=0), finished)
    assert np.abs(placed[0] - placed[1]).max() <= 1500 / leap.PLACE_TURNS
    solo = min(room, 2000)
    mixed = min(mixed_room, 2000 - solo)
    for pool, amount in enumerate((solo, mixed, 2000 - solo - mixed)):
        assert np.abs(placed[0][pool, 0] - 0.75 * amount).max() <= 2


def test_blocks_of_decisions_keep_the_balance_of_the_gate():
    """A thousand prefills of each class end among a million GPUs, a twentieth of those of class 0: the
    occupancy gate brings running prefills back to the plan's proportions, within a thousandth."""
    instance = oracles.reference_cluster().instance()
    made = PRESETS["gate_and_route"](instance)
    n_gpus, plan = 1_000_000, np.asarray(made.gate.prefills)[:, None]
    chain = chain_of(instance, made, n_gpus, 8)
    planned = jnp.asarray(np.repeat(np.floor(n_gpus * plan), 8, axis=1), jnp.int32)
    nothing = jnp.zeros((2, 8), jnp.int32)
    ended = nothing + 1000
    waiting = replace(Counts.none(2, 1, 8), prefills=planned - ended, prefill_queue=nothing + 5000)
    event = Event(nothing, nothing, nothing[None], ended, nothing, nothing, nothing)

    after = chain.gate(leap.LeapState(waiting, nothing[0]), event, first_words(chain)).counts
    np.testing.assert_array_equal(after.prefills.sum(axis=0), planned.sum(axis=0))
    np.testing.assert_allclose(np.asarray(after.prefills) / (n_gpus * plan), 1.0, rtol=1e-3)


def test_blocks_leave_no_class_ahead_on_average():
    """As above, for 64 numbers of ended prefills, so that the balance is reached anywhere in a block:
    class 0 is less than a quarter of a smallest block ahead."""
    instance = oracles.reference_cluster().instance()
    made = PRESETS["gate_and_route"](instance)
    chain = chain_of(instance, made, 1_000_000, 64)
    planned = jnp.asarray(np.floor(1_000_000 * np.asarray(made.gate.prefills))[:, None], jnp.int32)
    nothing = jnp.zeros((2, 64), jnp.int32)
    ended = jnp.stack([900 + 7 * jnp.arange(64), jnp.full(64, 1000)]).astype(jnp.int32)
    waiting = replace(Counts.none(2, 1, 64), prefills=planned - ended, prefill_queue=nothing + 5000)
    event = Event(nothing, nothing, nothing[None], ended, nothing, nothing, nothing)

    after = chain.gate(leap.LeapState(waiting, nothing[0]), event, first_words(chain)).counts
    smallest = float(ended.sum(axis=0).mean()) / (2 * leap.BALANCED_TURNS * leap.LAST_TURNS)
    assert abs(np.mean(np.asarray(after.prefills - planned)[0])) < smallest / 4


def test_starts_and_places_that_are_drawn_have_their_law():
    """4,000 replications of a step at a million GPUs: first come, first served starts 2,000 prefills from
    queues of 30,000 and 20,000; the randomised router sends 1,500 and 500 requests to the two groups.

    Means and variances of a binomial law, which drawing without replacement makes smaller by 4 %.
    """
    count = 4000
    nothing = jnp.zeros((2, count), jnp.int32)
    instance = oracles.reference_cluster().instance()
    chain = chain_of(instance, PRESETS["fcfs_route"](instance), 1_000_000, count)
    running = jnp.stack([chain.numbers.mixed_gpus - 2000 + nothing[0], nothing[0]])
    queue = jnp.asarray([[30_000], [20_000]]) + nothing
    before = replace(Counts.none(2, 1, count), prefills=running, prefill_queue=queue)
    event = Event(nothing, nothing, nothing[None], nothing + 1000, nothing, nothing, nothing)
    after = chain.gate(leap.LeapState(before, nothing[0]), event, first_words(chain)).counts
    started = np.asarray(queue - after.prefill_queue)
    assert (started.sum(axis=0) == 2000).all()
    check_binomial(started[0], 2000, 0.6)

    policy = PRESETS["sli_gate_and_route"](instance)
    policy = replace(
        policy, router=replace(policy.router, solo_flow=jnp.ones(2), mixed_flow=jnp.array([1, 3.0]))
    )
    chain = chain_of(instance, policy, 1_000_000, count)
    finished = jnp.asarray([[1500], [500]]) + nothing
    event = Event(nothing, nothing, jnp.stack([nothing, nothing]), finished, nothing, nothing, nothing)
    after = chain.route(leap.LeapState(Counts.none(2, 2, count), nothing[0]), event, first_words(chain))
    np.testing.assert_array_equal(after.counts.solo + after.counts.mixed, finished)
    check_binomial(np.asarray(after.counts.solo[0]), 1500, 0.5)
    check_binomial(np.asarray(after.counts.solo[1]), 500, 0.25)


def check_binomial(drawn: np.ndarray, trials: int, chance: float) -> None:
    mean, variance = stats.binom(trials, chance).stats()
    assert abs(drawn.mean() - mean) < 5 * np.sqrt(variance / len(drawn))
    assert abs(drawn.var() / variance - 1) < 5 * np.sqrt(2 / len(drawn)) + 0.04


def test_the_bias_that_is_shown_is_that_of_the_table():
    """Of docs/large_n.md, which `python -m benchmarks.engine_agreement` makes."""
    rows = [
        [cell.strip(" `") for cell in line.strip("|").split("|")]
        for line in (Path(__file__).parents[1] / "docs" / "large_n.md").read_text().splitlines()
        if line.startswith("| `reference` |") and "| pooled | bundled |" in line
    ]
    found = {(row[1], int(row[2].replace(",", ""))): row[7] for row in rows}
    shown = {
        (policy, n_gpus): f"{bias:+.3f} ± {error:.3f}"
        for policy, measured in MEASURED.items()
        for n_gpus, bias, error in measured
    }
    assert shown == found
    assert "bias not measured for mine" in bias_line("mine")
