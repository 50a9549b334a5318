"""What both steppers of the pooled engine share: the state, its rates, and what the policy sees."""

from __future__ import annotations

from dataclasses import replace

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._engine.base import AbstractChain, Levels, PerClass, Totals, class_sum
from .._engine.gpu_words import PerReplication
from .._policy.base import Observation, Pool


class Counts(eqx.Module):
    """Requests in each stage, by class and replication.

    - `prefills`: running prefills, one a GPU of the mixed group at most.
    - `mixed`, `solo`: decodes on GPUs of the mixed and of the solo group.
    - `prefill_queue`, `decode_queue`: requests that wait, the latter by buffer.
    """

    prefills: PerClass
    mixed: PerClass
    solo: PerClass
    prefill_queue: PerClass
    decode_queue: Int[Array, "buffers classes replications"]

    @classmethod
    def none(cls, classes: int, buffers: int, replications: int) -> Counts:
        """An empty cluster."""
        zero = jnp.zeros((classes, replications), jnp.int32)
        return cls(zero, zero, zero, zero, jnp.zeros((buffers, classes, replications), jnp.int32))


class Event(eqx.Module):
    """How many of each event happen in a step, by class; `ended_busy`, `ended_idle`: decodes of the mixed
    group that end on GPUs with and without a prefill."""

    arrived: Int[Array, "classes replications"]
    abandoned_prefill: Int[Array, "classes replications"]
    abandoned_decode: Int[Array, "buffers classes replications"]
    finished: Int[Array, "classes replications"]
    ended_busy: Int[Array, "classes replications"]
    ended_idle: Int[Array, "classes replications"]
    ended_solo: Int[Array, "classes replications"]


class AbstractPooledChain(AbstractChain):
    """A policy with a partition, on counts by class and group.

    Slots of a group are interchangeable. Decodes of the mixed group take the mixed rate for that share of
    them which is the share of its GPUs that run a prefill: exact while all of them do.
    """

    def busy_share(self, counts: Counts) -> Float[Array, " replications"]:
        """The share of the mixed group's GPUs that run a prefill."""
        mixed_gpus = jnp.maximum(self.numbers.mixed_gpus, 1).astype(jnp.float32)
        # Times the reciprocal, as in `Observation.per_gpu`.
        return jnp.minimum(class_sum(counts.prefills).astype(jnp.float32) * (1.0 / mixed_gpus), 1.0)

    def idle(self, counts: Counts) -> PerReplication:
        """GPUs of the mixed group without a prefill."""
        return self.numbers.mixed_gpus - class_sum(counts.prefills)

    def room(self, counts: Counts, pool: Pool) -> PerReplication:
        """Free decode slots of a group; 1 for a buffer."""
        if pool is Pool.SOLO:
            return self.numbers.solo_capacity - class_sum(counts.solo)
        if pool is Pool.MIXED:
            return (self.numbers.batch_size - 1) * self.numbers.mixed_gpus - class_sum(counts.mixed)
        return jnp.ones(counts.prefills.shape[1:], jnp.int32)

    def observe(self, counts: Counts) -> Observation:
        """What the policy sees."""
        beside = (self.busy_share(counts) * counts.mixed.astype(jnp.float32)).astype(jnp.int32)
        levels = Levels(
            prefills=counts.prefills,
            decodes_mixed=beside,
            decodes_solo=counts.solo + counts.mixed - beside,
            prefill_queue=counts.prefill_queue,
            decode_queue=counts.decode_queue,
        )
        rows = []
        for pool in self.policy.router.pools:
            room = self.room(counts, pool)
            rows.append(jnp.minimum(room, self.numbers.mixed_gpus) if pool is Pool.MIXED else room)
        return levels.observe(self.numbers, self.idle(counts), rows)

    def integrate(self, totals: Totals, counts: Counts, elapsed: Array) -> Totals:
        """The totals after `elapsed` seconds in a state."""
        mixed = counts.mixed.astype(jnp.float32)
        beside = self.busy_share(counts) * mixed
        queued = jnp.zeros_like(mixed)
        for buffer in counts.decode_queue:
            queued = queued + buffer
        return replace(
            totals,
            prefills=totals.prefills + elapsed * counts.prefills,
            decodes_mixed=totals.decodes_mixed + elapsed * beside,
            decodes_solo=totals.decodes_solo + elapsed * (counts.solo + (mixed - beside)),
            prefill_queue=totals.prefill_queue + elapsed * counts.prefill_queue,
            decode_queue=totals.decode_queue + elapsed * queued,
        )


def applied(counts: Counts, event: Event) -> Counts:
    """The effect of an event, or of several, before the policy acts."""
    return Counts(
        prefills=counts.prefills - event.finished,
        mixed=counts.mixed - event.ended_busy - event.ended_idle,
        solo=counts.solo - event.ended_solo,
        prefill_queue=counts.prefill_queue + event.arrived - event.abandoned_prefill,
        decode_queue=counts.decode_queue - event.abandoned_decode,
    )


def counted(totals: Totals, event: Event) -> Totals:
    """The totals after an event, or several."""
    left = jnp.sum(event.abandoned_decode, axis=0)
    ended = event.ended_busy + event.ended_idle + event.ended_solo
    every = event.arrived + event.abandoned_prefill + event.finished + left + ended
    return replace(
        totals,
        arrivals=totals.arrivals + event.arrived,
        abandoned_prefill=totals.abandoned_prefill + event.abandoned_prefill,
        prefills_completed=totals.prefills_completed + event.finished,
        abandoned_decode=totals.abandoned_decode + left,
        completions=totals.completions + ended,
        events=totals.events + class_sum(every),
    )


def placed(counts: Counts, buffers: tuple[Pool, ...], sent: dict[Pool, Array]) -> Counts:
    """Finished requests, by class, join the pools that they were sent to."""
    none = jnp.zeros_like(counts.mixed)
    queue = counts.decode_queue
    for k, buffer in enumerate(buffers):
        queue = queue.at[k].add(sent[buffer])
    return replace(
        counts,
        mixed=counts.mixed + sent.get(Pool.MIXED, none),
        solo=counts.solo + sent.get(Pool.SOLO, none),
        decode_queue=queue,
    )


def admitted(counts: Counts, group: Pool, taken: Int[Array, "buffers classes replications"]) -> Counts:
    """Waiting requests take slots of a group."""
    entered = jnp.sum(taken, axis=0)
    counts = replace(counts, decode_queue=counts.decode_queue - taken)
    if group is Pool.SOLO:
        return replace(counts, solo=counts.solo + entered)
    return replace(counts, mixed=counts.mixed + entered)


def levels_of(counts: Counts) -> Levels:
    """The numbers in each stage; decodes of the mixed group stand with those beside a prefill."""
    return Levels(counts.prefills, counts.mixed, counts.solo, counts.prefill_queue, counts.decode_queue)
