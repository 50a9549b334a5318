"""The long-run law of a chain from a given state, by global balance."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64
from scipy import sparse
from scipy.sparse import csgraph
from scipy.sparse.linalg import LinearOperator, gmres, splu

from .._errors import InputError

SMALL = 2_000
"""Systems of at most this size are factorised; the factors of larger ones fill in."""

ACCURACY = 1e-10

RESIDUAL = 1e-9
"""Largest imbalance that a law may leave, relative to the fastest state."""


def stationary_law(rates: sparse.csr_array, field: str) -> Float64[np.ndarray, " states"]:
    """The share of time that the chain spends in each state in the long run, from state 0.

    **Arguments:** `rates`: from each state (row) to each other, 1/s; `field`: what an error is about.

    **Raises:** `InputError` when the chain can end up in several sets of states that it never leaves, or when
    balance cannot be solved.
    """
    recurrent = _recurrent(rates, field)
    law = np.zeros(len(rates.indptr) - 1)
    inner = rates[recurrent][:, recurrent].tocsr()
    inner.setdiag(0)
    out = np.asarray(inner.sum(axis=1)).ravel()
    if len(recurrent) == 1:
        law[recurrent] = 1.0
        return law
    generator = (inner.T - sparse.diags_array(out)).tocsc()
    found = _solve(generator)
    imbalance = np.abs(generator @ found).max() / out.max()
    if not (imbalance < RESIDUAL and found.min() > -RESIDUAL):
        raise InputError(f"{field}: global balance was not solved; expected rates of more similar sizes")
    law[recurrent] = np.maximum(found, 0.0)
    return law / law.sum()


def _recurrent(rates: sparse.csr_array, field: str) -> np.ndarray:
    """The states to which the chain always returns, in the order of their distance from state 0."""
    reached = csgraph.breadth_first_order(rates, 0, return_predecessors=False)
    inner = rates[reached][:, reached].tocoo()
    count, component = csgraph.connected_components(inner, directed=True, connection="strong")
    left = component[inner.row] != component[inner.col]
    closed = np.setdiff1d(np.arange(count), component[inner.row[left]])
    if len(closed) > 1:
        raise InputError(
            f"{field}: the cluster can end up in {len(closed)} sets of states that it never leaves; "
            "expected one (a positive patience_rate suffices)"
        )
    return reached[component == closed[0]]


def _solve(generator: sparse.csc_array) -> Float64[np.ndarray, " states"]:
    """The law of an irreducible generator (column: from)."""
    # Balance in one state follows from the others; give it weight 1 and solve for the rest.
    matrix, right = generator[1:, 1:].tocsc(), -generator[1:, [0]].toarray().ravel()
    if len(right) <= SMALL:
        rest = splu(matrix).solve(right)
    else:
        # One sweep of Gauss-Seidel in the order of distance preconditions well: most events change a count by
        # one.
        lower = sparse.tril(matrix).tocsc()
        options = {"Equil": False}
        sweep = splu(lower, permc_spec="NATURAL", diag_pivot_thresh=0.0, options=options)
        preconditioner = LinearOperator(matrix.shape, sweep.solve)
        rest, _ = gmres(matrix, right, rtol=ACCURACY, restart=60, maxiter=40, M=preconditioner)
    law = np.concatenate([[1.0], rest])
    return law / law.sum()
