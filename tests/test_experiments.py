"""Experiments that come with jaxq: the fit against known laws, and a small study from the command line."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import xarray as xr

from jaxq import _experiments
from jaxq._power_law import fit_power_law

SIZES = np.array([30.0, 100.0, 300.0, 1000.0, 1e4, 1e5])


@pytest.mark.parametrize("known", [True, False])
def test_a_fit_finds_the_law_and_its_intervals_cover(known):
    """Over 400 fits with normal errors, 95 % intervals cover in 91 to 99 % (false alarm 1e-3): they widen
    where points scatter more than their errors, and so cover a little too often."""
    rng = np.random.default_rng(61)
    limit, scale, rate = 0.02, 0.3, 0.5
    errors = 2e-4 * np.ones(len(SIZES))
    inside = []
    for _ in range(400):
        gaps = limit + scale * SIZES**-rate + errors * rng.standard_normal(len(SIZES))
        fit = fit_power_law(SIZES, gaps, errors, limit if known else None)
        assert fit is not None
        inside.append(
            [
                abs(fit.rate - rate) <= fit.rate_half_width,
                abs(fit.scale - scale) <= fit.scale_half_width,
                known or abs(fit.limit - limit) <= fit.limit_half_width,
            ]
        )
    covered = np.mean(inside, axis=0)
    assert (covered > 0.91).all() and covered[0] < 0.99


def test_a_fit_without_enough_points_is_none():
    assert fit_power_law(SIZES[:2], np.array([0.1, 0.05]), np.array([0.01, 0.01]), 0.0) is None
    assert fit_power_law(SIZES[:3], np.array([0.1, 0.05, 0.03]), np.full(3, 0.01)) is None


@pytest.fixture
def small_study(monkeypatch):
    """The asymptotic study with two policies, at sizes of seconds."""
    module = _experiments.experiment("asymptotics").module
    effort = module.Effort(
        ("gate_and_route",),
        cluster=((10, 8), (30, 8), (60, 8)),
        pooled=((1000, 8),),
        paths=(10, 2000),
        horizon=40.0,
        warmup=20.0,
    )
    monkeypatch.setattr(module, "QUICK", effort)


def test_the_asymptotic_study_from_the_command_line(jaxq, workplace, small_study):
    code, out, err = jaxq("experiment", "asymptotics", "--quick", "--out", "study", "--json")
    assert code == 0, err
    summary = json.loads(out)
    assert [row["engine"] for row in summary["gaps"]] == ["cluster"] * 3 + ["pooled", "fluid"]
    (bundled, separate) = summary["fits"]
    assert bundled["limit"] == pytest.approx(9.53e-7, rel=0.01) and bundled["converges_to_the_optimum"]
    assert separate["limit"] == pytest.approx(0.0029531, rel=1e-3)
    assert not separate["converges_to_the_optimum"]
    assert bundled["claim"].startswith("asymptotically optimal") and separate["claim"] == "none"
    assert bundled["fixed"] is not None and bundled["fixed"]["limit"]["half_width"] == 0.0
    assert [path["gpus"] for path in summary["paths"]] == [10, 2000, None]
    files = sorted(path.name for path in (workplace / "study").iterdir())
    data = ["gaps.csv", "gaps.nc", "kept", "paths.csv", "paths.nc", "table.csv"]
    assert files == ["asymptotics.png", "asymptotics.svg", "experiment.json", *data]
    with xr.open_dataset("study/gaps.nc") as gaps:
        assert gaps.gap_bundled.values.tolist() == [row["gap_bundled"]["mean"] for row in summary["gaps"]]
    with open("study/table.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["scheme"] for row in rows] == ["bundled", "separate"]
    again = json.loads(jaxq("experiment", "asymptotics", "--quick", "--out", "study", "--json")[1])
    for row, before in zip(again["gaps"], summary["gaps"], strict=True):
        assert row == before
    assert jaxq("experiment", "asymptotics", "--quick", "--out", "study", "--seed", "4")[0] == 2


def test_experiments_are_listed_and_unknown_ones_refused(jaxq, workplace):
    code, out, _ = jaxq("experiment", "list")
    assert code == 0 and "asymptotics" in out and "Large n" in out
    names = [row["name"] for row in json.loads(jaxq("experiment", "list", "--json")[1])["experiments"]]
    assert "asymptotics" in names
    code, out, err = jaxq("experiment", "fig9")
    assert (code, out) == (2, "")
    assert err.startswith("jaxq: experiment: expected one of asymptotics") and err.count("\n") == 1
