"""The two ways in which an engine moves through time."""

from __future__ import annotations

import abc
from typing import Any

import equinox as eqx
import numpy as np

from .._errors import InputError
from .._instance import Instance


class AbstractStepper(eqx.Module):
    """How one step samples what happens; the policy does not know which stepper runs it."""

    @abc.abstractmethod
    def describe(self, instance: Instance, events: float) -> str:
        """One line: what it is, and the step it takes on this instance; `events` as for `Leap.step_of`."""


class Exact(AbstractStepper):
    """The jump chain of the model, one event at a time: its exact law."""

    def describe(self, instance: Instance, events: float) -> str:
        return "exact jump chain"


class Leap(AbstractStepper):
    """Time steps of `dt` seconds, at most one event on each GPU in a step: weak error O(dt).

    Service, patience and arrivals keep their exact means; what is lost is the order of events within a
    step. It never breaks capacity, conservation or the sign of a count.

    **Arguments:** `dt`: step, s; None: chosen by the engine from the instance's rates.

    **Raises:** `InputError` when `dt` is not positive; when running, if it is so long that the expected
    events of a GPU in a step can exceed one.
    """

    dt: float | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        if self.dt is not None and not (np.isfinite(self.dt) and self.dt > 0):
            raise InputError(f"dt: expected a positive number of seconds, got {self.dt:g}")

    def step_of(self, instance: Instance, events: float) -> float:
        """The step used on an instance, s; when none was given, that in which the busiest GPU expects so many
        `events`."""
        if self.dt is None:
            return events / largest_gpu_rate(instance)
        longest = 1.0 / largest_gpu_rate(instance)
        if self.dt > longest:
            raise InputError(
                f"dt: {self.dt:g} s is too long for this instance, whose GPUs can see {1 / longest:.3g} "
                f"events a second; at most {longest:.3g} s"
            )
        return float(self.dt)

    def describe(self, instance: Instance, events: float) -> str:
        step = self.step_of(instance, events)
        if self.dt is not None:
            return f"leap, dt = {step:.4g} s"
        return f"leap, dt = {step:.4g} s, chosen: {events:g} expected events of the busiest GPU"


def largest_gpu_rate(instance: Instance) -> float:
    """Largest total event rate of one GPU, 1/s: a prefill of the quickest class and B - 1 decodes, or B
    decodes."""

    def top(rates: Any) -> float:
        return float(np.max(np.asarray(rates)))

    batch = float(instance.batch_size)
    busy = top(instance.mu_prefill) + (batch - 1) * top(instance.mu_mixed)
    return max(busy, batch * top(instance.mu_solo))
