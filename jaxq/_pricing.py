"""What is paid: prices of tokens and how they are charged."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, Literal, get_args

import equinox as eqx
import numpy as np
from jaxtyping import Float

from ._errors import InputError
from ._hardware import scalar

Scheme = Literal["bundled", "separate"]
SCHEMES: tuple[str, ...] = get_args(Scheme)


class Pricing(eqx.Module):
    """Prices of tokens ([Lin26] eq. 21-23).

    **Arguments:**

    - `prefill`: money per prompt token (c_p).
    - `decode`: money per output token (c_d).
    - `scheme`: what the planning LP maximises: `"bundled"` (both prices are paid when a request completes) or
      `"separate"` (the prompt is paid when its prefill completes, the output when its decode completes).

    **Raises:** `InputError` for a negative or non-finite price, two prices of zero, or an unknown scheme.
    """

    prefill: Float[Any, ""] = eqx.field(converter=partial(scalar, field="pricing.prefill"))
    decode: Float[Any, ""] = eqx.field(converter=partial(scalar, field="pricing.decode"))
    scheme: str = eqx.field(static=True, default="bundled")

    def __check_init__(self):
        if self.scheme not in SCHEMES:
            raise InputError(f"pricing.scheme: expected one of {', '.join(SCHEMES)}, got {self.scheme!r}")
        prices = [self.prefill, self.decode]
        for name, value in zip(("prefill", "decode"), prices, strict=True):
            if not isinstance(value, np.ndarray):
                continue
            price = float(value)
            if not math.isfinite(price) or price < 0:
                raise InputError(f"pricing.{name}: expected a finite price of at least 0, got {price:g}")
        if all(isinstance(value, np.ndarray) and float(value) == 0 for value in prices):
            raise InputError(
                "pricing: prefill and decode are both 0; set one above 0, or no policy earns anything"
            )
