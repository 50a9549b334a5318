"""What each gate starts and where each router sends a request, one decision at a time; policies by name."""

from __future__ import annotations

from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
import pytest

from jaxq import InputError
from jaxq._engine.base import choose_pool, choose_start
from jaxq.policies import (
    PRESETS,
    TABLE,
    AbstractGate,
    AbstractRouter,
    FcfsGate,
    ImmediateRouter,
    Observation,
    OccupancyGate,
    PackingRouter,
    Partition,
    Policy,
    Pool,
    PrefillFirstRouter,
    PriorityGate,
    QueueGate,
    RandomisedRouter,
    SoloFirstRouter,
    load_policy,
)

from . import oracles
from .simulations import averages, run


def observe(queue: list[int], running: list[int] | None = None, **given: Any) -> Observation:
    """What a policy sees: `queue` waits for prefill, `running` runs; ten GPUs; one replication."""
    classes = len(queue)

    def column(values: Any) -> jnp.ndarray:
        return jnp.asarray(values, jnp.int32)[..., None]

    return Observation(
        n_gpus=jnp.asarray([given.get("n_gpus", 10)]),
        mixed_gpus=jnp.asarray([given.get("mixed_gpus", 3)]),
        prefills=column(running or [0] * classes),
        decodes_mixed=column([0] * classes),
        decodes_solo=column([0] * classes),
        prefill_queue=column(queue),
        decode_queue=column(given.get("decode_queue", [[0] * classes])),
        idle_prefill_slots=jnp.asarray([1]),
        available=column(given.get("available", [1])),
    )


def columns(*rows: Any) -> list[np.ndarray]:
    """Parameters with a trailing axis for replications."""
    return [np.asarray(row, np.float32)[..., None] for row in rows]


def starts(
    gate: AbstractGate, queue: list[int], running: list[int] | None = None, uniform: float = 0.0
) -> int:
    """The class that the engine starts; the number of classes: none."""
    policy = Policy(gate, ImmediateRouter())
    return int(choose_start(policy, observe(queue, running), jnp.asarray([uniform], jnp.float32))[0])


PLANNED = columns([0.02, 0.2, 0.1], [0.3, 0.0, 0.1])


@pytest.mark.parametrize(
    ("queue", "running", "started"),
    [
        ([1, 1, 1], [1, 3, 2], 1),  # 50, 15, 20
        ([1, 0, 1], [1, 3, 2], 2),  # class 1 does not wait
        ([5, 3, 1], [0, 0, 0], 1),  # all tied at 0: excess 2, 3, 0
        ([7, 3, 4], [0, 0, 0], 0),  # excess 4, 3, 3
        ([9, 3, 4], [0, 2, 1], 0),
        ([1, 4, 6], [1, 4, 2], 2),  # 50, and 20 twice: excess 4 and 5
    ],
)
def test_occupancy_gate_starts_the_class_furthest_below_its_plan(queue, running, started):
    assert starts(OccupancyGate(*PLANNED), queue, running) == started


def test_occupancy_gate_breaks_its_last_tie_by_the_lowest_index():
    gate = OccupancyGate(*columns([0.1, 0.1, 0.1], [0.0, 0.0, 0.0]))
    assert starts(gate, [2, 2, 2]) == 0
    assert starts(gate, [0, 2, 2]) == 1
    assert starts(gate, [1, 2, 2], [3, 3, 3]) == 1


@pytest.mark.parametrize(("planned", "rounds_up"), [(0.018, 0), (0.0217, 1)])
def test_occupancy_gate_calls_ratios_tied_that_float32_tells_apart(planned, rounds_up):
    """1 of x and 3 of 3x: in float32 one of the two quotients is larger by an ulp."""
    prefills, queue = columns([planned, 3 * planned], [0.0, 0.0])
    ratios = np.asarray([1, 3], np.float32) / prefills[:, 0]
    assert np.argmax(ratios) == rounds_up and ratios[0] != ratios[1]
    gate = OccupancyGate(prefills, queue)
    assert starts(gate, [1, 2], [1, 3]) == 1
    assert starts(gate, [2, 1], [1, 3]) == 0
    assert starts(gate, [2, 2], [1, 3]) == 0


def test_occupancy_gate_starts_unplanned_classes_last_but_leaves_no_slot_idle():
    gate = OccupancyGate(*columns([0.0, 0.2, 0.0], [0.0, 0.0, 0.0]))
    assert starts(gate, [9, 1, 9], [0, 5, 0]) == 1
    assert starts(gate, [3, 0, 9]) == 2
    assert starts(gate, [3, 0, 3]) == 0
    assert starts(gate, [0, 0, 0]) == 3


def test_queue_gate_starts_the_longest_queue_above_its_plan():
    gate = QueueGate(*columns([0.3, 0.0, 0.1]))
    assert starts(gate, [5, 3, 1]) == 1
    assert starts(gate, [1, 0, 0]) == 0  # below its plan, but it waits
    assert starts(gate, [4, 1, 2]) == 0  # all tied at 1


def test_priority_gate_starts_the_highest_priority_that_waits():
    gate = PriorityGate(*columns([1.0, 5.0, 5.0]))
    assert starts(gate, [9, 1, 1]) == 1
    assert starts(gate, [9, 0, 1]) == 2
    assert starts(gate, [9, 0, 0]) == 0


@pytest.mark.parametrize(
    ("uniform", "started"), [(0.0, 0), (0.24, 0), (0.26, 2), (0.99, 2), (1 - 2.0**-24, 2)]
)
def test_fcfs_gate_draws_in_proportion_to_the_queues(uniform, started):
    assert starts(FcfsGate(), [1, 0, 3], uniform=uniform) == started


def pool(
    router: Any, available: list[int], request_class: int = 0, uniform: float = 0.0, **given: Any
) -> Pool:
    """Where the engine sends a request."""
    policy = Policy(FcfsGate(), router, Partition(0.3) if Pool.SOLO in router.pools else None)
    seen = observe([0, 0], available=available, **given)
    chosen = choose_pool(policy, seen, jnp.asarray([request_class]), jnp.asarray([uniform], jnp.float32))
    return router.pools[int(chosen[0])]


@pytest.mark.parametrize(
    ("router", "pools"),
    [
        (ImmediateRouter(), (Pool.OWN,)),
        (SoloFirstRouter(), (Pool.SOLO, Pool.MIXED, Pool.WAIT)),
        (PrefillFirstRouter(), (Pool.WITHOUT_PREFILL, Pool.WITH_PREFILL, Pool.WAIT)),
        (PackingRouter(), (Pool.WITH_PREFILL, Pool.WITHOUT_PREFILL)),
    ],
)
def test_router_takes_its_pools_in_order(router, pools):
    assert router.pools == pools
    for first, expected in enumerate(pools):
        assert pool(router, [int(k >= first) for k in range(len(pools))]) is expected


RANDOMISED = RandomisedRouter(*columns([0.3, 0.0], [0.1, 0.0], 0.0))


@pytest.mark.parametrize(
    ("uniform", "available", "expected"),
    [
        (0.0, [1, 1, 1, 1], Pool.SOLO),
        (0.74, [1, 1, 1, 1], Pool.SOLO),
        (0.76, [1, 1, 1, 1], Pool.MIXED),
        (0.74, [0, 1, 1, 1], Pool.WAIT_SOLO),
        (0.76, [1, 0, 1, 1], Pool.WAIT_MIXED),
    ],
)
def test_randomised_router_keeps_to_the_group_it_draws(uniform, available, expected):
    assert pool(RANDOMISED, available, uniform=uniform) is expected


def test_randomised_router_sends_a_class_without_planned_decodes_to_the_solo_group():
    assert pool(RANDOMISED, [1, 1, 1, 1], request_class=1, uniform=0.999) is Pool.SOLO


@pytest.mark.parametrize(("mixed_gpus", "group"), [(0, Pool.SOLO), (10, Pool.MIXED)])
@pytest.mark.parametrize("uniform", [0.0, 0.999])
def test_randomised_router_replaces_a_group_without_gpus(mixed_gpus, group, uniform):
    assert pool(RANDOMISED, [1, 1, 1, 1], uniform=uniform, mixed_gpus=mixed_gpus) is group


def test_freed_slots_serve_their_own_buffer_in_proportion_to_counts_or_flows():
    seen = observe([0, 0], decode_queue=[[4, 2], [1, 3]])
    assert RANDOMISED.admission(seen, Pool.SOLO)[..., 0].tolist() == [[4, 2], [0, 0]]
    assert RANDOMISED.admission(seen, Pool.MIXED)[..., 0].tolist() == [[0, 0], [1, 3]]
    persistent = RandomisedRouter(*columns([0.3, 0.2], [0.1, 0.0], 1.0))
    np.testing.assert_allclose(persistent.admission(seen, Pool.SOLO)[..., 0], [[0.3, 0.2], [0, 0]])
    np.testing.assert_allclose(persistent.admission(seen, Pool.MIXED)[..., 0], [[0, 0], [0.1, 0]])
    only_unplanned = observe([0, 0], decode_queue=[[4, 2], [0, 3]])
    assert persistent.admission(only_unplanned, Pool.MIXED)[..., 0].tolist() == [[0, 0], [0, 3]]


@pytest.mark.parametrize(
    ("share", "n_gpus", "mixed"),
    [(0.2, 10, 2), (0.2 + 1e-8, 10, 2), (0.21321, 10, 3), (0.0, 10, 0), (1.0, 7, 7), (0.001, 1, 1)],
)
def test_partition_rounds_up_but_not_rounding_errors(share, n_gpus, mixed):
    assert Partition(share).mixed_gpus(n_gpus) == mixed


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_partition_refuses_what_is_no_share(share):
    with pytest.raises(InputError, match="^mixed_share: expected a share from 0 to 1"):
        Partition(share)


class TwiceWait(AbstractRouter):
    """A router that names a pool twice."""

    pools: ClassVar[tuple[Pool, ...]] = (Pool.WAIT, Pool.WAIT)

    def preferences(self, observation, request_class, uniform):
        return jnp.ones((2, *request_class.shape))


def test_policy_refuses_pools_that_do_not_fit():
    with pytest.raises(InputError, match="pool SOLO needs a partition"):
        Policy(FcfsGate(), SoloFirstRouter())
    with pytest.raises(InputError, match="names a pool twice"):
        Policy(FcfsGate(), TwiceWait())


@pytest.mark.parametrize("name", PRESETS)
def test_preset_is_what_the_table_says(name):
    policy = load_policy(name, oracles.reference_cluster().instance())
    row = next(row for row in TABLE if row["name"] == name)
    assert policy.name == name
    assert (policy.partition is None) == (row["partition"] == "none") == (name not in oracles.PARTITIONED)
    assert policy.route_first == (oracles.ROUTERS[name] in ("immediate", "packing"))
    assert oracles.GATES[name].split()[0] in row["gate"] or oracles.GATES[name] == "fcfs"


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "sarathi"])
@pytest.mark.parametrize(
    "make", [oracles.tiny_cluster, oracles.tiny_buffered_cluster, oracles.reference_cluster]
)
def test_preset_carries_the_numbers_of_the_oracles_plan(name, make):
    cluster = make()
    policy, plan = load_policy(name, cluster.instance()), oracles.policy_plan(cluster, name)
    gate = oracles.GATES[name]
    if policy.partition is not None:
        np.testing.assert_allclose(float(policy.partition.mixed_share), plan.x.sum(), atol=1e-6)
    if gate == "occupancy":
        np.testing.assert_allclose(policy.gate.prefills, plan.x, atol=1e-6)
        np.testing.assert_allclose(policy.gate.prefill_queue, plan.q_prefill, atol=1e-5)
    if gate in ("priority", "bid price"):
        expected = plan.bid_prices if gate == "bid price" else cluster.output_tokens / cluster.prompt_tokens
        np.testing.assert_allclose(policy.gate.priority, expected, rtol=1e-6, atol=1e-5)
    if name == "sli_gate_and_route":
        np.testing.assert_allclose(policy.router.solo_flow, cluster.mu_solo * plan.y_solo, atol=1e-5)
        np.testing.assert_allclose(policy.router.mixed_flow, cluster.mu_mixed * plan.y_mixed, atol=1e-5)
        assert bool(policy.router.persistent) == bool(plan.q_decode.max() > 1e-9)


class NeverGate(AbstractGate):
    """Starts nothing, whoever waits."""

    def scores(self, observation, uniform):
        return jnp.full(observation.prefill_queue.shape, -jnp.inf)


def shy_policy(instance: Any) -> Policy:
    """A user's own policy: called with the instance."""
    return Policy(NeverGate(), ImmediateRouter(), route_first=True, name="shy")


def test_users_policy_is_found_by_module_and_name_and_runs():
    """It starts nothing: all who come wait or leave."""
    instance = oracles.tiny_cluster().instance()
    policy = load_policy("tests.test_policies:shy_policy", instance)
    assert policy.name == "shy"
    record = run(instance, policy, 2, horizon=50.0)
    assert not record.imbalance.any() and not record.prefills.any()
    assert averages(record, instance)["abandonment_prefill"].sum() > 0


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("gate_and_rout", "^policy: unknown name 'gate_and_rout'; did you mean 'gate_and_route'\\?$"),
        ("zzz", "^policy: unknown name 'zzz'; known: gate_and_route, "),
        ("no_such_module:Thing", "^policy: cannot import 'no_such_module' of 'no_such_module:Thing'"),
        ("tests.test_policies:Missing", "^policy: module 'tests.test_policies' has no 'Missing'$"),
        ("tests.test_policies:observe_nothing", "returned NoneType, expected a jaxq.policies.Policy$"),
    ],
)
def test_unknown_policies_are_refused_in_one_line(reference, message):
    with pytest.raises(InputError, match=message) as caught:
        load_policy(reference, oracles.tiny_cluster().instance())
    assert "\n" not in str(caught.value)


def observe_nothing(instance: Any) -> None:
    """What a user may write by mistake."""
