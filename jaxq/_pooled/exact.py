"""The jump chain of the pooled engine: one event a step in every replication."""

from __future__ import annotations

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .._engine import arrivals
from .._engine.base import Levels, Totals, choose_pool, choose_start, class_sum, draw, one_hot
from .._engine.jump import jump
from .._engine.random import Purpose, Stream, stream
from .._engine.time_loops import jump_through
from .._policy.base import Pool
from . import chain
from .chain import AbstractPooledChain, Counts, Event, admitted, applied, counted, placed

Mask = Bool[Array, " replications"]
Index = Int[Array, " replications"]


class ExactState(eqx.Module):
    """Everything the chain needs to go on.

    - `counts`: requests in each stage.
    - `next_arrival` (s from now), `next_class`, `arrival_index`: the arrival stream.
    - `status`: 0, or 1 once the router had no place for a request.
    """

    counts: Counts
    next_arrival: Float[Array, " replications"]
    next_class: Index
    arrival_index: Index
    status: Index


class Chain(AbstractPooledChain):
    """The jump chain of one policy on one instance."""

    def rates(self, counts: Counts) -> list[Array]:
        """Rates of the events between arrivals, in the order of `Event` less its first."""
        numbers, busy = self.numbers, self.busy_share(counts)
        blocks = [numbers.patience_rate * counts.prefill_queue]
        blocks += [numbers.patience_rate * queue for queue in counts.decode_queue]
        blocks += [numbers.mu_prefill * counts.prefills]
        blocks += [numbers.mu_mixed * (busy * counts.mixed), numbers.mu_solo * ((1.0 - busy) * counts.mixed)]
        blocks += [numbers.mu_solo * counts.solo]
        return [row for block in blocks for row in block]

    def event(self, index: Index, arrived: Array) -> Event:
        """The event whose rate has this index; -1: none."""
        classes, buffers = self.shape.classes, len(self.policy.router.buffers)
        rows = [one_hot(index - k * classes, classes) for k in range(buffers + 5)]
        none = jnp.zeros((0, *arrived.shape), jnp.int32)
        return Event(
            arrived=arrived,
            abandoned_prefill=rows[0],
            abandoned_decode=jnp.stack(rows[1 : 1 + buffers]) if buffers else none,
            finished=rows[buffers + 1],
            ended_busy=rows[buffers + 2],
            ended_idle=rows[buffers + 3],
            ended_solo=rows[buffers + 4],
        )

    def step(self, carry: tuple, window: Array, length: Array) -> tuple:
        """The next event before the end of the window, in every replication that has not reached it."""
        state, totals, clock, counter = carry
        rand = stream(self.keys, Purpose.EVENT, window, counter, self.generator)
        index, rate = draw(self.rates(state.counts), rand.uniforms(1))
        rand, index, rate = self.once((rand, index, rate))
        is_arrival, is_internal, active, elapsed, clock = jump(rand, rate, state.next_arrival, clock, length)
        totals = self.integrate(totals, state.counts, elapsed)
        arrived = one_hot(state.next_class, self.shape.classes, is_arrival)
        event = self.once(self.event(jnp.where(is_internal, index, -1), arrived))
        state = self.pass_arrival(replace(state, next_arrival=state.next_arrival - elapsed), is_arrival)
        state = self.decide(replace(state, counts=applied(state.counts, event)), event, rand)
        return state, counted(totals, event), clock, counter + active.astype(jnp.int32)

    def pass_arrival(self, state: ExactState, where: Mask) -> ExactState:
        """Draw the next arrival where the last one has happened."""
        index = state.arrival_index + where.astype(jnp.int32)
        wait, request_class = arrivals.arrival(self.numbers, self.keys, self.generator, index)
        return replace(
            state,
            next_arrival=jnp.where(where, wait, state.next_arrival),
            next_class=jnp.where(where, request_class, state.next_class),
            arrival_index=index,
        )

    def decide(self, state: ExactState, event: Event, rand: Stream) -> ExactState:
        """Let the policy act, in its order."""
        finished = class_sum(event.finished) > 0
        offered = finished | (class_sum(event.arrived + event.ended_idle) > 0)
        if self.policy.route_first:
            state = self.gate(self.route(state, event, finished, rand), offered, rand)
        else:
            state = self.route(self.gate(state, offered, rand), event, finished, rand)
        if not self.policy.router.buffers:
            return state
        mixed = class_sum(event.ended_busy + event.ended_idle) > 0
        counts = self.admit(state.counts, Pool.MIXED, mixed, rand)
        solo = class_sum(event.ended_solo) > 0
        return replace(state, counts=self.admit(counts, Pool.SOLO, solo, rand))

    def gate(self, state: ExactState, offered: Mask, rand: Stream) -> ExactState:
        """Offer an idle GPU to the gate."""
        counts = state.counts
        choice = choose_start(self.policy, self.observe(counts), rand.uniforms(5))
        start = offered & (self.idle(counts) > 0)
        started = self.once(one_hot(jnp.where(start, choice, self.shape.classes), self.shape.classes))
        counts = replace(
            counts, prefills=counts.prefills + started, prefill_queue=counts.prefill_queue - started
        )
        return replace(state, counts=counts)

    def route(self, state: ExactState, event: Event, finished: Mask, rand: Stream) -> ExactState:
        """Place the request whose prefill ended."""
        counts, pools = state.counts, self.policy.router.pools
        request_class = class_sum(event.finished * jnp.arange(self.shape.classes)[:, None])
        choice = choose_pool(self.policy, self.observe(counts), request_class, rand.uniforms(6))
        choice = self.once(jnp.where(finished, choice, len(pools) + 1))
        sent = {pool: jnp.where(choice == p, event.finished, 0) for p, pool in enumerate(pools)}
        status = jnp.where(choice == len(pools), 1, state.status)
        return replace(state, counts=placed(counts, self.policy.router.buffers, sent), status=status)

    def admit(self, counts: Counts, group: Pool, freed: Mask, rand: Stream) -> Counts:
        """Give a freed slot of a group to a waiting request."""
        weights = self.policy.router.admission(self.observe(counts), group)
        cells = weights.shape[0] * weights.shape[1]
        index, total = draw(weights.reshape(cells, -1), rand.uniforms(8))
        where = freed & (total > 0) & (self.room(counts, group) > 0)
        taken = self.once(one_hot(index, cells, where).reshape(*weights.shape[:2], -1))
        return admitted(counts, group, taken)


def initial_state(chain: Chain) -> ExactState:
    """An empty cluster."""
    replications = chain.keys.shape[1]
    none = jnp.zeros(replications, jnp.int32)
    counts = Counts.none(chain.shape.classes, len(chain.policy.router.buffers), replications)
    state = ExactState(counts, jnp.zeros(replications, jnp.float32), none, none - 1, none)
    return chain.pass_arrival(state, jnp.ones(replications, bool))


def replication_axes(state: ExactState) -> ExactState:
    """The axis of each array along which replications lie."""
    return jax.tree.map(lambda leaf: leaf.ndim - 1, state)


def levels_of(state: ExactState) -> Levels:
    """The numbers in each stage."""
    return chain.levels_of(state.counts)


def advance(
    chain: Chain, state: ExactState, window: Int[Array, ""], length: Float[Array, ""], steps: Int[Array, ""]
) -> tuple[ExactState, Totals]:
    """Run every replication through one window of `length` seconds (`steps` is for the other stepper)."""
    del steps
    none = Totals.zeros(chain.shape.classes, chain.keys.shape[1])
    return jump_through(lambda carry: chain.step(carry, window, length), state, none, length)
