"""Convergence in n: revenue, queues and occupancies of a cluster against the values that its policy aims at.

Under the plain plan, under a plan with a service level, for price-and-pack and a tuned policy, from 5 to 500
GPUs.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from jaxq import Instance, Plan, Result, ServiceLevels, solve_plan
from jaxq._experiment_rows import (
    CLAIMS,
    STAGE_NAMES,
    SizesEffort,
    draw_points,
    estimate_variables,
    indicators,
    result_row,
    rows_of,
    scaled,
    sizes_of,
    with_interval,
)
from jaxq._figures import STAGES, WIDTH, component, label_text, size_axis
from jaxq._policy.presets import plain_plan
from jaxq._policy.shipped import compared_policies
from jaxq._progress import ProgressBars
from jaxq._service_level.levels import INDICATORS
from jaxq._summary import plan_dict
from jaxq.policies import PRESETS, Policy

TITLE = "Convergence in n: revenue, queues and occupancies against the plan"

PAPER = "figures 4, 5 and 6"

SLI_POLICY = "sli_gate_and_route"

POLICIES = ("gate_and_route", SLI_POLICY, "price_and_pack")
"""A tuned policy is added where one ships for the instance."""

PREFILL_FAIRNESS = 0.1
"""The limit on prefill fairness that the policy with a service level keeps, prefills per GPU."""

QUEUES = ("prefill_queue", "decode_queue")
OCCUPANCIES = tuple(name for name in STAGE_NAMES if name not in QUEUES)


FULL = SizesEffort(((5, 1024), (20, 1024), (50, 512), (200, 128), (500, 64)), horizon=600.0, warmup=200.0)

QUICK = SizesEffort(((5, 32), (20, 32), (50, 32), (200, 32), (500, 16)), horizon=240.0, warmup=140.0)


def service_levels(instance: Instance) -> ServiceLevels:
    """The instance's own service levels; without any, a limit on prefill fairness that binds.

    It is `PREFILL_FAIRNESS`, or half of the plain plan's where that is smaller already.
    """
    own = instance.service_levels
    if own is not None and own.any:
        return own
    attained = float(plain_plan(instance).indicators["prefill_fairness"])
    binds = attained > PREFILL_FAIRNESS
    return ServiceLevels(prefill_fairness=PREFILL_FAIRNESS if binds else attained / 2)


def policies(instance: Instance) -> dict[str, tuple[Policy, Plan]]:
    """Each policy with the plan that it is held against.

    That is the plan a partitioned policy follows; the others, which follow none, are held against the best.
    """
    limited = solve_plan(instance, "bundled", service_levels=service_levels(instance))
    made = compared_policies(instance, POLICIES) | {SLI_POLICY: PRESETS[SLI_POLICY](instance, limited)}
    plain = plain_plan(instance)
    return {name: (policy, limited if name == SLI_POLICY else plain) for name, policy in made.items()}


def piece_count(instance: Instance, quick: bool) -> int:
    """How many simulations there are, for the progress."""
    return len(policies(instance)) * len((QUICK if quick else FULL).sizes)


def run(instance: Instance, *, quick: bool, seed: int, kept: Path, bars: ProgressBars) -> dict[str, Any]:
    """The study's summary; replications are kept in `kept` as they finish."""
    effort = QUICK if quick else FULL
    rows = []
    for policy, plan in policies(instance).values():
        rows += [_row(result, plan) for result in effort.measure(bars, instance, policy, seed, kept)]
    return {
        "effort": asdict(effort),
        "plans": {name: plan_dict(instance, plan) for name, (_, plan) in policies(instance).items()},
        "rows": rows,
    }


def _row(result: Result, plan: Plan) -> dict[str, Any]:
    """What is kept of a simulation."""
    return {
        **result_row(result),
        "gap_to_plan": result.gap_to_plan(plan).to_dict(),
        "indicators": indicators(result),
    }


def _limits(plan: dict[str, Any]) -> str:
    """The service levels of a plan in words."""
    told = [
        f"{name.replace('_', ' ')} <= {level['limit']:.4g} {INDICATORS[name]}"
        for name, level in plan["service_levels"].items()
        if level["limit"] is not None
    ]
    told += [
        f"{name.replace('_', ' ')} at a penalty of {level['penalty']:.4g}"
        for name, level in plan["service_levels"].items()
        if level["penalty"] > 0
    ]
    return ", ".join(told) or "none"


def table(summary: dict[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """For each policy its plan, then every size: revenue, what it lacks, and requests by stage."""
    head = ("policy", "n", "revenue", "below the plan, %", "prefills", "decodes, mixed", "decodes, solo",
            "wait for prefill", "wait for decode", "prefill fairness", "[Lin26] claims")  # fmt: skip
    rows = []
    for name, plan in summary["plans"].items():
        planned = [f"{sum(plan[key]):.3f}" for _, key, _ in STAGES]
        fairness = f"{plan['service_levels']['prefill_fairness']['value']:.4f}"
        for row in rows_of(summary, name):
            rows.append(
                (
                    name,
                    str(row["gpus"]),
                    with_interval(row["revenue_bundled"]),
                    with_interval(scaled(row["gap_to_plan"], 100.0)),
                    *(with_interval(row["totals"][stage], 3) for stage in STAGE_NAMES),
                    with_interval(row["indicators"]["prefill_fairness"], 4),
                    "",
                )
            )
        claim = CLAIMS.get((name, "bundled"), "")
        rows.append(
            (f"{name}: its plan", "inf", f"{plan['plan_revenue']:.2f}", "0", *planned, fairness, claim)
        )
    return head, rows


def answer(summary: dict[str, Any]) -> str:
    """How far each policy's revenue is below its plan's value at the smallest and the largest size."""
    told = []
    for name in summary["plans"]:
        rows = rows_of(summary, name)
        first, last = (with_interval(scaled(row["gap_to_plan"], 100.0)) for row in (rows[0], rows[-1]))
        told.append(f"{name} {first} and {last} %")
    sizes = sizes_of(summary)
    return (
        f"Bundled revenue below the value of the policy's plan at n = {sizes[0]} and {sizes[-1]}: "
        f"{'; '.join(told)} (95 % intervals; service level of {SLI_POLICY}: "
        f"{_limits(summary['plans'][SLI_POLICY])})."
    )


def datasets(summary: dict[str, Any]) -> dict[str, xr.Dataset]:
    """Revenue and requests of each class by stage, by policy and size, and the plans' values of both."""
    names, sizes = list(summary["plans"]), sizes_of(summary)
    grid = [rows_of(summary, name) for name in names]
    money = {"units": "money/s per GPU"}
    revenue = {
        **estimate_variables(
            "revenue_bundled", ["policy", "gpus"], [[row["revenue_bundled"] for row in line] for line in grid]
        ),
        **estimate_variables(
            "gap_to_plan",
            ["policy", "gpus"],
            [[row["gap_to_plan"] for row in line] for line in grid],
            "1",
            "1 - R / value of the policy's plan",
        ),
        "plan_revenue": ("policy", [plan["plan_revenue"] for plan in summary["plans"].values()], money),
    }
    stages: dict[str, Any] = {}
    for stage, planned, _ in STAGES:
        estimates = [[row[stage] for row in line] for line in grid]
        stages |= estimate_variables(stage, ["policy", "gpus", "class"], estimates)
        values = np.asarray([plan[planned] for plan in summary["plans"].values()])
        stages[f"{stage}_plan"] = (("policy", "class"), values, {"units": "1 per GPU"})
    at = {"policy": names, "gpus": sizes}
    classes = [request["name"] for request in summary["instance"]["classes"]]
    return {"revenue": xr.Dataset(revenue, at), "stages": xr.Dataset(stages, at | {"class": classes})}


def draw(summary: dict[str, Any], looks: list[tuple[str, str]]) -> dict[str, Figure]:
    """`revenue`, `queues` and `occupancies` by size, against the plan's values."""
    return {
        "revenue": _draw_revenue(summary, looks),
        "queues": _draw_stages(summary, looks, QUEUES),
        "occupancies": _draw_stages(summary, looks, OCCUPANCIES),
    }


def _draw_revenue(summary: dict[str, Any], looks: list[tuple[str, str]]) -> Figure:
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    axes = figure.subplots()
    sizes = sizes_of(summary)
    for (name, plan), (colour, marker) in zip(summary["plans"].items(), looks, strict=False):
        shares = [
            scaled(row["revenue_bundled"], 100 / plan["plan_revenue"]) for row in rows_of(summary, name)
        ]
        draw_points(axes, sizes, shares, color=colour, marker=marker, label=label_text(name))
    axes.axhline(100.0, color="black", linestyle="--", linewidth=1, label="the policy's own plan")
    size_axis(axes, sizes)
    axes.set_ylabel("bundled revenue, % of the plan's")
    axes.set_title("Revenue (95 % intervals)")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def _draw_stages(summary: dict[str, Any], looks: list[tuple[str, str]], shown: tuple[str, ...]) -> Figure:
    """A row a stage, a column a policy, a line a class; dashed: the plan."""
    plans, sizes = summary["plans"], sizes_of(summary)
    width = max(WIDTH, 0.7 + 1.4 * len(plans))
    figure = Figure(figsize=(width, 1.1 + 1.75 * len(shown)), layout="constrained")
    panels = figure.subplots(len(shown), len(plans), sharex=True, sharey="row", squeeze=False)
    about = {stage: (planned, title) for stage, planned, title in STAGES}
    for row, stage in enumerate(shown):
        planned, title = about[stage]
        for column, (name, plan) in enumerate(plans.items()):
            axes = panels[row, column]
            for i, request in enumerate(summary["instance"]["classes"]):
                colour, marker = looks[i % len(looks)]
                estimates = [component(line[stage], i) for line in rows_of(summary, name)]
                axes.axhline(plan[planned][i], color=colour, linestyle="--", linewidth=1)
                style = {"color": colour, "marker": marker, "markersize": 3.5}
                draw_points(axes, sizes, estimates, **style, label=label_text(request["name"]))
            size_axis(axes, sizes)
            axes.tick_params(axis="x", labelsize=7.5)
            if row == 0:
                axes.set_title(label_text(name), fontsize=8.5)
            if row < len(shown) - 1 or column != len(plans) // 2:
                axes.set_xlabel("")
        panels[row, 0].set_ylabel(title.replace(" without", "\nwithout"))
    figure.suptitle("Requests per GPU (95 % intervals); dashed: the plan", fontsize=10)
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure
