"""Which of several optimal plans is taken; independent of the solver."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from ._instance import Instance
from ._linear_program import LinearProgram, Row, varying
from ._planning_problem import Solution
from ._planning_program import VARIABLES

SAME_SPREAD = 1e-12
"""Decodes per slot by which a spread may exceed a limit for rounding."""


def plan_variables(
    solution: Solution, directions: Float[np.ndarray, "columns directions"], flows_unique: bool
) -> tuple[np.ndarray, ...]:
    """x, y_m, y_s, q_p, q_d of the plan, by the tie-break of `solve_plan`.

    **Arguments:** `directions`: those within the face of all optima; `flows_unique`: whether all of them
    leave x, q_p and q_d as they are.
    """
    instance, levels = solution.problem.instance, solution.problem.levels
    point = solution.optimum.point if flows_unique else _break_ties(solution, directions)
    variables = solution.program.variables(point)[: len(VARIABLES) * instance.n_classes]
    x, _, y_solo, q_prefill, q_decode = np.split(variables, len(VARIABLES))
    limit = levels.limit("decode_fairness")
    if levels.penalty("decode_fairness") > 0:
        limit = np.ptp(y_solo)  # an optimal spread, which any other would be worse than
    y_mixed, y_solo = _spread_decodes(instance, x, q_decode, limit)
    return x, y_mixed, y_solo, q_prefill, q_decode


def _break_ties(
    solution: Solution, directions: Float[np.ndarray, "columns directions"]
) -> Float[np.ndarray, " columns"]:
    """The optimal point with the smallest sum of q_d, then the largest x, the smallest q_d, class 0 first."""
    program = solution.program
    units = np.eye(len(program.value))[: len(VARIABLES) * solution.problem.instance.n_classes]
    x, _, _, _, q_decode = np.split(units, len(VARIABLES))
    weights = [-q_decode.sum(axis=0), *x, *(-q_decode)]
    objectives = varying([program.columns(weight) for weight in weights], directions)
    return program.standard.successively(solution.optimum.point, solution.optimum.face, objectives)


def _spread_decodes(
    instance: Instance,
    x: Float[np.ndarray, " classes"],
    q_decode: Float[np.ndarray, " classes"],
    limit: float | None,
) -> tuple[np.ndarray, np.ndarray]:
    """y_m and y_s with as many solo decodes as fit, and classes in proportion to their tokens per second
    where the limit on the spread of y_s allows.

    It changes no flow: a class that decodes r_i tokens per second needs y_m,i / tau + gamma y_s,i = r_i.
    """
    tau, solo = float(instance.mixed_iteration_time), float(instance.iteration_time.solo)
    completions = np.maximum(instance.mu_prefill * x - instance.workload.patience_rate * q_decode, 0.0)
    tokens = instance.workload.output_tokens * completions
    all_solo, slots = tokens * solo, float(instance.batch_size) * max(1.0 - x.sum(), 0.0)
    total = tokens.sum()
    share = tokens / total if total > 0 else np.zeros(len(x))
    y_solo = min(slots, all_solo.sum()) * share
    if limit is not None and np.ptp(y_solo) > limit + SAME_SPREAD * float(instance.batch_size):
        most = np.minimum(all_solo, all_solo.min() + limit)
        y_solo = _least_uneven(min(slots, most.sum()) * share, most, limit)
    else:
        # In proportion, without the rounding errors of a difference class by class.
        return tau * max(total - y_solo.sum() / solo, 0.0) * share, y_solo
    return tau * np.maximum(tokens - y_solo / solo, 0.0), y_solo


def _least_uneven(
    wanted: Float[np.ndarray, " classes"], most: Float[np.ndarray, " classes"], limit: float
) -> Float[np.ndarray, " classes"]:
    """The y_s of a spread within the limit, below `most` and of the sum of `wanted`, that is nearest to it:
    with the smallest largest deviation, then the smallest sum of deviations, then the largest for class 0,
    class 1, ...

    **Arguments:** `most`: spread within the limit, with a sum of at least that of `wanted`.
    """
    n = len(wanted)
    eye, one, none = np.eye(n), np.ones((n, 1)), np.zeros((n, n))
    # Variables: y, the deviations, the largest deviation, the least y.
    rows = (
        Row("total", np.hstack([np.ones((1, n)), np.zeros((1, n + 2))]), wanted[None].sum(1), equality=True),
        Row("most", np.hstack([eye, none, 0 * one, 0 * one]), most, equality=False),
        Row("above", np.hstack([eye, -eye, 0 * one, 0 * one]), wanted, equality=False),
        Row("below", np.hstack([-eye, -eye, 0 * one, 0 * one]), -wanted, equality=False),
        Row("largest deviation", np.hstack([none, eye, -one, 0 * one]), np.zeros(n), equality=False),
        Row("least", np.hstack([-eye, none, 0 * one, one]), np.zeros(n), equality=False),
        Row("spread", np.hstack([eye, none, 0 * one, -one]), np.full(n, limit), equality=False),
    )
    deviation = np.eye(2 * n + 2)[n : 2 * n].sum(axis=0)
    program = LinearProgram(
        value=-np.eye(2 * n + 2)[2 * n],
        rows=rows,
        scale=np.full(2 * n + 2, max(most.max(), 1e-300)),
        allowed=np.ones(2 * n + 2, dtype=bool),
    )
    optimum = program.standard.maximise()
    objectives = [program.columns(weight) for weight in (-deviation, *np.eye(2 * n + 2)[:n])]
    point = program.standard.successively(optimum.point, optimum.face, objectives)
    return program.variables(point)[:n]
