"""What serves: the time of one iteration of a GPU."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Float

from ._errors import InputError


def scalar(value: Any, field: str = "value") -> Any:
    """A host number becomes a float64 scalar array; a traced array passes.

    **Raises:** `InputError`, naming `field`, for what is not a number; a truth value is not one.
    """
    if isinstance(value, bool | np.bool_ | str | bytes | list | tuple | dict) or value is None:
        raise InputError(f"{field}: expected a number, got {value!r}")
    if isinstance(value, int | float | np.generic | np.ndarray):
        try:
            number = np.asarray(value, dtype=np.float64)
        except (TypeError, ValueError, OverflowError):
            raise InputError(f"{field}: expected a finite number, got something else") from None
        if number.shape != ():
            raise InputError(f"{field}: expected one number, got shape {number.shape}")
        return number
    return value


class IterationTime(eqx.Module):
    """The time of one iteration of a GPU, s ([Lin26] eq. 1-3).

    An iteration with a prefill chunk of C tokens takes `alpha + beta * C`; one with decodes only takes
    `solo`.

    **Arguments:**

    - `alpha`: s; the intercept of a mixed iteration's time.
    - `beta`: s/token; its slope in the chunk size.
    - `solo`: s; the time of an iteration with decodes only (tau_solo = 1/gamma).

    **Raises:** `InputError` when a number is not finite, `beta` is negative, `solo` is not positive.
    A negative `alpha` is allowed (a calibrated law with a knee can have one) as long as the mixed time of the
    chosen chunk size is positive, which `Instance` checks.
    """

    alpha: Float[Any, ""] = eqx.field(converter=partial(scalar, field="hardware.alpha"))
    beta: Float[Any, ""] = eqx.field(converter=partial(scalar, field="hardware.beta"))
    solo: Float[Any, ""] = eqx.field(converter=partial(scalar, field="hardware.solo_iteration_time"))

    def __check_init__(self):
        for name, positive in (("alpha", False), ("beta", False), ("solo", True)):
            value = getattr(self, name)
            if not isinstance(value, np.ndarray):
                continue
            label = "solo_iteration_time" if name == "solo" else name
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
