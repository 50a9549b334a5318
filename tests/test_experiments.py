"""Experiments that come with jaxq: the fit against known laws, and a small study from the command line."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

from jaxq import Workload, _experiments, list_presets, load_instance
from jaxq._power_law import fit_power_law
from jaxq._presets import bundled_folder

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
    monkeypatch.setattr("jaxq._policy.shipped.shipped_policy", lambda instance: None)


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
    assert len(summary["paths"][-1]["diffusion_scaled"][0]) == 100
    (fluctuation,) = summary["fluctuations"]
    assert not fluctuation["gaussian"] and fluctuation["standard_deviation"] is None
    files = sorted(path.name for path in (workplace / "study").iterdir())
    drawn = [f"{name}.{kind}" for name in ("gaps", "paths") for kind in ("csv", "nc", "png", "svg")]
    others = ["experiment.json", "instance.toml", "kept", "report.html", "table.csv"]
    assert files == sorted([*drawn, *others])
    assert summary["report"] == "study/report.html"
    assert summary["command"] == "jaxq experiment asymptotics --quick --seed 0 --out study"
    with xr.open_dataset("study/gaps.nc") as gaps:
        assert gaps.gap_bundled.values.tolist() == [row["gap_bundled"]["mean"] for row in summary["gaps"]]
    with xr.open_dataset("study/paths.nc") as paths:
        assert paths.gpus.values.tolist() == [10, 2000, np.inf]
        assert paths.diffusion_deviation.sel(gpus=np.inf).values.min() > 0
    with open("study/table.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["scheme"] for row in rows] == ["bundled", "separate"]
    again = json.loads(jaxq("experiment", "asymptotics", "--quick", "--out", "study", "--json")[1])
    for row, before in zip(again["gaps"], summary["gaps"], strict=True):
        assert row == before
    assert jaxq("experiment", "asymptotics", "--quick", "--out", "study", "--seed", "4")[0] == 2


TINY = {"horizon": 200.0, "warmup": 100.0}
"""The times of small studies; with at most 16 replications they share their programs."""


def bundled_instance(name):
    return load_instance(bundled_folder("instances") / f"{name}.toml")


@pytest.fixture
def study(jaxq, workplace):
    """Runs a study in its quick form from the command line; returns its summary, and its module."""

    def call(name):
        code, out, err = jaxq("experiment", name, "--quick", "--out", name, "--json")
        assert code == 0, err
        summary, module = json.loads(out), _experiments.experiment(name).module
        assert module.answer(summary).endswith(".") and "\n" not in module.answer(summary)
        head, rows = module.table(summary)
        assert rows and all(len(row) == len(head) for row in rows)
        return summary, module

    return call


def test_the_calibration_study_shows_the_fits_and_the_classes(study):
    summary, module = study("calibration")
    assert [fit["name"] for fit in summary["fits"]] == [preset.name for preset in list_presets()]
    assert sum(map(module.is_measured, summary["fits"])) == 48 + 8  # 4 more are scaled from others
    assert "49 of 50" in module.answer(summary)  # R^2 = 0.98789 is the one below
    # At the chunk of 256 tokens an iteration takes 0.0174 + 256 * 6.2e-5 s on the reference instance.
    first = summary["classes"][0]
    assert first["prefill_time"] == pytest.approx(61 / 256 * 0.033272)
    assert first["solo_decode_time"] == pytest.approx(331 * 0.022)
    dolly = bundled_instance("dolly_eight").workload
    for name in ("prompt_tokens", "output_tokens"):
        assert [row[name] for row in summary["classes"]] == getattr(dolly, name).tolist()
    samples = np.array([row["samples"] for row in summary["classes"]])
    np.testing.assert_allclose(dolly.arrival_rate / dolly.arrival_rate.sum(), samples / samples.sum(), 3e-4)
    with xr.open_dataset("calibration/fits.nc") as fits:
        assert float(fits.beta.sel(preset="a100-40gb/qwen-8b")) == 6.2e-5 and fits.beta.units == "s/token"


def test_the_charging_study_values_plans_and_policies_under_both_schemes(study, monkeypatch):
    """The long-run revenue at n = 10 is that of the reference values to 6 standard errors (about 14): a false
    alarm in 1e-4 of all seeds, and this seed is fixed."""
    module = _experiments.experiment("charging").module
    monkeypatch.setattr(module, "POLICIES", module.POLICIES[:2])
    monkeypatch.setattr("jaxq._policy.shipped.shipped_policy", lambda instance: None)
    monkeypatch.setattr(module, "QUICK", module.SizesEffort(((5, 16), (10, 16)), **TINY))
    summary, _ = study("charging")
    bundled, separate = (summary["plans"][scheme] for scheme in ("bundled", "separate"))
    # Without a queue for decode every prefill that is paid is followed by its decode.
    assert bundled["earns"] == pytest.approx({"bundled": 297.716190, "separate": 297.716190}, rel=1e-8)
    assert separate["earns"]["separate"] == pytest.approx(298.597983, rel=1e-8)
    lost = 0.1 * np.dot([300.0, 3000.0], 0.1 * np.array(separate["q_decode"]))  # paid, never completed
    assert separate["earns"]["bundled"] == pytest.approx(separate["earns"]["separate"] - lost)
    rows = {(row["policy"], row["gpus"]): row for row in summary["rows"]}
    for (name, scheme), known in {
        ("gate_and_route", "bundled"): 282.95,
        ("gate_and_route", "separate"): 292.72,
        ("prioritize_and_route", "bundled"): 282.76,
        ("prioritize_and_route", "separate"): 292.52,
    }.items():
        found = rows[name, 10][f"revenue_{scheme}"]
        assert abs(found["mean"] - known) < 6 * found["standard_error"]
        assert found["standard_error"] < 4
    (comparison,) = [row for row in summary["comparisons"] if row["gpus"] == 10]
    paired = comparison["differences"]["prioritize_and_route"]["revenue_separate"]
    means = [rows[name, 10]["revenue_separate"]["mean"] for name in module.POLICIES]
    assert paired["mean"] == pytest.approx(means[1] - means[0])
    with xr.open_dataset("charging/queues.nc") as queues:
        kept = queues.prefill_queue.sel(policy="gate_and_route", gpus=5).values.tolist()
        assert kept == rows["gate_and_route", 5]["prefill_queue"]["mean"]
        assert queues.prefill_queue.units == "1 per GPU"


def test_the_convergence_study_compares_with_the_plan_of_each_policy(study, monkeypatch):
    module = _experiments.experiment("convergence").module
    monkeypatch.setattr(module, "POLICIES", module.POLICIES[:2])
    monkeypatch.setattr("jaxq._policy.shipped.shipped_policy", lambda instance: None)
    monkeypatch.setattr(module, "QUICK", module.SizesEffort(((5, 16), (10, 16)), **TINY))
    summary, _ = study("convergence")
    plans = summary["plans"]
    assert plans["gate_and_route"]["plan_revenue"] == pytest.approx(297.716190)
    assert plans["sli_gate_and_route"]["plan_revenue"] == pytest.approx(231.4594, abs=1e-4)
    assert np.ptp(plans["sli_gate_and_route"]["x"]) == pytest.approx(module.PREFILL_FAIRNESS)
    for row in summary["rows"]:
        value = plans[row["policy"]]["plan_revenue"]
        assert row["gap_to_plan"]["mean"] == pytest.approx(1 - row["revenue_bundled"]["mean"] / value)
        assert row["totals"]["decodes_solo"]["mean"] == pytest.approx(sum(row["decodes_solo"]["mean"]))
        prefills = row["prefills"]["mean"]
        assert row["indicators"]["prefill_fairness"]["mean"] == pytest.approx(np.ptp(prefills))
        # Mixed slots take tau, the others 1/gamma ([Lin26] eq. 47).
        slots = np.array([15 * sum(prefills), 16 * (1 - sum(prefills))])
        time = np.dot(slots, [0.033272, 0.022]) / slots.sum()
        assert row["indicators"]["time_per_output_token"]["mean"] == pytest.approx(time, rel=1e-5)
    assert plans["sli_gate_and_route"]["service_levels"]["prefill_fairness"]["limit"] == 0.1
    with xr.open_dataset("convergence/stages.nc") as stages:
        assert (
            stages.prefills_plan.sel(policy="gate_and_route").values.tolist() == plans["gate_and_route"]["x"]
        )


def test_an_instances_own_service_levels_are_kept_and_a_limit_that_binds_is_chosen_without():
    module = _experiments.experiment("convergence").module
    instance = bundled_instance("azure_pair")
    attained = float(module.plain_plan(instance).indicators["prefill_fairness"])
    chosen = float(module.service_levels(instance).prefill_fairness)
    assert chosen == (0.1 if attained > 0.1 else attained / 2)
    own = module.ServiceLevels(time_per_output_token=0.023)
    assert module.service_levels(replace(instance, service_levels=own)) is own


@pytest.mark.parametrize(
    "name, limits, revenues",
    [
        ("prefill_fairness", [0.0, 0.1], [134.0, 231.4594]),
        ("decode_fairness", [0.0, 2.0], [257.3996, 278.6828]),
        ("time_per_output_token", [0.0225, 0.023], [141.9768, 187.6833]),
    ],
)
def test_frontiers_are_known_at_some_limits_rising_and_concave(name, limits, revenues):
    module = _experiments.experiment("pareto").module
    instance = bundled_instance("a100_qwen8b_two_class")
    known = module._frontier(instance, name, np.array(limits))
    np.testing.assert_allclose(known["revenue"], revenues, atol=1e-3)
    frontier = module._frontier(instance, name, module.limits(instance, name, 9))
    limit, revenue, price = (np.array(frontier[key]) for key in ("limit", "revenue", "shadow_price"))
    assert revenue[-1] == pytest.approx(297.716190)
    slopes = np.diff(revenue) / np.diff(limit)
    assert (slopes >= -1e-6).all() and (np.diff(slopes) <= 1e-6 * slopes[0]).all()
    # The price is the derivative: each slope lies between those of the two ends.
    assert (price[:-1] >= slopes * (1 - 1e-6)).all() and (price[1:] <= slopes * (1 + 1e-6) + 1e-6).all()


def test_the_pareto_study_sets_simulated_points_beside_the_frontier(study, monkeypatch):
    module = _experiments.experiment("pareto").module
    monkeypatch.setattr(module, "OTHERS", ("gate_and_route",))
    monkeypatch.setattr("jaxq._policy.shipped.shipped_policy", lambda instance: None)
    monkeypatch.setattr(module, "QUICK", module.Effort(5, (0.5,), n_gpus=10, replications=16, **TINY))
    summary, _ = study("pareto")
    assert [row["indicator"] for row in summary["rows"]] == list(module.INDICATORS)
    for row in summary["rows"]:
        frontier = summary["frontiers"][row["indicator"]]
        # Half-way to the first of five limits that does not bind: that is one of them, or the line between.
        half_way = np.interp(row["limit"], frontier["limit"], frontier["revenue"])
        assert half_way <= row["plan_revenue"] + 1e-6 and row["plan_revenue"] < summary["best"]
        assert row["gap_to_plan"]["mean"] == pytest.approx(
            1 - row["revenue_bundled"]["mean"] / row["plan_revenue"]
        )
    fair = summary["rows"][1]
    assert fair["attained"]["mean"] == pytest.approx(np.ptp(fair["decodes_solo"]["mean"]))
    (other,) = summary["others"]
    assert abs(other["revenue_bundled"]["mean"] - 282.95) < 14  # as in the study of charging
    with xr.open_dataset("pareto/simulated.nc") as simulated:
        assert simulated.attained_low.values.tolist() == [
            row["attained"]["ci95"][0] for row in summary["rows"]
        ]


def test_one_class_has_no_fairness_to_limit():
    module = _experiments.experiment("pareto").module
    instance = bundled_instance("a100_qwen8b_two_class")
    alone = replace(instance, workload=Workload([300.0], [1000.0], [0.5], [0.1], names=["alone"]))
    assert module.shown(alone) == ["time_per_output_token"]


def test_experiments_are_listed_and_unknown_ones_refused(jaxq, workplace):
    code, out, _ = jaxq("experiment", "list")
    assert code == 0 and "asymptotics" in out and "Large n" in out
    names = [row["name"] for row in json.loads(jaxq("experiment", "list", "--json")[1])["experiments"]]
    assert "asymptotics" in names
    code, out, err = jaxq("experiment", "fig9")
    assert (code, out) == (2, "")
    assert err.startswith("jaxq: experiment: expected one of asymptotics") and err.count("\n") == 1
