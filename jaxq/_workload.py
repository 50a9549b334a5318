"""What arrives: request classes with their lengths, arrival rates and patience."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Float

from ._errors import InputError

Numbers = Any
"""Anything that `numpy.asarray` turns into a vector of numbers, or a traced array."""


def class_vector(value: Numbers, field: str = "value") -> Any:
    """Host numbers become a float64 vector; traced arrays pass, so that families of instances can be batched.

    **Raises:** `InputError`, naming `field`, for what is not numbers; truth values are not.
    """
    items = value if isinstance(value, list | tuple) else [value]
    if any(item is None or isinstance(item, bool | np.bool_ | str | bytes | dict) for item in items):
        raise InputError(f"{field}: expected numbers, got {value!r}")
    if isinstance(value, list | tuple | int | float | np.generic | np.ndarray):
        try:
            return np.atleast_1d(np.asarray(value, dtype=np.float64))
        except (TypeError, ValueError, OverflowError):
            raise InputError(f"{field}: expected numbers, got something else") from None
    return value


class Workload(eqx.Module):
    """The request classes of a cluster ([Lin26] section 2).

    **Arguments:**

    - `prompt_tokens`: mean prompt length of each class, tokens (P_i).
    - `output_tokens`: mean output length of each class, tokens (D_i).
    - `arrival_rate`: Poisson arrivals of each class, 1/s **per GPU** (lambda_i): a cluster of n GPUs receives
      n times as many.
    - `patience_rate`: abandonment rate of each waiting request, 1/s (theta_i), in either queue; 0 never
      abandons.
    - `names`: one name a class; `class-0`, `class-1`, ... when left out.

    **Raises:** `InputError` when lengths differ or a number is negative, zero where it must be positive, or
    not finite; the message names the field and the class.
    """

    prompt_tokens: Float[Any, " classes"]
    output_tokens: Float[Any, " classes"]
    arrival_rate: Float[Any, " classes"]
    patience_rate: Float[Any, " classes"]
    names: tuple[str, ...] = eqx.field(static=True)

    def __init__(
        self,
        prompt_tokens: Numbers,
        output_tokens: Numbers,
        arrival_rate: Numbers,
        patience_rate: Numbers,
        names: Sequence[str] = (),
    ):
        self.prompt_tokens = class_vector(prompt_tokens, "prompt_tokens")
        self.output_tokens = class_vector(output_tokens, "output_tokens")
        self.arrival_rate = class_vector(arrival_rate, "arrival_rate")
        self.patience_rate = class_vector(patience_rate, "patience_rate")
        self.names = tuple(names) or tuple(f"class-{i}" for i in range(self.n_classes))

    def __check_init__(self):
        fields = ("prompt_tokens", "output_tokens", "arrival_rate", "patience_rate")
        if self.n_classes == 0:
            raise InputError("classes: a workload needs at least one class")
        for name in fields:
            value = getattr(self, name)
            if not isinstance(value, np.ndarray):
                continue
            if value.shape != (self.n_classes,):
                shapes = f"{self.n_classes} numbers (one a class), got shape {value.shape}"
                raise InputError(f"{name}: expected {shapes}")
            for i, number in enumerate(value):
                positive = name != "patience_rate"
                if not np.isfinite(number) or number < 0 or (positive and number == 0):
                    expected = "a positive finite number" if positive else "a finite number of at least 0"
                    raise InputError(f"classes.{i}.{name}: expected {expected}, got {number:g}")
        if len(self.names) != self.n_classes:
            raise InputError(f"classes: {len(self.names)} names for {self.n_classes} classes")
        for i, name in enumerate(self.names):
            if not isinstance(name, str) or not name:
                raise InputError(f"classes.{i}.name: expected a name, got {name!r}")
            if name in self.names[:i]:
                raise InputError(f"classes.{i}.name: {name!r} names two classes; each needs its own name")

    @property
    def n_classes(self) -> int:
        """The number of request classes, I."""
        return int(self.prompt_tokens.shape[-1])
