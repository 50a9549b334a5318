"""The leap stepper of the pooled engine: a step is some tens of decisions, whatever the number of GPUs.

A step draws how many of each event happen, and then takes decisions in turns: a turn decides for a block of
GPUs or requests at once, so large that some ten turns are enough. The last blocks of starts are ever smaller,
so that a gate that balances classes has its balance at the end. Small clusters, whose blocks are of one, take
their decisions one by one.
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
from . import chain
from .chain import AbstractPooledChain, Counts, Event, admitted, applied, counted, placed

START_TURNS, PLACE_TURNS = 8, 8
"""Blocks in which the starts of a step are decided, and the places of its finished requests."""

LAST_TURNS = 8
"""The last blocks of starts are ever smaller, down to this part of the first."""

GOLDEN = 0.6180339887
"""Blocks take their random numbers evenly spread: each by this much from the one before, modulo 1."""

SURE = 1.0 - 1e-6
"""Chances above this count as 1."""


class LeapState(eqx.Module):
    """Everything a step needs: requests in each stage, and 1 once the router had no place for one."""

    counts: Counts
    status: PerReplication


class Starting(eqx.Module):
    """Starts decided so far in a step; `left`: offers of an idle GPU to the gate that are still to come."""

    counts: Counts
    left: PerReplication
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
        buffers = len(self.policy.router.buffers)
        patience = [dt * numbers.patience_rate] * (1 + buffers)
        rate = busy * numbers.mu_mixed + (1.0 - busy) * numbers.mu_solo
        trials = [counts.prefill_queue, *counts.decode_queue, counts.prefills, counts.mixed, counts.solo]
        chances = [*patience, dt * numbers.mu_prefill, dt * rate, dt * numbers.mu_solo]
        trials = jnp.concatenate(trials)
        chances = jnp.concatenate([jnp.broadcast_to(chance, counts.solo.shape) for chance in chances])
        uniforms = rand(Purpose.EVENT).uniforms(jnp.arange(len(trials))[:, None])
        left = self.once(samplers.binomial(trials, chances, uniforms)).reshape(-1, classes, uniforms.shape[1])
        mean = jnp.broadcast_to(numbers.arrival_rate * dt, counts.solo.shape)
        arriving = rand(Purpose.ARRIVAL).uniforms(jnp.arange(classes)[:, None])
        ended = left[2 + buffers]
        beside = busy * numbers.mu_mixed / jnp.maximum(rate, 1e-30)
        # Rounded up with the chance that is left over.
        rounding = rand(Purpose.SOLO).uniforms(jnp.arange(classes)[:, None])
        ended_busy = jnp.minimum(jnp.floor(beside * ended + rounding).astype(jnp.int32), ended)
        return Event(
            arrived=self.once(samplers.poisson(mean, arriving)),
            abandoned_prefill=left[0],
            abandoned_decode=left[1 : 1 + buffers],
            finished=left[1 + buffers],
            ended_busy=ended_busy,
            ended_idle=ended - ended_busy,
            ended_solo=left[3 + buffers],
        )

    def uniform(self, words: Stream, turn: Array, alone: Array) -> Float[Array, " replications"]:
        """A random number for a turn: of its own where the turn decides for one alone."""
        spread = words.uniforms(0) + jnp.float32(GOLDEN) * turn
        return jnp.where(alone, words.uniforms(1 + turn), spread - jnp.floor(spread))

    def gate(self, state: LeapState, event: Event, rand) -> LeapState:
        """Offer idle GPUs to the gate: one for each prefill that ended, each arrival, and each decode that
        ended on an idle GPU."""
        words = rand(Purpose.GATE)
        offers = class_sum(event.finished + event.arrived + event.ended_idle)
        largest = 1 + (jnp.minimum(offers, self.idle(state.counts)) - 1) // START_TURNS
        smallest = 1 + largest // LAST_TURNS

        def useful(now: Starting) -> Array:
            waiting = class_sum(now.counts.prefill_queue) > 0
            return (now.left > 0) & (self.idle(now.counts) > 0) & waiting

        def turn(now: Starting) -> Starting:
            counts = now.counts
            most = jnp.minimum(now.left, self.idle(counts))
            block = jnp.minimum(most, jnp.maximum(smallest, jnp.minimum(largest, most >> 1)))
            uniform = self.uniform(words, now.turn, largest == 1)
            # As half-way through the block: else a class that starts few is always ahead of its share. (With
            # a division in place of the shifts the whole step takes twice as long on a CPU.)
            half = jnp.minimum(counts.prefill_queue, block) >> 1
            seen = self.observe(counts)
            seen = replace(seen, prefills=seen.prefills + half)
            choice = self.once(choose_start(self.policy, self.once(seen), uniform))
            kind = one_hot(choice, self.shape.classes, useful(now))
            started = kind * jnp.minimum(counts.prefill_queue, block)
            used = jnp.where(class_sum(started) > 0, class_sum(started), block)
            counts = replace(
                counts, prefills=counts.prefills + started, prefill_queue=counts.prefill_queue - started
            )
            return Starting(counts, jnp.maximum(now.left - used, 0), now.turn + 1)

        begin = Starting(state.counts, offers, jnp.int32(0))
        end = lax.while_loop(lambda now: jnp.any(useful(now)), turn, begin)
        return replace(state, counts=end.counts)

    def route(self, state: LeapState, event: Event, rand) -> LeapState:
        """Place the requests whose prefill ended, a block of each class in turn."""
        words, pools, classes = rand(Purpose.ROUTE), self.policy.router.pools, self.shape.classes
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
            counts = placed(now.counts, self.policy.router.buffers, sent)
            return Placing(counts, now.left.at[c].set(left), jnp.where(lost, 1, now.status), now.turn)

        begin = Placing(state.counts, event.finished, state.status, jnp.int32(0))
        end = lax.while_loop(lambda now: jnp.any(now.left > 0), turn, begin)
        return LeapState(end.counts, end.status)

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
        drawn = samplers.binomial(left, jnp.minimum(share, SURE), uniform)
        drawn = jnp.minimum(jnp.where(share > SURE, left, drawn), waiting)
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
