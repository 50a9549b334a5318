"""Sweeps: variations of an instance, few programs, labelled results, and the command."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from jaxq import InputError, policies, simulate, sweep, upper_bound
from jaxq._changed_instance import changed_instance
from jaxq._cli.sweep import values_of
from jaxq._engine.program import program

from . import oracles

pytestmark = pytest.mark.filterwarnings("ignore::jaxq.StatisticsWarning")
RUN = {"horizon": 6.0, "warmup": 2.0, "replications": 8, "key": 2}


FILE = str(Path(__file__).parents[1] / "experiments" / "instances" / "a100_qwen8b_two_class.toml")


def reference():
    return oracles.reference_cluster().instance()


def test_a_number_is_changed_by_its_place_and_nothing_else():
    instance = reference()
    changed = changed_instance(instance, {"classes.1.arrival_rate": 0.25, "hardware.batch_size": 8})
    assert changed.workload.arrival_rate.tolist() == [0.5, 0.25] and int(changed.batch_size) == 8
    assert changed.workload.prompt_tokens.tolist() == instance.workload.prompt_tokens.tolist()
    both = changed_instance(instance, {"classes.*.arrival_rate": 0.3})
    assert both.workload.arrival_rate.tolist() == [0.3, 0.3]
    name = instance.workload.names[0]
    assert changed_instance(instance, {f"classes.{name}.arrival_rate": 0.1}).workload.arrival_rate[0] == 0.1
    assert changed_instance(instance, {}).fingerprint() == instance.fingerprint()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hardware.batchsize": 8}, r"hardware\.batchsize: expected one of alpha, beta"),
        ({"classes.7.arrival_rate": 1}, r"classes\.7\.arrival_rate: expected a class from 0 to 1"),
        ({"classes.0": 1}, r"classes\.0: expected a number of an instance"),
        ({"hardware.batch_size": 1}, r"hardware\.batch_size = 1: hardware\.batch_size: expected a whole"),
        (
            {"classes.0.arrival_rate": -1},
            r"classes\.0\.arrival_rate = -1: classes\.0\.arrival_rate: expected",
        ),
    ],
)
def test_a_change_that_is_none_is_refused_by_its_path(changes, message):
    with pytest.raises(InputError, match=f"^{message}"):
        changed_instance(reference(), changes)


@pytest.mark.parametrize("across", [3, pytest.param(27, marks=pytest.mark.slow)])
def test_a_sweep_of_4_policies_compiles_once_for_each_policy(across):
    """Batch sizes, rates, prices and cluster sizes are numbers of a program, not part of it."""
    rates, sizes = np.linspace(0.3, 0.7, across), (8, 16, 32)
    before = program.cache_info().misses
    names = ("gate_and_route", "prioritize_and_route", "sarathi", "price_and_pack")
    found = sweep(
        reference(), {"classes.0.arrival_rate": rates, "hardware.batch_size": sizes}, names, [6], **RUN
    )
    assert program.cache_info().misses <= before + 4
    assert len(found.results) == 3 * across * 4 and found.grid is not None
    # A point in the middle of the grid is what a run of its own gives.
    middle = 3 * (across // 2) + 1
    changed = changed_instance(reference(), found.points[middle])
    alone = simulate(changed, policies.price_and_pack(changed), n_gpus=6, **RUN)
    assert found.results[middle, "price_and_pack", 6].revenue.mean == alone.revenue.mean
    data = found.to_xarray().sel(gpus=6)
    assert data.bound_bundled.values[3, middle] == pytest.approx(upper_bound(changed), rel=1e-12)
    assert (data.bound_bundled.values[0] == data.bound_bundled.values[3]).all()
    assert float(data["classes.0.arrival_rate"][middle]) == rates[across // 2]


def test_the_command_writes_data_and_figures_and_goes_on(jaxq, workplace):
    options = ("--policy", "sarathi,price_and_pack", "--gpus", "5", "--replications", "8")
    options += ("--horizon", "6", "--warmup", "2", "--out", "found")
    settings = ("--set", "classes.0.arrival_rate=0.3:0.5:3", "--set", "pricing.decode=0.2,0.4")
    code, out, err = jaxq("sweep", FILE, *settings, *options, "--json")
    assert code == 0, err
    summary = json.loads(out)
    assert [record["point"]["classes.0.arrival_rate"] for record in summary["records"][:6:2]] == [
        0.3,
        0.4,
        0.5,
    ]
    assert summary["records"][1]["point"]["pricing.decode"] == 0.4 and len(summary["records"]) == 12
    names = sorted(path.name for path in (workplace / "found").iterdir())
    drawn = ["map_n5.png", "map_n5.svg", "report.html", "sweep.csv", "sweep.json", "sweep.nc"]
    assert names == ["instance.toml", "kept", *drawn]
    with xr.open_dataset(workplace / "found" / "sweep.nc") as data:
        gap = float(data.gap_bundled.sel(policy="sarathi", gpus=5)[4])
    assert gap == summary["records"][4]["gap_bundled"]["mean"]
    with open(workplace / "found" / "sweep.csv", newline="") as stream:
        assert len(list(csv.DictReader(stream))) == 12
    again = jaxq("sweep", FILE, *settings, *options, "--json")
    assert json.loads(again[1])["records"] == summary["records"]
    lines = jaxq("sweep", FILE, *settings[:2], *options[:-1], "lines")
    assert lines[0] == 0 and (workplace / "lines" / "lines_n5.svg").exists()
    assert "largest" in lines[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "--set, --points: expected one of the two"),
        (("--set", "hardware.batch_size"), "--set: expected PATH=VALUES"),
        (("--set", "hardware.batch_size=a,b"), "--set hardware.batch_size: expected a number, got 'a'"),
        (("--set", "pricing.decode=0.1:0.2"), "--set pricing.decode: expected low:high:count"),
        (("--set", "pricing.decode=0.1,0.1"), "--set pricing.decode: expected each value once"),
        (("--set", "pricing.speed=1,2"), "pricing.speed: expected one of prefill, decode"),
        (("--points", "none.csv"), "none.csv: cannot be read"),
        (("--points", "ragged.csv"), "ragged.csv: line 3: expected 2 values, got 1"),
    ],
)
def test_bad_input_is_one_line(jaxq, workplace, options, message):
    (workplace / "ragged.csv").write_text("pricing.decode,pricing.prefill\n0.1,0.2\n0.3\n")
    code, out, err = jaxq("sweep", FILE, *options)
    assert (code, out) == (2, "") and err.startswith(f"jaxq: {message}") and err.count("\n") == 1


def test_values_of_a_range_are_the_numbers_that_were_meant():
    assert values_of("0.3:0.7:9", "--set x")[1] == 0.35
    assert values_of("8,16,32", "--set x") == [8, 16, 32]
