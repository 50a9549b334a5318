"""Service levels as variables and rows of the planning LP ([Lin26] eq. 43-47, and further limits)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float, Int

from .._instance import Instance
from .._linear_program import LinearProgram, Row
from .._planning_program import VARIABLES
from .levels import ServiceLevels
from .token_time import TokenTime

_COMPARED = {"prefill_fairness": "x", "decode_fairness": "y_solo"}
"""The variables that each fairness compares."""


def with_service_levels(program: LinearProgram, instance: Instance, levels: ServiceLevels) -> LinearProgram:
    """The planning LP under every limit, less every penalty that is linear or linear above a threshold.

    Each limit is a row of its own, by the name of its level, whose price is the derivative by the limit; each
    penalty is one by that name and `_penalty`, whose price is the derivative by what is free of charge.
    """
    blocks = np.arange(len(VARIABLES) * instance.n_classes).reshape(len(VARIABLES), -1)
    for name, compared in _COMPARED.items():
        if levels.limit(name) is not None or levels.penalty(name) > 0:
            program, spread = _with_spread(program, blocks[VARIABLES.index(compared)], name)
            program = _with_level(program, spread, name, levels)
    if (limit := levels.limit("time_per_output_token")) is not None:
        program = _with_token_time(program, instance, limit)
    for one in levels.limits:
        program = _with_level(program, one.weights(instance.workload).ravel(), one.name, levels)
    return program


def mixed_share_weights(program: LinearProgram, instance: Instance) -> Float[np.ndarray, " variables"]:
    """X, the sum of x, as a linear function of the variables."""
    return (np.arange(len(program.value)) < instance.n_classes).astype(np.float64)


def with_variables(
    program: LinearProgram, value: Sequence[float] | np.ndarray, scale: Sequence[float] | np.ndarray
) -> LinearProgram:
    """A program with further variables, which stand in none of its rows."""
    more = len(value)
    rows = tuple(
        replace(row, coefficients=np.pad(row.coefficients, ((0, 0), (0, more)))) for row in program.rows
    )
    return LinearProgram(
        value=np.append(program.value, value),
        rows=rows,
        scale=np.append(program.scale, scale),
        allowed=np.append(program.allowed, np.ones(more, dtype=bool)),
    )


def with_rows(program: LinearProgram, *rows: Row) -> LinearProgram:
    """A program with further rows; variables that stand last may be missing from them."""
    wide = len(program.value)
    padded = (
        replace(row, coefficients=np.pad(row.coefficients, ((0, 0), (0, wide - row.coefficients.shape[1]))))
        for row in rows
    )
    return replace(program, rows=(*program.rows, *padded))


def largest_level(program: LinearProgram, weights: Float[np.ndarray, " some"]) -> float:
    """A size that a linear function of the first variables does not exceed; positive."""
    return float(np.abs(weights) @ program.scale[: len(weights)]) or 1.0


def _with_spread(
    program: LinearProgram, members: Int[np.ndarray, " classes"], name: str
) -> tuple[LinearProgram, Float[np.ndarray, " variables"]]:
    """Two more variables, the least of some others and how far the largest may lie above it; and the latter
    as a linear function of the variables."""
    sizes = program.scale[members]
    program = with_variables(program, (0.0, 0.0), (sizes.min(), sizes.max()))
    units = np.eye(len(program.value))
    least, spread, right = units[-2], units[-1], np.zeros(len(members))
    program = with_rows(
        program,
        Row(f"{name}: least", least - units[members], right, equality=False),
        Row(f"{name}: largest", units[members] - least - spread, right, equality=False),
    )
    return program, spread


def _with_level(
    program: LinearProgram, weights: Float[np.ndarray, " some"], name: str, levels: ServiceLevels
) -> LinearProgram:
    """The limit on a linear function of the first variables, and its penalty by a variable for the excess."""
    if (limit := levels.limit(name)) is not None:
        program = with_rows(program, Row(name, weights[None], np.array([limit]), equality=False))
    if levels.penalty(name) > 0:
        above = levels.penalty_above(name)
        size = largest_level(program, weights) + abs(above)
        program = with_variables(program, [-levels.penalty(name)], [size])
        level = np.pad(weights, (0, len(program.value) - len(weights)))
        level[-1] = -1.0
        program = with_rows(program, Row(f"{name}_penalty", level[None], np.array([above]), equality=False))
    return program


def _with_token_time(program: LinearProgram, instance: Instance, limit: float) -> LinearProgram:
    """The limit of eq. 47 as its tangent in X where it is attained.

    The mean time is monotone in X, so that the tangent allows the same X; and its price is in the limit's own
    unit, which that of eq. 47 multiplied out is not.
    """
    time = TokenTime(instance)
    share = time.share_of(limit)
    weights = mixed_share_weights(program, instance)
    right = np.array([limit - time.at(share) + time.slope(share) * share])
    return with_rows(
        program, Row("time_per_output_token", time.slope(share) * weights[None], right, equality=False)
    )


def attained(
    instance: Instance, levels: ServiceLevels, occupancies: Sequence[Float[np.ndarray, " classes"]]
) -> dict[str, float]:
    """Every level at the occupancies of a plan (x, y_m, y_s, q_p, q_d), by name."""
    x, _, y_solo, _, _ = occupancies
    return {
        "prefill_fairness": float(np.ptp(x)),
        "decode_fairness": float(np.ptp(y_solo)),
        "time_per_output_token": TokenTime(instance).at(float(x.sum())),
        **{one.name: float(one.level(instance.workload, occupancies)) for one in levels.limits},
    }
