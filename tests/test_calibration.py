"""Calibration: known laws recovered, the global optimum against brute force, coverage, refusals, files."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from scipy import stats

from jaxq import InputError
from jaxq._calibration import calibrate, calibrate_file, plot_calibration

DATA = Path(__file__).parents[2] / "shared" / "data" / "linear_layer_iteration_time.csv"
SIZES = np.array(
    [1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096.0]
)


def law(tokens, base, slope, knee):
    return base + slope * np.maximum(0.0, tokens - knee)


def relative_squares(tokens, times, knees):
    """The least sum of squared relative errors at each of these knees, by a general least-squares solver."""
    squares = []
    for knee in knees:
        columns = np.stack([np.ones_like(tokens), np.maximum(0.0, tokens - knee)], axis=1) / times[:, None]
        scale = np.linalg.norm(columns, axis=0)
        solution = np.linalg.lstsq(columns / scale, np.ones_like(times))[0]
        squares.append(np.sum((columns / scale @ solution - 1) ** 2))
    return np.array(squares)


@settings(max_examples=40, deadline=None)
@given(
    base=st.floats(1e-4, 1.0),
    growth=st.floats(2.0, 500.0),
    knee=st.one_of(st.floats(3.0, 1000.0), st.sampled_from(SIZES[3:15].tolist())),
)
def test_a_law_without_noise_is_recovered(base, growth, knee):
    slope = base * growth / SIZES[-1]
    found = calibrate(SIZES, law(SIZES, base, slope, knee), bootstrap=100)
    for estimate, true in ((found.base, base), (found.slope, slope), (found.knee, knee)):
        assert estimate.value == pytest.approx(true, rel=1e-8)
        assert estimate.ci95 == pytest.approx((true, true), rel=1e-6)
    assert found.alpha.value == pytest.approx(base - slope * knee, abs=1e-7 * base * growth)
    assert found.r2 == pytest.approx(1.0)
    assert found.max_relative_error < 1e-8
    assert found.chunk_range == pytest.approx((knee, 4096.0))
    chunk = 2048.0
    assert found.iteration_time.mixed(chunk) == pytest.approx(law(chunk, base, slope, knee))
    assert found.iteration_time.solo == pytest.approx(base)


def test_the_fit_is_the_global_minimum_over_the_knee():
    generator = np.random.default_rng(3)
    for _ in range(5):
        times = law(SIZES, 0.02, 1e-4, 100.0) * np.exp(generator.normal(0.0, 0.08, len(SIZES)))
        found = calibrate(SIZES, times, bootstrap=100)
        squares = np.sum((found.law(SIZES) / times - 1) ** 2)
        grid = np.geomspace(1.0, 3072.0, 1500)
        searched = relative_squares(SIZES, times, grid)
        assert squares <= searched.min() * (1 + 1e-9)
        assert squares == pytest.approx(relative_squares(SIZES, times, [found.knee.value])[0], rel=1e-8)
        assert searched.min() <= squares * 1.01


@pytest.mark.parametrize(
    ("flat_scatter", "rising_scatter"),
    [(0.03, 0.03), (0.08, 0.08), (0.01, 0.08)],
    ids=["3%", "8%", "1% and 8%"],
)
def test_intervals_cover(flat_scatter, rising_scatter):
    """Each coefficient's interval, in 150 data sets with its true value known.

    If an interval covers in at least 91 % of data sets, fewer than `least` hits have a probability of 1e-6 or
    less, so over all coefficients and cases a false alarm about 1e-5. Measured on 800 data sets: 92 to 97 %.
    """
    true = {"base": 0.02, "slope": 1e-4, "knee": 100.0, "alpha": 0.01}
    scatter = np.where(SIZES > 100, rising_scatter, flat_scatter)
    generator = np.random.default_rng(11)
    count = 150
    hits = dict.fromkeys(true, 0)
    accepted = 0
    while accepted < count:
        times = law(SIZES, 0.02, 1e-4, 100.0) * np.exp(generator.normal(0.0, scatter))
        try:
            found = calibrate(SIZES, times, bootstrap=400)
        except InputError:
            continue
        accepted += 1
        for name, value in true.items():
            low, high = getattr(found, name).ci95
            hits[name] += low <= value <= high
    least = stats.binom.ppf(1e-6, count, 0.91)
    assert all(count >= least for count in hits.values()), hits


def test_units_scale_the_law_and_nothing_else():
    generator = np.random.default_rng(5)
    times = law(SIZES, 0.02, 1e-4, 100.0) * np.exp(generator.normal(0.0, 0.05, len(SIZES)))
    one, other = calibrate(SIZES, times), calibrate(3 * SIZES, 1000 * times)
    assert other.base.value == pytest.approx(1000 * one.base.value)
    assert other.slope.value == pytest.approx(1000 / 3 * one.slope.value)
    assert other.knee.value == pytest.approx(3 * one.knee.value)
    assert other.knee.ci95 == pytest.approx(tuple(3 * end for end in one.knee.ci95))
    assert other.r2 == pytest.approx(one.r2)
    assert other.max_relative_error == pytest.approx(one.max_relative_error)


def test_order_and_repeats_do_not_bend_the_law():
    times = law(SIZES, 0.02, 1e-4, 100.0) * np.exp(np.random.default_rng(6).normal(0.0, 0.05, len(SIZES)))
    plain = calibrate(SIZES, times)
    repeats = np.tile(np.arange(len(SIZES)), 3)[::-1]
    repeats = np.concatenate([repeats, np.full(50, 7)])
    repeated = calibrate(SIZES[repeats], times[repeats])
    for name in ("base", "slope", "knee", "alpha"):
        assert getattr(repeated, name).value == pytest.approx(getattr(plain, name).value)
        assert getattr(repeated, name).ci95 == pytest.approx(getattr(plain, name).ci95)
    assert repeated.n_measurements == len(repeats)
    assert repeated.n_sizes == len(SIZES)


def test_the_seed_fixes_the_intervals():
    times = law(SIZES, 0.02, 1e-4, 100.0) * np.exp(np.random.default_rng(7).normal(0.0, 0.05, len(SIZES)))
    one, same, other = (calibrate(SIZES, times, seed=seed) for seed in (0, 0, 1))
    assert one.to_dict() == same.to_dict()
    assert one.knee.ci95 != other.knee.ci95
    assert other.knee.value == one.knee.value


def test_many_sizes_take_several_blocks_of_resamples():
    sizes = np.arange(1.0, 3001.0)
    times = law(sizes, 0.02, 1e-4, 100.0) * np.exp(np.random.default_rng(8).normal(0.0, 0.1, len(sizes)))
    found = calibrate(sizes, times, bootstrap=400)
    assert found.knee.value == pytest.approx(100.0, rel=0.2)
    assert found.slope.ci95[0] < 1e-4 < found.slope.ci95[1]


def noisy(times, scatter, seed=0):
    return times * np.exp(np.random.default_rng(seed).normal(0.0, scatter, len(times)))


REFUSED = {
    "no sizes below the knee": (SIZES[10:], law(SIZES[10:], 0.02, 1e-4, 100.0), "no flat part"),
    "a straight line": (SIZES, 0.02 + 1e-4 * SIZES, "no flat part"),
    "no sizes above the knee": (SIZES[:9], law(SIZES[:9], 0.02, 1e-4, 100.0), "does not grow"),
    "two sizes above the knee": (SIZES[:12], law(SIZES[:12], 0.02, 1e-4, 150.0), "no rising part"),
    "few sizes": (SIZES[::5], law(SIZES[::5], 0.02, 1e-4, 100.0), "at least 6 distinct sizes, got 4"),
    "repeats of one size": (np.full(30, 64.0), np.full(30, 0.02), "at least 6 distinct sizes, got 1"),
    "constant": (SIZES, np.full(len(SIZES), 0.02), "does not grow"),
    "falling": (SIZES, 0.02 - 4e-6 * SIZES, "does not grow"),
    "noise swallows the flat part": (
        SIZES,
        noisy(law(SIZES, 0.02, 1e-4, 30.0), 0.5, seed=1),
        "scatters too much",
    ),
    "nan": (SIZES, np.where(SIZES == 8, np.nan, 0.02), r"iteration_time\[3\]: .* seconds, got nan"),
    "infinite": (np.where(SIZES == 4, np.inf, SIZES), SIZES, r"num_tokens\[2\]: .* tokens, got inf"),
    "negative": (SIZES, -SIZES, r"iteration_time\[0\]: expected a positive finite number of seconds, got -1"),
    "zero tokens": (SIZES - 1, SIZES, r"num_tokens\[0\]"),
    "lengths": (SIZES, SIZES[1:], "expected one for each of 20 num_tokens, got 19"),
    "empty": ([], [], "at least one number"),
    "a table": (np.ones((4, 4)), np.ones((4, 4)), r"got shape \(4, 4\)"),
    "text": (["many"], [1.0], "expected a vector of numbers"),
    "beyond float64": (
        SIZES,
        10.0 ** np.linspace(-300, 300, len(SIZES)),
        "too many orders|flat|scatters",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.filterwarnings("error")
def test_refusals_of_arrays(case):
    tokens, times, message = REFUSED[case]
    with pytest.raises(InputError, match=message) as refusal:
        calibrate(tokens, times)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("change", [{"bootstrap": 99}, {"bootstrap": True}, {"seed": -1}])
def test_refusals_of_options(change):
    with pytest.raises(InputError, match=f"{next(iter(change))}: expected a whole number"):
        calibrate(SIZES, law(SIZES, 0.02, 1e-4, 100.0), **change)


def test_data_without_a_knee_are_seldom_taken_for_a_law():
    """Straight lines with 5 % scatter, of which about 7 % pass (measured on 300).

    If 10 % did, more than 28 of 100 would pass with a probability below 1e-6.
    """
    generator = np.random.default_rng(12)
    accepted = 0
    for _ in range(100):
        times = (0.02 + 1e-4 * SIZES) * np.exp(generator.normal(0.0, 0.05, len(SIZES)))
        try:
            calibrate(SIZES, times, bootstrap=400)
            accepted += 1
        except InputError:
            pass
    assert accepted <= stats.binom.ppf(1 - 1e-6, 100, 0.10)


def rows(*columns, sizes=SIZES, base=0.02):
    """Lines of a group of measurements, with further columns before."""
    times = law(sizes, base, 1e-4, 100.0)
    return [",".join([*columns, f"{b:g}", f"{t!r}"]) for b, t in zip(sizes, times.tolist(), strict=True)]


def write(folder, *lines, encoding="utf-8"):
    file = folder / "times.csv"
    file.write_text("\n".join(lines) + "\n", encoding=encoding)
    return file


def test_a_file_without_groups(tmp_path):
    file = write(tmp_path, "num_tokens, iteration_time_s", *rows(), "", encoding="utf-8-sig")
    (found,) = calibrate_file(file).calibrations
    assert found.label == "all measurements"
    assert found.knee.value == pytest.approx(100.0)


def test_a_refused_group_does_not_lose_the_others(tmp_path):
    few, broken = rows("a40", "1", sizes=SIZES[:3]), rows("a40", "2")
    broken[4] = "a40,2,16,nan"
    lines = [*rows("a100", "1"), *few, *broken, *rows("h100", "1", base=0.01)]
    file = write(tmp_path, "gpu,cards,num_tokens,iteration_time_s", *lines)
    found = calibrate_file(file)
    assert [one.label for one in found.calibrations] == ["gpu=a100, cards=1", "gpu=h100, cards=1"]
    assert [one.base.value for one in found.calibrations] == pytest.approx([0.02, 0.01])
    assert [one.group for one in found.refused] == [
        (("gpu", "a40"), ("cards", "1")),
        (("gpu", "a40"), ("cards", "2")),
    ]
    assert found.refused[0].reason == "num_tokens: expected at least 6 distinct sizes, got 3"
    assert found.refused[1].reason == (
        "line 29, column iteration_time_s: expected a positive finite number of seconds, got 'nan'"
    )
    written = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert written["groups"][1]["group"] == {"gpu": "h100", "cards": "1"}
    assert written["groups"][1]["knee"]["estimate"] == pytest.approx(100.0)
    assert written["groups"][1]["token_range"] == [1.0, 4096.0]
    assert written["refused"][0]["group"] == {"gpu": "a40", "cards": "1"}


def test_groups_by_chosen_columns(tmp_path):
    lines = [*rows("a100", "first"), *rows("a100", "second")]
    file = write(tmp_path, "gpu,run,num_tokens,iteration_time_s", *lines)
    (found,) = calibrate_file(file, group_by=["gpu"]).calibrations
    assert found.group == (("gpu", "a100"),)
    assert found.n_measurements == 2 * len(SIZES)
    with pytest.raises(InputError, match="column 'gpus' is missing; the nearest is 'gpu'"):
        calibrate_file(file, group_by=["gpus"])


HEADER = "num_tokens,iteration_time_s"
BAD_FILES = {
    "nothing": ([], "empty; expected a header"),
    "only a header": ([HEADER], "no measurements below the header"),
    "column": (
        ["num_tokens,iteration_time_ms", "1,2"],
        "'iteration_time_s'.* the nearest is 'iteration_time_ms'",
    ),
    "separator": (["num_tokens;iteration_time_s", "1;2"], "column 'num_tokens' .* is missing"),
    "no near column": (["a,iteration_time_s", "1,2"], "'num_tokens' .tokens. is missing; the header has 'a'"),
    "repeated column": (["num_tokens,iteration_time_s,gpu,gpu", "1,2,a,b"], "'gpu' stands twice"),
    "ragged": ([HEADER, "1,2", "1,2,3"], "line 3: expected 2 columns, got 3"),
    "quote": ([HEADER, '1,"2'], "not a CSV table"),
    "word": ([HEADER, "1,fast"], "line 2, column iteration_time_s: .* of seconds, got 'fast'"),
    "negative": ([HEADER, "-1,0.02"], "line 2, column num_tokens: .* of tokens, got '-1'"),
    "all refused": (
        ["gpu," + HEADER, "a,1,1", "b,1,1"],
        "none of 2 groups can be calibrated; gpu=a: num_tokens",
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_refusals_of_files(case, tmp_path):
    lines, message = BAD_FILES[case]
    file = write(tmp_path, *lines)
    with pytest.raises(InputError, match=message) as refusal:
        calibrate_file(file)
    assert str(refusal.value).startswith(f"{file}: ")
    assert "\n" not in str(refusal.value)


def test_files_that_are_none(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        calibrate_file(tmp_path / "absent.csv")
    with pytest.raises(InputError, match="cannot be read"):
        calibrate_file(tmp_path)
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not UTF-8"):
        calibrate_file(tmp_path / "binary.csv")


def test_the_plot_shows_the_residuals():
    times = noisy(law(SIZES, 0.02, 1e-4, 100.0), 0.05)
    found = calibrate(SIZES, times)
    axes = Figure().subplots()
    found.plot(axes)
    drawn = axes.get_lines()[-1].get_ydata()
    np.testing.assert_allclose(drawn, 100 * (times / found.law(SIZES) - 1))
    assert len(plot_calibration(found).axes) == 2


@pytest.mark.skipif(not DATA.exists(), reason="needs ../shared/data/linear_layer_iteration_time.csv")
def test_all_measured_combinations_are_calibrated():
    found = calibrate_file(DATA, bootstrap=200)
    assert len(found.calibrations) == 48
    assert not found.refused
    for one in found.calibrations:
        assert 40 < one.knee.value < 180, one.label
        assert one.knee.ci95[0] < one.knee.value < one.knee.ci95[1]
        assert one.r2 > 0.985, one.label
        assert one.max_relative_error < 0.3, one.label
        squares = np.sum((one.law(one.num_tokens) / one.iteration_time_s - 1) ** 2)
        searched = relative_squares(one.num_tokens, one.iteration_time_s, np.geomspace(1.0, 1000.0, 100))
        assert squares <= searched.min() * (1 + 1e-9)
