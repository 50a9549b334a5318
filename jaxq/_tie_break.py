"""Which of several optimal plans is taken; independent of the solver."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from ._instance import Instance
from ._linear_program import Row, varying
from ._planning_problem import PlanningProblem, Solution
from ._planning_program import VARIABLES
from ._service_level.program import attained, largest_level, with_rows, with_variables

SAME_LEVEL = 1e-12
"""By how much a level may exceed its limit for rounding, relative to the largest that it can be; and what is
paid for levels, relative to the largest term of the objective."""


def plan_variables(
    solution: Solution, directions: Float[np.ndarray, "columns directions"], flows_unique: bool
) -> tuple[np.ndarray, ...]:
    """x, y_m, y_s, q_p, q_d of the plan, by the tie-break of `solve_plan`.

    **Arguments:** `directions`: those within the face of all optima; `flows_unique`: whether all of them
    leave x, q_p and q_d as they are.
    """
    problem = solution.problem
    point = solution.optimum.point if flows_unique else _break_ties(solution, directions)
    variables = solution.program.variables(point)[: len(VARIABLES) * problem.instance.n_classes]
    x, y_mixed, y_solo, q_prefill, q_decode = np.split(variables, len(VARIABLES))
    tokens = _tokens(problem.instance, x, q_decode)
    found = (x, *_in_proportion(problem.instance, x, tokens), q_prefill, q_decode)
    if problem.levels.concern_decodes and not _as_good(
        problem, found, (x, y_mixed, y_solo, q_prefill, q_decode)
    ):
        found = (x, *_least_uneven(solution, point, tokens), q_prefill, q_decode)
    return found


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


def _tokens(
    instance: Instance, x: Float[np.ndarray, " classes"], q_decode: Float[np.ndarray, " classes"]
) -> Float[np.ndarray, " classes"]:
    """Tokens per second and GPU that each class decodes: whichever y_m and y_s do so, no flow changes."""
    completions = np.maximum(instance.mu_prefill * x - instance.workload.patience_rate * q_decode, 0.0)
    return instance.workload.output_tokens * completions


def _mixed_decodes(
    instance: Instance, tokens: Float[np.ndarray, " some"], y_solo: Float[np.ndarray, " some"]
) -> Float[np.ndarray, " some"]:
    """The y_m that decode what y_s leave: y_m / tau + gamma y_s is the tokens per second."""
    left = tokens - y_solo / float(instance.iteration_time.solo)
    return float(instance.mixed_iteration_time) * np.maximum(left, 0.0)


def _in_proportion(
    instance: Instance, x: Float[np.ndarray, " classes"], tokens: Float[np.ndarray, " classes"]
) -> tuple[np.ndarray, np.ndarray]:
    """y_m and y_s with as many solo decodes as fit, and classes in proportion to their tokens per second."""
    slots = float(instance.batch_size) * max(1.0 - x.sum(), 0.0)
    total = tokens.sum(keepdims=True)
    share = tokens / np.where(total > 0, total, 1.0)
    y_solo = np.minimum(slots, total * float(instance.iteration_time.solo))
    # Of the totals, without the rounding errors of a difference class by class.
    return _mixed_decodes(instance, total, y_solo) * share, y_solo * share


def _as_good(
    problem: PlanningProblem, changed: tuple[np.ndarray, ...], optimal: tuple[np.ndarray, ...]
) -> bool:
    """Whether a plan with the flows of an optimal one keeps every limit and pays no more for levels."""
    instance, levels, program = problem.instance, problem.levels, problem.program()
    after, before = attained(instance, levels, changed), attained(instance, levels, optimal)
    largest = dict.fromkeys(after, float(instance.batch_size)) | {
        one.name: largest_level(program, one.weights(instance.workload).ravel()) for one in levels.limits
    }
    for name, level in after.items():
        limit = levels.limit(name)
        if limit is not None and level > max(limit, before[name]) + SAME_LEVEL * largest[name]:
            return False
    paid, least = (
        sum(levels.cost(name, level) for name, level in found.items()) for found in (after, before)
    )
    return paid <= least + SAME_LEVEL * program.value_scale


def _least_uneven(
    solution: Solution, point: Float[np.ndarray, " columns"], tokens: Float[np.ndarray, " classes"]
) -> tuple[np.ndarray, np.ndarray]:
    """y_m and y_s of the optimal plan with the flows of `point`, with as many solo decodes as can be, and
    then the y_s nearest to proportion: with the smallest largest deviation, then the smallest sum of
    deviations, then the largest for class 0, class 1, ..."""
    instance, program = solution.problem.instance, solution.program
    n, face = instance.n_classes, solution.optimum.face
    # Further variables: the deviations, and the largest of them. Right-hand sides play no part in moves.
    wider = with_variables(program, np.zeros(n + 1), np.full(n + 1, float(instance.batch_size)))
    units, none = np.eye(len(wider.value)), np.zeros(n)
    x, _, y_solo, _, q_decode = np.split(units[: len(VARIABLES) * n], len(VARIABLES))
    deviation, largest = units[-n - 1 : -1], units[-1]
    uneven = y_solo - (tokens / tokens.sum())[:, None] * y_solo.sum(axis=0)
    wider = with_rows(
        wider,
        Row("x", x, none, equality=True),
        Row("q_decode", q_decode, none, equality=True),
        Row("above", uneven - deviation, none, equality=False),
        Row("below", -uneven - deviation, none, equality=False),
        Row("largest deviation", deviation - largest, none, equality=False),
    )
    columns = len(program.value)
    variables = np.append(program.variables(point), np.zeros(n + 1))
    variables[columns:-1] = np.abs(uneven @ variables)
    variables[-1] = variables[columns:-1].max()
    start = np.concatenate([variables / wider.scale, point[columns:], np.zeros(3 * n)])
    start[-3 * n :] = -(wider.standard.matrix[-3 * n :] @ start)
    face = np.concatenate([face[:columns], np.ones(n + 1, bool), face[columns:], np.ones(3 * n, bool)])
    objectives = [y_solo.sum(axis=0), -largest, -deviation.sum(axis=0), *y_solo]
    best = wider.standard.successively(start, face, [wider.columns(weight) for weight in objectives])
    y_solo = wider.variables(best)[2 * n : 3 * n]
    return _mixed_decodes(instance, tokens, y_solo), y_solo
