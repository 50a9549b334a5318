"""What a policy keeps of the service levels: measured values beside planned ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .._instance import Instance
from .._statistics import Estimate, ratio_estimate, spread_estimate
from .levels import INDICATORS, ServiceLevels
from .program import attained
from .token_time import TokenTime, emission, slot_time

if TYPE_CHECKING:
    from .._plan import Plan

_SLOTS, _EMITTED = "time_per_token_slot", "time_per_token_emitted"


@dataclass(frozen=True)
class MeasuredLevel:
    """A service level of a policy beside that of a plan.

    - `planned`, `measured`: its value in the plan, and in the long run under the policy.
    - `limit`: the limit on it that the plan was made under; None for none.
    - `unit`: of all three; empty for a further limit, whose coefficients have it.
    """

    planned: float
    measured: Estimate
    limit: float | None
    unit: str

    def to_dict(self) -> dict[str, Any]:
        """For JSON: planned, limit, unit, and measured as an `Estimate` gives it."""
        return {
            "planned": self.planned,
            "limit": self.limit,
            "unit": self.unit,
            "measured": self.measured.to_dict(),
        }


def measured_levels(
    instance: Instance, plan: Plan, samples: Callable[[str], np.ndarray]
) -> dict[str, MeasuredLevel]:
    """Every level, and both measures of the time per token over decodes, by name; see
    `Result.service_levels`.

    **Arguments:** `samples`: of a quantity of `Result` by name, shape `(samples, classes)`.
    """
    levels = plan.service_levels or ServiceLevels()
    occupancies = (plan.x, plan.y_mixed, plan.y_solo, plan.q_prefill, plan.q_decode)
    planned = attained(instance, levels, occupancies)
    mixed, solo = float(plan.y_mixed.sum()), float(plan.y_solo.sum())
    for name, (top, bottom) in _token_times(instance, mixed, solo).items():
        planned[name] = top / bottom if bottom > 0 else float("nan")
    measured = _measured(instance, levels, samples)
    return {
        name: MeasuredLevel(
            planned[name],
            measured[name],
            levels.limit(name) if name in levels.names else None,
            "s" if name in (_SLOTS, _EMITTED) else levels.unit(name),
        )
        for name in (*INDICATORS, _SLOTS, _EMITTED, *(one.name for one in levels.limits))
    }


def _measured(
    instance: Instance, levels: ServiceLevels, samples: Callable[[str], np.ndarray]
) -> dict[str, Estimate]:
    """The estimate of every level and time per token, by name."""
    names = ("prefills", "decodes_mixed", "decodes_solo", "prefill_queue", "decode_queue")
    occupancies = [samples(name) for name in names]
    x, y_mixed, y_solo, _, _ = occupancies
    times = {
        "time_per_output_token": TokenTime(instance).parts(x.sum(axis=-1)),
        **_token_times(instance, y_mixed.sum(axis=-1), y_solo.sum(axis=-1)),
    }
    further = {one.name: one.level(instance.workload, occupancies) for one in levels.limits}
    return {
        "prefill_fairness": spread_estimate(x),
        "decode_fairness": spread_estimate(y_solo),
        **{name: ratio_estimate(*parts) for name, parts in times.items()},
        **{name: Estimate.from_samples(level) for name, level in further.items()},
    }


def _token_times(instance: Instance, mixed: Any, solo: Any) -> dict[str, tuple[Any, Any]]:
    """Both times per token of decodes, as ratios."""
    return {_SLOTS: slot_time(instance, mixed, solo), _EMITTED: emission(instance, mixed, solo)}
