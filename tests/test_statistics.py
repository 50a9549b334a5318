"""Intervals, pairs, ratios, batches and warm-up, against scipy, brute force, and known laws.

Tests of a rate state the chance that a right implementation fails them; seeds are fixed.
"""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.signal import lfilter

from jaxq._errors import InputError
from jaxq._statistics import (
    Estimate,
    Moments,
    batch_means,
    mser_truncation,
    paired_difference,
    ratio_estimate,
    warmup_check,
)

RARE = stats.norm.isf(5e-7)
"""A two-sided deviation of this many standard errors has probability 1e-6."""


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def autoregressive(
    generator: np.random.Generator, shape: tuple[int, ...], memory: float, start=None
) -> np.ndarray:
    """AR(1) with unit variance along the last axis, stationary unless it starts at `start`."""
    noise = generator.standard_normal(shape) * math.sqrt(1 - memory**2)
    first = (
        noise[..., :1] / math.sqrt(1 - memory**2) if start is None else np.full_like(noise[..., :1], start)
    )
    series, _ = lfilter([1.0], [1.0, -memory], noise, axis=-1, zi=memory * first)
    return series


def assert_rate(observed: np.ndarray, expected: float, slack: float = 0.0) -> None:
    """The share of trues is `expected` up to `slack` and an error of probability 1e-6."""
    error = RARE * math.sqrt(expected * (1 - expected) / observed.size)
    assert abs(observed.mean() - expected) < error + slack


# Estimates.


def test_estimate_is_scipys_interval():
    samples = rng(0).gamma(2.0, size=(17, 3))
    got = Estimate.from_samples(samples)
    low, high = stats.t.interval(0.95, 16, loc=samples.mean(axis=0), scale=stats.sem(samples, axis=0))
    np.testing.assert_allclose(got.standard_error, stats.sem(samples, axis=0), rtol=1e-13)
    np.testing.assert_allclose(got.ci95, (low, high), rtol=1e-12)
    np.testing.assert_allclose(got.relative_half_width, (high - low) / 2 / samples.mean(axis=0), rtol=1e-12)
    assert got.count == 17


def test_intervals_of_few_replications_cover_the_mean():
    """6 normal replications, 40,000 experiments: exact coverage 0.95; false alarm 1e-6."""
    low, high = Estimate.from_samples(3.0 + rng(1).standard_normal((6, 40_000))).ci95
    assert_rate((low < 3.0) & (high > 3.0), 0.95)


def test_intervals_over_replications_ignore_correlation_in_time():
    """8 replications of an AR(1) with memory 0.98, 4,000 experiments; false alarm 1e-6."""
    averages = autoregressive(rng(2), (8, 4_000, 100), 0.98).mean(axis=-1)
    low, high = Estimate.from_samples(averages).ci95
    assert_rate((low < 0) & (high > 0), 0.95)


def test_estimate_of_one_replication_has_no_interval():
    got = Estimate.from_samples([[1.0, 2.0]])
    np.testing.assert_array_equal(got.mean, [1.0, 2.0])
    assert np.isnan(got.standard_error).all() and np.isnan(got.ci95).all()
    assert got.to_dict() == {
        "mean": [1.0, 2.0],
        "standard_error": [None, None],
        "ci95": [[None, None], [None, None]],
        "count": 1,
    }


def test_estimate_goes_to_json():
    answer = json.loads(json.dumps(Estimate.from_samples([1.0, 2.0, 3.0]).to_dict(), allow_nan=False))
    assert answer["mean"] == 2.0 and answer["count"] == 3
    assert answer["ci95"] == pytest.approx([2 - 2.4841377, 2 + 2.4841377])


def test_affine_of_an_estimate_is_the_estimate_of_affine_samples():
    samples = rng(3).normal(280.0, 5.0, size=20)
    got = Estimate.from_samples(samples).affine(-1 / 297.7, 1.0)
    expected = Estimate.from_samples(1 - samples / 297.7)
    np.testing.assert_allclose(got.mean, expected.mean, rtol=1e-12)
    np.testing.assert_allclose(got.ci95, expected.ci95, rtol=1e-12)


def test_relative_half_width_of_nothing_is_zero_and_of_a_zero_mean_infinite():
    got = Estimate.from_samples([[0.0, -1.0], [0.0, 1.0]]).relative_half_width
    assert got[0] == 0.0 and got[1] == np.inf


def test_a_nan_stays_in_its_own_average():
    got = Estimate.from_samples([[1.0, np.nan], [3.0, 1.0]])
    assert got.mean[0] == 2.0 and np.isnan(got.mean[1])
    assert got.to_dict()["mean"] == [2.0, None]


@pytest.mark.parametrize("samples", [[], 3.0, "many"])
def test_estimate_refuses_what_has_no_replications(samples):
    with pytest.raises(InputError, match="samples: expected"):
        Estimate.from_samples(samples)


# Moments.


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(-1e9, 1e9), min_size=2, max_size=40), st.data())
def test_moments_have_the_same_bits_for_every_chunking(values, data):
    cuts = sorted(data.draw(st.sets(st.integers(1, len(values) - 1), max_size=5)))
    whole, chunked = Moments.empty().add(values), Moments.empty()
    for chunk in np.split(np.array(values), cuts):
        chunked = chunked.add(chunk)
    assert chunked.count == len(values)
    assert chunked.mean.tobytes() == whole.mean.tobytes()
    assert chunked.squared_deviations.tobytes() == whole.squared_deviations.tobytes()


def test_moments_keep_a_small_variance_beside_a_large_mean():
    """Sums of squares in float64 would have no correct digit of the variance here."""
    deviations = rng(4).standard_normal((500, 2))
    moments = Moments.empty((2,)).add(1e8 + deviations)
    np.testing.assert_allclose(moments.variance, deviations.var(axis=0, ddof=1), rtol=1e-6)


@pytest.mark.parametrize("cut", [0, 1, 137, 299, 300])
def test_merged_moments_are_those_of_all_samples(cut):
    samples = rng(5).gamma(3.0, size=(300, 4))
    merged = Moments.empty((4,)).add(samples[:cut]) if cut else Moments.empty((4,))
    merged = merged.merge(Moments.empty((4,)).add(samples[cut:]) if cut < 300 else Moments.empty((4,)))
    assert merged.count == 300
    np.testing.assert_allclose(merged.mean, samples.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(merged.variance, samples.var(axis=0, ddof=1), rtol=1e-13)


def test_moments_refuse_samples_of_another_shape():
    with pytest.raises(InputError, match=r"samples of shape \(2,\), got \(3,\)"):
        Moments.empty((2,)).add(np.zeros((5, 3)))
    with pytest.raises(InputError, match=r"samples of shape \(2,\), got \(3,\)"):
        Moments.empty((2,)).merge(Moments.empty((3,)))
    with pytest.raises(InputError, match="at least one replication"):
        Moments.empty().estimate()


# Pairs and ratios.


def test_paired_difference_is_scipys_paired_t_test():
    generator = rng(6)
    common = generator.standard_normal(40)
    first, second = common + 0.2 * generator.standard_normal(40), common + 0.2 * generator.standard_normal(40)
    got = paired_difference(first, second)
    interval = stats.ttest_rel(first, second).confidence_interval(0.95)
    np.testing.assert_allclose(got.difference.ci95, (interval.low, interval.high), rtol=1e-11)
    np.testing.assert_allclose(got.correlation, np.corrcoef(first, second)[0, 1], rtol=1e-12)
    assert got.to_dict()["correlation"] == pytest.approx(float(got.correlation))


def test_paired_difference_keeps_classes_apart_and_allows_constants():
    first = np.array([[1.0, 5.0], [2.0, 5.0], [4.0, 5.0]])
    got = paired_difference(first, 2 * first)
    np.testing.assert_allclose(got.difference.mean, [-7 / 3, -5.0])
    assert got.correlation[0] == pytest.approx(1.0) and np.isnan(got.correlation[1])
    assert got.to_dict()["correlation"][1] is None


def test_paired_difference_refuses_unpaired_samples():
    with pytest.raises(InputError, match=r"second: expected shape \(3,\)"):
        paired_difference(np.zeros(3), np.zeros(4))


def test_ratio_is_of_means_with_the_delta_methods_error():
    """Against the gradient form of the delta method: g' Cov g / R with g = (1/d, -r/d)."""
    generator = rng(7)
    bottom = generator.gamma(20.0, size=50)
    top = 3.0 * bottom + generator.standard_normal(50)
    got = ratio_estimate(top, bottom)
    mean = bottom.mean()
    ratio = top.mean() / mean
    gradient = np.array([1 / mean, -ratio / mean])
    assert float(got.mean) == pytest.approx(ratio, rel=1e-13)
    variance = gradient @ np.cov(top, bottom) @ gradient / 50
    assert float(got.standard_error) == pytest.approx(math.sqrt(variance), rel=1e-10)


def test_ratio_covers_where_the_mean_of_ratios_is_biased():
    """Independent gamma(8) over gamma(8) in 200 replications: E[N]/E[D] = 1, but E[N/D] = 8/7.

    20,000 experiments; the interval is only asymptotically exact, 0.004 is left to that; false alarm 1e-6.
    """
    top, bottom = rng(8).gamma(8.0, size=(2, 200, 20_000))
    low, high = ratio_estimate(top, bottom).ci95
    assert_rate((low < 1) & (high > 1), 0.95, slack=0.004)
    assert (top / bottom).mean() == pytest.approx(8 / 7, abs=0.002)


def test_ratio_by_nothing_is_nan_and_unpaired_is_refused():
    assert math.isnan(float(ratio_estimate([1.0, 2.0], [0.0, 0.0]).mean))
    with pytest.raises(InputError, match="denominator: expected shape"):
        ratio_estimate([1.0, 2.0], [1.0])


# Batch means.


def test_batch_means_drop_the_remainder_from_the_start():
    got = batch_means(np.concatenate([[1e9] * 3, np.arange(80.0)]), n_batches=10)
    assert float(got.estimate.mean) == pytest.approx(39.5) and got.estimate.count == 10


def test_long_batches_cover_the_mean_of_a_correlated_series():
    """AR(1), memory 0.8: batches of 250 are nearly independent, 0.006 is left to that; false alarm 1e-6."""
    series = autoregressive(rng(9), (2_000, 5_000), 0.8).T
    low, high = batch_means(series).estimate.ci95
    assert_rate((low < 0) & (high > 0), 0.95, slack=0.006)


def test_independent_batches_are_rarely_called_correlated():
    """At a false-alarm rate of 0.01 over 2,000 series; 0.003 is left to normality; false alarm 1e-6."""
    series = rng(10).standard_normal((2_000, 160))
    called = np.array([batch_means(one, false_alarm=0.01).correlated for one in series])
    assert_rate(called, 0.01, slack=0.003)


def test_batches_shorter_than_the_memory_are_called_correlated():
    got = batch_means(autoregressive(rng(11), (2_000,), 0.999))
    assert got.correlated and float(got.lag1_correlation) > 0.6
    assert not batch_means(np.ones(100)).correlated


def test_batch_means_refuse_too_little():
    with pytest.raises(InputError, match="n_batches: expected at least 8, got 4"):
        batch_means(np.zeros(100), n_batches=4)
    with pytest.raises(InputError, match="series: expected at least 20 times"):
        batch_means(np.zeros(10))


# Warm-up.


@pytest.mark.parametrize("shape", [(203,), (4, 200)])
def test_mser_is_the_brute_force_minimum(shape):
    series = np.exp(-np.arange(shape[-1]) / 15) * 10 + rng(12).standard_normal(shape)
    path = np.atleast_2d(series).mean(axis=0)
    means = [path[5 * k : 5 * k + 5].mean() for k in range(len(path) // 5)]
    scores = [np.var(means[d:]) / len(means[d:]) for d in range(len(means) // 2 + 1)]
    got = mser_truncation(series)
    assert got.length == 5 * int(np.argmin(scores)) and got.settled
    assert 25 <= got.length <= 75


def test_mser_says_when_a_series_has_not_settled():
    assert not mser_truncation(np.linspace(0.0, 1.0, 200)).settled


@pytest.mark.parametrize("replications", [2, 12])
def test_stationary_replications_raise_no_more_false_alarms_than_stated(replications):
    """Strongly correlated in time; at a rate of 0.05 over 1,200 runs; false alarm 1e-6."""
    runs = autoregressive(rng(13), (1_200, replications, 64), 0.95)
    called = np.array([warmup_check(run, false_alarm=0.05, tolerance=0.0).too_short for run in runs])
    assert called.mean() < 0.05 + RARE * math.sqrt(0.05 * 0.95 / len(called))
    assert called.mean() > 0.01


def test_a_stationary_single_replication_raises_no_more_false_alarms_than_stated():
    """Batches of 20 with memory 0.5; at a rate of 0.05 over 1,200 runs; false alarm 1e-6."""
    runs = autoregressive(rng(14), (1_200, 1, 640), 0.5)
    called = np.array([warmup_check(run, false_alarm=0.05, tolerance=0.0).too_short for run in runs])
    assert called.mean() < 0.05 + RARE * math.sqrt(0.05 * 0.95 / len(called))


@pytest.mark.parametrize("replications", [1, 16])
def test_a_start_from_empty_is_found(replications):
    """A relaxation over a twentieth of the series, from empty to 100 with unit noise."""
    times = np.arange(400)
    series = 100 * (1 - np.exp(-times / 20)) + autoregressive(rng(15), (replications, 400), 0.5)
    got = warmup_check(series)
    assert got.too_short and got.p_value < 1e-6
    assert got.bias == pytest.approx(-5.0, abs=0.5)
    assert 60 <= got.truncation.length < 200
    assert not warmup_check(series[:, 240:]).too_short


def test_a_bias_too_small_to_matter_is_not_called_too_short():
    series = 100 + rng(16).normal(0, 1e-4, size=(16, 400))
    series[:, :40] -= 0.1
    got = warmup_check(series)
    assert got.p_value < 1e-6 and not got.too_short
    assert warmup_check(series, tolerance=1e-5).too_short


def test_a_constant_series_is_warm():
    got = warmup_check(np.full((3, 10), 7.0))
    assert not got.too_short and got.p_value == 1.0 and got.truncation is None


def test_warmup_check_refuses_too_little():
    with pytest.raises(InputError, match=r"series: expected shape \(replications, times\)"):
        warmup_check(np.zeros(50))
    with pytest.raises(InputError, match="series: expected at least 8 times"):
        warmup_check(np.zeros((4, 7)))
    with pytest.raises(InputError, match="32 times for a single replication"):
        warmup_check(np.zeros((1, 20)))
    with pytest.raises(InputError, match="four batches"):
        mser_truncation(np.zeros(19))
