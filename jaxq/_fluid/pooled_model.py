"""The fluid model of [Lin26]: counts by class and group, for policies with a partition."""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._instance import Instance
from .._policy.base import AbstractGate, AbstractRouter, Observation, Policy, Pool
from .._pooled.pools import check_pooled
from .choices import CLUSTER, admission_chances, pool_chances, seen_cluster, start_chances, there
from .model import AbstractFluidModel, Rates, Stages, Width, lowered


class PooledState(eqx.Module):
    """Requests in each stage per GPU, by class.

    - `prefills`: running prefills.
    - `mixed`, `solo`: decodes on GPUs of the mixed and of the solo group.
    - `prefill_queue`, `decode_queue`: requests that wait, the latter by buffer.
    """

    prefills: Float[Array, " classes"]
    mixed: Float[Array, " classes"]
    solo: Float[Array, " classes"]
    prefill_queue: Float[Array, " classes"]
    decode_queue: Float[Array, "buffers classes"]


class PooledModel(AbstractFluidModel):
    """The drift of counts by class and group ([Lin26] eq. 24-37).

    The limit of `PooledEngine`, with whose reading of the mixed group it agrees: its decodes take the mixed
    rate for that share of them which is the share of its GPUs that run a prefill. Exact while all of them do.
    """

    gate: AbstractGate
    router: AbstractRouter
    rates: Rates
    mixed_share: Float[Array, ""]
    batch_size: Float[Array, ""]

    @classmethod
    def of(cls, instance: Instance, policy: Policy) -> PooledModel:
        """That of a policy on an instance.

        **Raises:** `InputError` for a policy without a partition, or with pools that groups do not show.
        """
        check_pooled(policy, "the pooled level", "use level 'configuration'")
        gate, router, share = lowered(policy)
        return cls(gate, router, Rates.of(instance), share, jnp.asarray(instance.batch_size, float))

    def empty(self) -> PooledState:
        none = jnp.zeros_like(self.rates.arrival)
        return PooledState(none, none, none, none, jnp.zeros((len(self.router.buffers), len(none))))

    def balance(self, state: PooledState, width: Width) -> PooledState:
        return self.drift(state, width)

    def busy_share(self, state: PooledState) -> Float[Array, ""]:
        """The share of the mixed group's GPUs that run a prefill."""
        some = self.mixed_share > 0
        return jnp.where(some, jnp.sum(state.prefills) / jnp.where(some, self.mixed_share, 1.0), 0.0)

    def stages(self, state: PooledState) -> Stages:
        beside = self.busy_share(state) * state.mixed
        return Stages(
            prefills=state.prefills,
            decodes_mixed=beside,
            decodes_solo=state.solo + state.mixed - beside,
            prefill_queue=state.prefill_queue,
            decode_queue=state.decode_queue.sum(axis=0),
        )

    def idle(self, state: PooledState) -> Float[Array, ""]:
        """GPUs of the mixed group without a prefill."""
        return self.mixed_share - jnp.sum(state.prefills)

    def room(self, state: PooledState, pool: Pool) -> Float[Array, ""]:
        """Free decode slots of a group; of a buffer, as many as the observed cluster has GPUs."""
        if pool is Pool.SOLO:
            return self.batch_size * (1 - self.mixed_share) - jnp.sum(state.solo)
        if pool is Pool.MIXED:
            return (self.batch_size - 1) * self.mixed_share - jnp.sum(state.mixed)
        return jnp.ones_like(self.mixed_share)

    def observe(self, state: PooledState) -> Observation:
        """What the policy sees."""
        rows = []
        for pool in self.router.pools:
            room = self.room(state, pool)
            most = self.mixed_share if pool is Pool.MIXED else room
            rows.append(1 / CLUSTER if pool.is_buffer else jnp.minimum(room, most))
        stages, idle = self.stages(state), self.idle(state)
        return seen_cluster(stages, state.decode_queue, self.mixed_share, idle, rows)

    def drift(self, state: PooledState, width: Width) -> PooledState:
        rates, seen = self.rates, self.observe(state)
        finished, solo_ends = rates.mu_prefill * state.prefills, rates.mu_solo * state.solo
        busy = self.busy_share(state)
        idle_ends = rates.mu_solo * (1 - busy) * state.mixed
        mixed_ends = rates.mu_mixed * busy * state.mixed + idle_ends
        started = self.started(state, seen, jnp.sum(finished) + jnp.sum(idle_ends), width)
        available = jnp.stack(
            [
                jnp.ones_like(width) if pool.is_buffer else there(self.room(state, pool), width)
                for pool in self.router.pools
            ]
        )
        sent = (pool_chances(self.router, seen, available, width) * finished[:, None]).T
        entered = dict(zip(self.router.pools, sent, strict=True))
        solo, mixed = (entered.get(pool, jnp.zeros_like(finished)) for pool in (Pool.SOLO, Pool.MIXED))
        waiting = jnp.zeros_like(state.decode_queue)
        if self.router.buffers:
            present = there(state.decode_queue, width)
            waiting = jnp.stack([entered[buffer] for buffer in self.router.buffers])
            from_solo, from_mixed = (
                jnp.sum(freed) * admission_chances(self.router, seen, group, present)
                for group, freed in ((Pool.SOLO, solo_ends), (Pool.MIXED, mixed_ends))
            )
            solo, mixed = solo + from_solo.sum(axis=0), mixed + from_mixed.sum(axis=0)
            waiting = waiting - from_solo - from_mixed
        return PooledState(
            prefills=started - finished,
            mixed=mixed - mixed_ends,
            solo=solo - solo_ends,
            prefill_queue=rates.arrival - rates.patience * state.prefill_queue - started,
            decode_queue=waiting - rates.patience * state.decode_queue,
        )

    def started(
        self, state: PooledState, seen: Observation, freed: Float[Array, ""], width: Width
    ) -> Float[Array, " classes"]:
        """Prefills that start, by class: on GPUs that an event offers to the gate, and on idle ones after an
        arrival, which then waits itself."""
        waiting = there(state.prefill_queue, width)
        cases = jnp.concatenate([waiting[None], jnp.maximum(waiting, jnp.eye(len(waiting)))])
        chances = start_chances(self.gate, seen, cases, width)[:, :-1]
        offered = self.rates.arrival * there(self.idle(state), width)
        return freed * chances[0] + offered @ chances[1:]
