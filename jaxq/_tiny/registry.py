"""Numbers for codes, in the order in which they are first seen."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int, Int64


class Registry:
    """Gives each new code the next number, for many codes at a time."""

    def __init__(self) -> None:
        self._codes = np.zeros(0, np.int64)
        self._numbers = np.zeros(0, np.int64)

    def __len__(self) -> int:
        return len(self._codes)

    def numbers(
        self, codes: Int64[np.ndarray, " rows"]
    ) -> tuple[Int[np.ndarray, " rows"], Int[np.ndarray, " added"]]:
        """The number of each code, and for each code seen here for the first time a row that has it."""
        unique, row, inverse = np.unique(codes, return_index=True, return_inverse=True)
        place = np.searchsorted(self._codes, unique)
        inside = np.minimum(place, max(len(self) - 1, 0))
        known = self._codes[inside] == unique if len(self) else np.zeros(len(unique), bool)
        found = np.empty(len(unique), np.int64)
        found[known] = self._numbers[inside[known]]
        added = np.flatnonzero(~known)
        found[added] = len(self) + np.arange(len(added))
        self._codes = np.insert(self._codes, place[added], unique[added])
        self._numbers = np.insert(self._numbers, place[added], found[added])
        return found[inverse], row[added]


def radix_code(columns: list[np.ndarray], sizes: list[int]) -> Int64[np.ndarray, " rows"]:
    """Rows of numbers, each from 0 and below its size, as one number."""
    code = np.zeros(len(columns[0]), np.int64)
    for column, size in zip(columns, sizes, strict=True):
        code = code * size + column
    return code
