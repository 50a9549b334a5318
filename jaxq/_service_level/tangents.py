"""Costs that bend, as their tangents where an optimum has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from .._linear_program import LinearProgram, Row
from .program import with_rows


@dataclass(frozen=True)
class Tangent:
    """A line that touches a cost at one level of a linear function of a program's variables.

    **Arguments:** `name`: of the level; `weights`: the linear function, of the first variables; `level`,
    `cost`: where it touches; `slope`: of the line.
    """

    name: str
    weights: Float[np.ndarray, " some"]
    level: float
    cost: float
    slope: float

    def at(self, level: float) -> float:
        """The line at another level."""
        return self.cost + self.slope * (level - self.level)


def linearised(program: LinearProgram, tangents: Sequence[Tangent]) -> LinearProgram:
    """A program that pays each tangent's slope for a unit of its level.

    Where each level is the best one, the optima of the program that pays the costs are optima of this one,
    and its dual solutions are the derivatives of the other's objective. Other levels may tie with the best.
    """
    value = program.value.copy()
    for tangent in tangents:
        value[: len(tangent.weights)] -= tangent.slope * tangent.weights
    return replace(program, value=value)


def with_levels(program: LinearProgram, tangents: Sequence[Tangent]) -> LinearProgram:
    """A program that keeps each tangent's level."""
    return with_rows(
        program, *(level_row(tangent.name, tangent.weights, tangent.level) for tangent in tangents)
    )


def level_row(name: str, weights: Float[np.ndarray, " some"], level: float) -> Row:
    """A linear function of the first variables equals a level."""
    return Row(f"{name}: level", weights[None], np.array([level]), equality=True)


def left_out(tangents: Sequence[Tangent]) -> float:
    """What the objective of the linearised program, at the tangents' levels, has less than the true one."""
    return float(sum(tangent.slope * tangent.level - tangent.cost for tangent in tangents))
