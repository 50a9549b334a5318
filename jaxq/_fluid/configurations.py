"""Everything that one GPU can be doing, numbered, and where each event and decision leads."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from .._errors import InputError

MOST = 50_000
"""Configurations above which the configuration level is refused: steady states would take too long.
(Without a partition two classes make 425 with B = 16 and 24,897 with B = 128; four with B = 16, 20,349.)"""


@dataclass(frozen=True, eq=False)
class Configurations:
    """The configurations of a GPU: the class of its running prefill or none, and its decodes by class.

    Under a partition a GPU also belongs to the solo or to the mixed group, for good. Tables lead from a
    configuration and a class to the number of another one, and to `size` where there is none.

    - `prefill`: class of the running prefill, from 1; 0: none.
    - `decodes`: decodes by class.
    - `solo`: whether it is of the solo group.
    - `room`: whether a decode more fits.
    - `able`: whether a prefill can start.
    - `before_start`, `after_start`: before and after a prefill of a class starts.
    - `fewer`, `more`: with a decode of a class less, or more.
    """

    prefill: Int[np.ndarray, " size"]
    decodes: Int[np.ndarray, "size classes"]
    solo: Bool[np.ndarray, " size"]
    room: Bool[np.ndarray, " size"]
    able: Bool[np.ndarray, " size"]
    before_start: Int[np.ndarray, "size classes"]
    after_start: Int[np.ndarray, "size classes"]
    fewer: Int[np.ndarray, "size classes"]
    more: Int[np.ndarray, "size classes"]

    @property
    def size(self) -> int:
        """How many there are."""
        return len(self.prefill)

    @property
    def empty(self) -> tuple[int, int]:
        """The numbers of an empty GPU of the mixed and of the solo group (the same without a partition)."""
        idle = np.flatnonzero((self.prefill == 0) & (self.decodes.sum(axis=1) == 0))
        return int(idle[0]), int(idle[-1])


def count(batch_size: int, classes: int, partitioned: bool) -> int:
    """How many configurations a GPU has."""

    def lists(most: int) -> int:
        """Ways to have at most so many decodes."""
        ways = 1
        for k in range(1, classes + 1):
            ways = ways * (most + k) // k
        return ways

    if partitioned:
        return (1 + classes) * lists(batch_size - 1) + lists(batch_size)
    return lists(batch_size) + classes * lists(batch_size - 1)


@functools.cache
def configurations(batch_size: int, classes: int, partitioned: bool) -> Configurations:
    """All configurations of a GPU with `batch_size` slots.

    A GPU of the mixed group keeps a slot for its prefill: it takes at most B - 1 decodes ([Lin26] section
    4.1).

    **Raises:** `InputError` when there are more than `MOST`.
    """
    found = count(batch_size, classes, partitioned)
    if found > MOST:
        raise InputError(
            f"level: {classes} classes and a batch of {batch_size} make {found:,} configurations of a GPU, "
            f"more than {MOST:,}; use level 'pooled', or fewer classes"
        )
    keys = []
    for solo in (False, True) if partitioned else (False,):
        for prefill in range(1 if solo else classes + 1):
            most = batch_size if solo or not (partitioned or prefill) else batch_size - 1
            keys += [(solo, prefill, decodes) for decodes in _lists(most, classes)]
    number = {key: k for k, key in enumerate(keys)}
    size = len(keys)

    def table(moved: Callable[..., tuple | None]) -> Int[np.ndarray, "size classes"]:
        rows = [[number.get(moved(c, *key), size) for c in range(classes)] for key in keys]
        return np.array(rows).reshape(size, classes)

    def with_decodes(decodes: tuple[int, ...], c: int, change: int) -> tuple[int, ...]:
        return (*decodes[:c], decodes[c] + change, *decodes[c + 1 :])

    after_start = table(lambda c, s, p, d: (s, c + 1, d) if p == 0 else None)
    more = table(lambda c, s, p, d: (s, p, with_decodes(d, c, 1)))
    return Configurations(
        prefill=np.array([prefill for _, prefill, _ in keys]),
        decodes=np.array([decodes for _, _, decodes in keys]).reshape(size, classes),
        solo=np.array([solo for solo, _, _ in keys]),
        room=more[:, 0] < size,
        able=after_start[:, 0] < size,
        before_start=table(lambda c, s, p, d: (s, 0, d) if p == c + 1 else None),
        after_start=after_start,
        fewer=table(lambda c, s, p, d: (s, p, with_decodes(d, c, -1))),
        more=more,
    )


def _lists(most: int, classes: int) -> Iterator[tuple[int, ...]]:
    """The numbers of decodes of each class, at most so many together."""
    if classes == 0:
        yield ()
        return
    for first in range(most + 1):
        for others in _lists(most - first, classes - 1):
            yield (first, *others)
