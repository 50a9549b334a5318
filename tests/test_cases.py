"""Many clusters in one call: the bits of single runs, few programs, kept and resumed."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from jaxq import (
    Case,
    ClusterEngine,
    FluidEngine,
    InputError,
    load_result,
    policies,
    simulate,
    simulate_cases,
)
from jaxq._cases import families
from jaxq._engine.program import program

from . import oracles
from .simulations import identical

RUN = {"horizon": 12.0, "warmup": 4.0, "replications": 6, "key": 5}
pytestmark = pytest.mark.filterwarnings("ignore::jaxq.StatisticsWarning")
ENGINE = ClusterEngine(block=8)


def small_cases() -> list[Case]:
    """Two policies on two instances, one of them at two sizes."""
    plain = oracles.reference_cluster().instance()
    other = dataclasses.replace(plain, batch_size=np.float64(7))
    made = (policies.sarathi, policies.price_and_pack)
    return [Case(i, make(i), n) for i, n in ((plain, 5), (other, 8), (plain, 12)) for make in made]


@pytest.fixture(scope="module")
def together():
    return simulate_cases(small_cases(), engine=ENGINE, **RUN)


def test_cases_give_the_bits_of_single_runs(together):
    for case, result in zip(small_cases(), together, strict=True):
        alone = simulate(case.instance, case.policy, n_gpus=case.n_gpus, engine=ENGINE, **RUN)
        assert identical(result.record, alone.record)
        assert result.engine_description == alone.engine_description
        assert result.revenue.mean == alone.revenue.mean and result.policy_name == case.policy.name


@pytest.mark.slow
def test_cases_compile_once_for_each_kind_of_policy():
    before = program.cache_info().misses
    # A number of replications that no other test has, and so a block of its own.
    simulate_cases(small_cases(), engine=ClusterEngine(block=40), **(RUN | {"replications": 17}))
    assert program.cache_info().misses == before + 2
    assert families(small_cases()) == [[0, 2, 4], [1, 3, 5]]


def test_cases_that_were_interrupted_go_on_to_the_same_bits(together, tmp_path):
    """An interruption in the second block of the first family; a file that was damaged meanwhile."""
    reports = []

    def interrupt(done, total):
        reports.append((done, total))
        if done > 2.4 / 6 * total:
            raise KeyboardInterrupt

    arguments = RUN | {"engine": ENGINE, "out": tmp_path / "kept"}
    with pytest.raises(KeyboardInterrupt):
        simulate_cases(small_cases(), progress=interrupt, **arguments)
    kept = sorted((tmp_path / "kept").glob("case_*/*.zarr.zip"))
    assert [file.parent.name for file in kept] == ["case_00000", "case_00002"]
    times = [file.stat().st_mtime_ns for file in kept]
    kept[1].write_bytes(kept[1].read_bytes()[:-7])
    reports.clear()
    with pytest.warns(UserWarning, match="damaged"):
        again = simulate_cases(small_cases(), progress=lambda *done: reports.append(done), **arguments)
    assert reports[-1] == (6000, 6000) and reports == sorted(reports)
    assert kept[0].stat().st_mtime_ns == times[0]
    for result, before in zip(again, together, strict=True):
        assert identical(result.record.load(), before.record)
    loaded = load_result(tmp_path / "kept" / "case_00003")
    assert loaded.revenue.mean == together[3].revenue.mean and loaded.n_gpus == 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cases": []}, "cases: expected at least one"),
        ({"engine": FluidEngine()}, "engine: expected a ClusterEngine or a PooledEngine"),
        ({"replications": 0}, "replications: expected a whole number of at least 1, got 0"),
        ({"warmup": 12.0}, "warmup: expected 0 s or more and less than horizon"),
    ],
)
def test_what_cannot_be_run_is_refused(change, message):
    arguments = {"cases": small_cases()} | RUN | change
    with pytest.raises(InputError, match=f"^{message}"):
        simulate_cases(arguments.pop("cases"), **arguments)


def test_a_size_that_is_none_is_named():
    cases = [small_cases()[0], dataclasses.replace(small_cases()[1], n_gpus=0)]
    with pytest.raises(InputError, match=r"^cases\.1\.n_gpus: expected a whole number of at least 1, got 0"):
        simulate_cases(cases, **RUN)
