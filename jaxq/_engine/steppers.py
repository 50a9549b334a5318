"""The two ways in which the cluster engine moves through time."""

from __future__ import annotations

import abc
from typing import Any

import equinox as eqx
import numpy as np

from .._errors import InputError
from .._instance import Instance
from .._policy.base import Policy

EVENTS_PER_STEP = 0.5
"""Largest expected number of events on one GPU in a step of `Leap`, when it chooses its step itself."""

EVENTS_PER_STEP_BUFFERED = 0.25
"""The same for policies without a partition that let finished requests wait: whether a GPU starts a prefill
or serves its buffer then hangs on the order of arrivals and completions, which a step does not keep."""


class AbstractStepper(eqx.Module):
    """How one step samples what happens; the policy does not know which stepper runs it."""

    @abc.abstractmethod
    def describe(self, instance: Instance, policy: Policy) -> str:
        """One line: what it is, and the step it takes on this instance."""


class Exact(AbstractStepper):
    """The jump chain of the model, one event at a time: its exact law."""

    def describe(self, instance: Instance, policy: Policy) -> str:
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

    def step_of(self, instance: Instance, policy: Policy) -> float:
        """The step used on an instance, s."""
        if self.dt is None:
            return choose_dt(instance, policy)
        longest = 1.0 / largest_gpu_rate(instance)
        if self.dt > longest:
            raise InputError(
                f"dt: {self.dt:g} s is too long for this instance, whose GPUs can see {1 / longest:.3g} "
                f"events a second; at most {longest:.3g} s"
            )
        return float(self.dt)

    def describe(self, instance: Instance, policy: Policy) -> str:
        step = self.step_of(instance, policy)
        if self.dt is not None:
            return f"leap, dt = {step:.4g} s"
        return (
            f"leap, dt = {step:.4g} s, chosen: {events_per_step(policy):g} expected events of the busiest GPU"
        )


def largest_gpu_rate(instance: Instance) -> float:
    """Largest total event rate of one GPU, 1/s: a prefill of the quickest class and B - 1 decodes, or B
    decodes."""

    def top(rates: Any) -> float:
        return float(np.max(np.asarray(rates)))

    batch = float(instance.batch_size)
    busy = top(instance.mu_prefill) + (batch - 1) * top(instance.mu_mixed)
    return max(busy, batch * top(instance.mu_solo))


def events_per_step(policy: Policy) -> float:
    """Largest expected number of events on one GPU in a step that `Leap` chooses for a policy."""
    buffered = policy.partition is None and policy.router.buffers
    return EVENTS_PER_STEP_BUFFERED if buffered else EVENTS_PER_STEP


def choose_dt(instance: Instance, policy: Policy) -> float:
    """The default step of `Leap`, s: `events_per_step` over the largest total event rate of a GPU."""
    return events_per_step(policy) / largest_gpu_rate(instance)
