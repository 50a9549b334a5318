"""Small linear programs on the host, solved by HiGHS: optimum, optimal face, uniqueness, shadow prices.

The work is done on the standard form: maximise `value @ z` over `matrix @ z = right`, z >= 0, in which every
inequality has a slack column of its own. There the face of all optima is exactly "the columns with a positive
reduced cost are 0", whichever optimal dual solution the reduced costs come from. Successive objectives and
the test of uniqueness therefore drop columns and never add a row "value within a tolerance of the optimum",
which would be ill-conditioned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.optimize import linprog

FACE_TOLERANCE = 1e-11
"""A reduced cost below this, relative to its terms or to the objective's largest coefficient, counts as 0."""

SUPPORT_TOLERANCE = 1e-8
"""A column below this (its largest conceivable value is about 1) counts as 0."""

RANK_TOLERANCE = 1e-9
"""A singular value below this, relative to the largest, counts as 0."""

PRICE_TOLERANCE = 1e-13
"""A dual value below this (rows and objective have a largest coefficient of 1) is a rounding error."""

_INFEASIBLE = 2


class InfeasibleError(Exception):
    """No point meets every row of a linear program."""


class SolverError(Exception):
    """HiGHS gave up; the message is its own."""


@dataclass(frozen=True)
class Optimum:
    """An optimal point of a standard form, a dual solution, and the face of all optima.

    **Arguments:**

    - `point`: an optimal vertex.
    - `objective`: its value.
    - `dual`: the derivative of the value by each entry of `right`.
    - `face`: the columns that may be positive at an optimum.
    """

    point: Float[np.ndarray, " columns"]
    objective: float
    dual: Float[np.ndarray, " rows"]
    face: Bool[np.ndarray, " columns"]


@dataclass(frozen=True)
class StandardForm:
    """Maximise `value @ z` over `matrix @ z = right`, z >= `lower` (0 or -inf); z is 0 unless `allowed`."""

    value: Float[np.ndarray, " columns"]
    matrix: Float[np.ndarray, "rows columns"]
    right: Float[np.ndarray, " rows"]
    lower: Float[np.ndarray, " columns"]
    allowed: Bool[np.ndarray, " columns"]

    def maximise(self) -> Optimum:
        """One optimum, by the dual simplex method. **Raises:** `InfeasibleError`, `SolverError`."""
        columns = np.flatnonzero(self.allowed)
        solution = self._solved(columns, presolve=True)
        if not solution.success and solution.status != _INFEASIBLE:
            # The presolver sometimes gives up on degenerate programs that the simplex method solves.
            solution = self._solved(columns, presolve=False)
        if solution.status == _INFEASIBLE:
            raise InfeasibleError
        if not solution.success:
            raise SolverError(" ".join(str(solution.message).split()))
        point = np.zeros(len(self.value))
        point[columns] = np.maximum(solution.x, self.lower[columns])
        dual = -np.asarray(solution.eqlin.marginals, dtype=np.float64)
        terms = np.abs(self.matrix).T @ np.abs(dual) + np.abs(self.value)
        free_of_cost = self.matrix.T @ dual - self.value <= FACE_TOLERANCE * np.maximum(terms, 1.0)
        # A column that the optimum uses is on the face, whatever rounding makes of its reduced cost.
        face = self.allowed & (free_of_cost | (point > self.lower))
        return Optimum(point, float(self.value @ point), dual, face)

    def _solved(self, columns: Int[np.ndarray, " allowed"], presolve: bool) -> Any:
        """What HiGHS says of the program on some columns."""
        tolerance = 1e-10
        return linprog(
            -self.value[columns],
            A_eq=self.matrix[:, columns],
            b_eq=self.right,
            bounds=np.stack([self.lower[columns], np.full(len(columns), np.inf)], axis=1),
            method="highs-ds",
            options={
                "primal_feasibility_tolerance": tolerance,
                "dual_feasibility_tolerance": tolerance,
                "presolve": presolve,
            },
        )

    def best_move(self, point: np.ndarray, face: np.ndarray, objective: np.ndarray) -> Optimum:
        """The best feasible point on a face, reached from `point` on it.

        The program is one of moves, whose right-hand side is 0: rounding errors of `point` cannot make it
        infeasible.
        """
        moves = replace(
            self,
            value=objective / (np.abs(objective).max(initial=0.0) or 1.0),
            right=np.zeros(len(self.right)),
            lower=self.lower - point,
            allowed=face,
        )
        move = moves.maximise()
        return replace(move, point=np.maximum(point + move.point, self.lower))

    def successively(
        self, point: np.ndarray, face: np.ndarray, objectives: Sequence[np.ndarray]
    ) -> Float[np.ndarray, " columns"]:
        """The point of a face that is best for the first objective, among those for the second, and so on."""
        for objective in objectives:
            best = self.best_move(point, face, objective)
            point, face = best.point, best.face
        return point

    def support(self, optimum: Optimum) -> Bool[np.ndarray, " columns"]:
        """The columns that are positive somewhere on the face of all optima (strict complementarity).

        Every round maximises the sum of the columns not yet seen positive; none left above 0 ends the search.
        """
        positive = optimum.point > SUPPORT_TOLERANCE
        while (unseen := optimum.face & ~positive).any():
            point = self.best_move(optimum.point, optimum.face, unseen.astype(np.float64)).point
            found = unseen & (point > SUPPORT_TOLERANCE)
            if not found.any():
                break
            positive |= found
        return positive

    def directions(self, support: Bool[np.ndarray, " columns"]) -> Float[np.ndarray, "columns directions"]:
        """A basis of the directions within the face of all optima; none when the optimum is unique."""
        within = _null_space(self.matrix[:, support])
        basis = np.zeros((len(self.value), within.shape[1]))
        basis[support] = within
        return basis

    def dual_directions(self, support: Bool[np.ndarray, " columns"]) -> Float[np.ndarray, "rows directions"]:
        """The same for the dual: moves of the prices that leave every column of the support at cost."""
        return _null_space(self.matrix[:, support].T)

    def best_dual(
        self,
        optimum: Optimum,
        support: Bool[np.ndarray, " columns"],
        objectives: Sequence[Float[np.ndarray, " rows"]],
    ) -> Float[np.ndarray, " rows"]:
        """The optimal dual solution best for the first objective, among those for the second, and so on.

        It moves the optimum's own dual solution along its directions, while the reduced costs outside the
        support, which are the columns after the moves, stay at least 0.
        """
        basis = self.dual_directions(support)
        others = self.allowed & ~support
        n_moves, n_costs = basis.shape[1], int(others.sum())
        moves = StandardForm(
            value=np.zeros(n_moves + n_costs),
            matrix=np.concatenate([self.matrix[:, others].T @ basis, -np.eye(n_costs)], axis=1),
            right=np.zeros(n_costs),
            lower=np.repeat([-np.inf, 0.0], [n_moves, n_costs]),
            allowed=np.ones(n_moves + n_costs, dtype=bool),
        )
        reduced_cost = np.maximum(self.matrix.T @ optimum.dual - self.value, 0.0)[others]
        start = np.concatenate([np.zeros(n_moves), reduced_cost])
        weights = [
            np.concatenate([objective @ basis, np.zeros(n_costs)]) for objective in varying(objectives, basis)
        ]
        return optimum.dual + basis @ moves.successively(start, moves.allowed, weights)[:n_moves]


def varying(objectives: Sequence[np.ndarray], directions: np.ndarray) -> list[np.ndarray]:
    """The objectives that change along some direction; on others a program would optimise rounding errors."""
    return [
        objective
        for objective in objectives
        if np.abs(objective @ directions).max(initial=0.0)
        > RANK_TOLERANCE * np.abs(objective).max(initial=0.0)
    ]


def _null_space(matrix: Float[np.ndarray, "rows columns"]) -> Float[np.ndarray, "columns null"]:
    """An orthonormal basis of the vectors that `matrix` maps to 0."""
    if 0 in matrix.shape:
        return np.eye(matrix.shape[1])
    _, singular, directions = np.linalg.svd(matrix)
    return directions[int((singular > RANK_TOLERANCE * singular[0]).sum()) :].T


@dataclass(frozen=True)
class Row:
    """A named block of constraints `coefficients @ variables <= right` (or `=`).

    Its shadow price is the derivative of the optimal value by `right`.
    """

    name: str
    coefficients: Float[np.ndarray, "rows columns"]
    right: Float[np.ndarray, " rows"]
    equality: bool


@dataclass(frozen=True)
class LinearProgram:
    """Maximise `value @ variables` over named rows, for variables >= 0; scaled for the solver only.

    **Arguments:**

    - `value`: the objective, in the units of the variables, as are the rows.
    - `rows`: the constraints.
    - `scale`: the largest conceivable size of each variable, positive. The solver sees variables / scale, and
      rows and objective divided by their largest coefficient.
    - `allowed`: which variables may be positive.
    """

    value: Float[np.ndarray, " variables"]
    rows: tuple[Row, ...]
    scale: Float[np.ndarray, " variables"]
    allowed: Bool[np.ndarray, " variables"]

    @cached_property
    def _inequality(self) -> Bool[np.ndarray, " rows"]:
        return np.concatenate([np.full(len(row.right), not row.equality) for row in self.rows])

    @cached_property
    def _coefficients(self) -> Float[np.ndarray, "rows variables"]:
        return np.concatenate([row.coefficients for row in self.rows]) * self.scale

    @cached_property
    def _row_scale(self) -> Float[np.ndarray, " rows"]:
        largest = np.abs(self._coefficients[:, self.allowed]).max(axis=1, initial=0.0)
        return np.where(largest > 0, largest, 1.0)

    @cached_property
    def value_scale(self) -> float:
        """The largest coefficient of the scaled objective."""
        return float(np.abs(self.value * self.scale)[self.allowed].max(initial=0.0)) or 1.0

    @cached_property
    def standard(self) -> StandardForm:
        """The scaled program, its slack columns after the variables."""
        slack = np.eye(len(self._row_scale))[:, self._inequality]
        matrix = np.concatenate([self._coefficients / self._row_scale[:, None], slack], axis=1)
        return StandardForm(
            value=self.columns(self.value) / self.value_scale,
            matrix=matrix,
            right=np.concatenate([row.right for row in self.rows]) / self._row_scale,
            lower=np.zeros(matrix.shape[1]),
            allowed=np.concatenate([self.allowed, np.ones(slack.shape[1], dtype=bool)]),
        )

    def optimal_value(self) -> float:
        """The largest value, in its own unit. **Raises:** `InfeasibleError`, `SolverError`."""
        return self.standard.maximise().objective * self.value_scale

    def columns(self, weights: Float[np.ndarray, " variables"]) -> Float[np.ndarray, " columns"]:
        """A linear function of the variables as one of the standard form's columns."""
        return np.concatenate([weights * self.scale, np.zeros(int(self._inequality.sum()))])

    def variables(self, point: Float[np.ndarray, " columns"]) -> Float[np.ndarray, " variables"]:
        """The variables at a point of the standard form, without rounding errors below 0."""
        return np.maximum(point[: len(self.scale)], 0.0) * self.scale

    def prices(self, dual: Float[np.ndarray, " rows"]) -> dict[str, np.ndarray]:
        """Shadow prices by name of the rows, from a dual solution of the standard form."""
        natural = np.where(np.abs(dual) > PRICE_TOLERANCE, dual, 0.0) * self.value_scale / self._row_scale
        ends = np.cumsum([len(row.right) for row in self.rows])
        return dict(zip((row.name for row in self.rows), np.split(natural, ends[:-1]), strict=True))

    def best_prices(
        self,
        optimum: Optimum,
        support: Bool[np.ndarray, " columns"],
        objectives: Sequence[dict[str, np.ndarray]],
    ) -> dict[str, np.ndarray]:
        """The shadow prices best for the first objective (weights on them, by name), then for the next."""
        natural = self.value_scale / self._row_scale

        def weights(named: dict[str, np.ndarray]) -> np.ndarray:
            blocks = [np.broadcast_to(named.get(row.name, 0.0), row.right.shape) for row in self.rows]
            return np.concatenate(blocks) * natural

        return self.prices(
            self.standard.best_dual(optimum, support, [weights(named) for named in objectives])
        )
