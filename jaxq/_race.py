"""Several starts tuned together: which of them climb, how far, and what is kept in the end."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ._ascent import Ascent, Climb, Report
from ._policy.base import Policy
from ._policy.parameters import parameter_scales, parameters, with_parameters


@dataclass(frozen=True)
class Pick:
    """A policy, its value on the validation replications, the start (by number) that it comes from, and what
    its log-odds were multiplied by after they were found."""

    policy: Policy
    value: float
    start: int
    factor: float = 1.0


@dataclass(frozen=True)
class Race:
    """The best `entrants` starts climb to `trial_steps`, and the best `finalists` of these to `steps`.

    Soft choices are good for slopes and cost a little value. So a start counts for what it is worth with its
    log-odds multiplied by the last of `sharper`, where that is more; and the winner is tried with each of
    these factors.
    """

    ascent: Ascent
    steps: int
    trial_steps: int
    entrants: int
    finalists: int
    sharper: tuple[float, ...]

    def run(self, climbs: list[Climb], report: Report) -> Pick:
        """Let them climb; the best policy met.

        A climb's best value only grows, and starts are ranked by what they are worth at step 0: an
        interrupted race has the same entrants and finalists when it goes on.
        """
        sharp = [pick for k, climb in enumerate(climbs) for pick in self._sharper(k, climb.start, last=True)]
        entrants = range(len(climbs))
        if len(climbs) > self.entrants:
            for climb in climbs:
                self.ascent.climb(climb, 0, report)
            worth = [climb.checks[0].value for climb in climbs]
            for pick in sharp:
                worth[pick.start] = max(worth[pick.start], pick.value)
            entrants = sorted(entrants, key=lambda k: -worth[k])[: self.entrants]
        if len(entrants) > self.finalists:
            for k in entrants:
                self.ascent.climb(climbs[k], min(self.trial_steps, self.steps), report)
        for k in sorted(entrants, key=lambda k: -climbs[k].best_value)[: self.finalists]:
            self.ascent.climb(climbs[k], self.steps, report)
        picks = [Pick(climb.policy, climb.best_value, k) for k, climb in enumerate(climbs)] + sharp
        best = max(picks, key=lambda pick: pick.value)
        more = self._sharper(best.start, best.policy) if best.factor == 1.0 else []
        return max([best, *more], key=lambda pick: pick.value)

    def _sharper(self, start: int, policy: Policy, last: bool = False) -> list[Pick]:
        """A policy with its log-odds multiplied, valued on the validation replications."""
        factors = self.sharper[-1:] if last else self.sharper
        made = [sharpened(policy, factor) for factor in factors]
        if not made:
            return []
        values = self.ascent.validation.values(made, self.ascent.replications).mean(axis=1).tolist()
        tried = zip(made, values, factors, strict=True)
        return [Pick(policy, value, start, factor) for policy, value, factor in tried]


def sharpened(policy: Policy, factor: float) -> Policy:
    """The policy with all parameters multiplied, but for those that are no log-odds (they have a scale)."""
    factors = np.where(parameter_scales(policy) == 1.0, factor, 1.0)
    return with_parameters(policy, parameters(policy) * factors)
