"""Vectors of counts of limited total: a queue by class, or the decodes of a GPU."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
from jaxtyping import Int


@dataclasses.dataclass(frozen=True, eq=False)
class Counts:
    """Every vector of counts with a total of at most `limit`, in the order of the total; the first is 0.

    - `vectors`: one row each.
    - `plus`, `minus`: the row with one more, and one less, of each class; -1 where there is none.
    """

    vectors: Int[np.ndarray, "rows classes"]
    plus: Int[np.ndarray, "rows classes"]
    minus: Int[np.ndarray, "rows classes"]

    @classmethod
    def upto(cls, limit: int, classes: int) -> Counts:
        """The vectors for `classes` classes."""
        box = itertools.product(range(limit + 1), repeat=classes)
        rows = sorted((v for v in box if sum(v) <= limit), key=lambda v: (sum(v), v))
        row_of = {vector: row for row, vector in enumerate(rows)}
        plus = np.full((len(rows), classes), -1, np.int32)
        minus = np.full((len(rows), classes), -1, np.int32)
        for row, vector in enumerate(rows):
            for i in range(classes):
                more = (*vector[:i], vector[i] + 1, *vector[i + 1 :])
                if more in row_of:
                    plus[row, i], minus[row_of[more], i] = row_of[more], row
        return cls(np.array(rows, np.int32), plus, minus)

    @property
    def size(self) -> int:
        """How many vectors there are."""
        return len(self.vectors)

    @property
    def totals(self) -> Int[np.ndarray, " rows"]:
        """The total of each vector."""
        return self.vectors.sum(axis=1)


def number_of_counts(limit: int, classes: int) -> int:
    """How many vectors have a total of at most `limit`."""
    return math.comb(limit + classes, classes)
