"""The exact stepper: the jump chain of the model, one event a step in every replication."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped, UInt32

from .._policy.base import AbstractGate, AbstractRouter, Pool
from .._policy.random_choice import is_random
from . import gpu_set
from .arrivals import arrival
from .base import (
    AbstractChain,
    Levels,
    PerClass,
    Totals,
    choose_pool,
    choose_start,
    class_sum,
    draw,
    gpu_pools,
    integrate,
    one_hot,
)
from .jump import jump
from .random import Purpose, stream, to_index
from .score import score
from .time_loops import jump_through

FIELD_BITS = 10
FIELDS = 3
"""Counts up to 256 fit 10 bits, three a word."""

Mask = Bool[Array, " replications"]
Index = Int[Array, " replications"]


class ExactState(eqx.Module):
    """Everything the chain needs to go on.

    - `levels`: numbers in each stage; `decodes_solo` includes those of the solo group.
    - `solo`: decodes of the solo group by class; its slots are interchangeable, so counts are its exact law.
    - `items`: for each class, the list of GPUs of its decodes, then of its running prefills; one entry an
      item, so that an item is drawn and removed in constant time. The list lengths are in `levels`.
    - `table`: for each GPU the class of its prefill (0: none) and its decodes by class, packed.
    - `start`: the GPUs that could start a prefill; `sets`: those with room, for each GPU pool of the router.
    - `next_arrival` (s from now), `next_class`, `arrival_index`: the arrival stream, which no policy touches.
    - `status`: 0, or 1 once the router had no place for a request.
    """

    levels: Levels
    solo: PerClass
    items: Shaped[Array, "replications items"]
    table: Int[Array, "replications gpus packed"]
    start: UInt32[Array, "words replications"]
    sets: tuple[UInt32[Array, "words replications"], ...]
    next_arrival: Float[Array, " replications"]
    next_class: Index
    arrival_index: Index
    status: Index


class Scene(eqx.Module):
    """One event while decisions are made: the levels, the GPU it happens on (`gpu`, `prefill`, `counts`),
    and the scores of the decisions so far, where they are asked for."""

    levels: Levels
    solo: PerClass
    gpu: Index
    valid: Mask
    prefill: Index
    counts: PerClass
    scores: Float[Array, "parameters replications"] | None = None

    @property
    def busy(self) -> Mask:
        """Whether the GPU runs a prefill."""
        return self.prefill > 0


class Chain(AbstractChain):
    """The jump chain of one policy on one instance."""

    # Layout of the item lists.

    def decode_slot(self, request_class: Index, position: Index | int) -> Index:
        """Where in `items` the decode number `position` of a class stands."""
        return request_class * (self.shape.gpus * self.shape.batch) + position

    def prefill_slot(self, request_class: Index, position: Index | int) -> Index:
        """Where in `items` the running prefill number `position` of a class stands."""
        base = self.shape.classes * self.shape.gpus * self.shape.batch
        return base + request_class * self.shape.gpus + position

    # What a GPU can take.

    def has_room(self, busy: Mask, decodes: Index) -> Mask:
        """Whether a GPU has a free decode slot."""
        reserved = 1 if self.shape.partitioned else busy.astype(jnp.int32)
        return decodes < self.numbers.batch_size - reserved

    def can_start(self, busy: Mask, decodes: Index) -> Mask:
        """Whether a GPU could start a prefill; under a partition its slot is reserved."""
        return ~busy if self.shape.partitioned else ~busy & (decodes < self.numbers.batch_size)

    def in_pool(self, pool: Pool, busy: Mask, decodes: Index) -> Mask:
        """Whether a GPU belongs to a pool and has room."""
        room = self.has_room(busy, decodes)
        if pool is Pool.WITH_PREFILL:
            return room & busy
        return room & ~busy if pool is Pool.WITHOUT_PREFILL else room

    def mark(self, state: ExactState, gpu: Index, busy: Mask, decodes: Index, where: Mask) -> ExactState:
        """Bring the membership of one GPU up to date in all sets."""
        sets = tuple(
            gpu_set.put(words, gpu, self.in_pool(pool, busy, decodes), where)
            for pool, words in zip(gpu_pools(self.policy), state.sets, strict=True)
        )
        start = gpu_set.put(state.start, gpu, self.can_start(busy, decodes), where)
        return replace(state, sets=sets, start=start)

    def mark_scene(self, state: ExactState, scene: Scene, where: Mask) -> ExactState:
        """Bring the membership of the event's GPU up to date."""
        return self.mark(state, scene.gpu, scene.busy, class_sum(scene.counts), where)

    def size(self, words: UInt32[Array, "words replications"], scene: Scene, member: Mask) -> Index:
        """Size of a set in which the event's GPU may not be brought up to date: whether it is a `member`
        counts, not whether it is marked."""
        marked = gpu_set.contains(words, scene.gpu)
        change = member.astype(jnp.int32) - marked.astype(jnp.int32)
        return gpu_set.size(words) + jnp.where(scene.valid, change, 0)

    def available(self, state: ExactState, scene: Scene, marked: bool = True) -> list[Array]:
        """Room in each pool of the router; `marked`: whether the event's GPU is up to date in all sets."""
        sets = dict(zip(gpu_pools(self.policy), state.sets, strict=True))
        rows = []
        for pool in self.policy.router.pools:
            if pool in sets and marked:
                rows.append(gpu_set.size(sets[pool]))
            elif pool in sets:
                member = self.in_pool(pool, scene.busy, class_sum(scene.counts))
                rows.append(self.size(sets[pool], scene, member))
            elif pool is Pool.OWN:
                rows.append(self.has_room(scene.busy, class_sum(scene.counts)).astype(jnp.int32))
            elif pool is Pool.SOLO:
                rows.append(self.numbers.solo_capacity - class_sum(scene.solo))
            else:
                rows.append(jnp.ones_like(scene.gpu))
        return rows

    # One step.

    def step(self, carry: tuple, window: Array, length: Array) -> tuple:
        """The next event before the end of the window, in every replication that has not reached it."""
        state, totals, clock, counter = carry
        rand = stream(self.keys, Purpose.EVENT, window, counter, self.generator)
        weights = self.rates(state)
        index, rate = draw(weights, rand.uniforms(1))
        rand, index, rate = self.once((rand, index, rate))
        is_arrival, is_internal, active, elapsed, clock = jump(rand, rate, state.next_arrival, clock, length)
        totals = integrate(totals, state.levels, elapsed)
        state = replace(state, next_arrival=state.next_arrival - elapsed)
        is_arrival, is_internal, elapsed = self.once((is_arrival, is_internal, elapsed))

        state, totals, scene, kinds = self.apply(state, totals, rand, index, is_arrival, is_internal)
        state, totals = self.decide(state, totals, scene, kinds, rand)
        return state, totals, clock, counter + active.astype(jnp.int32)

    def rates(self, state: ExactState) -> list[Array]:
        """Rates of the internal events, in the order of `_Kinds.of`; decodes on GPUs at their faster mode's
        rate."""
        numbers, levels = self.numbers, state.levels
        on_gpus = levels.decodes_mixed + levels.decodes_solo - state.solo
        fastest = jnp.maximum(numbers.mu_mixed, numbers.mu_solo)
        blocks = [numbers.patience_rate * queue for queue in levels.decode_queue]
        blocks += [numbers.patience_rate * levels.prefill_queue]
        blocks += [numbers.mu_prefill * levels.prefills, fastest * on_gpus]
        if self.shape.partitioned:
            blocks += [numbers.mu_solo * state.solo]
        return [row for block in blocks for row in block]

    def kinds(self, event: Index) -> _Kinds:
        """What an event is, from the index of the rate that fired; -1: nothing."""
        buffers, classes = len(self.policy.router.buffers), self.shape.classes
        kind = [one_hot(event - b * classes, classes) for b in range(buffers + 4)]
        waiting = jnp.zeros((0, classes, *event.shape), jnp.int32)
        first = (buffers + 1) * classes
        is_prefill = (event >= first) & (event < first + classes)
        is_decode = (event >= first + classes) & (event < first + 2 * classes)
        return _Kinds(
            abandoned_decode=jnp.stack(kind[:buffers]) if buffers else waiting,
            abandoned_prefill=kind[buffers],
            prefill=kind[buffers + 1],
            decode=kind[buffers + 2],
            solo=kind[buffers + 3] if self.shape.partitioned else jnp.zeros_like(kind[0]),
            item_class=event - jnp.where(is_prefill, first, first + classes),
            is_prefill=is_prefill,
            is_decode=is_decode,
        )

    def apply(
        self, state: ExactState, totals: Totals, rand, index: Index, is_arrival: Mask, is_internal: Mask
    ) -> tuple[ExactState, Totals, Scene, _Kinds]:
        """The effect of the event before the policy acts."""
        numbers, levels, n_classes = self.numbers, state.levels, self.shape.classes
        event = jnp.where(is_internal, index, -1)
        kinds = self.kinds(event)
        arrived = one_hot(state.next_class, n_classes, is_arrival)
        on_gpus = levels.decodes_mixed + levels.decodes_solo - state.solo
        length = class_sum(kinds.prefill * levels.prefills + kinds.decode * on_gpus)
        offset = jnp.where(
            kinds.is_prefill, self.prefill_slot(kinds.item_class, 0), self.decode_slot(kinds.item_class, 0)
        )
        is_item = kinds.is_prefill | kinds.is_decode
        rows = jnp.arange(index.shape[0])
        drawn = jnp.where(is_item, offset + to_index(rand.words(2), length), 0)
        last = jnp.where(is_item, offset + length - 1, 0)
        drawn, last = self.once((drawn, last))
        item_gpu = self.once(_take(state.items, rows, drawn))

        idle = gpu_set.size(state.start)
        arrival_gpu = self.once(gpu_set.member(state.start, self.once(to_index(rand.words(4), idle))))
        valid = is_item | (is_arrival & (idle > 0))
        gpu = jnp.where(valid, jnp.where(is_item, item_gpu, arrival_gpu), 0)
        gpu, valid = self.once((gpu, valid))
        prefill, counts = _unpack(state.table[rows, gpu], n_classes)
        busy = prefill > 0
        fastest = jnp.maximum(numbers.mu_mixed, numbers.mu_solo)
        here = class_sum(kinds.decode * jnp.where(busy, numbers.mu_mixed, numbers.mu_solo))
        # A decode in the slower mode completes only with probability slower/faster: else nothing happens.
        accepted = ~kinds.is_decode | (rand.uniforms(3) * class_sum(kinds.decode * fastest) < here)
        event, valid = self.once((jnp.where(accepted, event, -1), valid & accepted))
        kinds = self.kinds(event)

        removed = kinds.is_prefill | kinds.is_decode
        # The last item of the list takes the place of the removed one; outside the list nothing is written.
        place = jnp.where(removed & (drawn != last), drawn, state.items.shape[1])
        items = _put(state.items, rows, place, _take(state.items, rows, last))
        became_solo = jnp.where(kinds.is_prefill, counts, 0)
        levels = Levels(
            prefills=levels.prefills - kinds.prefill,
            decodes_mixed=levels.decodes_mixed - jnp.where(busy, kinds.decode, 0) - became_solo,
            decodes_solo=levels.decodes_solo - jnp.where(busy, 0, kinds.decode) - kinds.solo + became_solo,
            prefill_queue=levels.prefill_queue + arrived - kinds.abandoned_prefill,
            decode_queue=levels.decode_queue - kinds.abandoned_decode,
        )
        totals = replace(
            totals,
            arrivals=totals.arrivals + arrived,
            abandoned_prefill=totals.abandoned_prefill + kinds.abandoned_prefill,
            abandoned_decode=totals.abandoned_decode + jnp.sum(kinds.abandoned_decode, axis=0),
            prefills_completed=totals.prefills_completed + kinds.prefill,
            completions=totals.completions + kinds.decode + kinds.solo,
            events=totals.events + (is_arrival | (event >= 0)),
        )
        scene = Scene(
            levels=levels,
            solo=state.solo - kinds.solo,
            gpu=gpu,
            valid=valid,
            prefill=jnp.where(kinds.is_prefill, 0, prefill),
            counts=counts - kinds.decode,
        )
        state = replace(self.next_arrival(state, is_arrival), items=items)
        return state, totals, scene, kinds

    def next_arrival(self, state: ExactState, where: Mask) -> ExactState:
        """Draw the next arrival, its time and class, where the last one has happened."""
        index = state.arrival_index + where.astype(jnp.int32)
        wait, request_class = arrival(self.numbers, self.keys, self.generator, index)
        return replace(
            state,
            next_arrival=jnp.where(where, wait, state.next_arrival),
            next_class=jnp.where(where, request_class, state.next_class),
            arrival_index=index,
        )

    def decide(
        self, state: ExactState, totals: Totals, scene: Scene, kinds: _Kinds, rand
    ) -> tuple[ExactState, Totals]:
        """Let the policy act, in its order, and write the result back."""
        set_pools = bool(gpu_pools(self.policy))
        removed = kinds.is_prefill | kinds.is_decode
        if set_pools:
            state = self.mark_scene(state, scene, removed)
        if self.policy.route_first:
            state, scene = self.route(state, scene, kinds, rand)
            state, scene = self.gate(state, scene, rand)
        else:
            state, scene = self.gate(state, scene, rand)
            if set_pools:
                state = self.mark_scene(state, scene, removed)
            state, scene = self.route(state, scene, kinds, rand)
        if self.policy.router.buffers:
            state, scene = self.admit(state, scene, kinds, rand)
        rows = jnp.arange(scene.gpu.shape[0])
        gpu = jnp.where(scene.valid, scene.gpu, state.table.shape[1])
        table = state.table.at[rows, gpu].set(
            _pack(scene.prefill, scene.counts), mode="drop", unique_indices=True
        )
        state = self.mark_scene(replace(state, table=table), scene, scene.valid)
        if scene.scores is not None and totals.scores is not None:
            totals = replace(totals, scores=totals.scores + scene.scores)
        return replace(state, levels=scene.levels, solo=scene.solo), totals

    def scored(
        self, scene: Scene, part: AbstractGate | AbstractRouter, weights: Callable, choice: Index, where: Mask
    ) -> Scene:
        """The scene with the score of one more decision of the gate or the router."""
        if not self.shape.scores or not is_random(part):
            return scene
        # Computed apart, so that no product in it is fused with the sums that follow: fused or not, depends
        # on the number of devices.
        own = self.once(score(part, weights, choice, where))
        # Those of the gate come first, as among the parameters of a policy.
        before = 0 if part is self.policy.gate else self.shape.scores - len(own)
        rows = jnp.pad(own, ((before, self.shape.scores - before - len(own)), (0, 0)))
        return replace(scene, scores=rows if scene.scores is None else scene.scores + rows)

    def gate(self, state: ExactState, scene: Scene, rand) -> tuple[ExactState, Scene]:
        """Offer the event's GPU to the gate."""
        levels = scene.levels
        # A gate after an OWN router, or after a request was placed on its own GPU, finds that GPU unmarked.
        idle = self.size(state.start, scene, self.can_start(scene.busy, class_sum(scene.counts)))
        observation = levels.observe(self.numbers, idle, self.available(state, scene, marked=False))
        choice = choose_start(self.policy, observation, rand.uniforms(5))
        offered = scene.valid & self.can_start(scene.busy, class_sum(scene.counts))
        choice = self.once(jnp.where(offered, choice, self.shape.classes))
        scene = self.scored(scene, self.policy.gate, lambda gate: gate.weights(observation), choice, offered)
        start = choice < self.shape.classes
        started = one_hot(choice, self.shape.classes, start)
        place = self.prefill_slot(choice, class_sum(started * levels.prefills))
        items = _append(state.items, start, place, scene.gpu)
        slowed = jnp.where(start, scene.counts, 0)
        levels = replace(
            levels,
            prefills=levels.prefills + started,
            prefill_queue=levels.prefill_queue - started,
            decodes_mixed=levels.decodes_mixed + slowed,
            decodes_solo=levels.decodes_solo - slowed,
        )
        scene = replace(scene, levels=levels, prefill=jnp.where(start, choice + 1, scene.prefill))
        return replace(state, items=items), scene

    def route(self, state: ExactState, scene: Scene, kinds: _Kinds, rand) -> tuple[ExactState, Scene]:
        """Place the request whose prefill completed."""
        policy, pools = self.policy, self.policy.router.pools
        available = self.available(state, scene)
        observation = scene.levels.observe(self.numbers, gpu_set.size(state.start), available)
        choice = self.once(choose_pool(policy, observation, kinds.item_class, rand.uniforms(6)))
        finished = kinds.is_prefill
        scene = self.scored(
            scene,
            policy.router,
            lambda router: router.weights(observation, kinds.item_class),
            choice,
            finished,
        )
        state = replace(state, status=jnp.where(finished & (choice == len(pools)), 1, state.status))
        levels, solo, request = scene.levels, scene.solo, kinds.prefill
        own = finished & (choice == pools.index(Pool.OWN)) if Pool.OWN in pools else jnp.zeros_like(finished)
        if Pool.SOLO in pools:
            entered = jnp.where(choice == pools.index(Pool.SOLO), request, 0)
            levels, solo = replace(levels, decodes_solo=levels.decodes_solo + entered), solo + entered
        for k, buffer in enumerate(policy.router.buffers):
            waits = jnp.where(choice == pools.index(buffer), request, 0)
            levels = replace(levels, decode_queue=levels.decode_queue.at[k].add(waits))
        scene = replace(scene, levels=levels, solo=solo)
        if gpu_pools(policy):
            state, scene, own_too = self.place_elsewhere(state, scene, request, choice, rand)
            own = own | (finished & own_too)
        return self.place(state, scene, request, own)

    def place(
        self, state: ExactState, scene: Scene, request: PerClass, where: Mask
    ) -> tuple[ExactState, Scene]:
        """Start a decode of one class (indicator `request`) on the event's GPU."""
        added = jnp.where(where, request, 0)
        levels = scene.levels
        request_class = class_sum(added * jnp.arange(self.shape.classes)[:, None])
        on_gpus = levels.decodes_mixed + levels.decodes_solo - scene.solo
        place = self.decode_slot(request_class, class_sum(added * on_gpus))
        items = _append(state.items, where, place, scene.gpu)
        levels = replace(
            levels,
            decodes_mixed=levels.decodes_mixed + jnp.where(scene.busy, added, 0),
            decodes_solo=levels.decodes_solo + jnp.where(scene.busy, 0, added),
        )
        return replace(state, items=items), replace(scene, levels=levels, counts=scene.counts + added)

    def place_elsewhere(
        self, state: ExactState, scene: Scene, request: PerClass, choice: Index, rand
    ) -> tuple[ExactState, Scene, Mask]:
        """Start the decode on a random GPU of the chosen pool; says where that is the event's own GPU."""
        pools = self.policy.router.pools
        words, chosen = state.sets[0], jnp.zeros(choice.shape, bool)
        for pool, members in zip(gpu_pools(self.policy), state.sets, strict=True):
            here = choice == pools.index(pool)
            words, chosen = jnp.where(here, members, words), chosen | here
        words, chosen = self.once((words, chosen))
        gpu = self.once(gpu_set.member(words, self.once(to_index(rand.words(7), gpu_set.size(words)))))
        own = chosen & (gpu == scene.gpu)
        there = chosen & ~own & (class_sum(request) > 0)
        rows = jnp.arange(gpu.shape[0])
        gpu, there, own = self.once((jnp.where(there, gpu, 0), there, own))
        prefill, counts = _unpack(state.table[rows, gpu], self.shape.classes)
        target = Scene(scene.levels, scene.solo, gpu, there, prefill, counts)
        state, target = self.place(state, target, request, there)
        slot = jnp.where(there, gpu, state.table.shape[1])
        table = state.table.at[rows, slot].set(
            _pack(prefill, target.counts), mode="drop", unique_indices=True
        )
        state = self.mark_scene(replace(state, table=table), target, there)
        return state, replace(scene, levels=target.levels), own

    def admit(self, state: ExactState, scene: Scene, kinds: _Kinds, rand) -> tuple[ExactState, Scene]:
        """Give a freed decode slot to a waiting request: on the event's GPU, or in the solo group."""
        observation = scene.levels.observe(
            self.numbers, gpu_set.size(state.start), self.available(state, scene)
        )
        observation = self.once(observation)
        freed = (kinds.is_prefill | kinds.is_decode) & self.has_room(scene.busy, class_sum(scene.counts))
        taken = self.once(self.admitted(observation, Pool.MIXED, freed, rand.uniforms(8)))
        scene = self.scored_admission(scene, observation, Pool.MIXED, taken)
        if self.shape.partitioned:
            solo_end = class_sum(kinds.solo) > 0
            to_solo = self.once(self.admitted(observation, Pool.SOLO, solo_end, rand.uniforms(8)))
            scene = self.scored_admission(scene, observation, Pool.SOLO, to_solo)
            entered = jnp.sum(to_solo, axis=0)
            levels = scene.levels
            levels = replace(
                levels,
                decode_queue=levels.decode_queue - to_solo,
                decodes_solo=levels.decodes_solo + entered,
            )
            scene = replace(scene, levels=levels, solo=scene.solo + entered)
        levels = replace(scene.levels, decode_queue=scene.levels.decode_queue - taken)
        request = jnp.sum(taken, axis=0)
        return self.place(state, replace(scene, levels=levels), request, class_sum(request) > 0)

    def admitted(
        self, observation, group: Pool, where: Mask, uniform: Array
    ) -> Int[Array, "buffers classes replications"]:
        """Indicator of the waiting request that a freed slot of a group takes, by buffer and class."""
        weights = self.policy.router.admission(observation, group)
        n_buffers, n_classes = weights.shape[:2]
        index, total = draw(weights.reshape(n_buffers * n_classes, -1), uniform)
        taken = one_hot(index, n_buffers * n_classes, where & (total > 0))
        return taken.reshape(n_buffers, n_classes, -1)

    def scored_admission(
        self, scene: Scene, observation, group: Pool, taken: Int[Array, "buffers classes replications"]
    ) -> Scene:
        """The scene with the score of the draw among those that wait."""
        rows = taken.reshape(-1, taken.shape[-1])

        def weights(router: AbstractRouter) -> Array:
            return router.admission(observation, group).reshape(rows.shape)

        choice = class_sum(rows * jnp.arange(len(rows))[:, None])
        return self.scored(scene, self.policy.router, weights, choice, class_sum(rows) > 0)


class _Kinds(eqx.Module):
    """Which internal event happened, as indicators by class."""

    abandoned_decode: Int[Array, "buffers classes replications"]
    abandoned_prefill: PerClass
    prefill: PerClass
    decode: PerClass
    solo: PerClass
    item_class: Index
    is_prefill: Mask
    is_decode: Mask


def _take(items: Array, rows: Index, place: Index) -> Index:
    return items.at[rows, place].get(mode="promise_in_bounds").astype(jnp.int32)


def _put(items: Array, rows: Index, place: Index, value: Index) -> Array:
    return items.at[rows, place].set(value.astype(items.dtype), mode="drop", unique_indices=True)


def _append(items: Array, where: Mask, place: Index, gpu: Index) -> Array:
    return _put(items, jnp.arange(gpu.shape[0]), jnp.where(where, place, items.shape[1]), gpu)


def _unpack(words: Int[Array, "replications words"], classes: int) -> tuple[Index, PerClass]:
    """The class of the prefill (from 1; 0: none) and the decodes by class of a packed row."""
    mask = (1 << FIELD_BITS) - 1
    fields = [(words[:, f // FIELDS] >> (FIELD_BITS * (f % FIELDS))) & mask for f in range(classes + 1)]
    return fields[0], jnp.stack(fields[1:])


def _pack(prefill: Index, counts: PerClass) -> Int[Array, "replications words"]:
    fields = [prefill, *counts]
    words = []
    for first in range(0, len(fields), FIELDS):
        word = fields[first]
        for k, field in enumerate(fields[first + 1 : first + FIELDS], start=1):
            word = word | (field << (FIELD_BITS * k))
        words.append(word)
    return jnp.stack(words, axis=1)


def initial_state(chain: Chain) -> ExactState:
    """An empty cluster."""
    shape, replications = chain.shape, chain.keys.shape[1]
    zero = jnp.zeros((shape.classes, replications), jnp.int32)
    buffers = len(chain.policy.router.buffers)
    words = -(-shape.gpus // gpu_set.WORD)
    everyone = gpu_set.first(jnp.broadcast_to(chain.numbers.mixed_gpus, (replications,)), words)
    nobody = jnp.zeros_like(everyone)
    none = jnp.zeros(replications, jnp.int32)
    empty = chain.in_pool
    false = jnp.zeros(replications, bool)
    state = ExactState(
        levels=Levels(zero, zero, zero, zero, jnp.zeros((buffers, shape.classes, replications), jnp.int32)),
        solo=zero,
        items=jnp.zeros((replications, shape.items), jnp.int16 if shape.gpus < 2**15 else jnp.int32),
        table=jnp.zeros((replications, shape.gpus, -(-(shape.classes + 1) // FIELDS)), jnp.int32),
        start=everyone,
        sets=tuple(jnp.where(empty(pool, false, none), everyone, nobody) for pool in gpu_pools(chain.policy)),
        next_arrival=jnp.zeros(replications, jnp.float32),
        next_class=none,
        arrival_index=none - 1,
        status=none,
    )
    return chain.next_arrival(state, jnp.ones(replications, bool))


def replication_axes(state: ExactState) -> ExactState:
    """The axis of each array along which replications lie."""
    axes = jax.tree.map(lambda leaf: leaf.ndim - 1, state)
    return eqx.tree_at(lambda kept: (kept.items, kept.table), axes, (0, 0))


def levels_of(state: ExactState) -> Levels:
    """The numbers in each stage."""
    return state.levels


def advance(
    chain: Chain, state: ExactState, window: Int[Array, ""], length: Float[Array, ""], steps: Int[Array, ""]
) -> tuple[ExactState, Totals]:
    """Run every replication through one window of `length` seconds (`steps` is for the other stepper)."""
    del steps
    none = Totals.zeros(chain.shape.classes, chain.keys.shape[1], chain.shape.scores)
    return jump_through(lambda carry: chain.step(carry, window, length), state, none, length)
