"""Several starts tuned together: which of them climb, how far, and what is kept in the end."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ._ascent import Ascent, Climb, Report
from ._gradient.base import Values
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
    """Climbs of at most `steps` steps.

    Soft choices are good for slopes and cost a little value. So a start counts for what it is worth with its
    log-odds multiplied by the last of `Search.sharper`, where that is more; and the winner is tried with each
    of these factors.
    """

    ascent: Ascent
    steps: int

    def run(self, climbs: list[Climb], report: Report) -> Pick:
        """Let them climb; the best policy met.

        A climb's best value only grows, and starts are ranked by what they are worth at step 0: an
        interrupted race has the same entrants and finalists when it goes on.
        """
        search = self.ascent.search
        sharp = [pick for k, climb in enumerate(climbs) for pick in self._screened(k, climb, report)]
        entrants = range(len(climbs))
        if len(climbs) > search.entrants:
            worth = [climb.checks[0].value for climb in climbs]
            for pick in sharp:
                worth[pick.start] = max(worth[pick.start], pick.value)
            entrants = sorted(entrants, key=lambda k: -worth[k])[: search.entrants]
        if len(entrants) > search.finalists:
            for k in entrants:
                self.ascent.climb(climbs[k], min(search.trial_steps, self.steps), report)
        for k in sorted(entrants, key=lambda k: -climbs[k].best_value)[: search.finalists]:
            self.ascent.climb(climbs[k], self.steps, report)
        picks = [Pick(climb.policy, climb.best_value, k) for k, climb in enumerate(climbs)] + sharp
        best = max(picks, key=lambda pick: pick.value)
        soft = best.policy if best.factor == 1.0 else climbs[best.start].start
        return max([best, *self._sharper(best.start, soft)], key=lambda pick: pick.value)

    def _screened(self, start: int, climb: Climb, report: Report) -> list[Pick]:
        """Check a start before its first step, in one run with the sharpest that is made of it."""
        sharpest = self.ascent.search.sharper[-1:]
        values = self.ascent.valued([climb.start, *(sharpened(climb.start, factor) for factor in sharpest)])
        if not climb.checks:
            self.ascent.note_check(climb, values[0])
            report(climb)
        return self._picks(start, climb.start, sharpest, values[1:])

    def _sharper(self, start: int, policy: Policy) -> list[Pick]:
        """A policy with its log-odds multiplied, valued on the validation replications."""
        factors = self.ascent.search.sharper
        if not factors:
            return []
        values = self.ascent.valued([sharpened(policy, factor) for factor in factors])
        return self._picks(start, policy, factors, values)

    def _picks(self, start: int, policy: Policy, factors: tuple[float, ...], values: Values) -> list[Pick]:
        means = values.mean(axis=1).tolist()
        return [
            Pick(sharpened(policy, factor), value, start, factor)
            for factor, value in zip(factors, means, strict=True)
        ]


def sharpened(policy: Policy, factor: float) -> Policy:
    """The policy with all parameters multiplied, but for those that are no log-odds (they have a scale)."""
    factors = np.where(parameter_scales(policy) == 1.0, factor, 1.0)
    return with_parameters(policy, parameters(policy) * factors)
