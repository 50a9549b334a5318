"""The leap stepper: time steps, all GPUs at once, at most one event on each GPU in a step.

A step has three parts: what happens to every GPU (one random word each), how many requests arrive, leave
and end in the solo group (one uniform number each), and the decisions. Decisions are taken one after
another on the counts, as the exact chain takes them, in loops as long as the replication with most of them;
GPUs are chosen afterwards for all of them at once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt32

from .._policy.base import Observation, Pool
from . import counts, gpu_words
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
from .gpu_words import Mask, PerReplication, Words
from .random import Purpose, Stream, stream, to_uniform
from .shape import Shape
from .time_loops import step_through
from .turns import Decision, join, split, take_turns

FIRST_START, OFFERS = 64, 63
"""Words of `Purpose.PLACE` that choose the GPUs on which prefills start, by kind, and those that arrivals
offer to the gate; the words from 0 on choose the GPUs of each set that takes finished requests."""


class LeapState(eqx.Module):
    """Everything a step needs.

    - `prefill`: for each GPU the class of its prefill, from 1; 0: none; -1: no such GPU (padding).
    - `decodes`: for each class, the decodes on each GPU.
    - `levels`: numbers in each stage; `decodes_solo` includes those of the solo group.
    - `solo`: decodes of the solo group by class.
    - `status`: 0, or 1 once the router had no place for a request.
    """

    prefill: Int[Array, "replications gpus"]
    decodes: tuple[Int[Array, "replications gpus"], ...]
    levels: Levels
    solo: PerClass
    status: PerReplication


class Happened(eqx.Module):
    """What happened in a step before any decision, by class and replication."""

    finished: PerClass
    ended: PerClass
    arrived: PerClass
    abandoned_prefill: PerClass
    abandoned_decode: Int[Array, "buffers classes replications"]
    ended_solo: PerClass


class Starting(eqx.Module):
    """The gate's decisions so far in a step.

    - `prefills`: as after all completions of the step; `prefill_queue`: with the arrivals known so far.
    - `coming`: arrivals that no decision knows yet.
    - `left`: GPUs on which something happened and at which a decision is still to be taken.
    - `idle`: GPUs that could start a prefill for an arrival.
    - `here`, `elsewhere`: completed prefills that no decision knows yet, on GPUs that can and that cannot
      start another (no rows of the second kind under a partition).
    - `started`: prefills started, by kind of GPU (`Chain.start_kinds`) and class.
    """

    prefills: PerClass
    prefill_queue: PerClass
    coming: PerClass
    left: PerReplication
    idle: PerReplication
    here: PerClass
    elsewhere: Int[Array, "elsewhere_classes replications"]
    started: Int[Array, "kinds classes replications"]


class Placing(eqx.Module):
    """Decisions so far on finished and waiting requests, in numbers.

    - `left`: finished requests still to be placed.
    - `decodes_solo`, `decode_queue`: as in `Levels`; `solo`: decodes of the solo group (no rows without a
      partition).
    - `own`, `own_room`: requests that stay on their own GPU, and how many more can (no rows if the router
      never keeps one there).
    - `atoms`, `room`: requests sent to each of `Chain.atoms`, and GPUs there that can take one more.
    - `status`: 1 once the router had no place for a request.
    """

    left: PerClass
    decodes_solo: PerClass
    decode_queue: Int[Array, "buffers classes replications"]
    solo: Int[Array, "solo_classes replications"]
    own: Int[Array, "own_classes replications"]
    own_room: Int[Array, "own_classes replications"]
    atoms: Int[Array, "atoms classes replications"]
    room: Int[Array, "atoms replications"]
    status: PerReplication


class Chain(AbstractChain):
    """The time-stepped chain of one policy on one instance."""

    @property
    def stays(self) -> bool:
        """Whether every request decodes where it prefilled: then nothing has to be routed."""
        return self.policy.router.pools == (Pool.OWN,) and not self.shape.partitioned

    @property
    def atoms(self) -> tuple[Pool, ...]:
        """Disjoint sets of GPUs that the router's pools are made of."""
        pools = gpu_pools(self.policy)
        if Pool.WITH_PREFILL in pools or Pool.WITHOUT_PREFILL in pools:
            return Pool.WITH_PREFILL, Pool.WITHOUT_PREFILL
        needs_any = bool(pools) or bool(self.policy.router.buffers)
        return (Pool.MIXED,) if needs_any else ()

    # One step.

    def step(self, state: LeapState, totals: Totals, window: Array, index: Array, dt: Array) -> tuple:
        """One step of `dt` seconds."""

        def rand(purpose: Purpose) -> Stream:
            return stream(self.keys, purpose, window, index, self.generator)

        totals = integrate(totals, state.levels, dt)
        code = self.gpu_events(state, rand(Purpose.GPU), dt)
        happened = self.count_events(state, code, rand, dt)
        state = self.apply(state, code, happened)
        totals = _count(totals, happened)
        finished_here = code > self.shape.classes
        if self.policy.route_first:
            state = self.route(state, happened, code, finished_here, rand)
            state = self.gate(state, happened, code, rand)
        else:
            state = self.gate(state, happened, code, rand)
            state = self.route(state, happened, code, finished_here, rand)
        return self.recount(state), totals

    def gpu_events(self, state: LeapState, rand: Stream, dt: Array) -> Int[Array, "replications gpus"]:
        """The event of each GPU: 0 none; 1 + c, a decode of class c ends; 1 + I + c, the prefill of class c
        ends.

        Chances are rate times `dt`, which keeps the mean of every service time exactly.
        """
        numbers, classes = self.numbers, self.shape.classes
        uniform = to_uniform(rand.expand(-1).words(jnp.arange(self.shape.gpus)[None, :]))
        busy = state.prefill > 0
        upto = jnp.zeros_like(uniform)
        code = jnp.zeros(uniform.shape, jnp.int32)
        found = jnp.zeros(uniform.shape, bool)
        for c in range(classes):
            upto = upto + jnp.where(state.prefill == c + 1, dt * numbers.mu_prefill[c][:, None], 0.0)
        here = uniform < upto
        code = jnp.where(here, classes + state.prefill.astype(jnp.int32), code)
        found = found | here
        for c in range(classes):
            rate = jnp.where(busy, dt * numbers.mu_mixed[c][:, None], dt * numbers.mu_solo[c][:, None])
            upto = upto + rate * state.decodes[c].astype(jnp.float32)
            here = ~found & (uniform < upto)
            code = jnp.where(here, 1 + c, code)
            found = found | here
        return self.once(code.astype(state.prefill.dtype))

    def count_events(self, state: LeapState, code: Array, rand: Callable, dt: Array) -> Happened:
        """How many of each event happen, from the GPUs' events and one uniform number for each other
        count."""
        numbers, classes, levels = self.numbers, self.shape.classes, state.levels
        ended, finished = jnp.split(gpu_words.tally(code, 2 * classes), 2)
        arrivals = rand(Purpose.ARRIVAL).uniforms(jnp.arange(classes)[:, None])
        mean = jnp.broadcast_to(numbers.arrival_rate * dt, arrivals.shape)
        buffers = levels.decode_queue.shape[0]
        waiting = [levels.prefill_queue, *levels.decode_queue]
        leaving = [jnp.broadcast_to(numbers.patience_rate * dt, levels.prefill_queue.shape)] * (1 + buffers)
        if self.shape.partitioned:
            waiting.append(state.solo)
            leaving.append(jnp.broadcast_to(numbers.mu_solo * dt, state.solo.shape))
        trials = jnp.concatenate(waiting)
        uniforms = rand(Purpose.ABANDONMENT).uniforms(jnp.arange(trials.shape[0])[:, None])
        arrived = self.once(counts.poisson(mean, arrivals))
        left = self.once(counts.binomial(trials, jnp.concatenate(leaving), uniforms))
        rows = left.reshape(-1, classes, left.shape[1])
        happened = Happened(
            finished=finished,
            ended=ended,
            arrived=arrived,
            abandoned_prefill=rows[0],
            abandoned_decode=rows[1 : 1 + buffers],
            ended_solo=rows[1 + buffers] if self.shape.partitioned else jnp.zeros_like(arrived),
        )
        return self.once(happened)

    def apply(self, state: LeapState, code: Array, happened: Happened) -> LeapState:
        """The effect of all events before the policy acts."""
        classes, levels = self.shape.classes, state.levels
        total = levels.decodes_mixed + levels.decodes_solo - happened.ended - happened.ended_solo
        # Until the end of the step the split between mixed and solo decodes is that of its start.
        mixed = jnp.minimum(levels.decodes_mixed, total)
        levels = Levels(
            prefills=levels.prefills - happened.finished,
            decodes_mixed=mixed,
            decodes_solo=total - mixed,
            prefill_queue=levels.prefill_queue + happened.arrived - happened.abandoned_prefill,
            decode_queue=levels.decode_queue - happened.abandoned_decode,
        )
        return replace(
            state,
            prefill=jnp.where(code > classes, jnp.zeros_like(state.prefill), state.prefill),
            decodes=tuple(
                decodes - (code == 1 + c).astype(decodes.dtype) for c, decodes in enumerate(state.decodes)
            ),
            levels=self.once(levels),
            solo=state.solo - happened.ended_solo,
        )

    def recount(self, state: LeapState) -> LeapState:
        """Bring the split between mixed and solo decodes up to date with the prefills that started."""
        levels = state.levels
        busy = state.prefill > 0
        mixed = self.once(gpu_words.sums([jnp.where(busy, decodes, 0) for decodes in state.decodes]))
        total = levels.decodes_mixed + levels.decodes_solo
        levels = replace(levels, decodes_mixed=mixed, decodes_solo=total - mixed)
        return replace(state, levels=levels)

    # What a GPU can take.

    def has_fewer(self, state: LeapState, reserved: Array | int) -> Mask:
        """The GPUs with fewer decodes than the batch size less `reserved`."""
        load = class_sum(state.decodes)
        return load < self.numbers.batch_size[:, None].astype(load.dtype) - reserved

    def can_start(self, state: LeapState) -> Mask:
        """The GPUs that could start a prefill."""
        idle = state.prefill == 0
        return idle if self.shape.partitioned else idle & self.has_fewer(state, 0)

    def in_atom(self, atom: Pool, state: LeapState, excluded: Mask) -> Mask:
        """The GPUs of an atom that have a free decode slot."""
        reserved = 1 if self.shape.partitioned else (state.prefill > 0).astype(state.decodes[0].dtype)
        room = (state.prefill >= 0) & self.has_fewer(state, reserved) & ~excluded
        if atom is Pool.WITH_PREFILL:
            return room & (state.prefill > 0)
        return room & (state.prefill == 0) if atom is Pool.WITHOUT_PREFILL else room

    # Decisions.

    def gate(self, state: LeapState, happened: Happened, code: Array, rand: Callable) -> LeapState:
        """Start prefills, one decision after another.

        Decisions fall at the GPUs on which something happened, and at a random idle GPU for each arrival.
        Events of a step happen in random order, and a decision must not know what comes after it: each turn
        is a prefill that completes on a GPU which cannot start another, or a GPU on which something
        happened (its own prefill may have completed), or an arrival.
        """
        words, places = rand(Purpose.GATE), rand(Purpose.PLACE)
        can_start = self.can_start(state)
        able, touched = self.once((gpu_words.bits(can_start), gpu_words.bits(can_start & (code > 0))))
        untouched = able & ~touched
        events, idle, before = self.once((gpu_words.size(touched), gpu_words.size(untouched), state.levels))
        arrivals = jnp.minimum(class_sum(happened.arrived), idle)
        here = self.once(self.finished_where(can_start, happened, code))
        start = Starting(
            prefills=before.prefills,
            prefill_queue=before.prefill_queue - happened.arrived,
            coming=happened.arrived,
            left=events,
            idle=idle,
            here=here,
            elsewhere=here[:0] if self.shape.partitioned else happened.finished - here,
            started=jnp.zeros((self.start_kinds, *here.shape), jnp.int32),
        )
        available = self.room_by_pool(state)
        start, keeps_room = self.once((start, _waiting(before) == 0))
        end = take_turns(
            lambda turn, now: self.propose_start(words, turn, now, before, available),
            lambda now, decision: self.start(now, decision, keeps_room),
            start,
        )
        offers = gpu_words.members(self.once, untouched, idle, arrivals[None], places.words(OFFERS))[0]
        prefill = self.run_on(state.prefill, self.once(touched | offers), code, end.started, places)
        levels = replace(before, prefills=end.prefills, prefill_queue=end.prefill_queue + end.coming)
        return replace(state, prefill=prefill, levels=levels)

    def run_on(
        self,
        prefill: Int[Array, "replications gpus"],
        free: Words,
        code: Int[Array, "replications gpus"],
        started: Int[Array, "kinds classes replications"],
        places: Stream,
    ) -> Int[Array, "replications gpus"]:
        """Start prefills on GPUs of `free`: those of a kind on the GPUs where that kind was decided."""
        classes = self.shape.classes
        chosen = [jnp.zeros_like(free)] * classes
        for kind, amounts in enumerate(started):
            last = kind + 1 == self.start_kinds
            among = free if last else free & gpu_words.bits(code == 1 + classes + kind)
            size, word = gpu_words.size(among), places.words(FIRST_START + kind)
            taken = self.once(gpu_words.members(self.once, among, size, amounts, word))
            chosen = [old | new for old, new in zip(chosen, taken, strict=True)]
            for members in taken:
                free = free & ~members
        for c, members in enumerate(self.once(chosen)):
            prefill = jnp.where(gpu_words.mask(members), jnp.asarray(c + 1, prefill.dtype), prefill)
        return self.once(prefill)

    @property
    def start_kinds(self) -> int:
        """Kinds of GPUs that are told apart when prefills start: one, or by the class that completed there.

        Where requests decode on their own GPU, the class that follows another on it shapes its decodes.
        """
        return self.shape.classes + 1 if Pool.OWN in self.policy.router.pools else 1

    def finished_where(self, mask: Mask, happened: Happened, code: Array) -> PerClass:
        """Completed prefills on the marked GPUs; under a partition every one of them can start another."""
        if self.shape.partitioned:
            return happened.finished
        classes = self.shape.classes
        return gpu_words.tally(jnp.where(mask & (code > classes), code - classes, 0), classes)

    def propose_start(
        self, words: Stream, turn: Array, now: Starting, before: Levels, available: list[Array]
    ) -> Decision:
        """One turn of the gate: the event that it is, and the class that then starts."""
        others = jnp.maximum(now.left - class_sum(now.here), 0)
        kinds = [*now.here, others, *now.coming, *now.elsewhere]
        weights = [kind.astype(jnp.float32) for kind in kinds]
        event = self.once(draw(weights, words.uniforms(2 * turn))[0])
        coming = class_sum(now.coming)
        somebody = class_sum(now.prefill_queue) + coming > 0
        undecided = somebody & ((now.left > 0) | ((now.idle > 0) & (coming > 0)))
        now = self.reveal(now, event)
        hidden = now.here if self.shape.partitioned else now.here + now.elsewhere
        seen = replace(before, prefills=now.prefills + hidden, prefill_queue=now.prefill_queue)
        observation = seen.observe(self.numbers, now.idle, available)
        choice = choose_start(self.policy, observation, words.uniforms(2 * turn + 1))
        return join([event, choice], where=undecided)

    def reveal(self, now: Starting, event: PerReplication) -> Starting:
        """Make an event known; the GPU on which something happened can now start a prefill."""
        classes = self.shape.classes
        here, arrived = one_hot(event, classes), one_hot(event - classes - 1, classes)
        on_gpu = (event <= classes).astype(jnp.int32)
        now = replace(
            now,
            here=now.here - here,
            coming=now.coming - arrived,
            prefill_queue=now.prefill_queue + arrived,
            left=now.left - on_gpu,
            idle=now.idle + on_gpu,
        )
        if self.shape.partitioned:
            return now
        return replace(now, elsewhere=now.elsewhere - one_hot(event - 2 * classes - 1, classes))

    def start(self, now: Starting, decision: Decision, keeps_room: Array) -> Starting:
        """The effect of one turn of the gate.

        `keeps_room`: whether a GPU that started nothing stays idle; a waiting decode may take its room.
        """
        classes = self.shape.classes
        event, choice = split(decision, 2)
        now = self.reveal(now, event)
        decides = (event <= 2 * classes) & (now.idle > 0)
        started = one_hot(choice, classes, decides)
        idle = now.idle - class_sum(started)
        if not self.shape.partitioned and self.policy.router.buffers:
            declined = (event <= classes) & (class_sum(started) == 0)
            idle = idle - (declined & ~keeps_room).astype(jnp.int32)
        kind = one_hot(jnp.minimum(event, self.start_kinds - 1), self.start_kinds)
        return replace(
            now,
            prefills=now.prefills + started,
            prefill_queue=now.prefill_queue - started,
            idle=idle,
            started=now.started + kind[:, None] * started[None],
        )

    def room_by_pool(self, state: LeapState) -> list[Array]:
        """Room in each pool of the router before the gate decides; on a request's own GPU: one slot."""
        nowhere = jnp.zeros(state.prefill.shape, bool)
        rooms = {
            atom: gpu_words.size(gpu_words.bits(self.in_atom(atom, state, nowhere))) for atom in self.atoms
        }
        if self.shape.partitioned:
            rooms[Pool.SOLO] = self.numbers.solo_capacity - class_sum(state.solo)
        one = jnp.ones_like(state.status)
        return [rooms.get(pool, one) for pool in self.policy.router.pools]

    def route(
        self, state: LeapState, happened: Happened, code: Array, finished_here: Mask, rand: Callable
    ) -> LeapState:
        """Give freed slots to waiting requests, then place the finished ones, one decision after another."""
        classes = self.shape.classes
        finished_class = [(code == 1 + classes + c) for c in range(classes)]
        if self.stays:
            levels = state.levels
            levels = replace(levels, decodes_solo=levels.decodes_solo + happened.finished)
            return replace(state, decodes=_added(state.decodes, finished_class), levels=levels)
        has_own = Pool.OWN in self.policy.router.pools
        nowhere = jnp.zeros_like(finished_here)
        excluded = finished_here if has_own else nowhere
        inside = [self.once(gpu_words.bits(self.in_atom(atom, state, excluded))) for atom in self.atoms]
        room = self.in_atom(Pool.MIXED, state, nowhere)
        own_inside = [self.once(gpu_words.bits(mask & room)) for mask in finished_class] if has_own else []
        replications = self.keys.shape[1]
        none = jnp.zeros((classes, replications), jnp.int32)
        start = Placing(
            left=happened.finished,
            decodes_solo=state.levels.decodes_solo,
            decode_queue=state.levels.decode_queue,
            solo=state.solo if self.shape.partitioned else none[:0],
            own=none if has_own else none[:0],
            own_room=jnp.stack([gpu_words.size(words) for words in own_inside]) if has_own else none[:0],
            atoms=jnp.zeros((len(self.atoms), classes, replications), jnp.int32),
            room=jnp.stack([gpu_words.size(words) for words in inside]) if inside else none[:0],
            status=state.status,
        )
        start = self.once(start)
        place = functools.partial(self.place_finished, levels=state.levels)
        if self.policy.router.buffers:
            placed, words = start, rand(Purpose.ROUTE)
            if not self.shape.partitioned:
                # The slot that a finished prefill leaves free counts as free for its request, ahead of the
                # buffer.
                ahead = self.once(self.finished_where(room, happened, code))
                placed = place(replace(placed, left=ahead), words)
                placed, words = replace(placed, left=start.left - ahead), rand(Purpose.SOLO)
            placed = self.admit_waiting(placed, state.levels, rand(Purpose.ADMISSION))
            placed = place(placed, words)
        else:
            placed = place(start, rand(Purpose.ROUTE))
        decodes = state.decodes
        places = rand(Purpose.PLACE)
        sets = list(zip(inside, placed.atoms, start.room, strict=True))
        if has_own:
            sets += list(zip(own_inside, _diagonal(placed.own), start.own_room, strict=True))
        for k, (words, amounts, size) in enumerate(sets):
            chosen = self.choose(words, size, amounts, places.words(1 + k))
            decodes = self.once(_added(decodes, chosen))
        levels = replace(state.levels, decodes_solo=placed.decodes_solo, decode_queue=placed.decode_queue)
        solo = placed.solo if self.shape.partitioned else state.solo
        return replace(state, decodes=decodes, levels=levels, solo=solo, status=placed.status)

    def solo_room(self, placed: Placing) -> PerReplication:
        """Free decode slots of the solo group."""
        return self.numbers.solo_capacity - class_sum(placed.solo)

    def observe(self, placed: Placing, levels: Levels, own: PerReplication | None) -> Observation:
        """What the router sees; `own`: room on the request's own GPU."""
        rooms = dict(zip(self.atoms, placed.room, strict=True))
        rows = []
        for pool in self.policy.router.pools:
            if pool is Pool.OWN:
                rows.append(jnp.zeros_like(placed.status) if own is None else own)
            elif pool is Pool.SOLO:
                rows.append(self.solo_room(placed))
            else:
                rows.append(rooms[pool] if pool in rooms else jnp.ones_like(placed.status))
        seen = replace(levels, decodes_solo=placed.decodes_solo, decode_queue=placed.decode_queue)
        return seen.observe(self.numbers, jnp.zeros_like(placed.status), rows)

    def to_atom(self, placed: Placing, request: PerClass, atom: Array) -> Placing:
        """Start a decode on a GPU of an atom (indicators `request` and `atom`)."""
        return replace(
            placed,
            decodes_solo=placed.decodes_solo + request * class_sum(atom),
            atoms=placed.atoms + atom[:, None, :] * request[None],
            room=placed.room - atom,
        )

    def to_solo(self, placed: Placing, request: PerClass, where: Array) -> Placing:
        """Start a decode in the solo group."""
        entered = jnp.where(where, request, 0)
        return replace(placed, decodes_solo=placed.decodes_solo + entered, solo=placed.solo + entered)

    def place_finished(self, placed: Placing, words: Stream, levels: Levels) -> Placing:
        """Place the requests that finished prefill, in random order."""
        classes, pools = self.shape.classes, self.policy.router.pools

        def propose(turn: Array, placed: Placing) -> Decision:
            weights = [left.astype(jnp.float32) for left in placed.left]
            request_class, total = draw(weights, words.uniforms(2 * turn))
            own = None
            if Pool.OWN in pools:
                own = class_sum(one_hot(request_class, classes) * placed.own_room)
            seen = self.observe(placed, levels, own)
            choice = choose_pool(self.policy, seen, request_class, words.uniforms(2 * turn + 1))
            return join([request_class, choice], where=total > 0)

        def apply(placed: Placing, decision: Decision) -> Placing:
            request_class, choice = split(decision, 2)
            request = one_hot(request_class, classes)
            status = jnp.where((choice == len(pools)) & (decision >= 0), 1, placed.status)
            placed = replace(placed, left=placed.left - request, status=status)
            if Pool.OWN in pools:
                own = jnp.where(choice == pools.index(Pool.OWN), request, 0)
                placed = replace(
                    placed,
                    decodes_solo=placed.decodes_solo + own,
                    own=placed.own + own,
                    own_room=placed.own_room - own,
                )
            if Pool.SOLO in pools:
                placed = self.to_solo(placed, request, choice == pools.index(Pool.SOLO))
            waits = [jnp.where(choice == pools.index(b), request, 0) for b in self.policy.router.buffers]
            if waits:
                placed = replace(placed, decode_queue=placed.decode_queue + jnp.stack(waits))
            never = jnp.zeros_like(choice)
            marks = [choice == pools.index(a) if a in pools else never for a in self.atoms]
            if marks:
                placed = self.to_atom(placed, request, jnp.stack(marks).astype(jnp.int32))
            return placed

        return take_turns(propose, apply, placed)

    def admit_waiting(self, placed: Placing, levels: Levels, words: Stream) -> Placing:
        """Waiting requests take free slots, each drawn as the policy says, until slots or requests run
        out."""
        groups = [Pool.MIXED, Pool.SOLO] if self.shape.partitioned else [Pool.MIXED]
        buffers, classes = placed.decode_queue.shape[:2]

        def propose(turn: Array, placed: Placing) -> Decision:
            seen = self.observe(placed, levels, None)
            weights = [self.policy.router.admission(seen, group) for group in groups]
            rows = [[weight[b, c] for b in range(buffers) for c in range(classes)] for weight in weights]
            free = [class_sum(placed.room)]
            if self.shape.partitioned:
                free.append(self.solo_room(placed))
            usable = [
                jnp.where(class_sum(row) > 0, slots, 0).astype(jnp.float32)
                for row, slots in zip(rows, free, strict=True)
            ]
            group, total = draw(usable, words.uniforms(3 * turn))
            chosen = [
                jnp.where(group == 0, first, last) for first, last in zip(rows[0], rows[-1], strict=True)
            ]
            index, _ = draw(chosen, words.uniforms(3 * turn + 1))
            atom = jnp.zeros_like(index)
            if len(self.atoms) > 1:
                atom, _ = draw(
                    [room.astype(jnp.float32) for room in placed.room], words.uniforms(3 * turn + 2)
                )
            waiting = class_sum([class_sum(queue) for queue in placed.decode_queue])
            return join([index, group, atom], where=(total > 0) & (waiting > 0))

        def apply(placed: Placing, decision: Decision) -> Placing:
            index, group, atom = split(decision, 3)
            taken = one_hot(index, buffers * classes).reshape(placed.decode_queue.shape)
            placed = replace(placed, decode_queue=placed.decode_queue - taken)
            request = class_sum(taken)
            if self.shape.partitioned:
                placed = self.to_solo(placed, request, group == 1)
            return self.to_atom(placed, request, one_hot(atom, len(self.atoms), group == 0))

        return take_turns(propose, apply, placed)

    def choose(
        self, words: Words, size: PerReplication, amounts: PerClass, word: UInt32[Array, " replications"]
    ) -> list[Mask]:
        """The members of a set of GPUs that take a request of each class, see `gpu_words.members`."""
        chosen = self.once(gpu_words.members(self.once, words, size, amounts, word))
        return [gpu_words.mask(members) for members in chosen]


def _added(decodes: tuple[Array, ...], where: list[Mask]) -> tuple[Array, ...]:
    """One more decode of each class where marked."""
    return tuple(count + mask.astype(count.dtype) for count, mask in zip(decodes, where, strict=True))


def _waiting(levels: Levels) -> PerReplication:
    """Requests that wait for a decode slot."""
    return sum((class_sum(queue) for queue in levels.decode_queue), jnp.zeros_like(levels.prefills[0]))


def _diagonal(amounts: PerClass) -> list[PerClass]:
    """One row of amounts for each class, zero but for that class."""
    rows = jnp.arange(amounts.shape[0])[:, None]
    return [jnp.where(rows == c, amounts, 0) for c in range(amounts.shape[0])]


def _count(totals: Totals, happened: Happened) -> Totals:
    left_decode = jnp.sum(happened.abandoned_decode, axis=0)
    ended = happened.ended + happened.ended_solo
    every = happened.arrived + happened.abandoned_prefill + happened.finished + left_decode + ended
    return replace(
        totals,
        arrivals=totals.arrivals + happened.arrived,
        abandoned_prefill=totals.abandoned_prefill + happened.abandoned_prefill,
        prefills_completed=totals.prefills_completed + happened.finished,
        abandoned_decode=totals.abandoned_decode + left_decode,
        completions=totals.completions + ended,
        events=totals.events + class_sum(every),
    )


def initial_state(chain: Chain) -> LeapState:
    """An empty cluster."""
    shape, replications = chain.shape, chain.keys.shape[1]
    none = jnp.zeros((shape.classes, replications), jnp.int32)
    buffers = len(chain.policy.router.buffers)
    real = jnp.arange(shape.gpus)[None, :] < chain.numbers.mixed_gpus[:, None]
    prefill = jnp.broadcast_to(jnp.where(real, 0, -1), (replications, shape.gpus))
    kind = _count_type(shape)
    return LeapState(
        prefill=prefill.astype(jnp.int8),
        decodes=(jnp.zeros((replications, shape.gpus), kind),) * shape.classes,
        levels=Levels(none, none, none, none, jnp.zeros((buffers, shape.classes, replications), jnp.int32)),
        solo=none,
        status=none[0],
    )


def _count_type(shape: Shape) -> Any:
    return jnp.int8 if shape.batch < 128 else jnp.int16


def bytes_per_gpu(shape: Shape) -> int:
    """Bytes of state that a GPU needs in one replication."""
    return 1 + shape.classes * (1 if shape.batch < 128 else 2)


def replication_axes(state: LeapState) -> LeapState:
    """The axis of each array along which replications lie."""
    axes = jax.tree.map(lambda leaf: leaf.ndim - 1, state)
    return eqx.tree_at(lambda kept: (kept.prefill, *kept.decodes), axes, (0,) * (1 + len(axes.decodes)))


def levels_of(state: LeapState) -> Levels:
    """The numbers in each stage."""
    return state.levels


def advance(
    chain: Chain, state: LeapState, window: Int[Array, ""], dt: Float[Array, ""], steps: Int[Array, ""]
) -> tuple[LeapState, Totals]:
    """Run every replication through `steps` steps of `dt` seconds."""
    none = Totals.zeros(chain.shape.classes, chain.keys.shape[1])

    def body(index: Array, carry: tuple[LeapState, Totals]) -> tuple:
        state, totals = carry
        return chain.step(state, totals, window, index, dt)

    return step_through(body, state, none, steps)
