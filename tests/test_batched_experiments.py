"""Experiments that run as one call over many instances: against single runs, the LP, and closed forms."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

from jaxq import _experiments, policies, simulate, upper_bound
from jaxq._changed_instance import changed_instance

from . import oracles

SHORT = {"horizon": 20.0, "warmup": 10.0, "replications": 8, "n_gpus": 6}
POLICIES = ("gate_and_route", "price_and_pack")


@pytest.fixture
def study(jaxq, workplace, monkeypatch):
    """Runs a study at a tiny effort from the command line; returns its summary, and its module."""

    def call(name, **effort):
        module = _experiments.experiment(name).module
        if hasattr(module, "POLICIES"):
            monkeypatch.setattr(module, "POLICIES", POLICIES)
        monkeypatch.setattr(module, "QUICK", replace(module.QUICK, **SHORT, **effort))
        code, out, err = jaxq("experiment", name, "--quick", "--out", name, "--json")
        assert code == 0, err
        summary = json.loads(out)
        assert module.answer(summary).endswith(".") and "\n" not in module.answer(summary)
        head, rows = module.table(summary)
        assert rows and all(len(row) == len(head) for row in rows)
        return summary, module

    return call


@pytest.mark.filterwarnings("ignore::jaxq.StatisticsWarning")
def test_the_family_has_each_policy_on_each_instance(study):
    """Its instances lie in the stated ranges and hang on the seed alone; a gap is that of a run alone."""
    summary, module = study("policy_family", instances=3, policies=POLICIES)
    assert len(summary["rows"]) == 3
    for k, row in enumerate(summary["rows"]):
        for name, (low, high) in module.RANGES.items():
            assert (np.array(row[name]) >= low).all() and (np.array(row[name]) <= high).all()
        instance = module.drawn_instance(k, 0)
        assert row["optimum"] == pytest.approx(upper_bound(instance))
        assert row["prompt_tokens"] == instance.workload.prompt_tokens.tolist()
    assert module.drawn_instance(1, 0).fingerprint() != module.drawn_instance(1, 1).fingerprint()
    instance = module.drawn_instance(1, 0)
    times = {name: SHORT[name] for name in ("horizon", "warmup", "replications", "n_gpus")}
    alone = [simulate(instance, getattr(policies, name)(instance), key=0, **times) for name in POLICIES]
    gaps = summary["rows"][1]["gaps"]
    assert [gaps[name]["mean"] for name in POLICIES] == [float(result.gap().mean) for result in alone]
    # Ahead when the paired interval of the gaps' difference is below 0.
    difference = alone[1].per_replication("revenue_bundled") - alone[0].per_replication("revenue_bundled")
    width = 2.3646 * difference.std(ddof=1) / np.sqrt(8)  # Student's t, 7 degrees of freedom
    sign = int(difference.mean() - width > 0) - int(difference.mean() + width < 0)
    assert summary["rows"][1]["ahead"] == {"price_and_pack": sign}
    with xr.open_dataset("policy_family/family.nc") as family:
        assert family.gap.sel(policy="price_and_pack").values[1] == gaps["price_and_pack"]["mean"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::jaxq.StatisticsWarning")
def test_sensitivity_has_the_optimum_of_the_plan_at_each_value(study):
    """Bounds by batch size are the reference values; a better time of an iteration never earns less."""
    summary, _ = study("sensitivity", factors=(0.5, 2.0), batch_sizes=(4, 8))
    curves = summary["curves"]
    assert curves["batch_size"]["bound"] == pytest.approx([158.5615, 220.5821], rel=1e-6)
    assert curves["alpha"]["bound"][0] > curves["alpha"]["bound"][1]
    assert curves["gamma"]["bound"][0] < curves["gamma"]["bound"][1]
    assert curves["gamma"]["values"] == pytest.approx([0.5 / 0.022, 2.0 / 0.022])
    instance = oracles.reference_cluster().instance()
    slow = changed_instance(instance, {"hardware.beta": 2 * 6.2e-5})
    assert curves["beta"]["bound"][1] == pytest.approx(upper_bound(slow))
    for curve in curves.values():
        for name in POLICIES:
            for k, revenue in enumerate(curve["revenue"][name]):
                gap = 1 - revenue["mean"] / curve["bound"][k]
                assert curve["gap"][name][k]["mean"] == pytest.approx(gap, abs=1e-12)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::jaxq.StatisticsWarning")
def test_maps_of_revenue_are_homogeneous_in_the_prices(study):
    """Twice both prices earn twice as much; a map's second number runs fastest."""
    summary, module = study("revenue_maps", factors=(1.0, 2.0), batch_sizes=(8, 16))
    prices = summary["maps"]["prices"]
    assert prices["bound"][3] == pytest.approx(2 * prices["bound"][0])
    for name in POLICIES:
        once, twice = (prices["revenue"][name][k]["mean"] for k in (0, 3))
        assert twice == pytest.approx(2 * once)
    hardware = module.datasets(summary)["hardware"]
    chosen = hardware.sel({"hardware.batch_size": 8.0, "hardware.beta": 6.2e-5})
    assert float(chosen.bound) == pytest.approx(220.5821, rel=1e-6)
