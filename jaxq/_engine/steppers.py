"""The two ways in which the cluster engine moves through time."""

from __future__ import annotations

import abc
from typing import Any

import equinox as eqx
import numpy as np

from .._errors import InputError
from .._instance import Instance

EVENTS_PER_STEP = 0.5
"""Largest expected number of events on one GPU in a step of `Leap`, when it chooses its step itself."""


class AbstractStepper(eqx.Module):
    """How one step samples what happens; the policy does not know which stepper runs it."""

    @abc.abstractmethod
    def describe(self, instance: Instance) -> str:
        """One line: what it is, and the step it takes on this instance."""


class Exact(AbstractStepper):
    """The jump chain of the model, one event at a time: its exact law."""

    def describe(self, instance: Instance) -> str:
        return "exact jump chain"


class Leap(AbstractStepper):
    """Time steps of `dt` seconds, at most one event on each GPU in a step: weak error O(dt).

    Service, patience and arrivals keep their exact means; what is lost is the order of events within a
    step. It never breaks capacity, conservation or the sign of a count.

    **Arguments:** `dt`: step, s; None: chosen from the instance's rates (`choose_dt`).

    **Raises:** `InputError` when `dt` is not positive; when running, if it is so long that the expected
    events of a GPU in a step can exceed one.
    """

    dt: float | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        if self.dt is not None and not (np.isfinite(self.dt) and self.dt > 0):
            raise InputError(f"dt: expected a positive number of seconds, got {self.dt:g}")

    def step_of(self, instance: Instance) -> float:
        """The step used on an instance, s."""
        if self.dt is None:
            return choose_dt(instance)
        longest = 1.0 / largest_gpu_rate(instance)
        if self.dt > longest:
            raise InputError(
                f"dt: {self.dt:g} s is too long for this instance, whose GPUs can see {1 / longest:.3g} "
                f"events a second; at most {longest:.3g} s"
            )
        return float(self.dt)

    def describe(self, instance: Instance) -> str:
        chosen = (
            "" if self.dt is not None else f", chosen: {EVENTS_PER_STEP:g} expected events of the busiest GPU"
        )
        return f"leap, dt = {self.step_of(instance):.4g} s{chosen}"


def largest_gpu_rate(instance: Instance) -> float:
    """Largest total event rate of one GPU, 1/s: a prefill of the quickest class and B - 1 decodes, or B
    decodes."""

    def top(rates: Any) -> float:
        return float(np.max(np.asarray(rates)))

    batch = float(instance.batch_size)
    busy = top(instance.mu_prefill) + (batch - 1) * top(instance.mu_mixed)
    return max(busy, batch * top(instance.mu_solo))


def choose_dt(instance: Instance) -> float:
    """The default step of `Leap`, s: `EVENTS_PER_STEP` over the largest total event rate of a GPU."""
    return EVENTS_PER_STEP / largest_gpu_rate(instance)
