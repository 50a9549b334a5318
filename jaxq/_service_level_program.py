"""Service levels as variables and rows of the planning LP ([Lin26] eq. 43-47)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from jaxtyping import Float, Int

from ._instance import Instance
from ._linear_program import LinearProgram, Row
from ._planning_program import VARIABLES
from ._service_levels import ServiceLevels
from ._token_time import TokenTime

_COMPARED = {"prefill_fairness": "x", "decode_fairness": "y_solo"}
"""The variables that each fairness compares."""


def with_service_levels(program: LinearProgram, instance: Instance, levels: ServiceLevels) -> LinearProgram:
    """The planning LP under every limit, less every penalty that is linear: that of eq. 48 is not.

    Each limit is a row of its own, by the name of its indicator, whose price is the derivative by the limit.
    """
    blocks = np.arange(len(VARIABLES) * instance.n_classes).reshape(len(VARIABLES), -1)
    for name, compared in _COMPARED.items():
        limit, penalty = levels.limit(name), levels.penalty(name)
        if limit is not None or penalty > 0:
            program = _with_spread(program, blocks[VARIABLES.index(compared)], name, limit, penalty)
    limit = levels.limit("time_per_output_token")
    return program if limit is None else _with_token_time(program, instance, limit)


def mixed_share_weights(program: LinearProgram, instance: Instance) -> Float[np.ndarray, " variables"]:
    """X, the sum of x, as a linear function of the variables."""
    return (np.arange(len(program.value)) < instance.n_classes).astype(np.float64)


def _with_spread(
    program: LinearProgram,
    members: Int[np.ndarray, " classes"],
    name: str,
    limit: float | None,
    penalty: float,
) -> LinearProgram:
    """Two more variables, the least of some others and how far the largest may lie above it."""
    identity, ones = np.eye(len(program.value))[members], np.ones((len(members), 1))
    right = np.zeros(len(members))
    rows = [replace(row, coefficients=_widened(row.coefficients)) for row in program.rows]
    rows.append(Row(f"{name}_least", np.hstack([-identity, ones, 0 * ones]), right, equality=False))
    rows.append(Row(f"{name}_largest", np.hstack([identity, -ones, -ones]), right, equality=False))
    if limit is not None:
        spread = np.zeros((1, len(program.value) + 2))
        spread[0, -1] = 1.0
        rows.append(Row(name, spread, np.array([limit]), equality=False))
    sizes = program.scale[members]
    return LinearProgram(
        value=np.append(program.value, [0.0, -penalty]),
        rows=tuple(rows),
        scale=np.append(program.scale, [sizes.min(), sizes.max()]),
        allowed=np.append(program.allowed, [True, True]),
    )


def _widened(coefficients: Float[np.ndarray, "rows columns"]) -> Float[np.ndarray, "rows columns+2"]:
    return np.pad(coefficients, ((0, 0), (0, 2)))


def _with_token_time(program: LinearProgram, instance: Instance, limit: float) -> LinearProgram:
    """The limit of eq. 47 as its tangent in X where it is attained.

    The mean time is monotone in X, so that the tangent allows the same X; and its price is in the limit's own
    unit, which that of eq. 47 multiplied out is not.
    """
    time = TokenTime(instance)
    share = time.share_of(limit)
    weights = mixed_share_weights(program, instance)
    right = np.array([limit - time.at(share) + time.slope(share) * share])
    row = Row("time_per_output_token", time.slope(share) * weights[None], right, equality=False)
    return replace(program, rows=(*program.rows, row))


def attained(
    instance: Instance, x: Float[np.ndarray, " classes"], y_solo: Float[np.ndarray, " classes"]
) -> dict[str, float]:
    """The value of every indicator at the occupancies of a plan, in the units of `INDICATORS`."""
    return {
        "prefill_fairness": float(np.ptp(x)),
        "decode_fairness": float(np.ptp(y_solo)),
        "time_per_output_token": TokenTime(instance).at(float(x.sum())),
    }
