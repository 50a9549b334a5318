"""Convex costs of a level: what a user may charge for more than a price per unit."""

from __future__ import annotations

import abc
from functools import partial
from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Float

from .._errors import InputError
from .._hardware import scalar


class AbstractConvexPenalty(eqx.Module):
    """A convex cost of the level of an `OccupancyLimit`; a subclass gives the two methods.

    The plan is solved by cutting planes, which see the cost at finitely many levels; a cost that is not
    convex there is refused.
    """

    @abc.abstractmethod
    def cost(self, level: float) -> float:
        """Money per GPU and second."""

    @abc.abstractmethod
    def slope(self, level: float) -> float:
        """The derivative of `cost`, money per GPU and second over the level's unit; at a kink, any number
        between the two sides."""


class QuadraticPenalty(AbstractConvexPenalty):
    """`weight` * max(0, level - `above`)^2.

    **Arguments:** `weight`: money per GPU and second over the squared unit of the level; `above`: the level
    that is free of charge.

    **Raises:** `InputError` for a weight that is negative, or numbers that are not finite.
    """

    weight: Float[Any, ""] = eqx.field(converter=partial(scalar, field="weight"))
    above: Float[Any, ""] = eqx.field(converter=partial(scalar, field="above"), default=0.0)

    def __check_init__(self):
        for name, least in (("weight", 0.0), ("above", -np.inf)):
            value = getattr(self, name)
            if isinstance(value, np.ndarray) and not (np.isfinite(value) and value >= least):
                expected = "a finite number" + (" of at least 0" if least == 0 else "")
                raise InputError(f"{name}: expected {expected}, got {float(value):g}")

    def cost(self, level: float) -> float:
        return float(self.weight) * max(0.0, level - float(self.above)) ** 2

    def slope(self, level: float) -> float:
        return 2 * float(self.weight) * max(0.0, level - float(self.above))
