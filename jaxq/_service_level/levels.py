"""Service levels: what a plan promises its requests, as limits and as penalties."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Float

from .._errors import InputError
from .._hardware import scalar
from .._workload import Workload
from .limits import OccupancyLimit

INDICATORS = {
    "prefill_fairness": "prefills per GPU",
    "decode_fairness": "decodes per GPU",
    "time_per_output_token": "s",
}
"""The service level indicators that have a name of their own, and their units."""

RESERVED = (
    *INDICATORS,
    "prefill_slots",
    "mixed_decode_slots",
    "solo_decode_slots",
    "prefill_balance",
    "decode_balance",
    "no_decode_queue",
    "time_per_token_slot",
    "time_per_token_emitted",
)
"""What a further limit cannot be called: names beside which its level or price is reported."""


def _limit(value: Any, field: str) -> Any:
    return None if value is None else scalar(value, field)


def _limits(value: Any) -> tuple[OccupancyLimit, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(one, OccupancyLimit) for one in value):
        raise InputError("sli.limits: expected a list of OccupancyLimit")
    return tuple(value)


class ServiceLevels(eqx.Module):
    """Limits on the indicators of a plan, and penalties for them ([Lin26] eq. 43-48).

    An indicator may have a limit, a penalty, both, or neither. Small values are good:

    - `prefill_fairness`: the largest difference between two classes' running prefills, max (x_i - x_j),
      prefills per GPU.
    - `decode_fairness`: the largest difference between two classes' decodes on GPUs without a prefill,
      max (y_s,i - y_s,j), decodes per GPU.
    - `time_per_output_token`: mean time per output token over all decode slots, s; see `TokenTime`.

    **Arguments:**

    - `prefill_fairness`, `decode_fairness`, `time_per_output_token`: the largest value allowed (eq. 43, 45,
      47), in the units above; None for no limit. A limit on either fairness also forbids requests to wait for
      decode (q_d = 0).
    - `prefill_fairness_penalty`, `decode_fairness_penalty`, `time_per_output_token_penalty`: what a unit of
      the indicator costs the objective (eq. 44, 46, 48), money per GPU and second, over the units above.
    - `limits`: further limits and penalties, each on a sum of occupancies; see `OccupancyLimit`.

    **Raises:** `InputError` for a number that is negative or not finite, a time of 0, or two limits of one
    name.
    """

    prefill_fairness: Float[Any, ""] | None = eqx.field(
        converter=partial(_limit, field="sli.prefill_fairness"), default=None
    )
    decode_fairness: Float[Any, ""] | None = eqx.field(
        converter=partial(_limit, field="sli.decode_fairness"), default=None
    )
    time_per_output_token: Float[Any, ""] | None = eqx.field(
        converter=partial(_limit, field="sli.time_per_output_token"), default=None
    )
    prefill_fairness_penalty: Float[Any, ""] = eqx.field(
        converter=partial(scalar, field="sli.prefill_fairness_penalty"), default=0.0
    )
    decode_fairness_penalty: Float[Any, ""] = eqx.field(
        converter=partial(scalar, field="sli.decode_fairness_penalty"), default=0.0
    )
    time_per_output_token_penalty: Float[Any, ""] = eqx.field(
        converter=partial(scalar, field="sli.time_per_output_token_penalty"), default=0.0
    )
    limits: tuple[OccupancyLimit, ...] = eqx.field(converter=_limits, default=())

    def __check_init__(self):
        for name in (*INDICATORS, *(f"{indicator}_penalty" for indicator in INDICATORS)):
            value = getattr(self, name)
            if not isinstance(value, np.ndarray):
                continue
            number, is_time = float(value), name == "time_per_output_token"
            if not np.isfinite(number) or number < 0 or (is_time and number == 0):
                expected = (
                    "a positive, finite number of seconds" if is_time else "a finite number of at least 0"
                )
                raise InputError(f"sli.{name}: expected {expected}, got {number:g}")
        taken = [*RESERVED, *(f"{name}_penalty" for name in INDICATORS)]
        for one in self.limits:
            names = (one.name, f"{one.name}_penalty", f"{one.name}_convex_penalty")
            if any(name in taken for name in names):
                raise InputError(f"{one.field}: the name is taken; expected another")
            taken += names

    @property
    def names(self) -> tuple[str, ...]:
        """What has a level: `INDICATORS`, then the further limits."""
        return (*INDICATORS, *(one.name for one in self.limits))

    def unit(self, name: str) -> str:
        """The unit of a level; empty for a further limit, whose coefficients have it."""
        return INDICATORS.get(name, "")

    def field(self, name: str) -> str:
        """What messages call the limit on a level."""
        return f"sli.{name}" if name in INDICATORS else f"{self._further(name).field}.at_most"

    def limit(self, name: str) -> float | None:
        """The limit on a level, in its unit; None when it has none."""
        value = getattr(self, name) if name in INDICATORS else self._further(name).at_most
        return None if value is None else float(value)

    def penalty(self, name: str) -> float:
        """What a unit of a level (above `penalty_above`) costs, money per GPU and second."""
        return float(getattr(self, f"{name}_penalty") if name in INDICATORS else self._further(name).penalty)

    def penalty_above(self, name: str) -> float:
        """How much of a level is free of charge, in its unit."""
        return 0.0 if name in INDICATORS else float(self._further(name).penalty_above)

    def cost(self, name: str, level: float) -> float:
        """What all penalties for a level cost at it, money per GPU and second."""
        return self.penalty(name) * level if name in INDICATORS else self._further(name).cost(level)

    def _further(self, name: str) -> OccupancyLimit:
        return next(one for one in self.limits if one.name == name)

    @property
    def any(self) -> bool:
        """Whether there is a limit, or a penalty above 0."""
        alone = any(self.limit(name) is not None or self.penalty(name) > 0 for name in INDICATORS)
        return alone or bool(self.limits)

    @property
    def forbid_decode_queue(self) -> bool:
        """Whether a limit imposes q_d = 0 (eq. 43, 45)."""
        return self.prefill_fairness is not None or self.decode_fairness is not None

    @property
    def concern_decodes(self) -> bool:
        """Whether it matters which decodes run beside a prefill."""
        fairness = self.decode_fairness is not None or self.penalty("decode_fairness") > 0
        return fairness or any(
            stage in one.coefficients for one in self.limits for stage in ("decode_mixed", "decode_solo")
        )

    def limits_on(self, names: Sequence[str]) -> ServiceLevels:
        """The limits on some levels, without any penalty."""
        alone = {name: getattr(self, name) for name in names if name in INDICATORS}
        further = tuple(
            OccupancyLimit(one.name, one.coefficients, one.at_most)
            for one in self.limits
            if one.name in names and one.at_most is not None
        )
        return ServiceLevels(**alone, limits=further)

    def numbers(self) -> dict[str, float]:
        """What is set beside the further limits, by field: every limit, and every penalty above 0."""
        limits = {name: limit for name in INDICATORS if (limit := self.limit(name)) is not None}
        penalties = {f"{name}_penalty": self.penalty(name) for name in INDICATORS if self.penalty(name) > 0}
        return limits | penalties

    def identity(self, workload: Workload) -> str:
        """A text that is the same for levels with the same numbers, whatever the names; empty without any."""
        further = [(one.weights(workload).tolist(), *one.numbers().items()) for one in self.limits]
        alone = [f",{name}={value!r}" for name, value in self.numbers().items()]
        return "".join([*alone, *(f",limit={limit!r}" for limit in further)])
