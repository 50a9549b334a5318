"""What replications say about the truth: intervals, paired comparisons, ratios, batch means and warm-up.

Pure functions of float64 arrays on the host. Replications stand on axis 0; what comes after it (classes, say)
is kept. Sums run in a fixed order, so that a result does not depend on how the replications were split. A NaN
sample makes its own average NaN and nothing else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64
from scipy.special import ndtri, stdtr, stdtrit

from ._errors import InputError

Samples = Any
"""Anything that `numpy.asarray` turns into an array of numbers, samples or replications on axis 0."""

Average = Float64[np.ndarray, "*shape"]
"""One average, or one for each class: a float64 array of any shape, () for a single number."""

CONFIDENCE = 0.95
_STARTS = (4, 8, 16, 32)
"""`warmup_check` looks at the first 1/4, 1/8, 1/16 and 1/32 of a series."""


@dataclass(frozen=True, eq=False)
class Estimate:
    """A mean over independent replications (or batches), with what is known of its error.

    - `mean`, `standard_error`: of the same shape; the standard error of a single replication is NaN.
    - `count`: the number of replications, R; intervals use Student's t with R - 1 degrees of freedom. 0 for a
      value that is known without error.
    """

    mean: Average
    standard_error: Average
    count: int

    @classmethod
    def from_samples(cls, samples: Samples) -> Estimate:
        """The mean of `samples`, shape `(replications, ...)`, over axis 0.

        **Raises:** `InputError` when there is no replication.
        """
        values = _array(samples, "samples")
        return Moments.empty(values.shape[1:]).add(values).estimate()

    @classmethod
    def exact(cls, value: Average) -> Estimate:
        """A value that is known without error."""
        return cls(value, np.zeros_like(value), 0)

    @property
    def half_width(self) -> Average:
        """Half the width of the 95 % interval."""
        if self.count == 0:
            return np.zeros_like(self.mean)
        return np.asarray(student_quantile(self.count - 1, CONFIDENCE) * self.standard_error)

    @property
    def ci95(self) -> tuple[Average, Average]:
        """The ends of the 95 % interval, (low, high); both NaN for a single replication."""
        return np.asarray(self.mean - self.half_width), np.asarray(self.mean + self.half_width)

    @property
    def relative_half_width(self) -> Average:
        """`half_width` / |`mean`|; 0 where both are 0, infinite where only the mean is."""
        half_width = self.half_width
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(half_width == 0, 0.0, half_width / np.abs(self.mean))

    def affine(self, scale: float, offset: float = 0.0) -> Estimate:
        """The estimate of `scale` * X + `offset`: the gap 1 - R/R* is `revenue.affine(-1 / optimum, 1)`."""
        mean = np.asarray(scale * self.mean + offset)
        return Estimate(mean, np.asarray(abs(scale) * self.standard_error), self.count)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: mean, standard_error, ci95 as [low, high], count; lists for arrays, None for NaN."""
        low, high = self.ci95
        return {
            "mean": _plain(self.mean),
            "standard_error": _plain(self.standard_error),
            "ci95": [_plain(low), _plain(high)],
            "count": self.count,
        }


@dataclass(frozen=True, eq=False)
class Moments:
    """Count, mean and sum of squared deviations of samples that arrive in chunks, in float64.

    `add` takes samples one after another (Welford), so that the result has the same bits wherever their
    sequence is cut into chunks. `merge` joins two sets (Chan, Golub and LeVeque): the same up to rounding.
    """

    count: int
    mean: Average
    squared_deviations: Average

    @classmethod
    def empty(cls, shape: tuple[int, ...] = ()) -> Moments:
        """No samples yet; each will have the given shape."""
        return cls(0, np.zeros(shape), np.zeros(shape))

    def add(self, samples: Samples) -> Moments:
        """With further samples, shape `(samples, ...)`, in their order.

        **Raises:** `InputError` when their shape is not that of the earlier ones.
        """
        values = _array(samples, "samples")
        if values.shape[1:] != self.mean.shape:
            raise InputError(f"samples: expected samples of shape {self.mean.shape}, got {values.shape[1:]}")
        count, mean, squares = self.count, self.mean, self.squared_deviations
        for value in values:
            count += 1
            before = value - mean
            mean = mean + before / count
            squares = squares + before * (value - mean)
        return Moments(count, np.asarray(mean), np.asarray(squares))

    def merge(self, other: Moments) -> Moments:
        """These samples followed by those of `other`.

        **Raises:** `InputError` when the two have samples of different shapes.
        """
        if self.mean.shape != other.mean.shape:
            raise InputError(f"samples: expected samples of shape {self.mean.shape}, got {other.mean.shape}")
        count = self.count + other.count
        if count == 0:
            return self
        apart, share = other.mean - self.mean, other.count / count
        squares = self.squared_deviations + other.squared_deviations + apart**2 * (self.count * share)
        return Moments(count, np.asarray(self.mean + apart * share), np.asarray(squares))

    @property
    def variance(self) -> Average:
        """Unbiased variance of a sample; NaN below two samples."""
        if self.count < 2:
            return np.full(self.mean.shape, np.nan)
        return np.asarray(self.squared_deviations / (self.count - 1))

    def estimate(self) -> Estimate:
        """The mean of the samples, as independent ones.

        **Raises:** `InputError` when there are none.
        """
        if self.count == 0:
            raise InputError("samples: expected at least one replication, got none")
        return Estimate(self.mean, np.asarray(np.sqrt(self.variance / self.count)), self.count)


@dataclass(frozen=True, eq=False)
class PairedDifference:
    """How much one policy is ahead of another under common random numbers.

    - `difference`: of the first less the second, over replications.
    - `correlation`: of the two over replications; NaN where one does not vary. Pairing multiplies the
      variance of a difference of equally variable policies by 1 - correlation.
    """

    difference: Estimate
    correlation: Average

    def to_dict(self) -> dict[str, Any]:
        """The difference's dictionary with `correlation`, for JSON."""
        return self.difference.to_dict() | {"correlation": _plain(self.correlation)}


def paired_difference(first: Samples, second: Samples) -> PairedDifference:
    """The mean of `first` - `second`, both of shape `(replications, ...)` and paired by replication.

    **Raises:** `InputError` when the shapes differ or there is no replication.
    """
    a, b = _array(first, "first"), _array(second, "second")
    _same_shape(a, b, "second")
    difference = Estimate.from_samples(a - b)
    centred_a, centred_b = a - a.mean(axis=0), b - b.mean(axis=0)
    scale = np.sqrt((centred_a**2).sum(axis=0) * (centred_b**2).sum(axis=0))
    with np.errstate(divide="ignore", invalid="ignore"):
        correlation = np.asarray((centred_a * centred_b).sum(axis=0) / scale)
    return PairedDifference(difference, correlation)


def ratio_estimate(numerator: Samples, denominator: Samples) -> Estimate:
    """The ratio of two long-run averages, E[numerator]/E[denominator]: time per token, waiting time by
    Little's law.

    It is the ratio of the means over replications, with the standard error of the delta method: that of the
    residuals numerator - ratio * denominator, over the mean denominator. The mean of the replications' own
    ratios would keep a bias of order 1/horizon however many replications there are; this one's shrinks with
    both.

    **Arguments:**

    - `numerator`, `denominator`: shape `(replications, ...)`, paired by replication.

    **Returns:** the estimate; NaN where the mean denominator is 0.

    **Raises:** `InputError` when the shapes differ or there is no replication.
    """
    top, bottom = _array(numerator, "numerator"), _array(denominator, "denominator")
    _same_shape(top, bottom, "denominator")
    mean_top, mean_bottom = Estimate.from_samples(top).mean, Estimate.from_samples(bottom).mean
    scale = np.where(mean_bottom == 0, np.nan, mean_bottom)
    ratio = np.asarray(mean_top / scale)
    residual = Estimate.from_samples(top - ratio * bottom)
    return Estimate(ratio, np.asarray(residual.standard_error / np.abs(scale)), residual.count)


def spread_estimate(samples: Samples) -> Estimate:
    """How far apart the long-run averages of several columns lie: the largest less the smallest.

    It is that of the means over replications. Its interval holds the truth at least as often as it says, also
    where columns are close together or equal: half its width is how far the largest of the differences'
    simultaneous (Bonferroni) upper ends lies above the largest difference. With two columns it is that of
    their difference.

    **Arguments:** `samples`: shape `(replications, columns)`.

    **Raises:** `InputError` when there is no replication.
    """
    values = _array(samples, "samples")
    columns, count = values.shape[-1], len(values)
    pairs = Estimate.from_samples(values[:, :, None] - values[:, None, :])
    spread = np.asarray(pairs.mean.max())
    if columns == 1:
        return Estimate(spread, np.zeros(()), count)
    together = 1 - (1 - CONFIDENCE) / (columns * (columns - 1) / 2)
    upper = pairs.mean + student_quantile(count - 1, together) * pairs.standard_error
    half_width = upper[~np.eye(columns, dtype=bool)].max() - spread
    return Estimate(spread, np.asarray(half_width / student_quantile(count - 1, CONFIDENCE)), count)


@dataclass(frozen=True, eq=False)
class BatchMeans:
    """A mean over time of one long replication.

    - `estimate`: over batches, taken as independent; its `count` is the number of batches.
    - `lag1_correlation`: of neighbouring batches, as 1 less half von Neumann's ratio; NaN where nothing
      varies.
    - `correlated`: whether any average's batches are correlated (then the interval is too narrow and the run
      too short), at the false-alarm rate that `batch_means` was given for each average.
    """

    estimate: Estimate
    lag1_correlation: Average
    correlated: bool


def batch_means(series: Samples, n_batches: int = 20, false_alarm: float = 1e-3) -> BatchMeans:
    """The mean of a stationary series by means of consecutive batches of equal length.

    What is left over by the division is dropped from the start. The check of independence is one-sided: under
    independent batches that are close to normal, the lag-1 correlation has mean 0 and variance
    (k - 2)/(k^2 - 1), and is close to normal itself from k = 8 on.

    **Arguments:**

    - `series`: shape `(times, ...)`: averages over consecutive intervals of equal length, after the warm-up.
    - `n_batches`: how many batches, k; at least 8.
    - `false_alarm`: how often independent batches of one average are called correlated.

    **Raises:** `InputError` for fewer than 8 batches or a series with fewer times than batches.
    """
    values = _array(series, "series")
    if n_batches < 8:
        raise InputError(f"n_batches: expected at least 8, got {n_batches}")
    length = len(values) // n_batches
    if length == 0:
        raise InputError(f"series: expected at least {n_batches} times (one a batch), got {len(values)}")
    kept = values[len(values) - length * n_batches :]
    means = kept.reshape(n_batches, length, *values.shape[1:]).mean(axis=1)
    squares = ((means - means.mean(axis=0)) ** 2).sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        correlation = np.asarray(1 - (np.diff(means, axis=0) ** 2).sum(axis=0) / (2 * squares))
    spread = math.sqrt((n_batches - 2) / (n_batches**2 - 1))
    correlated = bool(np.any(correlation > -ndtri(false_alarm) * spread))
    return BatchMeans(Estimate.from_samples(means), correlation, correlated)


class Truncation(NamedTuple):
    """Where a series settles: drop the first `length` entries; `settled` is False when it may not have."""

    length: int
    settled: bool


def mser_truncation(series: Samples, batch: int = 5) -> Truncation:
    """How much of the start to drop by MSER-5 (White 1997): the cut that minimises the marginal standard
    error.

    The series is averaged over replications, then over batches of five; the cut d minimises the sum of
    squared deviations of the batches from d on, over the square of their number. Only cuts in the first half
    are tried: when the best one is the last tried, the series has not settled.

    **Arguments:**

    - `series`: shape `(times,)` or `(replications, times)`: averages over consecutive equal intervals.
    - `batch`: intervals to a batch.

    **Raises:** `InputError` for another shape or fewer than four batches.
    """
    values = _array(series, "series")
    if values.ndim not in (1, 2):
        raise InputError(f"series: expected shape (times,) or (replications, times), got {values.shape}")
    path = values if values.ndim == 1 else values.mean(axis=0)
    count = len(path) // batch
    if count < 4:
        raise InputError(f"series: expected at least {4 * batch} times (four batches), got {len(path)}")
    means = path[: count * batch].reshape(count, batch).mean(axis=1)
    means = means - means.mean()  # sums of squares lose nothing to a large mean
    left = np.arange(count, 0, -1)
    tail, tail_squares = np.cumsum(means[::-1])[::-1], np.cumsum(means[::-1] ** 2)[::-1]
    score = (tail_squares - tail**2 / left) / left**2
    tried = count // 2 + 1
    cut = int(np.argmin(score[:tried]))
    return Truncation(cut * batch, cut < tried - 1)


@dataclass(frozen=True)
class WarmupCheck:
    """Whether what was measured still bears the mark of the empty start.

    - `too_short`: the start of the measured series differs from its second half, significantly and by enough.
    - `p_value`: of no difference, corrected for the number of windows tried.
    - `bias`: mean of the whole series less that of its second half: what the start does to the reported mean.
    - `truncation`: how many more intervals to drop, by MSER-5; None for a series under 20 intervals.
    """

    too_short: bool
    p_value: float
    bias: float
    truncation: Truncation | None


def warmup_check(series: Samples, false_alarm: float = 1e-3, tolerance: float = 1e-3) -> WarmupCheck:
    """Test whether the warm-up before a measured series was too short.

    The first 1/4, 1/8, 1/16 and 1/32 of the series (windows of at least one interval) are compared with its
    second half, and the smallest p-value counts, times the number of windows (Bonferroni). With several
    replications the comparison is a t test of the differences over replications: whatever the correlation in
    time, a stationary series is called too short with probability `false_alarm` at most, as far as these
    differences are normal. A single replication is compared by 32 batches; then the rate holds as far as
    batches are independent.

    **Arguments:**

    - `series`: shape `(replications, times)`: averages over consecutive equal intervals after the warm-up.
    - `false_alarm`: how often a stationary series is called too short, at most.
    - `tolerance`: a bias below this part of the mean is never called too short.

    **Raises:** `InputError` for another shape, fewer than 8 intervals, or a single replication with fewer
    than 32.
    """
    values = _array(series, "series")
    if values.ndim != 2:
        raise InputError(f"series: expected shape (replications, times), got {values.shape}")
    replications, times = values.shape
    if times < (8 if replications > 1 else 32):
        wanted = "8 times" if replications > 1 else "32 times for a single replication"
        raise InputError(f"series: expected at least {wanted}, got {times}")
    p_values = _window_p_values(values) if replications > 1 else _batch_p_values(values[0])
    p_value = min(1.0, len(p_values) * float(np.min(p_values)))
    late = float(values[:, times // 2 :].mean())
    bias = float(values.mean()) - late
    too_short = p_value < false_alarm and abs(bias) > tolerance * abs(late)
    return WarmupCheck(too_short, p_value, bias, mser_truncation(values) if times >= 20 else None)


def student_quantile(degrees: int, confidence: float) -> float:
    """Half-width of the interval of Student's t in standard errors; NaN without a degree of freedom."""
    return float(stdtrit(degrees, (1 + confidence) / 2)) if degrees > 0 else math.nan


def _window_p_values(values: np.ndarray) -> list[float]:
    """p-values of starts of the series against its second half, by differences over replications."""
    times = values.shape[1]
    late = values[:, times // 2 :].mean(axis=1)
    p_values = []
    for length in sorted({times // part for part in _STARTS} - {0}):
        difference = Estimate.from_samples(values[:, :length].mean(axis=1) - late)
        error = float(difference.standard_error)
        p_values.append(_two_sided(float(difference.mean), error, difference.count - 1))
    return p_values


def _batch_p_values(path: np.ndarray) -> list[float]:
    """The same for one replication: the first 1, 2, 4, 8 of 32 batches against the last 16."""
    length = len(path) // 32
    batches = path[len(path) - 32 * length :].reshape(32, length).mean(axis=1)
    late, spread = batches[16:].mean(), batches[16:].std(ddof=1)
    p_values = []
    for count in (1, 2, 4, 8):
        error = float(spread * math.sqrt(1 / count + 1 / 16))
        p_values.append(_two_sided(float(batches[:count].mean() - late), error, 15))
    return p_values


def _two_sided(difference: float, error: float, degrees: int) -> float:
    """p-value of a t statistic; a difference that never varies is certain, no difference at all is none."""
    if error == 0:
        return 1.0 if difference == 0 else 0.0
    return float(2 * stdtr(degrees, -abs(difference) / error))


def _array(values: Samples, name: str) -> np.ndarray:
    """`values` as float64, with at least one axis."""
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{name}: expected an array of numbers, got {type(values).__name__}") from None
    if array.ndim == 0 or len(array) == 0:
        raise InputError(f"{name}: expected at least one replication on axis 0, got shape {array.shape}")
    return array


def _same_shape(first: np.ndarray, second: np.ndarray, name: str) -> None:
    """Refuse arrays that cannot be paired."""
    if first.shape != second.shape:
        raise InputError(
            f"{name}: expected shape {first.shape} like the array it is paired with, got {second.shape}"
        )


def _plain(values: Any) -> Any:
    """Numbers and nested lists for JSON, None for what is not finite."""
    if np.ndim(values):
        return [_plain(row) for row in values]
    return float(values) if math.isfinite(values) else None
