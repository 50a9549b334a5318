"""Files that must not be used: set aside, named, and what they held computed again."""

from __future__ import annotations

import warnings
from pathlib import Path


class StoreWarning(UserWarning):
    """A file of a store was damaged; it is set aside and what it held is computed again."""


def set_aside(path: Path, reason: str) -> None:
    """Rename a file that must not be used to `... .damaged`, and say so by a `StoreWarning`."""
    place, number = path.with_name(f"{path.name}.damaged"), 1
    while place.exists():
        number += 1
        place = path.with_name(f"{path.name}.damaged{number}")
    path.rename(place)
    warnings.warn(f"{reason}; set aside as {place.name} and computed again", StoreWarning, stacklevel=2)
