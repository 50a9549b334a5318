"""The steady-state planning LP of an instance, as written ([Lin26] eq. 40, 42)."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from ._instance import Instance
from ._linear_program import LinearProgram, Row

VARIABLES = ("x", "y_mixed", "y_solo", "q_prefill", "q_decode")
"""The blocks of variables, one of each a class: running prefills, decodes beside a prefill and without one,
requests waiting for prefill and for decode; all per GPU."""

SLOTS = ("prefill_slots", "mixed_decode_slots", "solo_decode_slots")
"""The rows of capacity."""


def planning_program(
    instance: Instance, scheme: str, no_decode_queue: bool = False, growing_queues: bool = False
) -> LinearProgram:
    """The planning LP on `VARIABLES`, a block of classes each; with `no_decode_queue` also q_d = 0.

    A class that never abandons has no q: with `growing_queues` its columns there hold the rate (1/s) at which
    its queue grows, else they are 0.
    """
    patience = instance.workload.patience_rate
    loss_rate = np.where(patience > 0, patience, 1.0)
    may_lose = (patience > 0) | growing_queues
    always = np.ones(instance.n_classes, dtype=bool)
    rows = _slot_rows(instance) + _balance_rows(instance, loss_rate)
    return LinearProgram(
        value=_earnings(instance, scheme),
        rows=rows + (_no_decode_queue_rows(instance),) if no_decode_queue else rows,
        scale=_scale(instance, loss_rate),
        allowed=np.concatenate([always, always, always, may_lose, may_lose]),
    )


def _earnings(instance: Instance, scheme: str) -> Float[np.ndarray, " variables"]:
    """Money per second that one unit of each variable earns: eq. 40 (bundled), eq. 42 (separate)."""
    zeros = np.zeros(instance.n_classes)
    prefill = instance.prefill_value * instance.mu_prefill if scheme == "separate" else zeros
    value = instance.decode_value if scheme == "separate" else instance.request_value
    return np.concatenate([prefill, value * instance.mu_mixed, value * instance.mu_solo, zeros, zeros])


def _slot_rows(instance: Instance) -> tuple[Row, ...]:
    """Capacity (eq. 12-14, divided by n)."""
    ones, zeros = np.ones(instance.n_classes), np.zeros(instance.n_classes)
    batch_size = float(instance.batch_size)

    def row(name: str, x: float, y_mixed: float, y_solo: float, right: float) -> Row:
        coefficients = np.concatenate([x * ones, y_mixed * ones, y_solo * ones, zeros, zeros])[None]
        return Row(name, coefficients, np.array([right]), equality=False)

    return (
        row(SLOTS[0], 1.0, 0.0, 0.0, 1.0),
        row(SLOTS[1], 1.0 - batch_size, 1.0, 0.0, 0.0),
        row(SLOTS[2], batch_size, 0.0, 1.0, batch_size),
    )


def _balance_rows(instance: Instance, loss_rate: Float[np.ndarray, " classes"]) -> tuple[Row, ...]:
    """What enters a stage leaves it (eq. 40): a right-hand side is an arrival rate from outside."""
    none = np.zeros((instance.n_classes, instance.n_classes))
    prefill, mixed, solo = (np.diag(mu) for mu in (instance.mu_prefill, instance.mu_mixed, instance.mu_solo))
    loss = np.diag(loss_rate)
    arrivals = instance.workload.arrival_rate
    return (
        Row("prefill_balance", np.hstack([prefill, none, none, loss, none]), arrivals, equality=True),
        Row("decode_balance", np.hstack([-prefill, mixed, solo, none, loss]), 0.0 * arrivals, equality=True),
    )


def _no_decode_queue_rows(instance: Instance) -> Row:
    """q_d <= 0, class by class: rows rather than absent columns, so that each has a price."""
    classes = instance.n_classes
    coefficients = np.hstack([np.zeros((classes, 4 * classes)), np.eye(classes)])
    return Row("no_decode_queue", coefficients, np.zeros(classes), equality=False)


def _scale(instance: Instance, loss_rate: Float[np.ndarray, " classes"]) -> Float[np.ndarray, " variables"]:
    """The largest value that each variable can take by its own class's flow and its own stage's slots."""
    arrivals = instance.workload.arrival_rate
    x = np.minimum(1.0, arrivals / instance.mu_prefill)
    flow = x * instance.mu_prefill
    y_mixed = np.minimum(instance.batch_size, flow / instance.mu_mixed)
    y_solo = np.minimum(instance.batch_size, flow / instance.mu_solo)
    return np.concatenate([x, y_mixed, y_solo, arrivals / loss_rate, flow / loss_rate])
