"""The states of a tiny cluster under a policy, and every course that a policy could let an event take."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int

from .._policy.base import Policy, Pool
from .counts import Counts
from .gpu import NONE, GpuContents


@dataclasses.dataclass(frozen=True, eq=False)
class Scenes:
    """Courses of events while decisions are made, one a row.

    - `source`: the state before the event; `weight`: rate of the event times the chance of which GPU, 1/s.
    - `gpus`: content of each GPU of the mixed group (of all, without a partition); where `own` holds, the
      first is the event's own.
    - `solo`: decodes of the solo group, `queue`: requests that wait for prefill, `buffers`: requests in each
      decode buffer; all by row of their `Counts`.
    - `finished`: class of the request that has completed its prefill and has no place yet, or `NONE`.
    - `freed`, `freed_solo`: whether the event ended a request on its own GPU, or in the solo group.
    - `gate`, `route`, `admit`: number of the choice that was made each time, or `NONE`.
    """

    source: Int[np.ndarray, " rows"]
    weight: Float64[np.ndarray, " rows"]
    gpus: Int[np.ndarray, "rows gpus"]
    solo: Int[np.ndarray, " rows"]
    queue: Int[np.ndarray, " rows"]
    buffers: Int[np.ndarray, "rows buffers"]
    own: Bool[np.ndarray, " rows"]
    finished: Int[np.ndarray, " rows"]
    freed: Bool[np.ndarray, " rows"]
    freed_solo: Bool[np.ndarray, " rows"]
    gate: Int[np.ndarray, " rows"]
    route: Int[np.ndarray, " rows"]
    admit: Int[np.ndarray, " rows"]

    @classmethod
    def resting(cls, gpus: Any, solo: Any, queue: Any, buffers: Any) -> Scenes:
        """States in which nothing has happened yet."""
        rows = len(solo)
        no, none = np.zeros(rows, bool), np.full(rows, NONE)
        weight = np.ones(rows)
        return cls(np.arange(rows), weight, gpus, solo, queue, buffers, no, none, no, no, none, none, none)

    def __len__(self) -> int:
        return len(self.source)

    def take(self, where: np.ndarray, **changes: np.ndarray) -> Scenes:
        """Some of the rows (by number or mask), with other columns where given."""
        names = [field.name for field in dataclasses.fields(self) if field.name not in changes]
        return Scenes(**{name: getattr(self, name)[where] for name in names}, **changes)

    def having(self, **changes: np.ndarray) -> Scenes:
        """All rows, with other columns where given."""
        return dataclasses.replace(self, **changes)

    def with_own(self, where: np.ndarray, content: np.ndarray, **changes: np.ndarray) -> Scenes:
        """Some of the rows, with another content of the event's own GPU."""
        return self.take(where, gpus=put(self.gpus[where], 0, content), **changes)


def stack(parts: list[Scenes]) -> Scenes:
    """All rows of several."""
    names = [field.name for field in dataclasses.fields(Scenes)]
    return Scenes(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


def put(table: np.ndarray, column: int, values: np.ndarray) -> np.ndarray:
    """A copy of a table with another column."""
    changed = table.copy()
    changed[:, column] = values
    return changed


@dataclasses.dataclass(frozen=True)
class Layout:
    """The structure of a policy on a cluster: all that decides which states and decisions there are.

    `mixed_gpus` M; `pools`: those of the router.
    """

    n_gpus: int
    batch_size: int
    classes: int
    queue_limit: int
    mixed_gpus: int
    partitioned: bool
    route_first: bool
    pools: tuple[Pool, ...]

    @classmethod
    def of(cls, policy: Policy, n_gpus: int, batch_size: int, classes: int, queue_limit: int) -> Layout:
        """The structure of one policy."""
        return cls(
            *(n_gpus, batch_size, classes, queue_limit, policy.mixed_gpus(n_gpus)),
            *(policy.partition is not None, policy.route_first, policy.router.pools),
        )

    @property
    def buffers(self) -> tuple[Pool, ...]:
        """The router's buffers."""
        return tuple(pool for pool in self.pools if pool.is_buffer)

    @property
    def solo_capacity(self) -> int:
        """Decode slots of the solo group, B (n - M)."""
        return self.batch_size * (self.n_gpus - self.mixed_gpus)


class Contents:
    """What GPUs, the solo group and queues of a layout can hold."""

    def __init__(self, layout: Layout):
        self.gpu = GpuContents.of(layout.batch_size, layout.classes, layout.partitioned)
        self.solo = Counts.upto(layout.solo_capacity, layout.classes)
        self.queue = Counts.upto(layout.queue_limit, layout.classes)
        self.can_start = self.gpu.start[:, 0] != NONE
        self.has_room = self.gpu.place[:, 0] != NONE

    def in_pool(self, pool: Pool) -> Bool[np.ndarray, " contents"]:
        """The contents with which a GPU belongs to a pool and has room."""
        if pool is Pool.WITH_PREFILL:
            return self.has_room & self.gpu.busy
        return self.has_room & ~self.gpu.busy if pool is Pool.WITHOUT_PREFILL else self.has_room
