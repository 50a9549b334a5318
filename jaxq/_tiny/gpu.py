"""Everything that one GPU can hold, and what it holds after an event or a decision."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool, Int

from .counts import Counts, number_of_counts

NONE = -1
"""No class, no GPU, no successor."""


@dataclasses.dataclass(frozen=True, eq=False)
class GpuContents:
    """Every content of a GPU, by number; 0 is empty.

    - `prefill`: class of the running prefill, or `NONE`; `decodes`: decodes by class.
    - `start`, `place`: the content after a prefill, or a decode, of each class has started; `NONE` where
      there is no room.
    - `end_prefill`: the content after the running prefill has ended; `end_decode`: after a decode of each
      class has; `NONE` where there is none.
    """

    prefill: Int[np.ndarray, " contents"]
    decodes: Int[np.ndarray, "contents classes"]
    start: Int[np.ndarray, "contents classes"]
    place: Int[np.ndarray, "contents classes"]
    end_prefill: Int[np.ndarray, " contents"]
    end_decode: Int[np.ndarray, "contents classes"]

    @classmethod
    def of(cls, batch_size: int, classes: int, reserved: bool = False) -> GpuContents:
        """The contents of a GPU with `batch_size` slots; `reserved`: one is kept for prefills at all times,
        as in the mixed group of a partition."""
        beside = Counts.upto(batch_size - 1, classes)
        alone = beside if reserved else Counts.upto(batch_size, classes)
        running = [NONE] * alone.size + [i for i in range(classes) for _ in range(beside.size)]
        decodes = np.concatenate([alone.vectors, np.tile(beside.vectors, (classes, 1))])
        # Contents with the prefill i stand in a block; vectors come in the order of their totals, so that
        # `beside` is the beginning of `alone`.
        first = alone.size + beside.size * np.arange(classes, dtype=np.int32)
        rows = np.concatenate([np.arange(alone.size), np.tile(np.arange(beside.size), classes)])
        origin = np.concatenate([np.zeros(alone.size, np.int32), np.repeat(first, beside.size)])
        prefill = np.array(running, np.int32)

        def moved(table: np.ndarray, alone_table: np.ndarray) -> np.ndarray:
            found = np.concatenate([alone_table, np.tile(table, (classes, 1))])
            return np.where(found == NONE, NONE, found + origin[:, None]).astype(np.int32)

        can_start = (prefill == NONE) & (rows < beside.size)
        return cls(
            prefill=prefill,
            decodes=decodes,
            start=np.where(can_start[:, None], first + rows[:, None], NONE).astype(np.int32),
            place=moved(beside.plus, alone.plus),
            end_prefill=np.where(prefill == NONE, NONE, rows).astype(np.int32),
            end_decode=moved(beside.minus, alone.minus),
        )

    @property
    def size(self) -> int:
        """How many contents there are."""
        return len(self.prefill)

    @property
    def busy(self) -> Bool[np.ndarray, " contents"]:
        """Whether a prefill runs."""
        return self.prefill != NONE

    @property
    def requests(self) -> Int[np.ndarray, " contents"]:
        """Requests on the GPU."""
        return self.decodes.sum(axis=1) + self.busy


def number_of_contents(batch_size: int, classes: int) -> int:
    """How many contents a GPU has."""
    alone, beside = number_of_counts(batch_size, classes), number_of_counts(batch_size - 1, classes)
    return alone + classes * beside
