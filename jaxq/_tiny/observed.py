"""What a policy sees in the scenes of a tiny cluster, as numbered rows, and its laws of choice there."""

from __future__ import annotations

from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._engine.base import choose_pool, choose_start, device_policy
from .._policy.base import Observation, Policy, Pool
from .choice_law import choice_law
from .registry import Registry, radix_code
from .scenes import Contents, Layout, Scenes

BATCHES = tuple(2**k for k in range(10, 18))
"""Observations are padded to one of these numbers, so that few shapes have to be compiled."""


Law = Callable[[Int[np.ndarray, "rows columns"]], Float[np.ndarray, "rows choices"]]
"""The chance of each choice, given what is seen."""


class Decision:
    """One kind of decision: every observation with which it was met, and the policy's chances there.

    **Arguments:** `subjects`: how many things it can be about (the class of a request, the group of a slot);
    `choices`: how many outcomes it has.
    """

    def __init__(self, layout: Layout, contents: Contents, subjects: int, choices: int):
        self.layout, self.contents = layout, contents
        self.subjects, self.choices = subjects, choices
        self.columns: list[np.ndarray] = []
        self._registry = Registry()

    def __len__(self) -> int:
        return len(self._registry)

    def number(self, scenes: Scenes, subject: np.ndarray | int = 0) -> Int[np.ndarray, " rows"]:
        """The number of what is seen in each scene."""
        subject = np.broadcast_to(subject, len(scenes))
        columns = [*_columns(self.layout, self.contents, scenes), subject]
        bounds = [*_bounds(self.layout), self.subjects]
        numbers, added = self._registry.numbers(radix_code(columns, bounds))
        if len(added):
            self.columns.append(np.stack(columns, axis=1)[added].astype(np.int32))
        return numbers

    def key(self, numbers: np.ndarray, choice: np.ndarray | int) -> Int[np.ndarray, " rows"]:
        """The place of a choice in the flattened `laws`."""
        return numbers * self.choices + choice

    def laws(self, law: Law, known: Float[np.ndarray, "known choices"]) -> Float[np.ndarray, "rows choices"]:
        """The policy's chances for each observation, of which those of the first are `known`."""
        columns = np.concatenate(self.columns) if self.columns else np.zeros((0, 1), np.int32)
        parts, begin = [known], len(known)
        while begin < len(columns):
            batch = next((size for size in BATCHES if size >= len(columns) - begin), BATCHES[-1])
            rows = columns[begin : begin + batch]
            padding = np.repeat(rows[:1], batch - len(rows), axis=0)
            parts.append(law(np.concatenate([rows, padding]))[: len(rows)])
            begin += batch
        return np.concatenate(parts)


def _columns(layout: Layout, contents: Contents, scenes: Scenes) -> list[np.ndarray]:
    """All numbers that an `Observation` holds, each a column."""
    gpu, gpus = contents.gpu, scenes.gpus
    busy = gpu.busy[gpus]
    solo = contents.solo.vectors[scenes.solo]
    columns = [(gpu.prefill[gpus] == i).sum(axis=1) for i in range(layout.classes)]
    columns += [(gpu.decodes[gpus, i] * busy).sum(axis=1) for i in range(layout.classes)]
    columns += [(gpu.decodes[gpus, i] * ~busy).sum(axis=1) + solo[:, i] for i in range(layout.classes)]
    columns += list(contents.queue.vectors[scenes.queue].T)
    for b in range(len(layout.buffers)):
        columns += list(contents.queue.vectors[scenes.buffers[:, b]].T)
    columns.append(contents.can_start[gpus].sum(axis=1))
    return columns + [room(layout, contents, scenes, pool) for pool in layout.pools]


def _bounds(layout: Layout) -> list[int]:
    """One more than the largest number in each of the columns."""
    slots, n, waiting = layout.n_gpus * layout.batch_size + 1, layout.n_gpus + 1, layout.queue_limit + 1
    queues = layout.classes * (1 + len(layout.buffers))
    stages = [n] * layout.classes + [slots] * (2 * layout.classes)
    pools = [
        slots if pool is Pool.SOLO else 2 if pool is Pool.OWN or pool.is_buffer else n
        for pool in layout.pools
    ]
    return [*stages, *[waiting] * queues, n, *pools]


def room(layout: Layout, contents: Contents, scenes: Scenes, pool: Pool) -> Int[np.ndarray, " rows"]:
    """The room in a pool: GPUs with a free slot, slots of the solo group, 1 for a buffer."""
    if pool.is_buffer:
        return np.ones(len(scenes), np.int64)
    if pool is Pool.SOLO:
        return layout.solo_capacity - contents.solo.totals[scenes.solo]
    if pool is Pool.OWN:
        if not layout.mixed_gpus:
            return np.zeros(len(scenes), np.int64)
        return (scenes.own & contents.has_room[scenes.gpus[:, 0]]).astype(np.int64)
    return contents.in_pool(pool)[scenes.gpus].sum(axis=1)


class _Frame(eqx.Module):
    """What turns columns into an `Observation`; sizes of arrays are static, so that clusters of all sizes
    share a compiled program."""

    n_gpus: Int[Array, "1"]
    mixed_gpus: Int[Array, "1"]
    classes: int = eqx.field(static=True)
    buffers: int = eqx.field(static=True)
    pools: int = eqx.field(static=True)

    @classmethod
    def of(cls, layout: Layout) -> _Frame:
        """The frame of a layout."""
        n, mixed = (jnp.asarray([number], jnp.int32) for number in (layout.n_gpus, layout.mixed_gpus))
        return cls(n, mixed, layout.classes, len(layout.buffers), len(layout.pools))


def _observation(columns: Int[Array, "rows columns"], frame: _Frame) -> Observation:
    """The observation of each row."""
    rows = iter(columns.T)

    def several(count: int) -> Array:
        return jnp.stack([next(rows) for _ in range(count)])

    classes, buffers = frame.classes, frame.buffers
    prefills, mixed, solo, queue = (several(classes) for _ in range(4))
    waiting = jnp.zeros((0, classes, len(columns)), jnp.int32)
    if buffers:
        waiting = jnp.stack([several(classes) for _ in range(buffers)])
    return Observation(
        n_gpus=frame.n_gpus,
        mixed_gpus=frame.mixed_gpus,
        prefills=prefills,
        decodes_mixed=mixed,
        decodes_solo=solo,
        prefill_queue=queue,
        decode_queue=waiting,
        idle_prefill_slots=next(rows),
        available=several(frame.pools),
    )


def laws_of(policy: Policy, layout: Layout) -> dict[str, Law]:
    """The laws of choice of a policy's gate, router and admission, by columns of observations."""
    policy, frame = device_policy(policy), _Frame.of(layout)

    def drawn(choose: Callable[..., Array], choices: int) -> Law:
        def law(columns: np.ndarray) -> np.ndarray:
            seen = jnp.asarray(columns)
            return choice_law(
                lambda uniform: np.asarray(choose(policy, frame, seen, uniform)), choices, len(columns)
            )

        return law

    return {
        "gate": drawn(_start, layout.classes + 1),
        "route": drawn(_pool, len(layout.pools) + 1),
        "admit": lambda columns: np.asarray(_admission(policy, frame, jnp.asarray(columns)), np.float64),
    }


@eqx.filter_jit
def _start(policy: Policy, frame: _Frame, columns: Array, uniform: Array) -> Int[Array, " rows"]:
    """The class that starts; the number of classes for none."""
    return choose_start(policy, _observation(columns, frame), uniform)


@eqx.filter_jit
def _pool(policy: Policy, frame: _Frame, columns: Array, uniform: Array) -> Int[Array, " rows"]:
    """The pool to which a request goes; the number of pools for none."""
    return choose_pool(policy, _observation(columns, frame), columns[:, -1], uniform)


@eqx.filter_jit
def _admission(policy: Policy, frame: _Frame, columns: Array) -> Float[Array, "rows choices"]:
    """The chance that a freed slot takes a request of each buffer and class, and then that it takes none."""
    seen = _observation(columns, frame)
    groups = [policy.router.admission(seen, group).reshape(-1, len(columns)) for group in GROUPS]
    weights = jnp.where(columns[:, -1] == GROUPS.index(Pool.SOLO), groups[1], groups[0])
    total = jnp.sum(weights, axis=0)
    law = jnp.where(total > 0, weights / jnp.where(total > 0, total, 1.0), 0.0)
    return jnp.concatenate([law, jnp.where(total > 0, 0.0, 1.0)[None]]).T


GROUPS = (Pool.MIXED, Pool.SOLO)
"""Whose slot is freed; the subject of an admission is a place in this tuple."""
