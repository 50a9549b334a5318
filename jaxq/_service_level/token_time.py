"""The mean time per output token over decode slots ([Lin26] eq. 47)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from .._instance import Instance

SAME_TIME = 1e-12
"""Relative difference below which a mixed and a solo iteration take the same time."""


def slot_time(instance: Instance, mixed: Any, solo: Any) -> tuple[Any, Any]:
    """Summed iteration time of decode slots, s, and their number, whose ratio is the mean time per token.

    **Arguments:** `mixed`, `solo`: slots on GPUs that run a prefill, and on GPUs that do not; all of them
    (eq. 47), or those that are occupied.
    """
    tau, tau_solo = float(instance.mixed_iteration_time), float(instance.iteration_time.solo)
    return tau * mixed + tau_solo * solo, mixed + solo


def emission(instance: Instance, mixed: Any, solo: Any) -> tuple[Any, Any]:
    """Decodes and the tokens per second that they emit, whose ratio is the time of an emitted token.

    **Arguments:** `mixed`, `solo`: decodes on GPUs that run a prefill, and on GPUs that do not.
    """
    tau, tau_solo = float(instance.mixed_iteration_time), float(instance.iteration_time.solo)
    return mixed + solo, mixed / tau + solo / tau_solo


@dataclass(frozen=True)
class TokenTime:
    """Mean time per output token over all decode slots, s, where a share X of the GPUs runs a prefill.

    (tau (B - 1) X + B (1 - X) / gamma) / ((B - 1) X + B (1 - X)) (eq. 47): from 1/gamma at X = 0 to tau at
    X = 1; convex where gamma tau > 1, else concave.
    """

    instance: Instance

    @property
    def _batch_size(self) -> float:
        return float(self.instance.batch_size)

    @property
    def bend(self) -> float:
        """B (B - 1) (tau - 1/gamma), s: the slope at X times (B - X)^2; 0 where the times are the same."""
        tau, tau_solo = float(self.instance.mixed_iteration_time), float(self.instance.iteration_time.solo)
        difference = tau - tau_solo if abs(tau - tau_solo) > SAME_TIME * tau_solo else 0.0
        return self._batch_size * (self._batch_size - 1) * difference

    def at(self, share: float) -> float:
        """The mean time at X = `share`, s."""
        total, slots = self.parts(share)
        return total / slots

    def parts(self, share: Any) -> tuple[Any, Any]:
        """Numerator and denominator of eq. 47."""
        return slot_time(self.instance, (self._batch_size - 1) * share, self._batch_size * (1 - share))

    def slope(self, share: float) -> float:
        """Its derivative by X, s."""
        return self.bend / (self._batch_size - share) ** 2

    def share_of_slope(self, slope: float) -> float:
        """The X that has a slope (of the sign of `bend`), possibly outside 0 to 1."""
        return self._batch_size - math.sqrt(self.bend / slope)

    def share_of(self, time: float) -> float:
        """The X from 0 to 1 at which the mean time is `time`, or comes closest to it."""
        shortest, longest = sorted((self.at(0.0), self.at(1.0)))
        if self.bend == 0 or not shortest < time < longest:
            return float((time >= longest) == (self.bend > 0))
        # The mean time is solo + (bend / B) X / (B - X), so that X = B u / (1 + u) for u as below.
        u = (time - self.at(0.0)) * self._batch_size / self.bend
        return self._batch_size * u / (1 + u)
