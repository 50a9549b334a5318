"""The best share of GPUs that run a prefill under a penalty on the time per output token ([Lin26] eq. 48)."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from .._linear_program import LinearProgram, SolverError
from .program import with_rows
from .tangents import level_row
from .token_time import TokenTime

SAME_OBJECTIVE = 1e-12
"""Relative difference below which an upper bound of the objective is attained."""

MOST_CUTS = 1000


@dataclass(frozen=True)
class Cut:
    """A line in X that the LP's value never exceeds: `value` at `share`, and its slope."""

    share: float
    value: float
    slope: float

    def at(self, share: float) -> float:
        """The line at X = `share`."""
        return self.value + self.slope * (share - self.share)


def best_mixed_share(
    program: LinearProgram, weights: Float[np.ndarray, " variables"], time: TokenTime, penalty: float
) -> float:
    """The X that maximises the program's value at X less `penalty` times the mean time at X (eq. 48).

    The value is concave and piecewise linear in X, so that finitely many tangents of it bound it from above
    and meet it at the maximiser of "least tangent less penalty", which has a closed form whether the mean
    time is convex (a tangent's own maximiser, or where two tangents cross) or concave (crossings only). Of
    several best X that the tangents show, it takes the largest.

    **Arguments:** `weights`: X as a linear function of the program's variables.

    **Raises:** `InfeasibleError`, `SolverError`.
    """
    best = program.standard.maximise()
    start = float(weights @ program.variables(best.point))
    cuts = [Cut(start, best.objective * program.value_scale, 0.0)]
    limits = sorted(_extreme_share(program, weights, sign) for sign in (-1.0, 1.0))
    scale = max(abs(cuts[0].value), penalty * max(time.at(0.0), time.at(1.0)))
    for _ in range(MOST_CUTS):
        share = _maximiser(cuts, time, penalty, limits)
        cut = _cut(program, weights, share)
        if min(line.at(share) for line in cuts) - cut.value <= SAME_OBJECTIVE * scale:
            return share
        cuts.append(cut)
    raise SolverError(f"no best share of GPUs with a prefill after {MOST_CUTS} programs")


def _extreme_share(program: LinearProgram, weights: Float[np.ndarray, " variables"], sign: float) -> float:
    """The least X of the program (`sign` -1), or the largest (1)."""
    extreme = replace(program, value=sign * weights)
    return float(weights @ extreme.variables(extreme.standard.maximise().point))


def _cut(program: LinearProgram, weights: Float[np.ndarray, " variables"], share: float) -> Cut:
    """A tangent of the program's value at X = `share`."""
    row = level_row("mixed share", weights, share)
    fixed = with_rows(program, row)
    optimum = fixed.standard.maximise()
    slope = fixed.prices(optimum.dual)[row.name][0]
    return Cut(share, optimum.objective * fixed.value_scale, float(slope))


def _maximiser(cuts: list[Cut], time: TokenTime, penalty: float, limits: list[float]) -> float:
    """The largest X among those that maximise the least of the lines less the penalty."""
    shares = list(limits)
    for one, other in itertools.combinations(cuts, 2):
        if one.slope != other.slope:
            shares.append(one.share + (other.at(one.share) - one.value) / (one.slope - other.slope))
    if time.bend > 0:
        shares += [time.share_of_slope(cut.slope / penalty) for cut in cuts if cut.slope > 0]
    least, largest = limits
    within = [share for share in shares if least <= share <= largest]
    bounds = {share: min(cut.at(share) for cut in cuts) - penalty * time.at(share) for share in within}
    best = max(bounds.values())
    return max(share for share, bound in bounds.items() if bound >= best - SAME_OBJECTIVE * abs(best))
