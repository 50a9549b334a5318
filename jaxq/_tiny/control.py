"""The decision process of a tiny cluster as arrays: where events and decisions lead, and how fast."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float64, Int32

from .._instance import Instance
from .gpu import NONE
from .space import Size, Space

START, PLACE, DROP = "start", "place", "drop"


@dataclasses.dataclass(frozen=True)
class Move:
    """One decision: start a prefill or place a decode of a class on GPU `gpu`, in the order of `clusters`; or
    drop a request (`gpu` `NONE`), when one more has completed its prefill than the decode buffer holds."""

    kind: str
    gpu: int
    request_class: int


@dataclasses.dataclass(frozen=True, eq=False)
class Control:
    """What a controller can do in every state, and what happens to it.

    Time passes in resting states; an event leads to a state in which decisions can be made, at once and one
    after the other, until it rests. Resting states are numbered by (cluster, prefill queue, decode buffer);
    the others likewise, with a buffer that may hold one request more. One past the last stands for a move
    that is not allowed.

    - `sizes`: number of resting states, and of states for decisions.
    - `rest`: the resting state of each state for decisions, or `sizes[0]` when a request must leave first.
    - `moves`: the decisions; `after`: the state to which each leads that uses a GPU. The last ones drop a
      request of each class: `drop`.
    - `levels`: where the states with k requests on GPUs begin, and where the last end.
    - `target`: the state for decisions to which each event leads from each resting state; `rate`: how often,
      1/s.
    - `lost`: arrivals of each class that find the queue full, 1/s; `reward`: revenue, money/s.
    """

    sizes: tuple[int, int]
    rest: Int32[np.ndarray, " decisions"]
    moves: tuple[Move, ...]
    after: Int32[np.ndarray, "moves decisions"]
    drop: Int32[np.ndarray, "classes decisions"]
    levels: tuple[int, ...]
    target: Int32[np.ndarray, "events states"]
    rate: Float64[np.ndarray, "events states"]
    reward: Float64[np.ndarray, " states"]
    lost: Float64[np.ndarray, "classes states"]


class _Numbering:
    """States as numbers: of (cluster, prefill queue, decode buffer), with `buffers` contents of the last."""

    def __init__(self, space: Space, buffers: int):
        self.waiting, self.buffers = space.waiting.size, buffers
        self.size = len(space.clusters) * self.waiting * buffers
        grid = np.arange(self.size)
        self.cluster, rest = np.divmod(grid, self.waiting * buffers)
        self.queue, self.buffer = np.divmod(rest, buffers)

    def number(self, cluster: np.ndarray, queue: np.ndarray, buffer: np.ndarray) -> np.ndarray:
        """The number of each state; `size` where any of its parts is `NONE`."""
        missing = (cluster == NONE) | (queue == NONE) | (buffer == NONE)
        number = (cluster * self.waiting + queue) * self.buffers + buffer
        return np.where(missing, self.size, number).astype(np.int32)


def control_of(instance: Instance, size: Size, space: Space, scheme: str) -> Control:
    """The decision process of an instance under one scheme of charging."""
    resting, deciding = _Numbering(space, space.kept), _Numbering(space, space.buffered.size)
    over = deciding.buffer >= space.kept
    moves, after, drop = _moves(size, space, deciding, over)
    target, rate = _events(instance, size, space, resting, deciding)
    value = np.asarray(instance.decode_value)
    if scheme == "bundled":
        value = np.asarray(instance.request_value)
    prefills, decodes = _rates(instance, space)
    reward = (decodes @ value).sum(axis=1)
    if scheme == "separate":
        reward = reward + (prefills @ np.asarray(instance.prefill_value)).sum(axis=1)
    arrivals = size.n_gpus * np.asarray(instance.workload.arrival_rate)
    full = space.waiting.plus[resting.queue] == NONE
    return Control(
        sizes=(resting.size, deciding.size),
        rest=resting.number(deciding.cluster, deciding.queue, np.where(over, NONE, deciding.buffer)),
        moves=moves,
        after=after,
        drop=drop,
        levels=tuple(k * deciding.waiting * deciding.buffers for k in space.first),
        target=target,
        rate=rate,
        reward=reward[resting.cluster],
        lost=(arrivals * full).T,
    )


def _moves(
    size: Size, space: Space, deciding: _Numbering, over: np.ndarray
) -> tuple[tuple[Move, ...], np.ndarray, np.ndarray]:
    """Every decision, and the state to which each leads that uses a GPU, and that does not."""
    cluster, queue, buffer = deciding.cluster, deciding.queue, deciding.buffer
    moves, after, drops, drop = [], [], [], []
    for i in range(size.classes):
        shorter_queue, shorter_buffer = space.waiting.minus[queue, i], space.buffered.minus[buffer, i]
        for g in range(size.n_gpus):
            moves += [Move(START, g, i), Move(PLACE, g, i)]
            after.append(deciding.number(space.start[cluster, g, i], shorter_queue, buffer))
            after.append(deciding.number(space.place[cluster, g, i], queue, shorter_buffer))
        drops.append(Move(DROP, NONE, i))
        drop.append(deciding.number(cluster, queue, np.where(over, shorter_buffer, NONE)))
    return (*moves, *drops), np.array(after), np.array(drop)


def _rates(instance: Instance, space: Space) -> tuple[np.ndarray, np.ndarray]:
    """How often prefills, and decodes, of each class end on each GPU of each cluster, 1/s."""
    gpu, classes = space.gpu, np.arange(instance.n_classes)
    prefills = (gpu.prefill[:, None] == classes) * np.asarray(instance.mu_prefill)
    speed = np.where(gpu.busy[:, None], np.asarray(instance.mu_mixed), np.asarray(instance.mu_solo))
    return prefills[space.clusters], (gpu.decodes * speed)[space.clusters]


def _events(
    instance: Instance, size: Size, space: Space, resting: _Numbering, deciding: _Numbering
) -> tuple[np.ndarray, np.ndarray]:
    """The state that each event leads to, and its rate; a request that finds its queue full is lost."""
    cluster, queue, buffer = resting.cluster, resting.queue, resting.buffer
    arrivals = np.broadcast_to(
        size.n_gpus * np.asarray(instance.workload.arrival_rate), (resting.size, size.classes)
    )
    patience = np.asarray(instance.workload.patience_rate)
    prefills, decodes = _rates(instance, space)
    target, rate = [], []

    def add(rates: np.ndarray, *state: np.ndarray) -> None:
        target.append(np.where(rates > 0, deciding.number(*state), 0))
        rate.append(rates)

    for i in range(size.classes):
        longer = space.waiting.plus[queue, i]
        add(arrivals[:, i], cluster, np.where(longer == NONE, queue, longer), buffer)
        add(patience[i] * space.waiting.vectors[queue, i], cluster, space.waiting.minus[queue, i], buffer)
        waits = space.buffered.vectors[buffer, i]
        add(patience[i] * waits, cluster, queue, space.buffered.minus[buffer, i])
        for g in range(size.n_gpus):
            finished = space.buffered.plus[buffer, i]
            add(prefills[cluster, g, i], space.end_prefill[cluster, g], queue, finished)
            add(decodes[cluster, g, i], space.end_decode[cluster, g, i], queue, buffer)
    return np.array(target, np.int32), np.array(rate)
