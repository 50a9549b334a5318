"""Limits on linear functions of the occupancies, named by the user."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Float

from .._errors import InputError
from .._hardware import scalar
from .._workload import Workload
from .convex_penalty import AbstractConvexPenalty

STAGES = ("prefill", "decode_mixed", "decode_solo", "prefill_queue", "decode_queue")
"""Where a request can be, in the order of the planning LP's variables x, y_m, y_s, q_p, q_d."""

_NAME = re.compile(r"[\w.-]+")


class OccupancyLimit(eqx.Module):
    """A limit, or a convex penalty, on a sum of occupancies: the general form of a service level.

    Its **level** is the sum over stages and classes of a coefficient times the requests of the class in the
    stage, per GPU; its unit is that of the coefficients. Small levels are good: a lower limit has negative
    coefficients.

    **Arguments:**

    - `name`: letters, digits, `_`, `-` and `.`; it names the level in plans, results and messages.
    - `coefficients`: by stage, which is `"prefill"` (running prefills, x), `"decode_mixed"` (decodes on GPUs
      that run a prefill, y_m), `"decode_solo"` (decodes on other GPUs, y_s), `"prefill_queue"` or
      `"decode_queue"` (requests that wait, q_p and q_d): a number for every class, a list with one a class,
      or numbers by class (its name, or its number from 0 on). Whatever is not named has 0.
    - `at_most`: the largest level allowed; None for no limit.
    - `penalty`: what a unit of the level above `penalty_above` costs the objective, money per GPU and second
      over the level's unit.
    - `convex_penalty`: a further cost, an `AbstractConvexPenalty`: any convex function of the level. In
      Python only, and not in an `Instance`, whose file could not hold it.

    **Raises:** `InputError` for a bad name, stage or number, or neither a limit nor a penalty.
    """

    coefficients: dict[str, Any]
    at_most: Float[Any, ""] | None
    penalty: Float[Any, ""]
    penalty_above: Float[Any, ""]
    convex_penalty: Any
    name: str = eqx.field(static=True)

    def __init__(
        self,
        name: str,
        coefficients: Any,
        at_most: Any = None,
        *,
        penalty: Any = 0.0,
        penalty_above: Any = 0.0,
        convex_penalty: Any = None,
    ):
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise InputError(
                f"sli.limits: expected a name of letters, digits, '_', '-' and '.', got {name!r}"
            )
        self.name = name
        self.coefficients = _coefficients(coefficients, self.field)
        self.at_most = None if at_most is None else scalar(at_most, f"{self.field}.at_most")
        self.penalty = scalar(penalty, f"{self.field}.penalty")
        self.penalty_above = scalar(penalty_above, f"{self.field}.penalty_above")
        self.convex_penalty = convex_penalty

    def __check_init__(self):
        for name, least in (("at_most", -np.inf), ("penalty", 0.0), ("penalty_above", -np.inf)):
            value = getattr(self, name)
            if isinstance(value, np.ndarray) and not (np.isfinite(value) and value >= least):
                expected = "a finite number" + (" of at least 0" if least == 0 else "")
                raise InputError(f"{self.field}.{name}: expected {expected}, got {float(value):g}")
        if self.convex_penalty is not None and not isinstance(self.convex_penalty, AbstractConvexPenalty):
            raise InputError(
                f"{self.field}.convex_penalty: expected an AbstractConvexPenalty, "
                f"got {type(self.convex_penalty).__name__}"
            )
        if not self.has_penalty and float(self.penalty_above) != 0:
            raise InputError(f"{self.field}.penalty_above: expected a penalty above 0 beside it")
        if self.at_most is None and not self.has_penalty and self.convex_penalty is None:
            raise InputError(f"{self.field}: expected at_most, a penalty above 0, or both")

    @property
    def field(self) -> str:
        """What messages call it."""
        return f"sli.limits.{self.name}"

    @property
    def has_penalty(self) -> bool:
        """Whether there is a price per unit."""
        return float(self.penalty) > 0

    def weights(self, workload: Workload) -> Float[np.ndarray, "stages classes"]:
        """The coefficients by stage (in the order of `STAGES`) and class.

        **Raises:** `InputError` for a class that is not there, or named twice.
        """
        weights = np.zeros((len(STAGES), workload.n_classes))
        for stage, found in self.coefficients.items():
            row, field = weights[STAGES.index(stage)], f"{self.field}.{stage}"
            if not isinstance(found, dict):
                row[:] = found
                continue
            seen: set[int] = set()
            for label, number in found.items():
                i = _class_number(label, workload, field)
                if i in seen:
                    raise InputError(f"{field}: class {workload.names[i]!r} has two coefficients")
                seen.add(i)
                row[i] = number
        return weights

    def level(self, workload: Workload, occupancies: Sequence[Any]) -> Any:
        """Its level at occupancies by stage (in the order of `STAGES`), classes on the last axis."""
        return sum(
            values @ weights for values, weights in zip(occupancies, self.weights(workload), strict=True)
        )

    def cost(self, level: float) -> float:
        """What its penalties cost at a level, money per GPU and second."""
        above = float(self.penalty) * max(0.0, level - float(self.penalty_above))
        return above + (0.0 if self.convex_penalty is None else float(self.convex_penalty.cost(level)))

    def numbers(self) -> dict[str, float]:
        """`at_most`, `penalty` and `penalty_above`, those of them that are set."""
        limit = {} if self.at_most is None else {"at_most": float(self.at_most)}
        if not self.has_penalty:
            return limit
        return limit | {"penalty": float(self.penalty), "penalty_above": float(self.penalty_above)}


def _coefficients(given: Any, field: str) -> dict[str, Any]:
    """Coefficients by stage: one number, or numbers by the class's name or number, as text."""
    if not isinstance(given, Mapping):
        raise InputError(f"{field}.coefficients: expected numbers by stage ({', '.join(STAGES)})")
    found: dict[str, Any] = {}
    for stage, value in given.items():
        if stage not in STAGES:
            raise InputError(f"{field}: expected a stage of {', '.join(STAGES)}, got {stage!r}")
        if isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim == 1):
            value = dict(enumerate(value))
        if isinstance(value, Mapping):
            found[stage] = {
                str(label): scalar(item, f"{field}.{stage}.{label}") for label, item in value.items()
            }
        else:
            found[stage] = scalar(value, f"{field}.{stage}")
    numbers = [
        number
        for value in found.values()
        for number in (value.values() if isinstance(value, dict) else [value])
    ]
    if not all(np.isfinite(number) for number in numbers if isinstance(number, np.ndarray)):
        raise InputError(f"{field}: expected finite coefficients")
    if not any(np.any(number != 0) for number in numbers):
        raise InputError(f"{field}: expected a coefficient other than 0 for one of {', '.join(STAGES)}")
    return found


def _class_number(label: str, workload: Workload, field: str) -> int:
    """The number of a class, from its name or else its number."""
    if label in workload.names:
        return workload.names.index(label)
    if label.isdecimal() and int(label) < workload.n_classes:
        return int(label)
    names = ", ".join(repr(name) for name in workload.names)
    raise InputError(f"{field}: expected a class of {names}, or its number from 0 on; got {label!r}")
