"""What serves: the time of one iteration of a GPU."""

from __future__ import annotations

import math
from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Float

from ._errors import InputError


def scalar(value: Any) -> Any:
    """A host number becomes a float64 scalar array; a traced array passes."""
    if isinstance(value, int | float | np.generic | np.ndarray):
        return np.asarray(value, dtype=np.float64)
    return value


class IterationTime(eqx.Module):
    """The time of one iteration of a GPU, s ([Lin26] eq. 1-3).

    An iteration with a prefill chunk of C tokens takes `alpha + beta * C`; one with decodes only takes `solo`.

    **Arguments:**

    - `alpha`: s; the intercept of a mixed iteration's time.
    - `beta`: s/token; its slope in the chunk size.
    - `solo`: s; the time of an iteration with decodes only (tau_solo = 1/gamma).

    **Raises:** `InputError` when a number is not finite, `beta` is negative, `solo` is not positive.
    A negative `alpha` is allowed (a calibrated law with a knee can have one) as long as the mixed time of the
    chosen chunk size is positive, which `Instance` checks.
    """

    alpha: Float[Any, ""] = eqx.field(converter=scalar)
    beta: Float[Any, ""] = eqx.field(converter=scalar)
    solo: Float[Any, ""] = eqx.field(converter=scalar)

    def __check_init__(self):
        for name, positive in (("alpha", False), ("beta", False), ("solo", True)):
            value = getattr(self, name)
            if not isinstance(value, np.ndarray):
                continue
            label = "solo_iteration_time" if name == "solo" else name
            if value.shape != ():
                raise InputError(f"hardware.{label}: expected one number, got shape {value.shape}")
            number = float(value)
            if not math.isfinite(number):
                raise InputError(f"hardware.{label}: expected a finite number of seconds, got {number:g}")
            if positive and number <= 0:
                raise InputError(f"hardware.{label}: expected a positive number of seconds, got {number:g}")
            if name == "beta" and number < 0:
                raise InputError(f"hardware.beta: expected at least 0 s/token, got {number:g}")

    @classmethod
    def from_law(cls, base: float, slope: float, knee: float) -> IterationTime:
        """From a calibrated law tau(b) = base + slope * max(0, b - knee) ([Lin26] eq. 1).

        `base` s, `slope` s/token, `knee` tokens; valid for chunk sizes of at least `knee`.
        """
        return cls(alpha=base - slope * knee, beta=slope, solo=base)

    def mixed(self, chunk_size: Any) -> Any:
        """The time of an iteration with a prefill chunk of `chunk_size` tokens, s (eq. 3)."""
        return self.alpha + self.beta * chunk_size
