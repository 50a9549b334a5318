"""The mean-field limit of any policy: how the share of GPUs in each configuration moves."""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._engine.base import class_sum
from .._instance import Instance
from .._policy.base import AbstractGate, AbstractRouter, Observation, Policy, Pool
from .choices import (
    CLUSTER,
    NEXT_TO_NOTHING,
    admission_chances,
    pool_chances,
    seen_cluster,
    start_chances,
    there,
)
from .configurations import Configurations, configurations
from .model import AbstractFluidModel, Rates, Stages, Width, lowered

Flow = Float[Array, " configurations"]
"""GPUs that pass through each configuration, per GPU and second."""


class ConfigurationState(eqx.Module):
    """A cluster in the limit, per GPU.

    - `gpus`: the share of the GPUs in each configuration.
    - `prefill_queue`, `decode_queue`: requests that wait, by class and by buffer and class.
    """

    gpus: Flow
    prefill_queue: Float[Array, " classes"]
    decode_queue: Float[Array, "buffers classes"]


class ConfigurationModel(AbstractFluidModel):
    """The drift of the share of GPUs in each configuration, and of the queues ([Lin26] eq. 24-37 before
    pooling)."""

    gate: AbstractGate
    router: AbstractRouter
    rates: Rates
    mixed_share: Float[Array, ""]
    table: Configurations = eqx.field(static=True)
    route_first: bool = eqx.field(static=True)
    partitioned: bool = eqx.field(static=True)

    @classmethod
    def of(cls, instance: Instance, policy: Policy) -> ConfigurationModel:
        """That of a policy on an instance. **Raises:** `InputError` for too many configurations."""
        partitioned = policy.partition is not None
        gate, router, share = lowered(policy)
        return cls(
            gate,
            router,
            Rates.of(instance),
            share,
            configurations(int(instance.batch_size), instance.n_classes, partitioned),
            policy.route_first,
            partitioned,
        )

    def empty(self) -> ConfigurationState:
        """A cluster without requests."""
        mixed, solo = self.table.empty
        classes = self.table.decodes.shape[1]
        gpus = jnp.zeros(self.table.size).at[mixed].add(self.mixed_share).at[solo].add(1 - self.mixed_share)
        buffers = len(self.router.buffers)
        return ConfigurationState(gpus, jnp.zeros(classes), jnp.zeros((buffers, classes)))

    def balance(self, state: ConfigurationState, width: Width) -> ConfigurationState:
        """0 in a steady state: the drift, and in place of that of empty GPUs, which follows from the others,
        the share of GPUs that a group has too many."""
        drift, solo, (mixed_row, solo_row) = self.drift(state, width), self.table.solo, self.table.empty
        gpus = drift.gpus.at[solo_row].set(state.gpus @ solo - (1 - self.mixed_share))
        gpus = gpus.at[mixed_row].set(state.gpus @ ~solo - self.mixed_share)
        return eqx.tree_at(lambda s: s.gpus, drift, gpus)

    def stages(self, state: ConfigurationState) -> Stages:
        """Requests in each stage."""
        table = self.table
        busy = (table.prefill > 0)[:, None]
        running = table.prefill[:, None] == 1 + np.arange(table.decodes.shape[1])
        return Stages(
            prefills=state.gpus @ running,
            decodes_mixed=state.gpus @ (table.decodes * busy),
            decodes_solo=state.gpus @ (table.decodes * ~busy),
            prefill_queue=state.prefill_queue,
            decode_queue=state.decode_queue.sum(axis=0),
        )

    def members(self, pool: Pool) -> Bool[np.ndarray, " configurations"]:
        """The configurations of the GPUs with room to which a pool sends requests."""
        table = self.table
        kinds = {
            Pool.SOLO: table.solo,
            Pool.MIXED: ~table.solo,
            Pool.WITH_PREFILL: table.prefill > 0,
            Pool.WITHOUT_PREFILL: (table.prefill == 0) & ~table.solo,
        }
        return kinds.get(pool, np.zeros(table.size, bool)) & table.room

    def drift(self, state: ConfigurationState, width: Width) -> ConfigurationState:
        """The rate of change of the state, 1/s."""
        return _Moment(self, state, width).drift()


class _Moment:
    """The drift at one state, which is added up event by event."""

    def __init__(self, model: ConfigurationModel, state: ConfigurationState, width: Width):
        self.model, self.table, self.state, self.width = model, model.table, state, width
        self.members = np.stack([model.members(pool) for pool in model.router.pools])
        self.room = jnp.asarray(self.members @ state.gpus)
        self.able = state.gpus @ self.table.able
        self.seen = self.observe()
        self.moved = jnp.zeros(self.table.size)
        self.started = jnp.zeros_like(state.prefill_queue)
        self.waiting = jnp.zeros_like(state.decode_queue)
        waiting = there(state.prefill_queue, width)
        # After an event on a GPU, and after an arrival of each class, which waits itself.
        cases = jnp.concatenate([waiting[None], jnp.maximum(waiting, jnp.eye(len(waiting)))])
        self.starts = start_chances(model.gate, self.seen, cases, width)

    def observe(self) -> Observation:
        """What the policy sees."""
        table, gpus = self.table, self.state.gpus
        load = table.decodes.sum(axis=1)
        rows = []
        for pool, members, room in zip(self.model.router.pools, self.members, self.room, strict=True):
            if pool is Pool.SOLO:
                rows.append(gpus @ (members * (load.max() - load)))
            else:
                rows.append(room if members.any() else 1 / CLUSTER)
        stages = self.model.stages(self.state)
        return seen_cluster(stages, self.state.decode_queue, self.model.mixed_share, self.able, rows)

    def drift(self) -> ConfigurationState:
        """All events together."""
        self.decodes_end()
        self.prefills_finish()
        rates, state = self.model.rates, self.state
        for c, rate in enumerate(rates.arrival):
            offered = rate * state.gpus * self.table.able / (jnp.abs(self.able) + self.width)
            self.moved = self.moved - offered + self.gated(offered, 1 + c)
        return ConfigurationState(
            self.moved,
            rates.arrival - rates.patience * state.prefill_queue - self.started,
            self.waiting - rates.patience * state.decode_queue,
        )

    def decodes_end(self) -> None:
        """A decode ends: its GPU is offered to the gate and may take a waiting request."""
        rates = self.model.rates
        busy = self.table.prefill[:, None] > 0
        flows = self.state.gpus[:, None] * self.table.decodes
        flows = flows * jnp.where(busy, rates.mu_mixed, rates.mu_solo)
        after = self.admitted(self.gated(self.arriving(self.table.more, flows), 0))
        self.moved = self.moved - flows.sum(axis=1) + after

    def prefills_finish(self) -> None:
        """A prefill ends: its request is placed and its GPU offered to the gate, in the policy's order."""
        rates, table = self.model.rates, self.table
        running = table.prefill[:, None] == 1 + np.arange(len(rates.mu_prefill))
        flows = self.state.gpus[:, None] * running * rates.mu_prefill
        padded = jnp.concatenate([flows, jnp.zeros_like(flows[:1])])
        after = jnp.stack([padded[source, c] for c, source in enumerate(table.after_start.T)])
        if self.model.route_first:
            after = self.gated(self.routed(after), 0)
        else:
            after = self.routed(jnp.stack([self.gated(flow, 0) for flow in after]))
        self.moved = self.moved - flows.sum(axis=1) + self.admitted(after)

    # GPUs on the move.

    def arriving(
        self, source: Int[np.ndarray, "configurations classes"], flows: Float[Array, "configurations classes"]
    ) -> Flow:
        """Flows of GPUs by class, where they arrive: each configuration takes what leaves its source."""
        padded = jnp.concatenate([flows, jnp.zeros_like(flows[:1])])
        return class_sum([padded[source[:, c], c] for c in range(flows.shape[1])])

    def gated(self, flow: Flow, case: int) -> Flow:
        """GPUs after they were offered to the gate."""
        able, chances = flow * self.table.able, self.starts[case]
        self.started = self.started + able.sum() * chances[:-1]
        return (
            flow
            - able * (1 - chances[-1])
            + self.arriving(self.table.before_start, able[:, None] * chances[:-1])
        )

    def routed(self, finished: Float[Array, "classes configurations"]) -> Flow:
        """GPUs after their finished requests were placed, there or elsewhere."""
        pools, table = self.model.router.pools, self.table
        single = self.members.any(axis=1)
        found = jnp.where(single, there(self.room, self.width), 1.0)
        rest, sent = jnp.zeros(table.size), jnp.zeros((len(pools), len(finished)))
        for own, kind in self.kinds_of_own():
            # A GPU with room is there for its own request: the one that its pool finds, if it finds no other.
            sure = np.array(
                [pool is Pool.OWN and own is not None or p == own for p, pool in enumerate(pools)]
            )
            never = np.array([pool is Pool.OWN and own is None for pool in pools])
            available = jnp.where(sure, 1.0, jnp.where(never, 0.0, found))
            chances = pool_chances(self.model.router, self.seen, available, self.width)
            home = np.array([pool is Pool.OWN for pool in pools]) + (1 - found) * (
                np.arange(len(pools)) == own
            )
            flow, stays = finished * kind, chances @ home
            sent = sent + (chances * (1 - home)).T * flow.sum(axis=1)
            rest = rest + (1 - stays) @ flow + self.arriving(table.fewer, (stays[:, None] * flow).T)
        self.insert(sent)
        return rest

    def kinds_of_own(self) -> list[tuple[int | None, Bool[np.ndarray, " configurations"]]]:
        """The configurations of GPUs whose prefill has ended, by the router's pool that they are of.

        Pools stand by number: None for GPUs without room, -1 for those with room that are of no pool.
        """
        kinds = [(None, ~self.table.room), (-1, self.table.room & ~self.members.any(axis=0))]
        return [(own, kind) for own, kind in (*kinds, *enumerate(self.members)) if kind.any()]

    def insert(self, sent: Float[Array, "pools classes"]) -> None:
        """Requests join GPUs of their pools, each with the same chance, or a buffer."""
        for p, pool in enumerate(self.model.router.pools):
            if pool.is_buffer:
                self.waiting = self.waiting.at[self.model.router.buffers.index(pool)].add(sent[p])
            elif self.members[p].any():
                some = jnp.abs(self.room[p]) > NEXT_TO_NOTHING
                share = self.state.gpus * self.members[p] / jnp.where(some, self.room[p], 1.0)
                flows = share[:, None] * sent[p]
                self.moved = self.moved - flows.sum(axis=1) + self.arriving(self.table.fewer, flows)

    def admitted(self, flow: Flow) -> Flow:
        """GPUs with a freed slot after they took a waiting request."""
        router = self.model.router
        if not router.buffers:
            return flow
        present = there(self.state.decode_queue, self.width)
        for group in (Pool.SOLO, Pool.MIXED) if self.model.partitioned else (Pool.MIXED,):
            chances = admission_chances(router, self.seen, group, present)
            here = flow * (self.table.room & (self.table.solo == (group is Pool.SOLO)))
            self.waiting = self.waiting - here.sum() * chances
            flow = flow - here * chances.sum()
            flow = flow + self.arriving(self.table.fewer, here[:, None] * chances.sum(axis=0))
        return flow
