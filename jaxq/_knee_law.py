"""Least squares for the law with a knee, tau(b) = base + slope * max(0, b - knee) ([Lin26] eq. 1).

The squares are of relative errors, sum_j (law(b_j) / t_j - 1)^2 over the distinct sizes b_j: measured times
span decades, and in seconds the few largest sizes alone would place the knee. Given the knee the problem is
linear in (base, slope), and while the knee stays between two neighbouring sizes it is a mean on the left
and a line on the right, whose crossing is the best knee if it falls between the two. So the minimum over
all knees is the best of finitely many closed forms, one for each gap and one for each size: nothing is
searched, and no start matters.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import stats


class Law(NamedTuple):
    """Coefficients of one or more laws, each of shape `(resamples,)`: s, s/token, tokens."""

    base: np.ndarray
    slope: np.ndarray
    knee: np.ndarray


_BLOCK = 2**19
"""Numbers in one array of a block of resamples: the bootstrap of thousands of sizes stays within 200 MB."""


def evaluate(law: Law, tokens: Float[np.ndarray, " sizes"]) -> Float[np.ndarray, "resamples sizes"]:
    """The laws' times at these sizes, s."""
    base, slope, knee = (np.asarray(value)[:, None] for value in law)
    return base + slope * np.maximum(0.0, tokens - knee)


def fit(tokens: Float[np.ndarray, " sizes"], times: Float[np.ndarray, "resamples sizes"]) -> Law:
    """The law with the least sum of squared relative errors, for each row of times.

    **Arguments:**

    - `tokens`: distinct sizes in increasing order, at least 4.
    - `times`: positive times at these sizes, s.

    **Returns:** the global minimum for each row, with the knee from the first size to the last but one. A
    knee at the first size means that a straight line is the best law.
    """
    unit, second = tokens[-1], times.min(axis=1)
    with np.errstate(all="ignore"):  # a candidate that divides by zero or overflows is left out just below
        candidates = [_knee_at_a_size(tokens / unit, times / second[:, None])]
        candidates += [_knee_in_a_gap(tokens / unit, times / second[:, None])]
    squares, base, slope, knee = (np.concatenate(parts, axis=1) for parts in zip(*candidates, strict=True))
    best = np.argmin(np.where(np.isfinite(squares), squares, np.inf), axis=1)[:, None]
    base, slope, knee = (np.take_along_axis(value, best, axis=1)[:, 0] for value in (base, slope, knee))
    return Law(base * second, slope * second / unit, knee * unit)


def _knee_at_a_size(sizes: np.ndarray, times: np.ndarray) -> tuple[np.ndarray, ...]:
    """Squares, base, slope and knee of the best law with its knee at each size but the last."""
    knees = sizes[:-1]
    weight, moment, second, time, product = (part[:, :-1] for part in _sums_above(sizes, times))
    rise = moment - knees * weight
    rise_squared = second - 2 * knees * moment + knees**2 * weight
    rise_time = product - knees * time
    all_weight, all_time = (1 / times**2).sum(axis=1)[:, None], (1 / times).sum(axis=1)[:, None]
    slope = (all_weight * rise_time - rise * all_time) / (all_weight * rise_squared - rise**2)
    base = (all_time - slope * rise) / all_weight
    squares = len(sizes) - base * all_time - slope * rise_time
    return squares, base, slope, np.broadcast_to(knees, slope.shape)


def _knee_in_a_gap(sizes: np.ndarray, times: np.ndarray) -> tuple[np.ndarray, ...]:
    """The same with its knee in each gap with two sizes on its right; infinite squares if it is outside."""
    gaps = slice(0, len(sizes) - 2)
    weight, moment, second, time, product = (part[:, gaps] for part in _sums_above(sizes, times))
    left_time = np.cumsum(1 / times, axis=1)[:, gaps]
    base = left_time / np.cumsum(1 / times**2, axis=1)[:, gaps]
    slope = (weight * product - moment * time) / (weight * second - moment**2)
    intercept = (time - slope * moment) / weight
    knee = (base - intercept) / slope
    inside = (knee >= sizes[:-2]) & (knee <= sizes[1:-1])
    squares = len(sizes) - base * left_time - intercept * time - slope * product
    return np.where(inside, squares, np.inf), base, slope, knee


def _sums_above(sizes: np.ndarray, times: np.ndarray) -> tuple[np.ndarray, ...]:
    """Over the sizes above each one, the sums of w, w b, w b^2, w t and w b t with weights w = 1/t^2."""
    weight, time = 1 / times**2, 1 / times
    parts = (weight, weight * sizes, weight * sizes**2, time, time * sizes)
    return tuple(_sum_above(part) for part in parts)


def _sum_above(part: np.ndarray) -> np.ndarray:
    """Sums from the right, so that nothing is lost by subtracting the heavy small sizes from a total."""
    return np.pad(np.flip(np.cumsum(np.flip(part[:, 1:], axis=1), axis=1), axis=1), ((0, 0), (0, 1)))


def resample(
    tokens: Float[np.ndarray, " sizes"],
    times: Float[np.ndarray, " sizes"],
    law: Law,
    resamples: int,
    seed: int,
) -> Law:
    """Laws fitted to resampled times: a wild bootstrap, `resamples` laws.

    Each size's log residual is multiplied by a normal number of its own, so that the sizes stay (pairs
    drawn with replacement would often leave no flat part) and a flat part that scatters less than the slope
    keeps its scatter. Residuals are inflated by 1 / (1 - leverage), because a fit hides part of them, and
    by Student's quantile over the normal one, because they are few.
    """
    expected = evaluate(law, tokens)[0]
    leverage = np.minimum(_leverage(tokens, times, law), 0.99)
    student = stats.t.ppf(0.975, len(tokens) - 3) / stats.norm.ppf(0.975)
    residual = student * np.log(times / expected) / (1 - leverage)
    generator = np.random.default_rng(seed)
    block = max(1, _BLOCK // len(tokens))
    laws = []
    for start in range(0, resamples, block):
        factors = generator.standard_normal((min(block, resamples - start), len(tokens)))
        laws.append(fit(tokens, expected * np.exp(residual * factors)))
    return Law(*(np.concatenate(parts) for parts in zip(*laws, strict=True)))


def _leverage(tokens: np.ndarray, times: np.ndarray, law: Law) -> np.ndarray:
    """How much of its residual each size hides in the linearised fit of the three coefficients, 0 to 1."""
    above = tokens > law.knee[0]
    columns = (
        np.stack([np.ones_like(tokens), np.maximum(0.0, tokens - law.knee[0]), above], axis=1)
        / times[:, None]
    )
    return (np.linalg.qr(columns / np.linalg.norm(columns, axis=0))[0] ** 2).sum(axis=1)
