"""How a gap approaches its limit: gap(n) = limit + c n^(-a), fitted with intervals."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

NORMAL_QUANTILE = 1.959964
"""Half-width of a 95 % interval in standard errors."""

FEWEST_POINTS = 1
"""Points beyond the number of parameters that a fit needs."""


@dataclass(frozen=True)
class PowerLaw:
    """A fit of gap(n) = limit + c n^(-a), with half-widths of 95 % intervals (0 for a limit that was given).

    - `limit`, `scale`, `rate`: the limit, c and a.
    - `chi2`: squared residuals over squared errors, over the degrees of freedom: about 1 where the law holds.
    """

    limit: float
    scale: float
    rate: float
    limit_half_width: float
    scale_half_width: float
    rate_half_width: float
    chi2: float

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            name: {"value": getattr(self, name), "half_width": getattr(self, f"{name}_half_width")}
            for name in ("limit", "scale", "rate")
        } | {"chi2": self.chi2}


def fit_power_law(
    sizes: Float64[np.ndarray, " points"],
    gaps: Float64[np.ndarray, " points"],
    errors: Float64[np.ndarray, " points"],
    limit: float | None = None,
) -> PowerLaw | None:
    """Weighted least squares; None with too few points, or when no fit is found.

    **Arguments:** `errors`: standard errors of the gaps, positive; `limit`: the limit, fitted as well when
    None.
    """
    from scipy.optimize import OptimizeWarning, curve_fit

    parameters = 2 if limit is not None else 3
    freedom = len(sizes) - parameters
    if freedom < FEWEST_POINTS:
        return None
    # In units of the smallest size, so that c is of the size of the gaps.
    unit = float(np.min(sizes))

    def law(n: np.ndarray, scale: float, rate: float, end: float = 0.0) -> np.ndarray:
        return (end if limit is None else limit) + scale * (n / unit) ** -rate

    start = [float(gaps[0] - gaps[-1]) or 1e-3, 0.5, *([] if limit is not None else [float(gaps[-1])])]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", OptimizeWarning)
            found, covariance = curve_fit(
                law, sizes, gaps, start, sigma=errors, absolute_sigma=True, maxfev=10_000
            )
    except (RuntimeError, OptimizeWarning):
        return None
    # Where points scatter more than their errors say, the law is an approximation: intervals widen.
    chi2 = float(np.sum(((gaps - law(sizes, *found)) / errors) ** 2) / freedom)
    covariance = NORMAL_QUANTILE**2 * max(1.0, chi2) * covariance
    widths = np.sqrt(np.diag(covariance))
    scale, rate = found[0] * unit ** found[1], found[1]
    # Of c, by the slopes of log c = log(scale) + a log(unit).
    slopes = np.array([1.0 / found[0], np.log(unit)])
    relative = np.sqrt(slopes @ covariance[:2, :2] @ slopes)
    return PowerLaw(
        limit=float(found[2]) if limit is None else limit,
        scale=float(scale),
        rate=float(rate),
        limit_half_width=float(widths[2]) if limit is None else 0.0,
        scale_half_width=float(abs(scale) * relative),
        rate_half_width=float(widths[1]),
        chi2=chi2,
    )
