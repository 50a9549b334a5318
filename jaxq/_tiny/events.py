"""What happens to a tiny cluster before its policy acts: the events of every state and their rates."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .._instance import Instance
from .gpu import NONE
from .scenes import Contents, Layout, Scenes, put, stack


def events(instance: Instance, layout: Layout, contents: Contents, states: Scenes) -> Scenes:
    """Every event of every state, each with its rate; on which GPU an arrival starts is drawn here."""
    parts = [*_arrivals(instance, layout, contents, states), *_departures(instance, contents, states)]
    parts += [*_gpu_completions(instance, layout, contents, states)]
    parts += [*_solo_completions(instance, contents, states)]
    happening = stack(parts)
    return happening.take(happening.weight > 0)


def _arrivals(instance: Instance, layout: Layout, contents: Contents, states: Scenes) -> Iterator[Scenes]:
    """An arrival joins the queue, unless that is full, and may start on a random GPU that can."""
    starters = contents.can_start[states.gpus]
    count = starters.sum(axis=1)
    for i, rate in enumerate(layout.n_gpus * np.asarray(instance.workload.arrival_rate)):
        longer = contents.queue.plus[states.queue, i]
        full = longer == NONE
        yield states.take(full, weight=np.full(full.sum(), rate))
        alone = ~full & (count == 0)
        yield states.take(alone, queue=longer[alone], weight=np.full(alone.sum(), rate))
        for g in range(layout.mixed_gpus):
            here = ~full & starters[:, g]
            yield states.take(
                here,
                queue=longer[here],
                weight=rate / count[here],
                gpus=_first(states.gpus[here], g),
                own=np.ones(here.sum(), bool),
            )


def _departures(instance: Instance, contents: Contents, states: Scenes) -> Iterator[Scenes]:
    """A waiting request leaves; no decision follows."""
    for i, patience in enumerate(np.asarray(instance.workload.patience_rate)):
        shorter = contents.queue.minus[states.queue, i]
        waits = shorter != NONE
        weight = patience * contents.queue.vectors[states.queue[waits], i]
        yield states.take(waits, queue=shorter[waits], weight=weight)
        for b in range(states.buffers.shape[1]):
            shorter = contents.queue.minus[states.buffers[:, b], i]
            waits = shorter != NONE
            weight = patience * contents.queue.vectors[states.buffers[waits, b], i]
            yield states.take(waits, buffers=put(states.buffers[waits], b, shorter[waits]), weight=weight)


def _gpu_completions(
    instance: Instance, layout: Layout, contents: Contents, states: Scenes
) -> Iterator[Scenes]:
    """A prefill or a decode ends on a GPU that can run prefills."""
    gpu = contents.gpu
    for g in range(layout.mixed_gpus):
        gpus = _first(states.gpus, g)
        content = gpus[:, 0]
        running = gpu.prefill[content]
        where = running != NONE
        here = np.ones(where.sum(), bool)
        yield states.take(
            where,
            gpus=put(gpus[where], 0, gpu.end_prefill[content[where]]),
            weight=np.asarray(instance.mu_prefill)[running[where]],
            finished=running[where],
            own=here,
            freed=here,
        )
        for i in range(layout.classes):
            where = gpu.end_decode[content, i] != NONE
            busy = gpu.busy[content[where]]
            speed = np.where(busy, instance.mu_mixed[i], instance.mu_solo[i])
            here = np.ones(where.sum(), bool)
            yield states.take(
                where,
                gpus=put(gpus[where], 0, gpu.end_decode[content[where], i]),
                weight=gpu.decodes[content[where], i] * speed,
                own=here,
                freed=here,
            )


def _solo_completions(instance: Instance, contents: Contents, states: Scenes) -> Iterator[Scenes]:
    """A decode ends in the solo group, whose slots are interchangeable."""
    for i, speed in enumerate(np.asarray(instance.mu_solo)):
        fewer = contents.solo.minus[states.solo, i]
        where = fewer != NONE
        yield states.take(
            where,
            solo=fewer[where],
            weight=speed * contents.solo.vectors[states.solo[where], i],
            freed_solo=np.ones(where.sum(), bool),
        )


def _first(gpus: np.ndarray, g: int) -> np.ndarray:
    """The GPUs with number `g` in the first place."""
    swapped = gpus.copy()
    swapped[:, 0], swapped[:, g] = gpus[:, g], gpus[:, 0]
    return swapped
