"""Service levels: what a plan promises its requests, as limits and as penalties."""

from __future__ import annotations

from functools import partial
from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Float

from ._errors import InputError
from ._hardware import scalar

INDICATORS = {
    "prefill_fairness": "prefills per GPU",
    "decode_fairness": "decodes per GPU",
    "time_per_output_token": "s",
}
"""The service level indicators and their units."""


def _limit(value: Any, field: str) -> Any:
    return None if value is None else scalar(value, field)


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

    **Raises:** `InputError` for a number that is negative or not finite, or a time of 0.
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

    def limit(self, indicator: str) -> float | None:
        """The limit on one of `INDICATORS`, in its unit; None when it has none."""
        value = getattr(self, indicator)
        return None if value is None else float(value)

    def penalty(self, indicator: str) -> float:
        """What a unit of one of `INDICATORS` costs, money per GPU and second."""
        return float(getattr(self, f"{indicator}_penalty"))

    @property
    def any(self) -> bool:
        """Whether there is a limit, or a penalty above 0."""
        return any(self.limit(name) is not None or self.penalty(name) > 0 for name in INDICATORS)

    @property
    def forbid_decode_queue(self) -> bool:
        """Whether a limit imposes q_d = 0 (eq. 43, 45)."""
        return self.prefill_fairness is not None or self.decode_fairness is not None

    def numbers(self) -> dict[str, float]:
        """What is set, by field: every limit, and every penalty above 0."""
        limits = {name: limit for name in INDICATORS if (limit := self.limit(name)) is not None}
        penalties = {f"{name}_penalty": self.penalty(name) for name in INDICATORS if self.penalty(name) > 0}
        return limits | penalties
