"""The leap stepper of the pooled engine: a step is some tens of decisions, whatever the number of GPUs.

A step draws how many of each event happen, and then takes decisions in turns: a turn decides for a block of
GPUs or requests at once, so large that some turns for each class are enough. The last blocks of starts are
ever smaller, so that a gate that balances classes has its balance at the end. Small clusters, whose blocks
are of one, take their decisions one by one. Some gates and routers need no turns: how many of their decisions
fall each way is drawn.
"""

from __future__ import annotations

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from .._engine import counts as samplers
from .._engine.base import Levels, PerClass, Totals, choose_pool, choose_start, class_sum, one_hot
from .._engine.gpu_words import PerReplication
from .._engine.random import Purpose, Stream, stream
from .._engine.time_loops import step_through
from .._policy.base import Pool
from .._policy.gates import FcfsGate, OccupancyGate, QueueGate
from .._policy.routers import RandomisedRouter, SoloFirstRouter
from . import chain
from .chain import AbstractPooledChain, Counts, Event, admitted, applied, counted, placed

BALANCING = (OccupancyGate, QueueGate)
"""Gates of which a class that has more than its share only waits until the others have theirs."""

BALANCED_TURNS, START_TURNS, PLACE_TURNS = 2, 4, 8
"""Blocks for each class: of a step's starts under such gates and others, if all were of the first one's size,
and of its places."""

LAST_TURNS = 16
"""The last blocks of starts are ever smaller, down to this part of the first."""

GOLDEN = 0.6180339887
"""Blocks take their random numbers evenly spread: each by this much from the one before, modulo 1."""


class LeapState(eqx.Module):
    """Everything a step needs: requests in each stage, and 1 once the router had no place for one."""

    counts: Counts
    status: PerReplication


class Starting(eqx.Module):
    """Starts decided so far in a step; `left`: offers of an idle GPU to the gate that are still to come, of
    which so many are `open` as GPUs are idle, none where no request waits."""

    counts: Counts
    left: PerReplication
    open: PerReplication
    turn: Int[Array, ""]


class Placing(eqx.Module):
    """Places decided so far in a step; `left`: finished requests without a place."""

    counts: Counts
    left: PerClass
    status: PerReplication
    turn: Int[Array, ""]


class Chain(AbstractPooledChain):
    """The time-stepped chain of one policy on one instance."""

    def step(self, state: LeapState, totals: Totals, window: Array, index: Array, dt: Array) -> tuple:
        """One step of `dt` seconds."""

        def rand(purpose: Purpose) -> Stream:
            return stream(self.keys, purpose, window, index, self.generator)

        totals = self.integrate(totals, state.counts, dt)
        event = self.once(self.events(state.counts, rand, dt))
        totals = counted(totals, event)
        counts = applied(state.counts, event)
        # Whoever waits for a slot was there before those who finish now.
        if self.policy.router.buffers:
            counts = self.admit(counts, event, rand(Purpose.ADMISSION))
        state = replace(state, counts=self.once(counts))
        if self.policy.route_first:
            return self.gate(self.route(state, event, rand), event, rand), totals
        return self.route(self.gate(state, event, rand), event, rand), totals

    def events(self, counts: Counts, rand, dt: Array) -> Event:
        """How many of each event happen, from one uniform number for each count."""
        numbers, classes, busy = self.numbers, self.shape.classes, self.busy_share(counts)
        words = rand(Purpose.EVENT)

        def gone(present: list, rates: list, lane: int) -> Int[Array, "stages classes replications"]:
            chances = jnp.concatenate([jnp.broadcast_to(dt * rate, counts.solo.shape) for rate in rates])
            uniforms = words.uniforms(lane + jnp.arange(len(chances))[:, None])
            drawn = samplers.binomial(jnp.concatenate(present), chances, uniforms)
            return drawn.reshape(-1, *counts.solo.shape)

        # Apart, for in large clusters few abandon and many finish, and a sampler is fast for numbers alike.
        waiting = [counts.prefill_queue, *counts.decode_queue]
        abandoned = gone(waiting, [numbers.patience_rate] * len(waiting), 0)
        rate = busy * numbers.mu_mixed + (1.0 - busy) * numbers.mu_solo
        running = [counts.prefills, counts.mixed, counts.solo]
        rates = [numbers.mu_prefill, rate, numbers.mu_solo]
        finished, ended, ended_solo = gone(running, rates, len(waiting) * classes)
        mean = jnp.broadcast_to(numbers.arrival_rate * dt, counts.solo.shape)
        arriving = rand(Purpose.ARRIVAL).uniforms(jnp.arange(classes)[:, None])
        beside = busy * numbers.mu_mixed / jnp.maximum(rate, 1e-30)
        # Rounded up with the chance that is left over.
        rounding = rand(Purpose.SOLO).uniforms(jnp.arange(classes)[:, None])
        ended_busy = jnp.minimum(jnp.floor(beside * ended + rounding).astype(jnp.int32), ended)
        return Event(
            arrived=samplers.poisson(mean, arriving),
            abandoned_prefill=abandoned[0],
            abandoned_decode=abandoned[1:],
            finished=finished,
            ended_busy=ended_busy,
            ended_idle=ended - ended_busy,
            ended_solo=ended_solo,
        )

    def uniform(self, words: Stream, turn: Array, alone: Array) -> Float[Array, " replications"]:
        """A random number for a turn: of its own where the turn decides for one alone."""
        spread = words.uniforms(0) + jnp.float32(GOLDEN) * turn
        return jnp.where(alone, words.uniforms(1 + turn), spread - jnp.floor(spread))

    def gate(self, state: LeapState, event: Event, rand) -> LeapState:
        """Offer idle GPUs to the gate: one for each prefill that ended, each arrival, and each decode that
        ended on an idle GPU."""
        # Not `isinstance`, here and in `route`: a subclass may decide otherwise.
        if type(self.policy.gate) is FcfsGate:
            return self.gate_in_turn_of_arrival(state, event, rand)
        words, offers = rand(Purpose.GATE), self.offers(event)
        balances = type(self.policy.gate) in BALANCING
        blocks = (BALANCED_TURNS if balances else START_TURNS) * self.shape.classes
        largest = 1 + (jnp.minimum(offers, self.idle(state.counts)) - 1) // blocks
        smallest = 1 + largest // LAST_TURNS

        def open_now(counts: Counts, left: Array) -> Array:
            return jnp.where(class_sum(counts.prefill_queue) > 0, jnp.minimum(left, self.idle(counts)), 0)

        def turn(now: Starting) -> Starting:
            counts = now.counts
            block = jnp.minimum(now.open, jnp.maximum(smallest, jnp.minimum(largest, now.open >> 1)))
            uniform = self.uniform(words, now.turn, largest == 1)
            most = jnp.minimum(counts.prefill_queue, block)
            seen = self.observe(counts)
            if balances:
                # As a block's last request sees it: what a class had too much, the blocks that follow could
                # not take back. The last block of all is decided as half-way through.
                ahead = jnp.maximum(most - 1, 0)
                ahead = jnp.where(block < now.open, ahead, ahead >> 1)
                waiting = seen.prefill_queue - ahead
                seen = replace(seen, prefills=seen.prefills + ahead, prefill_queue=waiting)
            else:
                seen = replace(seen, prefills=seen.prefills + (most >> 1))
            kind = one_hot(choose_start(self.policy, seen, uniform), self.shape.classes, now.open > 0)
            started = self.once(kind * most)
            used = jnp.where(class_sum(started) > 0, class_sum(started), block)
            counts = replace(
                counts, prefills=counts.prefills + started, prefill_queue=counts.prefill_queue - started
            )
            left = now.left - used
            return Starting(counts, left, open_now(counts, left), now.turn + 1)

        begin = Starting(state.counts, offers, open_now(state.counts, offers), jnp.int32(0))
        end = lax.while_loop(lambda now: jnp.any(now.open > 0), turn, begin)
        return replace(state, counts=end.counts)

    def route(self, state: LeapState, event: Event, rand) -> LeapState:
        """Place the requests whose prefill ended: all at once, or a block of each class in turn."""
        router = self.policy.router
        if type(router) is SoloFirstRouter or type(router) is RandomisedRouter:
            return self.place_in_order(router, state, event, rand)
        words, pools, classes = rand(Purpose.ROUTE), router.pools, self.shape.classes
        block = 1 + (event.finished - 1) // PLACE_TURNS

        def turn(now: Placing) -> Placing:
            for c in range(classes):
                now = place(now, c)
            return replace(now, turn=now.turn + 1)

        def place(now: Placing, c: int) -> Placing:
            here = now.left[c] > 0
            uniform = self.uniform(words, now.turn * classes + c, block[c] == 1)
            request_class = jnp.full(here.shape, c, jnp.int32)
            choice = choose_pool(self.policy, self.observe(now.counts), request_class, uniform)
            amount, sent = jnp.zeros_like(now.left[c]), {}
            for p, pool in enumerate(pools):
                size = jnp.minimum(block[c], now.left[c])
                size = size if pool.is_buffer else jnp.minimum(size, self.room(now.counts, pool))
                size = jnp.where(here & (choice == p), size, 0)
                sent[pool] = jnp.zeros_like(now.left).at[c].set(size)
                amount = amount + size
            lost = here & (choice == len(pools))
            left = jnp.where(lost, 0, now.left[c] - amount)
            counts = placed(now.counts, router.buffers, sent)
            return Placing(counts, now.left.at[c].set(left), jnp.where(lost, 1, now.status), now.turn)

        begin = Placing(state.counts, event.finished, state.status, jnp.int32(0))
        end = lax.while_loop(lambda now: jnp.any(now.left > 0), turn, begin)
        return LeapState(end.counts, end.status)

    def gate_in_turn_of_arrival(self, state: LeapState, event: Event, rand) -> LeapState:
        """As `gate` under `FcfsGate`, all at once: classes start in proportion to their queues."""
        counts, queue = state.counts, state.counts.prefill_queue
        uniforms = rand(Purpose.GATE).uniforms(jnp.arange(len(queue))[:, None])
        slots = jnp.minimum(self.offers(event), self.idle(counts))
        started = self.once(shared_out(slots, queue.astype(jnp.float32), queue, uniforms))
        counts = replace(counts, prefills=counts.prefills + started, prefill_queue=queue - started)
        return replace(state, counts=counts)

    def offers(self, event: Event) -> PerReplication:
        """How many times a GPU without a prefill may be offered to the gate."""
        return class_sum(event.finished + event.arrived + event.ended_idle)

    def place_in_order(
        self, router: SoloFirstRouter | RandomisedRouter, state: LeapState, event: Event, rand
    ) -> LeapState:
        """As `route` under a router that goes through pools in some order, all at once: as many as have room
        go to the first pool, then to the next."""
        counts, words = state.counts, rand(Purpose.ROUTE)
        seen, classes = self.observe(counts), len(event.finished)
        each = [
            router.order_chances(seen, jnp.full(seen.idle_prefill_slots.shape, c)) for c in range(classes)
        ]
        chances = jnp.stack(each, axis=1)
        sent, left, undecided = {}, jnp.zeros_like(event.finished), event.finished
        for k, pools in enumerate(router.orders):
            requests = undecided
            if k + 1 < len(router.orders):
                share = chances[k] / jnp.maximum(jnp.sum(chances[k:], axis=0), 1e-30)
                uniforms = words.uniforms(len(router.pools) + k * classes + jnp.arange(classes)[:, None])
                requests = self.once(samplers.binomial(undecided, jnp.minimum(share, 1.0), uniforms))
            undecided = undecided - requests
            for pool in pools:
                room, uniform = self.room(counts, pool), words.uniforms(router.pools.index(pool))
                sent[pool] = requests if pool.is_buffer else shared_evenly(room, requests, uniform)
                requests = requests - sent[pool]
            left = left + requests
        counts = placed(counts, router.buffers, sent)
        return LeapState(counts, jnp.where(class_sum(left) > 0, 1, state.status))

    def admit(self, counts: Counts, event: Event, words: Stream) -> Counts:
        """Give freed slots to waiting requests, drawn by the router's weights."""
        freed = {Pool.MIXED: event.ended_busy + event.ended_idle, Pool.SOLO: event.ended_solo}
        for k, (group, ended) in enumerate(freed.items()):
            slots = jnp.minimum(class_sum(ended), self.room(counts, group))
            weights = self.policy.router.admission(self.observe(counts), group)
            cells = weights.shape[0] * weights.shape[1]
            uniforms = words.uniforms(k * cells + jnp.arange(cells)[:, None])
            queue = counts.decode_queue.reshape(cells, -1)
            taken = self.once(shared_out(slots, weights.reshape(cells, -1), queue, uniforms))
            counts = admitted(counts, group, taken.reshape(counts.decode_queue.shape))
        return counts


def shared_evenly(
    slots: PerReplication, wanted: Int[Array, "classes replications"], uniform: Array
) -> Int[Array, "classes replications"]:
    """How many of each class take one of some slots, in proportion to those who want one, rounded so that the
    mean is right; all slots, if so many want one."""
    after = class_sum(wanted)
    slots = jnp.minimum(slots, after)
    share = slots.astype(jnp.float32) / jnp.maximum(after, 1).astype(jnp.float32)
    upto, given, taken = jnp.zeros_like(slots), jnp.zeros_like(slots), []
    for want in wanted:
        upto, after = upto + want, after - want
        due = jnp.floor(share * upto.astype(jnp.float32) + uniform).astype(jnp.int32)
        # Within these limits whatever the rounding of a product: the others can take what is left.
        taken.append(jnp.clip(due - given, slots - given - after, jnp.minimum(want, slots - given)))
        given = given + taken[-1]
    return jnp.stack(taken)


def shared_out(
    slots: PerReplication,
    weights: Float[Array, "cells replications"],
    queue: Int[Array, "cells replications"],
    uniforms: Float[Array, "cells replications"],
) -> Int[Array, "cells replications"]:
    """How many of each queue take one of some slots, which draw them by weight; all slots, if so many wait
    where the weight is positive."""
    queue = jnp.where(weights > 0, queue, 0)
    left, rest, taken = slots, jnp.sum(weights, axis=0), []
    for weight, waiting, uniform in zip(weights, queue, uniforms, strict=True):
        share = jnp.clip(weight / jnp.where(rest > 0, rest, 1.0), 0.0, 1.0)
        drawn = jnp.minimum(samplers.binomial(left, share, uniform), waiting)
        left, rest = left - drawn, rest - weight
        taken.append(drawn)
    for j, waiting in enumerate(queue):
        more = jnp.minimum(left, waiting - taken[j])
        left, taken[j] = left - more, taken[j] + more
    return jnp.stack(taken)


def initial_state(chain: Chain) -> LeapState:
    """An empty cluster."""
    replications = chain.keys.shape[1]
    counts = Counts.none(chain.shape.classes, len(chain.policy.router.buffers), replications)
    return LeapState(counts, jnp.zeros(replications, jnp.int32))


def replication_axes(state: LeapState) -> LeapState:
    """The axis of each array along which replications lie."""
    return jax.tree.map(lambda leaf: leaf.ndim - 1, state)


def levels_of(state: LeapState) -> Levels:
    """The numbers in each stage."""
    return chain.levels_of(state.counts)


def advance(
    chain: Chain, state: LeapState, window: Int[Array, ""], dt: Float[Array, ""], steps: Int[Array, ""]
) -> tuple[LeapState, Totals]:
    """Run every replication through `steps` steps of `dt` seconds."""
    none = Totals.zeros(chain.shape.classes, chain.keys.shape[1])

    def body(index: Array, carry: tuple[LeapState, Totals]) -> tuple:
        return chain.step(*carry, window, index, dt)

    return step_through(body, state, none, steps)
