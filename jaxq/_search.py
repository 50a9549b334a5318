"""How widely and how far tuning searches."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from ._errors import InputError

STAGES = 6
"""A climb is checked so many times; before the first check several starts climb, after it the best alone."""

SHARPER = (2.0, 4.0, 8.0, 32.0, 256.0)
"""The default factors, see `Search`: the last all but makes the published policies of soft starts."""

_WHOLE = (
    "trial_steps",
    "entrants",
    "finalists",
    "check_every",
    "patience",
    "validation_replications",
    "final_replications",
)


@dataclasses.dataclass(frozen=True)
class Search:
    """How widely and how far `tune` searches. What is None is chosen from the size of the cluster.

    - `entrants`: of several starts, so many climb: those that are worth most, as they are or with sharper
      choices.
    - `trial_steps`, `finalists`: all of them climb so many steps (a sixth of all when None), and then the
      best `finalists` go on.
    - `check_every`: steps after which a policy is valued on validation replications (a sixth of all).
    - `patience`: checks without a better value after which a climb ends.
    - `sharper`: factors by which all log-odds of the winner are multiplied, where that earns more; the last
      one makes sharp starts of soft ones, and these are kept where they are the best.
    - `validation_replications`, `final_replications`: of a check, and of the final figure.
    - `scale`: of the events that slopes, checks and the final figure are made of, at most: below 1 they come
      from smaller clusters, less time or fewer replications.

    **Raises:** `InputError` for a number out of range.
    """

    entrants: int = 3
    trial_steps: int | None = None
    finalists: int = 1
    check_every: int | None = None
    patience: int = 3
    sharper: tuple[float, ...] = SHARPER
    validation_replications: int | None = None
    final_replications: int | None = None
    scale: float = 1.0

    def __post_init__(self):
        for name in _WHOLE:
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise InputError(f"{name}: expected a whole number of at least 1, got {value!r}")
        if not 0 < self.scale < math.inf:
            raise InputError(f"scale: expected a positive number, got {self.scale:g}")
        object.__setattr__(self, "sharper", tuple(float(factor) for factor in self.sharper))
        for factor in self.sharper:
            if not 0 < factor < math.inf:
                raise InputError(f"sharper: expected positive numbers, got {factor:g}")

    def sized(self, steps: int, validation_replications: int, final_replications: int) -> SizedSearch:
        """The same with numbers for what is None, for climbs of so many steps."""
        stage = max(1, steps // STAGES)
        numbers: dict[str, Any] = {
            "trial_steps": stage,
            "check_every": stage,
            "validation_replications": validation_replications,
            "final_replications": final_replications,
        }
        given = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        return SizedSearch(**(numbers | given))


@dataclasses.dataclass(frozen=True)
class SizedSearch(Search):
    """`Search` with numbers everywhere."""

    trial_steps: int = 1
    check_every: int = 1
    validation_replications: int = 1
    final_replications: int = 1
