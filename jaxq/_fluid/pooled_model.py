"""The fluid model of [Lin26]: counts by class and group, for policies with a partition."""

from __future__ import annotations

from collections.abc import Iterator

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from .._instance import Instance
from .._policy.base import AbstractGate, AbstractRouter, Observation, Policy, Pool
from .._pooled.pools import check_pooled
from .choices import CLUSTER, admission_chances, pool_chances, seen_cluster, start_chances, there
from .model import AbstractFluidModel, Rates, Stages, Width, lowered
from .transitions import Jumps, Outcomes, Transitions


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
        return ravel_pytree(state)[1](self.transitions(state, width).drift())

    def transitions(self, state: PooledState, width: Width) -> Transitions:
        """Events, each with every outcome of the decisions that follow it, as in the exact chain."""
        rates, busy, seen = self.rates, self.busy_share(state), self.observe(state)
        prefill, mixed, solo, queue, *buffers = _units(state)
        on_event, on_arrival = self.starts(state, seen, queue, prefill, width)
        from_mixed, from_solo = (
            self.admissions(state, seen, group, units, width)
            for group, units in ((Pool.MIXED, mixed), (Pool.SOLO, solo))
        )
        of = Transitions.of
        return Transitions.together(
            [
                of(queue, rates.arrival, on_arrival),
                of(-queue, rates.patience * state.prefill_queue),
                *(
                    of(-units, rates.patience * waiting)
                    for units, waiting in zip(buffers, state.decode_queue, strict=True)
                ),
                *self.finished(state, seen, on_event, width),
                of(-mixed, rates.mu_mixed * busy * state.mixed, from_mixed),
                of(-mixed, rates.mu_solo * (1 - busy) * state.mixed, on_event.with_other(from_mixed)),
                of(-solo, rates.mu_solo * state.solo, from_solo),
            ]
        )

    def starts(
        self, state: PooledState, seen: Observation, queue: Jumps, prefill: Jumps, width: Width
    ) -> tuple[Outcomes, Outcomes]:
        """The gate's choice after an event that offers it a GPU, and after an arrival, which finds an idle
        one by chance and waits itself."""
        waiting = there(state.prefill_queue, width)
        cases = jnp.concatenate([waiting[None], jnp.maximum(waiting, jnp.eye(len(waiting)))])
        chances = start_chances(self.gate, seen, cases, width)
        none = jnp.zeros(chances.shape[1]).at[-1].set(1.0)
        idle = there(self.idle(state), width)
        jumps = np.concatenate([prefill - queue, np.zeros_like(queue[:1])])
        return Outcomes(jumps, chances[:1]), Outcomes(jumps, idle * chances[1:] + (1 - idle) * none)

    def finished(
        self, state: PooledState, seen: Observation, on_event: Outcomes, width: Width
    ) -> Iterator[Transitions]:
        """Prefills that end: the GPU is offered to the gate, the request placed."""
        prefill, mixed, solo, _, *buffers = _units(state)
        units = dict(zip((Pool.MIXED, Pool.SOLO, *self.router.buffers), (mixed, solo, *buffers), strict=True))
        pools = self.router.pools
        found = [
            jnp.ones_like(width) if pool.is_buffer else there(self.room(state, pool), width) for pool in pools
        ]
        chances = pool_chances(self.router, seen, jnp.stack(found), width)
        rates = self.rates.mu_prefill * state.prefills
        for c in range(len(prefill)):
            this = slice(c, c + 1)
            placed = Outcomes(np.concatenate([units[pool][this] for pool in pools]), chances[this])
            yield Transitions.of(-prefill[this], rates[this], on_event.with_other(placed))

    def admissions(
        self, state: PooledState, seen: Observation, group: Pool, entered: Jumps, width: Width
    ) -> Outcomes:
        """Who takes a decode slot of a group that comes free, if anybody waits."""
        _, _, _, _, *buffers = _units(state)
        jumps = [*(entered - left for left in buffers), np.zeros_like(entered[:1])]
        chances = jnp.zeros(0)
        if buffers:
            present = there(state.decode_queue, width)
            chances = jnp.ravel(admission_chances(self.router, seen, group, present))
        chances = jnp.append(chances, 1 - jnp.sum(chances))
        return Outcomes(np.concatenate(jumps), chances[None])


def _units(state: PooledState) -> Float[np.ndarray, "stages classes size"]:
    """One request of a class in a stage, as `ravel_pytree` orders the state; buffers come last."""
    buffers, classes = state.decode_queue.shape
    size = (4 + buffers) * classes
    return np.eye(size).reshape(-1, classes, size)
