"""Results: every reported quantity against a record worked out by hand, files, comparisons, checks of a run.

The instance has tau = 0.04 s beside a prefill and 0.02 s without, so that service times are round numbers.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os

import numpy as np
import pytest
import xarray
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from jaxq import InputError, Instance, IterationTime, Pricing, Workload
from jaxq._compare import compare
from jaxq._engine.record import COUNTS, FINAL, INTEGRALS, Record
from jaxq._plan import Plan, solve_plan, upper_bound
from jaxq._result import QUANTITIES, RATIOS, Result
from jaxq._result_file import load_result

ALL_COUNTS = (*COUNTS, *INTEGRALS)
CONSTRAINED = 100.0


def instance(scheme: str = "bundled", patience: tuple[float, float] = (0.1, 0.1)) -> Instance:
    """Request values 1 and 2 at prices 0.01 and 0.02: (50, 25) and (100, 50) tokens."""
    return Instance(
        workload=Workload([50.0, 100.0], [25.0, 50.0], [2.0, 1.0], patience, names=("short", "long")),
        iteration_time=IterationTime(alpha=0.02, beta=2e-4, solo=0.02),
        pricing=Pricing(prefill=0.01, decode=0.02, scheme=scheme),
        batch_size=4,
        chunk_size=100,
        name="by hand",
    )


def record(
    windows: int = 3, replications: int = 2, warmup_windows: int = 1, n_gpus: int = 2, **changes
) -> Record:
    """Nothing happens, in windows of 10 s, except what `changes` says."""
    shape = (windows, 2, replications)
    fields = {name: np.zeros(shape) for name in ALL_COUNTS}
    fields["durations"] = np.full(windows, 10.0)
    fields["events"] = np.zeros((windows, replications))
    fields["final"] = {name: np.zeros(shape[1:], np.int64) for name in FINAL}
    return Record(**(fields | changes), warmup_windows=warmup_windows, n_gpus=n_gpus)


def random_record(seed: int, windows: int = 44, replications: int = 6, warmup_windows: int = 4) -> Record:
    """Poisson counts and occupancies without memory."""
    rng = np.random.default_rng(seed)
    shape = (windows, 2, replications)
    counts = {name: rng.poisson(40.0, shape).astype(np.float64) for name in COUNTS}
    integrals = {name: rng.gamma(20.0, 0.5, shape) for name in INTEGRALS}
    final = {name: rng.poisson(3.0, shape[1:]).astype(np.int64) for name in FINAL}
    events = rng.poisson(200.0, (windows, replications)).astype(np.float64)
    return record(windows, replications, warmup_windows, **counts, **integrals, final=final, events=events)


def result(made: Record | None = None, **changes) -> Result:
    made = record() if made is None else made
    fields = {
        "instance": instance(),
        "policy_name": "sarathi",
        "record": made,
        "horizon": float(made.durations.sum()),
        "warmup": float(made.durations[: made.warmup_windows].sum()),
        "key": "threefry2x32:00000000:00000007",
        "engine_description": "made by hand",
        "seconds": 1.5,
    }
    return Result(**(fields | changes))


def windows_of(*per_window) -> np.ndarray:
    """(windows, classes) -> (windows, classes, 2 replications), the second with twice as much."""
    values = np.asarray(per_window, np.float64)
    return np.stack([values, 2 * values], axis=-1)


BY_HAND = record(
    # The first window is the warm-up: its numbers must not count. n = 2, 20 s are measured: n T = 40.
    arrivals=windows_of([99, 99], [50, 20], [30, 20]),
    abandoned_prefill=windows_of([99, 99], [4, 0], [4, 2]),
    prefills_completed=windows_of([99, 99], [40, 20], [20, 0]),
    abandoned_decode=windows_of([99, 99], [0, 0], [2, 0]),
    completions=windows_of([99, 99], [30, 10], [30, 10]),
    prefills=windows_of([99, 99], [6, 4], [6, 4]),
    decodes_mixed=windows_of([99, 99], [10, 10], [10, 10]),
    decodes_solo=windows_of([99, 99], [20, 10], [20, 10]),
    prefill_queue=windows_of([99, 99], [8, 0], [8, 4]),
    decode_queue=windows_of([99, 99], [3, 0], [3, 0]),
)

# Of the first replication, totals over 40; the second has twice as much, so the mean is 1.5 times it.
FIRST = {
    "revenue_bundled": (60 * 1.0 + 20 * 2.0) / 40,
    "revenue_separate": (60 * 0.5 + 20 * 1.0 + 60 * 0.5 + 20 * 1.0) / 40,
    "prefills": [12 / 40, 8 / 40],
    "decodes_mixed": [0.5, 0.5],
    "decodes_solo": [1.0, 0.5],
    "prefill_queue": [0.4, 0.1],
    "decode_queue": [0.15, 0.0],
    "arrival_rate": [2.0, 1.0],
    "abandonment_rate_prefill": [0.2, 0.05],
    "prefill_rate": [1.5, 0.5],
    "abandonment_rate_decode": [0.05, 0.0],
    "completion_rate": [1.5, 0.5],
    "slot_utilisation": (0.5 + 1.0 + 1.5) / 4,
    "prefill_utilisation": 0.5,
}
RATIO_VALUES = {
    "time_per_token_slot": (0.04 * 1.0 + 0.02 * 1.5) / 2.5,
    "time_per_token_emitted": 2.5 / (1.0 / 0.04 + 1.5 / 0.02),
    "waiting_time_prefill": [0.2, 0.1],
    "waiting_time_decode": [0.1, 0.0],
}


def test_every_quantity_is_tested_here():
    assert set(FIRST) | set(RATIO_VALUES) == set(QUANTITIES)
    assert set(RATIO_VALUES) == set(RATIOS)


@pytest.mark.parametrize("name", FIRST)
def test_averages_after_the_warmup_by_hand(name):
    found = result(BY_HAND)
    first = np.asarray(FIRST[name])
    np.testing.assert_allclose(found.per_replication(name), [first, 2 * first], rtol=1e-14)
    estimate = getattr(found, name)
    np.testing.assert_allclose(estimate.mean, 1.5 * first, rtol=1e-14)
    # Two values a and 2a: standard deviation a/sqrt(2), standard error a/2.
    np.testing.assert_allclose(estimate.standard_error, first / 2, rtol=1e-14)
    assert estimate.count == 2


@pytest.mark.parametrize("name", RATIO_VALUES)
def test_ratios_by_hand_have_no_error_when_both_parts_vary_alike(name):
    found = result(BY_HAND)
    np.testing.assert_allclose(getattr(found, name).mean, RATIO_VALUES[name], rtol=1e-14)
    np.testing.assert_allclose(
        getattr(found, name).standard_error, 0 * np.asarray(RATIO_VALUES[name]), atol=1e-15
    )
    np.testing.assert_allclose(found.per_replication(name), [RATIO_VALUES[name]] * 2, rtol=1e-14)


def test_revenue_is_that_of_the_scheme():
    bundled = result(BY_HAND)
    separate = result(BY_HAND, instance=instance("separate"))
    assert float(bundled.revenue.mean) == pytest.approx(1.5 * FIRST["revenue_bundled"], rel=1e-14)
    assert float(separate.revenue.mean) == pytest.approx(1.5 * FIRST["revenue_separate"], rel=1e-14)


def test_a_class_without_arrivals_has_no_waiting_time():
    found = result(record())
    assert np.isnan(found.waiting_time_prefill.mean).all()
    assert np.isnan(found.per_replication("waiting_time_decode")).all()
    assert found.to_dict()["waiting_time_prefill"]["mean"] == [None, None]


@pytest.mark.parametrize("scheme", ["bundled", "separate"])
def test_gap_is_against_the_optimum_of_the_same_revenue(scheme):
    found = result(BY_HAND)
    plan = solve_plan(instance(), scheme)
    revenue = float(found.estimate(f"revenue_{scheme}").mean)
    expected = 1 - revenue / float(plan.revenue)
    assert float(found.gap(scheme=scheme).mean) == pytest.approx(expected, rel=1e-8)
    assert float(found.gap(plan).mean) == pytest.approx(expected, rel=1e-8)
    error = float(found.estimate(f"revenue_{scheme}").standard_error) / float(plan.revenue)
    assert float(found.gap(scheme=scheme).standard_error) == pytest.approx(error, rel=1e-8)


def test_gap_without_patience_is_against_the_bound_of_growing_queues():
    # The load is light, so that the plan exists; letting a queue grow cannot pay less.
    impatient = instance(patience=(0.0, 0.0))
    found = result(BY_HAND, instance=impatient)
    assert found.bound() == upper_bound(impatient, "bundled")
    assert found.bound() >= float(solve_plan(impatient).revenue) * (1 - 1e-9)


def test_optimum_is_solved_once_a_scheme(monkeypatch):
    calls = []
    monkeypatch.setattr("jaxq._result.upper_bound", lambda _, scheme: calls.append(scheme) or 10.0)
    found = result(BY_HAND)
    for _ in range(3):
        found.to_dict()
        found.gap(scheme="separate")
    assert sorted(calls) == ["bundled", "separate"]


def test_gap_refuses_what_is_not_the_same_revenue():
    found = result(BY_HAND)
    plan = solve_plan(instance(), "separate")
    with pytest.raises(InputError, match="scheme: expected 'separate'"):
        found.gap(plan, scheme="bundled")
    with pytest.raises(InputError, match="scheme: expected one of bundled, separate"):
        found.gap(scheme="per token")
    with pytest.raises(InputError, match="plan.revenue"):
        found.gap(Plan([0.1, 0.1], [1.0, 1.0], [1.0, 1.0]))


def test_gap_to_plan_is_against_the_value_of_the_plan():
    plan = Plan([0.1, 0.1], [1.0, 1.0], [1.0, 1.0], revenue=200.0, plan_revenue=CONSTRAINED)
    found = result(BY_HAND)
    assert float(found.gap_to_plan(plan).mean) == pytest.approx(1 - float(found.revenue.mean) / CONSTRAINED)
    assert float(found.gap(plan).mean) == pytest.approx(1 - float(found.revenue.mean) / 200.0)


def test_unknown_names_are_refused():
    found = result(BY_HAND)
    for ask in (found.estimate, found.per_replication, found.samples, found.series):
        with pytest.raises(InputError, match="name: expected one of"):
            ask("throughput")
    with pytest.raises(InputError, match="name: expected one of"):
        found.samples("waiting_time_prefill")


# One long replication.


def single(seed: int, windows: int = 44) -> Result:
    return result(random_record(seed, windows, replications=1))


def test_a_single_replication_is_estimated_by_batches_of_time():
    found = single(1)
    assert found.revenue_bundled.count == 20
    batches = found.batches
    assert batches is not None
    assert float(found.revenue.mean) == pytest.approx(float(batches.estimate.mean), rel=1e-13)
    assert float(found.revenue.standard_error) == pytest.approx(
        float(batches.estimate.standard_error), rel=1e-12
    )
    assert float(found.revenue.mean) == pytest.approx(
        float(found.per_replication("revenue_bundled")[0]), rel=1e-13
    )
    for name in QUANTITIES:
        assert np.isfinite(found.estimate(name).standard_error).all()


def test_left_over_windows_are_dropped_from_the_start():
    found = single(2, windows=4 + 45)
    kept = found.series("completion_rate")[5:, 0].mean(axis=0)
    np.testing.assert_allclose(found.completion_rate.mean, kept, rtol=1e-13)


def test_a_single_short_replication_has_no_interval():
    found = single(3, windows=4 + 7)
    assert found.revenue.count == 1
    assert math.isnan(float(found.revenue.standard_error))
    assert found.batches is None
    assert found.to_dict()["revenue_bundled"]["ci95"] == [None, None]
    json.dumps(found.to_dict(), allow_nan=False)


def test_batch_means_cover_the_truth():
    """200 runs of independent windows: of the 95 % intervals binomial(200, 0.05) miss, above 28 with
    probability 3e-7, and 0 with 4e-5. The seeds are fixed."""
    misses = 0
    for seed in range(200):
        low, high = single(seed).completion_rate.ci95
        misses += int(not low[0] <= 40 / (10 * 2) <= high[0])
    assert 1 <= misses <= 28


# Checks of the run.


def ramp(replications: int = 16, windows: int = 40, depth: float = 0.5) -> Result:
    """Completions that start low and settle after a quarter of the measured windows."""
    made = random_record(5, windows, replications, warmup_windows=0)
    rise = 1 - depth * np.exp(-np.arange(windows) / 5.0)
    completions = np.round(made.completions * rise[:, None, None] * 10)
    return result(dataclasses.replace(made, completions=completions))


def test_a_warmup_that_was_long_enough_passes_and_one_that_was_not_is_named():
    """The false-alarm rate of the first is 1e-3 at most; the seed is fixed."""
    fine = result(random_record(5, 40, 16, warmup_windows=0))
    assert fine.warmup_check is not None and not fine.warmup_check.too_short
    assert fine.cautions() == []
    short = ramp()
    assert short.warmup_check is not None and short.warmup_check.too_short
    assert short.to_dict()["warmup_check"]["too_short"] is True
    assert short.to_dict()["warmup_check"]["series"] == "revenue"
    (line,) = short.cautions()
    assert line.startswith("warm-up too short") and "\n" not in line
    assert short.warmup_check.bias < 0


def test_growing_queues_are_seen():
    made = random_record(6, 40, 16, warmup_windows=0)
    queue = made.prefill_queue * (1 + np.arange(40) / 10)[:, None, None]
    found = result(dataclasses.replace(made, prefill_queue=queue))
    assert found.warmup_checks["waiting"].too_short
    assert not found.warmup_checks["revenue"].too_short
    assert "waiting" in found.cautions()[0]


def test_too_few_windows_for_the_check_are_no_verdict():
    assert result(random_record(1, 4 + 7)).warmup_check is None
    assert single(1, windows=4 + 31).warmup_check is None
    assert single(1, windows=4 + 32).warmup_check is not None
    assert result(random_record(1, 4 + 7)).to_dict()["warmup_check"] is None


def test_correlated_batches_are_a_caution():
    made = random_record(7, 40, 1, warmup_windows=0)
    slow = np.round(400 + 100 * np.sin(2 * np.pi * np.arange(40) / 20))[:, None, None] * np.ones((1, 2, 1))
    found = result(dataclasses.replace(made, completions=slow))
    assert any("batches" in line for line in found.cautions())


# Records.


def test_balance_of_a_record_is_arrivals_less_what_left_and_what_stayed():
    one = np.ones((3, 2, 2))
    final = {name: np.full((2, 2), 1, np.int64) for name in FINAL}
    made = record(
        arrivals=10 * one, completions=5 * one, abandoned_prefill=2 * one, abandoned_decode=one, final=final
    )
    np.testing.assert_array_equal(made.imbalance, np.full((2, 2), 3 * (10 - 5 - 2 - 1) - 4))


def test_pieces_of_a_record_join_to_the_same_bits():
    whole = random_record(8, replications=7)
    parts = [whole.part(0, 3)]
    parts.append(
        Record.concatenate(
            [
                _tail(whole, 3),
            ]
        )
    )
    joined = Record.concatenate(parts)
    for name in (*ALL_COUNTS, "events"):
        np.testing.assert_array_equal(getattr(joined, name), getattr(whole, name))
    for name in QUANTITIES:
        np.testing.assert_array_equal(result(joined).estimate(name).mean, result(whole).estimate(name).mean)
    first = result(whole.part(0, 1)).per_replication("revenue_separate")
    np.testing.assert_array_equal(first, result(whole).per_replication("revenue_separate")[:1])


def _tail(whole: Record, start: int) -> Record:
    fields = {name: getattr(whole, name)[..., start:] for name in (*ALL_COUNTS, "events")}
    final = {name: value[..., start:] for name, value in whole.final.items()}
    return record(44, whole.replications - start, 4, **fields, final=final)


def test_records_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="expected at least one"):
        Record.concatenate([])
    with pytest.raises(InputError, match="same windows"):
        Record.concatenate([record(), record(n_gpus=3)])
    with pytest.raises(InputError, match="same windows"):
        Record.concatenate([record(), record(durations=np.full(3, 9.0))])
    with pytest.raises(InputError, match="warmup_windows"):
        record(windows=2, warmup_windows=2)
    with pytest.raises(InputError, match="final"):
        record(final={"prefills": np.zeros((2, 2), np.int64)})


def test_seed_is_known_for_a_key_made_from_one():
    assert result().seed == 7
    assert result(key="threefry2x32:00000001:00000007").seed is None
    assert result(key="rbg:00000000:00000007:00000000:00000007").seed is None


# Labelled data and files.


def test_dataset_is_labelled():
    found = result(random_record(9), first=10)
    data = found.to_xarray()
    assert list(data["request_class"].values) == ["short", "long"]
    assert list(data["replication"].values) == [10, 11, 12, 13, 14, 15]
    for name, quantity in QUANTITIES.items():
        assert data[name].attrs["units"] == data[f"{name}_estimate"].attrs["units"] == quantity.unit
        np.testing.assert_array_equal(data[name].values, found.per_replication(name))
        mean = data[f"{name}_estimate"].sel(statistic="mean").values
        np.testing.assert_array_equal(mean, found.estimate(name).mean)
        assert ("request_class" in data[name].dims) == quantity.per_class
    long = data["completion_rate"].sel(request_class="long").mean().item()
    assert long == pytest.approx(float(found.completion_rate.mean[1]), rel=1e-13)
    assert data.attrs["policy_name"] == "sarathi"


def same(first: Result, second: Result) -> None:
    for name in (
        "policy_name",
        "n_gpus",
        "horizon",
        "warmup",
        "key",
        "first",
        "engine_description",
        "seconds",
    ):
        assert getattr(first, name) == getattr(second, name), name
    for name in ("stopped_because", "versions", "dt", "replications", "seed"):
        assert getattr(first, name) == getattr(second, name), name
    assert first.instance.fingerprint() == second.instance.fingerprint()
    assert first.instance.name == second.instance.name
    assert first.instance.workload.names == second.instance.workload.names
    assert first.record.warmup_windows == second.record.warmup_windows
    for name in (*ALL_COUNTS, "events", "durations"):
        a, b = getattr(first.record, name), getattr(second.record, name)
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    for name in FINAL:
        np.testing.assert_array_equal(first.record.final[name], second.record.final[name])
    assert first.to_dict() == second.to_dict()


@pytest.mark.parametrize("dt", [None, 0.1 + 0.2])
def test_round_trip_of_a_file(tmp_path, dt):
    made = dataclasses.replace(random_record(10), dt=dt)
    before = result(made, first=3, stopped_because="precision", policy_name="my_module:Näive", seconds=1 / 3)
    path = tmp_path / "result.nc"
    before.save(path)
    same(before, load_result(path))
    assert [file.name for file in tmp_path.iterdir()] == ["result.nc"]
    with xarray.open_dataset(path) as data:
        assert "revenue_bundled_estimate" in data


NUMBERS = st.just(0.0) | st.floats(1e-6, 1e12)


@settings(max_examples=6, deadline=None)
@given(st.data())
def test_round_trip_of_random_results(tmp_path_factory, data):
    windows, classes, replications = (data.draw(st.integers(1, 4)) for _ in range(3))
    shape = (windows, classes, replications)
    fields = {name: data.draw(arrays(np.float64, shape, elements=NUMBERS)) for name in ALL_COUNTS}
    final = {name: data.draw(arrays(np.int64, shape[1:], elements=st.integers(0, 2**40))) for name in FINAL}
    durations = data.draw(arrays(np.float64, windows, elements=st.floats(1e-3, 1e5)))
    names = data.draw(
        st.lists(st.text('aé"\\\n#λ ', min_size=1), min_size=classes, max_size=classes, unique=True)
    )
    made = Record(
        **fields,
        durations=durations,
        events=np.ones((windows, replications)),
        final=final,
        warmup_windows=data.draw(st.integers(0, windows - 1)),
        n_gpus=data.draw(st.integers(1, 10**6)),
    )
    rates = data.draw(arrays(np.float64, classes, elements=st.floats(0.01, 10)))
    workload = Workload(100 * rates, 50 * rates, rates, rates, names=names)
    before = result(made, instance=dataclasses.replace(instance(), workload=workload))
    path = tmp_path_factory.mktemp("results") / "result.nc"
    before.save(path)
    same(before, load_result(path))


def test_missing_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        load_result(tmp_path / "absent.nc")
    text = tmp_path / "text.nc"
    text.write_text("name = 'not a result'")
    with pytest.raises(InputError, match="not a readable netCDF file") as caught:
        load_result(text)
    assert "\n" not in str(caught.value) and str(text) in str(caught.value)
    other = tmp_path / "other.nc"
    xarray.Dataset({"temperature": ("x", np.arange(3.0))}).to_netcdf(other)
    with pytest.raises(InputError, match="not a result of jaxq"):
        load_result(other)


def rewrite(path, **attributes):
    data = xarray.load_dataset(path)
    data.attrs.update(attributes)
    os.unlink(path)
    data.to_netcdf(path)


def test_files_of_another_form_or_changed_by_hand_are_refused(tmp_path):
    path = tmp_path / "result.nc"
    result(random_record(11)).save(path)
    rewrite(path, horizon=1.0)
    with pytest.raises(InputError, match="damaged result.*checksum"):
        load_result(path)
    rewrite(path, jaxq_format=99)
    with pytest.raises(InputError, match="form 99"):
        load_result(path)
    rewrite(path, jaxq_format="soon")
    with pytest.raises(InputError, match="form soon"):
        load_result(path)


def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / "result.nc"
    before = result(random_record(12))
    before.save(path)
    good = path.read_bytes()
    for size in (0, 10, len(good) // 2, len(good) - 1):
        path.write_bytes(good[:size])
        with pytest.raises(InputError) as caught:
            load_result(path)
        assert "\n" not in str(caught.value)
    # A changed byte is noticed, or touched nothing that a result is made of.
    rng = np.random.default_rng(13)
    for position in rng.integers(len(good) // 4, len(good), 20):
        changed = bytearray(good)
        changed[position] ^= 0x55
        path.write_bytes(bytes(changed))
        try:
            same(before, load_result(path))
        except InputError as error:
            assert "\n" not in str(error)


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "result.nc"
    before = result(random_record(14))
    before.save(path)

    def interrupted(self, target, **_):
        with open(target, "wb") as stream:
            stream.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(xarray.Dataset, "to_netcdf", interrupted)
    with pytest.raises(KeyboardInterrupt):
        result(random_record(15)).save(path)
    assert [file.name for file in tmp_path.iterdir()] == ["result.nc"]
    same(before, load_result(path))


def test_unwritable_paths_are_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be written"):
        result().save(tmp_path / "absent" / "result.nc")
    with pytest.raises(InputError, match="cannot be written"):
        result().save(tmp_path)


# Comparisons.


def pair(noise: float = 0.0) -> tuple[Result, Result]:
    """The second has two more completions of each class in every window, and its own noise."""
    made = random_record(16)
    own = np.round(noise * np.random.default_rng(17).standard_normal(made.completions.shape))
    better = dataclasses.replace(made, completions=made.completions + 2 + own)
    return result(made), result(better, policy_name="better")


def test_paired_differences_by_hand():
    base, better = pair()
    comparison = compare([base, better])
    assert comparison.baseline == "sarathi"
    paired = comparison.differences["better"]["revenue_bundled"]
    # Two more of values 1 and 2 a window of 10 s, on 2 GPUs.
    assert float(paired.difference.mean) == pytest.approx((2 * 1 + 2 * 2) / 20, rel=1e-12)
    assert float(paired.difference.standard_error) == pytest.approx(0, abs=1e-12)
    assert float(paired.correlation) == pytest.approx(1, rel=1e-12)
    np.testing.assert_allclose(
        comparison.differences["better"]["completion_rate"].difference.mean, [0.1, 0.1]
    )
    gap = comparison.gap_differences["better"].difference
    assert float(gap.mean) == pytest.approx(float(better.gap().mean) - float(base.gap().mean), rel=1e-9)
    assert comparison.to_dict()["differences"]["better"]["gap"]["mean"] == float(gap.mean)
    json.dumps(comparison.to_dict(), allow_nan=False)


def test_pairing_narrows_the_interval():
    base, better = pair(noise=2.0)
    paired = compare([base, better]).differences["better"]["revenue_bundled"]
    apart = math.hypot(float(base.revenue.standard_error), float(better.revenue.standard_error))
    assert float(paired.correlation) > 0.5
    assert float(paired.difference.standard_error) < apart


def test_the_baseline_can_be_chosen_and_labels_given():
    base, better = pair()
    swapped = compare({"a": base, "b": better}, baseline="b")
    assert list(swapped.differences) == ["a"]
    assert float(swapped.differences["a"]["revenue_bundled"].difference.mean) == pytest.approx(-0.3)


def test_results_of_different_length_are_paired_over_what_both_have():
    base, better = pair(noise=2.0)
    short = result(better.record.part(0, 4), policy_name="short")
    paired = compare([base, short]).differences["short"]["revenue_bundled"]
    both = compare({"base": result(base.record.part(0, 4)), "short": short}).differences["short"][
        "revenue_bundled"
    ]
    assert paired.difference.count == 4
    assert float(paired.difference.mean) == float(both.difference.mean)


def test_single_replications_are_paired_by_batches():
    base, better = pair(noise=2.0)
    one, other = result(base.record.part(0, 1)), result(better.record.part(0, 1), policy_name="other")
    paired = compare([one, other]).differences["other"]["revenue_bundled"]
    assert paired.difference.count == 20


@pytest.mark.parametrize(
    "changes",
    [
        {"instance": instance("separate")},
        {"horizon": 441.0},
        {"warmup": 39.0},
        {"key": "threefry2x32:00000000:00000008"},
        {"first": 1},
    ],
)
def test_results_that_are_no_pairs_are_refused(changes):
    base, _ = pair()
    other = dataclasses.replace(base, policy_name="other", **changes)
    with pytest.raises(InputError, match=f"'other' has {next(iter(changes))} "):
        compare([base, other])


def test_comparisons_that_make_no_sense_are_refused():
    base, better = pair()
    with pytest.raises(InputError, match="at least two"):
        compare([base])
    with pytest.raises(InputError, match="same policy name"):
        compare([base, base])
    with pytest.raises(InputError, match="baseline: expected one of sarathi, better"):
        compare([base, better], baseline="worse")
    with pytest.raises(InputError, match="measures"):
        compare([base, better], measures=("waiting_time_prefill",))
