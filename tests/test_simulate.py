"""The verb: what it asks of an engine, when it stops, what it refuses; then the cluster engine behind it."""

from __future__ import annotations

import itertools
import math
import warnings
from typing import Any

import jax
import numpy as np
import pytest

from jaxq import InputError
from jaxq._engine.record import COUNTS, FINAL, INTEGRALS, Record
from jaxq._policy.presets import sarathi
from jaxq._result import QUANTITIES
from jaxq._result_file import load_result
from jaxq._simulate import StatisticsWarning, simulate

from .test_result import instance

POLICY = sarathi(instance())
WINDOWS = 40


class FakeEngine:
    """Completions of class 0 alone: 40 a window, plus or minus `spread` in even or odd replications.

    R signs (R even) have mean 0 and variance R/(R - 1), so that intervals are known in closed form.
    `drift` is added at the start and dies out.
    """

    is_fluid = False

    def __init__(self, spread: float = 4.0, drift: float = 0.0):
        self.spread, self.drift = spread, drift
        self.calls: list[dict[str, Any]] = []

    def run(self, instance, policy, *, n_gpus, horizon, warmup, key, replications, first=0, progress=None):
        self.calls.append({"first": first, "replications": replications, "key": key, "n_gpus": n_gpus})
        shape = (WINDOWS + 1, 2, replications)
        counts = {name: np.zeros(shape) for name in (*COUNTS, *INTEGRALS)}
        signs = np.array([1 - 2 * (number % 2) for number in range(first, first + replications)])
        trend = self.drift * np.exp(-np.arange(WINDOWS + 1) / 8)
        counts["completions"][:, 0] = 40 + self.spread * signs + trend[:, None]
        length = (horizon - warmup) / WINDOWS
        if progress is not None:
            progress(1, 1)
        return Record(
            durations=np.array([warmup, *[length] * WINDOWS]),
            **counts,
            events=np.ones((WINDOWS + 1, replications)),
            final={name: np.zeros((2, replications), np.int64) for name in FINAL},
            warmup_windows=1,
            n_gpus=n_gpus,
        )

    def describe(self, instance, policy, n_gpus):
        return f"made up, {n_gpus} GPUs"

    def block_size(self, instance, policy, n_gpus, replications):
        return replications


def run(engine: FakeEngine | None = None, **changes: Any):
    arguments = {"n_gpus": 2, "horizon": 500.0, "warmup": 100.0, "replications": 4} | changes
    return simulate(instance(), POLICY, engine=FakeEngine() if engine is None else engine, **arguments)


def test_a_plain_run_asks_the_engine_once_and_reports_it():
    engine = FakeEngine()
    found = run(engine, key=7, first=3)
    (call,) = engine.calls
    assert (call["first"], call["replications"], call["n_gpus"]) == (3, 4, 2)
    assert found.stopped_because == "replications"
    assert (found.first, found.replications, found.n_gpus, found.seed) == (3, 4, 2, 7)
    assert (found.policy_name, found.engine_description) == ("sarathi", "made up, 2 GPUs")
    assert (found.horizon, found.warmup) == (500.0, 100.0)
    assert found.seconds > 0
    # 40 completions of value 1 in a window of 10 s on 2 GPUs; a variance of 4/3 between four of +-0.2.
    assert float(found.revenue_bundled.mean) == pytest.approx(2.0, rel=1e-12)
    assert float(found.revenue_bundled.standard_error) == pytest.approx(0.2 / math.sqrt(3), rel=1e-12)


def test_precision_adds_blocks_until_the_interval_is_narrow_enough():
    # The relative half-width of R replications is t * 0.1 / sqrt(R - 1): 0.052 at 16, 0.042 at 24 (t = 2.07).
    engine = FakeEngine()
    found = run(engine, replications=8, precision=0.045)
    assert [call["first"] for call in engine.calls] == [0, 8, 16]
    assert found.replications == 24
    assert found.stopped_because == "precision"
    assert float(found.revenue.relative_half_width) == pytest.approx(2.0687 * 0.1 / math.sqrt(23), rel=1e-4)


def test_blocks_are_the_same_replications_as_one_run():
    whole, blocks = run(replications=24), run(replications=8, precision=0.045)
    np.testing.assert_array_equal(whole.record.completions, blocks.record.completions)
    assert float(whole.revenue.mean) == float(blocks.revenue.mean)


def test_an_interval_of_few_replications_stops_nothing():
    engine = FakeEngine(spread=0.0)
    found = run(engine, replications=1, precision=0.5)
    assert found.replications == 8
    assert found.stopped_because == "precision"


def test_the_budget_of_replications_ends_a_run():
    engine = FakeEngine()
    found = run(engine, replications=8, precision=1e-6, max_replications=20)
    assert [call["replications"] for call in engine.calls] == [8, 8, 4]
    assert (found.replications, found.stopped_because) == (20, "max_replications")
    assert len(run(FakeEngine(), replications=1, precision=1e-6).per_replication("revenue_bundled")) == 64


def test_the_time_limit_ends_a_run(monkeypatch):
    clock = itertools.count(0.0, 10.0)
    monkeypatch.setattr("jaxq._simulate.time.perf_counter", lambda: next(clock))
    found = run(replications=8, precision=1e-6, time_limit=25.0)
    assert (found.replications, found.stopped_because) == (24, "time_limit")
    assert found.seconds == 30.0


def test_progress_is_passed_on():
    seen = []
    run(
        replications=8,
        precision=1e-6,
        max_replications=16,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(1, 1), (1, 1)]


def test_a_short_warmup_warns_and_a_long_one_does_not():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run()
    with pytest.warns(StatisticsWarning, match="warm-up too short"):
        found = run(FakeEngine(spread=0.1, drift=-20.0))
    assert found.to_dict()["cautions"] == found.cautions() != []


def test_keys():
    engine = FakeEngine()
    seeds = [run(engine, key=key).seed for key in (None, 0, np.int64(5), 2**32 - 1, jax.random.key(9))]
    assert seeds == [0, 0, 5, 2**32 - 1, 9]
    assert run(engine, key=jax.random.PRNGKey(11)).seed == 11
    assert run(engine, key=jax.random.fold_in(jax.random.key(1), 2)).seed is None
    same = jax.random.key_data(jax.random.key(5)), jax.random.key_data(engine.calls[2]["key"])
    np.testing.assert_array_equal(*same)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_gpus": 0}, "n_gpus: expected a whole number of at least 1, got 0"),
        ({"n_gpus": 2.5}, "n_gpus: expected a whole number of at least 1, got 2.5"),
        ({"n_gpus": True}, "n_gpus: expected a whole number"),
        ({"n_gpus": "two"}, "n_gpus: expected a whole number"),
        ({"replications": 0}, "replications: expected a whole number of at least 1, got 0"),
        ({"replications": 1.5}, "replications: expected a whole number of at least 1, got 1.5"),
        ({"first": -1}, "first: expected a whole number of at least 0, got -1"),
        ({"horizon": 0.0}, "horizon: expected a positive number of seconds"),
        ({"horizon": math.nan}, "horizon: expected a finite number, got nan"),
        ({"horizon": math.inf}, "horizon: expected a finite number, got inf"),
        ({"horizon": 10**400}, "horizon: expected a finite number"),
        ({"horizon": None}, "horizon: expected a finite number"),
        ({"warmup": 500.0}, "warmup: expected 0 s or more and less than horizon"),
        ({"warmup": 600.0}, "warmup: expected 0 s or more and less than horizon"),
        ({"warmup": -1.0}, "warmup: expected 0 s or more"),
        ({"warmup": math.nan}, "warmup: expected a finite number"),
        ({"precision": 0.0}, "precision: expected a relative half-width above 0"),
        ({"precision": 1.0}, "precision: expected a relative half-width"),
        ({"precision": math.nan}, "precision: expected a finite number"),
        (
            {"precision": 0.1, "max_replications": 3},
            "max_replications: expected a whole number of at least 4",
        ),
        ({"precision": 0.1, "time_limit": 0.0}, "time_limit: expected a positive number of seconds"),
        ({"time_limit": 5.0}, "time_limit: expected only together with precision"),
        ({"max_replications": 10}, "max_replications: expected only together with precision"),
        ({"key": -1}, "key: expected a whole number from 0"),
        ({"key": 2**32}, "key: expected a whole number from 0"),
        ({"key": 0.5}, "key: expected a whole number from 0"),
        ({"key": True}, "key: expected a whole number from 0"),
    ],
)
def test_bad_arguments_are_refused_before_anything_runs(changes, message):
    engine = FakeEngine()
    with pytest.raises(InputError, match=f"^{message}") as caught:
        run(engine, **changes)
    assert "\n" not in str(caught.value)
    assert engine.calls == []


def test_the_cluster_engine_behind_it(tmp_path):
    """By default the exact chain runs; blocks join to the bits of one run; files keep all."""
    given = instance()
    arguments = {"n_gpus": 3, "horizon": 60.0, "warmup": 20.0, "key": 3}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StatisticsWarning)
        whole = simulate(given, sarathi(given), replications=16, **arguments)
        blocks = simulate(
            given, sarathi(given), replications=8, precision=1e-6, max_replications=16, **arguments
        )
    np.testing.assert_array_equal(whole.record.imbalance, 0)
    assert whole.record.measured_durations.sum() == pytest.approx(40.0, rel=1e-12)
    assert blocks.stopped_because == "max_replications"
    for name in QUANTITIES:
        np.testing.assert_array_equal(whole.per_replication(name), blocks.per_replication(name))
    # Arrivals are Poisson with 3 * 40 * (2, 1) expected in a replication; 5 standard deviations of the mean.
    counts = whole.arrival_rate.mean * 3 * 40
    assert (np.abs(counts - [240, 120]) < 5 * np.sqrt(np.array([240, 120]) / 16)).all()
    whole.save(tmp_path / "result.nc")
    assert load_result(tmp_path / "result.nc").to_dict() == whole.to_dict()
