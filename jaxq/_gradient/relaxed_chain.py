"""The jump chain with choices that have slopes: which event happens, and what the policy decides.

Every choice is an indicator: of an event, a class that starts, a pool, a GPU. A step multiplies and adds
indicators and numbers of requests, so it makes sense for fractions too; with indicators of 0 and 1 it is one
step of the exact chain.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float, UInt32

from .._engine.base import Numbers, class_sum
from .._engine.random import Purpose, Stream, stream, to_exponential
from .._policy.base import Observation, Pool
from .._policy.random_choice import AbstractRandomGate, AbstractRandomRouter

PerClass = Float[Array, "classes replications"]
PerBuffer = Float[Array, "buffers classes replications"]
PerGpu = Float[Array, "classes gpus replications"]
OnGpus = Float[Array, "gpus replications"]
Row = Float[Array, " replications"]


class RelaxedState(eqx.Module):
    """The numbers of requests in each stage; whole numbers, unless relaxed choices go forward.

    - `prefills`, `decodes`: on each GPU of the mixed group (of the cluster, without a partition).
    - `solo`: decodes of the solo group, whose slots are interchangeable.
    - `prefill_queue`, `decode_queue`: those that wait.
    """

    prefills: PerGpu
    decodes: PerGpu
    solo: PerClass
    prefill_queue: PerClass
    decode_queue: PerBuffer

    @property
    def busy(self) -> OnGpus:
        """Whether each GPU runs a prefill."""
        return class_sum(self.prefills)


class Sums(eqx.Module):
    """Expected time in the states of a path, s, and the integrals over it of the numbers in each stage, in
    the order of `INTEGRALS`."""

    time: Row
    stages: Float[Array, "stages classes replications"]


class Events(eqx.Module):
    """One number for each event that can happen: its rate, or how far it does happen."""

    arrived: PerClass
    abandoned_prefill: PerClass
    abandoned_decode: PerBuffer
    finished: PerGpu
    ended: PerGpu
    ended_solo: PerClass


class RelaxedChain(eqx.Module):
    """One policy, whose gate and router state their chances, on one instance.

    A choice among weights w is won by the largest of (log w - log E) / T, with E independent standard
    exponentials: each wins with its chance w / sum(w), at any temperature T. The softmax of these numbers is
    the relaxed choice (Gumbel-softmax, arXiv:1611.01144 and arXiv:1611.00712), the winner as T goes to 0.

    With `straight_through` winners go forward, and only slopes are relaxed, in three ways:

    - A parameter moves a choice as it moves its chances. That is exact.
    - The state moves a later choice as it moves the relaxed one: chances would amplify what they react to,
      without the end that a real path puts to it.
    - A change of the numbers of requests moves the integrals and the chances of events as a customer more
      would: one who leaves at rate m is still there at the next event with chance L / (L + m), L being the
      total rate. What follows if he does leave, is decided before that event.

    So slopes are exact where rates are linear in the state, and biased where it meets a limit.

    - `gpus`: of the mixed group. `keys`: two random words of each replication.
    - `route_first`, `partitioned`: as in `Policy`.
    """

    gate: AbstractRandomGate
    router: AbstractRandomRouter
    numbers: Numbers
    keys: UInt32[Array, "2 replications"]
    temperature: Float[Array, ""]
    gpus: int = eqx.field(static=True)
    route_first: bool = eqx.field(static=True)
    partitioned: bool = eqx.field(static=True)
    straight_through: bool = eqx.field(static=True, default=True)
    expected: bool = eqx.field(static=True, default=False)
    """Whether choices are their chances: for events that only might have happened."""

    @property
    def classes(self) -> int:
        """The number of request classes."""
        return self.numbers.mu_prefill.shape[0]

    def empty(self) -> RelaxedState:
        """A cluster without requests."""
        replications = self.keys.shape[1]
        on_gpus = jnp.zeros((self.classes, self.gpus, replications), jnp.float32)
        waiting = jnp.zeros((len(self.router.buffers), self.classes, replications), jnp.float32)
        none = jnp.zeros((self.classes, replications), jnp.float32)
        return RelaxedState(on_gpus, on_gpus, none, none, waiting)

    # One step.

    def step(self, state: RelaxedState, window: Array, index: Array) -> tuple[RelaxedState, Sums]:
        """The next event and what follows from it; and what the state before it adds to the sums."""

        def rand(purpose: Purpose) -> Stream:
            return stream(self.keys, purpose, window, index, "hash")

        seen = self.outliving(state) if self.straight_through else state
        rates = self.rates(seen)
        flat, structure = jax.tree.flatten(rates)
        rows = jnp.concatenate([leaf.reshape(-1, leaf.shape[-1]) for leaf in flat])
        hold = 1.0 / class_sum(list(rows))

        def events(rows: Float[Array, "events replications"]) -> Events:
            found, start = [], 0
            for leaf in flat:
                size = leaf.size // leaf.shape[-1]
                found.append(rows[start : start + size].reshape(leaf.shape))
                start += size
            return jax.tree.unflatten(structure, found)

        if self.straight_through:
            hold = stop_gradient(hold)
            might = events(hold * _slope_of(rows))
            after = replace(self, expected=True).follow(state, might, rand)
            happened = events(stop_gradient(self.choose(rows, rand(Purpose.EVENT))))
        else:
            after, happened = state, self.bounded(events(self.choose(rows, rand(Purpose.EVENT))), state)
        return self.follow(after, happened, rand), Sums(hold, hold * self.stages(seen))

    def outliving(self, state: RelaxedState) -> RelaxedState:
        """The same numbers, but with slopes of what is still there at the next event."""
        numbers = self.numbers
        total = stop_gradient(
            sum(class_sum(list(_rows(leaf))) for leaf in jax.tree.leaves(self.rates(state)))
        )

        def slowed(number: Array, rate: Array) -> Array:
            here = stop_gradient(number)
            return here + _slope_of(number) * stop_gradient(total / (total + rate))

        return RelaxedState(
            prefills=slowed(state.prefills, _over(numbers.mu_prefill)),
            decodes=slowed(state.decodes, self.decode_rates(state)),
            solo=slowed(state.solo, numbers.mu_solo),
            prefill_queue=slowed(state.prefill_queue, numbers.patience_rate),
            decode_queue=slowed(state.decode_queue, numbers.patience_rate),
        )

    def decode_rates(self, state: RelaxedState) -> PerGpu:
        """The rate at which one decode on each GPU ends, 1/s."""
        mixed, solo = _over(self.numbers.mu_mixed), _over(self.numbers.mu_solo)
        return mixed * state.busy + solo * (1.0 - state.busy)

    def rates(self, state: RelaxedState) -> Events:
        """The rate of every event, 1/s."""
        numbers = self.numbers
        return Events(
            arrived=numbers.arrival_rate + jnp.zeros_like(state.prefill_queue),
            abandoned_prefill=numbers.patience_rate * state.prefill_queue,
            abandoned_decode=numbers.patience_rate * state.decode_queue,
            finished=_over(numbers.mu_prefill) * state.prefills,
            ended=self.decode_rates(state) * state.decodes,
            ended_solo=numbers.mu_solo * state.solo,
        )

    def stages(self, state: RelaxedState) -> Float[Array, "stages classes replications"]:
        """The numbers in each stage, in the order of `INTEGRALS`."""
        mixed = jnp.sum(state.busy * state.decodes, axis=1)
        solo = jnp.sum((1.0 - state.busy) * state.decodes, axis=1) + state.solo
        prefills, waiting = jnp.sum(state.prefills, axis=1), jnp.sum(state.decode_queue, axis=0)
        return jnp.stack([prefills, mixed, solo, state.prefill_queue, waiting])

    def bounded(self, happened: Events, state: RelaxedState) -> Events:
        """No more than there is: relaxed events can take more than the fraction of a request."""
        return Events(
            arrived=happened.arrived,
            abandoned_prefill=jnp.minimum(happened.abandoned_prefill, state.prefill_queue),
            abandoned_decode=jnp.minimum(happened.abandoned_decode, state.decode_queue),
            finished=jnp.minimum(happened.finished, state.prefills),
            ended=jnp.minimum(happened.ended, state.decodes),
            ended_solo=jnp.minimum(happened.ended_solo, state.solo),
        )

    def follow(self, state: RelaxedState, happened: Events, rand: Callable) -> RelaxedState:
        """The effect of an event, and what the policy decides on it."""
        state = RelaxedState(
            prefills=state.prefills - happened.finished,
            decodes=state.decodes - happened.ended,
            solo=state.solo - happened.ended_solo,
            prefill_queue=state.prefill_queue + happened.arrived - happened.abandoned_prefill,
            decode_queue=state.decode_queue - happened.abandoned_decode,
        )
        freed = class_sum(happened.finished) + class_sum(happened.ended)
        called = class_sum(happened.arrived) * self.idle_gpu(state, rand(Purpose.PLACE))
        if self.route_first:
            state = self.start(self.route(state, happened, rand), happened, freed, called, rand)
        else:
            state = self.route(self.start(state, happened, freed, called, rand), happened, rand)
        return self.admit(state, happened, freed, rand) if self.router.buffers else state

    # Choices.

    def choose(self, weights: Float[Array, "choices *batch"], rand: Stream) -> Array:
        """Indicators of one choice in proportion to `weights`; all 0 where these are."""
        if self.expected:
            return stop_gradient(_chances(weights))
        lanes = jnp.arange(weights.shape[0]).reshape(-1, *[1] * (weights.ndim - 1))
        possible = weights > 0
        logs = jnp.log(jnp.where(possible, weights, 1.0)) - jnp.log(to_exponential(rand.words(lanes)))
        logs = jnp.where(possible, logs, -jnp.inf)
        best = jnp.max(stop_gradient(logs), axis=0)
        relaxed = _chances(jnp.exp((logs - jnp.where(best > -jnp.inf, best, 0.0)) / self.temperature))
        if not self.straight_through:
            return relaxed
        winner = (lanes == jnp.argmax(logs, axis=0)) & possible
        return winner + _slope_of(relaxed)

    def decision(
        self, weights: Callable[[Any, Observation], Array], part: Any, seen: Observation, rand: Stream
    ) -> Array:
        """A choice of the gate or the router, whose weights are a function of it and of what it sees."""
        if not self.straight_through:
            return self.choose(weights(part, seen), rand)
        own = _chances(weights(part, _fixed(seen)))
        return self.choose(weights(_fixed(part), seen), rand) + _slope_of(own)

    # What a GPU can take.

    def room(self, state: RelaxedState) -> OnGpus:
        """Whether a GPU has a free decode slot."""
        reserved = 1.0 if self.partitioned else state.busy
        return present(self.numbers.batch_size - reserved - class_sum(state.decodes))

    def can_start(self, state: RelaxedState) -> OnGpus:
        """Whether a GPU could start a prefill; under a partition its slot is reserved."""
        idle = 1.0 - state.busy
        if self.partitioned:
            return idle
        return idle * present(self.numbers.batch_size - class_sum(state.decodes))

    def idle_gpu(self, state: RelaxedState, rand: Stream) -> OnGpus:
        """The GPU that an arrival offers to the gate, if there is one."""
        able = self.can_start(state)
        total = class_sum(list(able))
        gpu = jnp.where(total > 0, self.choose(able, rand), 1.0 / self.gpus)
        return gpu * (total if self.gpus == 1 else present(total))

    def in_pool(self, pool: Pool, state: RelaxedState) -> OnGpus:
        """The GPUs of a pool that have a free decode slot."""
        room = self.room(state)
        if pool is Pool.WITH_PREFILL:
            return room * state.busy
        return room * (1.0 - state.busy) if pool is Pool.WITHOUT_PREFILL else room

    def observe(self, state: RelaxedState, happened: Events) -> Observation:
        """What the policy sees."""
        # On the GPU that completed a prefill; 1 where none did.
        own = 1.0 - jnp.sum(class_sum(happened.finished) * (1.0 - self.room(state)), axis=0)
        available = []
        for pool in self.router.pools:
            if pool is Pool.OWN or pool.is_buffer:
                available.append(own if pool is Pool.OWN else jnp.ones_like(own))
            elif pool is Pool.SOLO:
                available.append(self.numbers.solo_capacity - class_sum(state.solo))
            else:
                available.append(class_sum(list(self.in_pool(pool, state))))
        prefills, mixed, solo, queue, _ = self.stages(state)
        return Observation(
            n_gpus=self.numbers.n_gpus,
            mixed_gpus=self.numbers.mixed_gpus,
            prefills=prefills,
            decodes_mixed=mixed,
            decodes_solo=solo,
            prefill_queue=queue,
            decode_queue=state.decode_queue,
            idle_prefill_slots=class_sum(list(self.can_start(state))),
            available=jnp.stack(available),
        )

    # Decisions.

    def start(
        self, state: RelaxedState, happened: Events, freed: OnGpus, called: OnGpus, rand: Callable
    ) -> RelaxedState:
        """Offer the gate the GPU on which a request ended (`freed`) or that an arrival calls (`called`)."""
        seen = self.observe(state, happened)

        def weights(gate: Any, seen: Observation) -> Array:
            return gate.weights(seen)

        chosen = self.decision(weights, self.gate, seen, rand(Purpose.GATE))[: self.classes]
        waits = present(state.prefill_queue)
        # Nobody waits; a customer more would.
        would = waits * self.alone(seen) * stop_gradient(1.0 - class_sum(list(chosen)))
        chosen = chosen * waits + jnp.where(stop_gradient(waits) > 0, 0.0, would)
        started = chosen[:, None] * (freed * self.can_start(state) + called)
        return replace(
            state,
            prefills=state.prefills + started,
            prefill_queue=state.prefill_queue - jnp.sum(started, axis=1),
        )

    def alone(self, seen: Observation) -> PerClass:
        """The chance that each class starts if it alone waits."""
        rows = []
        for c in range(self.classes):
            queue = jnp.zeros_like(seen.prefill_queue).at[c].set(1.0)
            rows.append(_chances(self.gate.weights(replace(seen, prefill_queue=queue)))[c])
        return stop_gradient(jnp.stack(rows))

    def route(self, state: RelaxedState, happened: Events, rand: Callable) -> RelaxedState:
        """Place the request whose prefill completed."""
        seen, pools = self.observe(state, happened), self.router.pools
        shares = []
        for c in range(self.classes):

            def weights(router: Any, seen: Observation, c: int = c) -> Array:
                return router.weights(seen, jnp.full(self.keys.shape[1:], c))

            shares.append(self.decision(weights, self.router, seen, rand(Purpose.ROUTE)))
        share = dict(zip(pools, jnp.stack(shares, axis=1), strict=True))
        total, decodes = jnp.sum(happened.finished, axis=1), state.decodes
        for pool in pools:
            if pool is Pool.OWN:
                decodes = decodes + share[pool][:, None] * happened.finished
            elif pool is not Pool.SOLO and not pool.is_buffer:
                gpu = stop_gradient(self.choose(self.in_pool(pool, state), rand(Purpose.PLACE)))
                decodes = decodes + (share[pool] * total)[:, None] * gpu
        waits = [share[buffer] * total for buffer in self.router.buffers]
        return replace(
            state,
            decodes=decodes,
            solo=state.solo + share.get(Pool.SOLO, 0.0) * total,
            decode_queue=state.decode_queue + jnp.stack(waits) if waits else state.decode_queue,
        )

    def admit(self, state: RelaxedState, happened: Events, freed: OnGpus, rand: Callable) -> RelaxedState:
        """Give a freed decode slot to a waiting request: on the event's GPU, or in the solo group."""
        seen = self.observe(state, happened)

        def taken(group: Pool) -> PerBuffer:
            def weights(router: Any, seen: Observation) -> Array:
                return _rows(router.admission(seen, group))

            chosen = self.decision(weights, self.router, seen, rand(Purpose.ADMISSION))
            return chosen.reshape(state.decode_queue.shape) * present(state.decode_queue)

        slots, chosen = freed * self.room(state), taken(Pool.MIXED)
        decodes = state.decodes + jnp.sum(chosen, axis=0)[:, None] * slots
        queue, solo = state.decode_queue - chosen * class_sum(list(slots)), state.solo
        if self.partitioned:
            entered = taken(Pool.SOLO) * class_sum(list(happened.ended_solo))
            solo, queue = solo + jnp.sum(entered, axis=0), queue - entered
        return replace(state, decodes=decodes, solo=solo, decode_queue=queue)


def present(count: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """1 where there is at least one, 0 where there is none, linear between. Counts are not negative: at 0 the
    slope is that upwards; at 1 the mean of those on either side."""
    return jnp.where(count >= 0, jnp.minimum(count, 1.0), 0.0)


def _slope_of(values: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """0, with the slope of `values`."""
    return values - stop_gradient(values)


def _chances(weights: Float[Array, "choices *batch"]) -> Float[Array, "choices *batch"]:
    total = jnp.sum(weights, axis=0)
    return weights / jnp.where(total > 0, total, 1.0)


def _fixed(tree: Any) -> Any:
    """The same without slopes."""
    return jax.tree.map(lambda leaf: stop_gradient(leaf) if eqx.is_inexact_array(leaf) else leaf, tree)


def _rows(values: Float[Array, "*axes replications"]) -> Float[Array, "rows replications"]:
    return values.reshape(-1, values.shape[-1])


def _over(values: Float[Array, "classes 1"]) -> Float[Array, "classes 1 1"]:
    return values[:, None]
