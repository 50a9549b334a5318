"""Bundled against separate charging: what each plan and each policy earns under both, and who waits for it.

Under bundled charging a request pays when it is complete, under separate charging its prompt pays when it has
been read: then it pays to prefill requests that will not be decoded.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from jaxq import Instance, Plan
from jaxq._experiment_rows import (
    CLAIMS,
    SizesEffort,
    draw_points,
    estimate_variables,
    result_row,
    rows_of,
    scaled,
    sizes_of,
    with_interval,
)
from jaxq._figures import STAGES, WIDTH, component, label_text, size_axis
from jaxq._policy.presets import plain_plan
from jaxq._policy.shipped import compared_policies
from jaxq._pricing import SCHEMES
from jaxq._progress import ProgressBars
from jaxq._summary import comparison_dicts, plan_dict

TITLE = "Bundled against separate charging: revenue under both, and who waits"

PAPER = "figure 2"

POLICIES = ("gate_and_route", "prioritize_and_route", "price_and_pack")
"""The two policies of [Lin26] for the two schemes, the first of which is the baseline, and jaxq's own; a
tuned one is added where one ships for the instance."""

QUEUES = ("prefill_queue", "decode_queue")


FULL = SizesEffort(((50, 512), (200, 128), (500, 64)), horizon=600.0, warmup=200.0)

QUICK = SizesEffort(((50, 32), (200, 32)), horizon=300.0, warmup=150.0)


def piece_count(instance: Instance, quick: bool) -> int:
    """How many simulations there are, for the progress."""
    return len(compared_policies(instance, POLICIES)) * len((QUICK if quick else FULL).sizes)


def run(instance: Instance, *, quick: bool, seed: int, kept: Path, bars: ProgressBars) -> dict[str, Any]:
    """The study's summary; replications are kept in `kept` as they finish."""
    effort = QUICK if quick else FULL
    plans = {scheme: plain_plan(instance, scheme) for scheme in SCHEMES}
    results = {}
    for name, policy in compared_policies(instance, POLICIES).items():
        for result in effort.measure(bars, instance, policy, seed, kept):
            results[name, result.n_gpus] = result
    return {
        "effort": asdict(effort),
        "plans": {
            scheme: plan_dict(instance, plan) | {"earns": earnings(instance, plan)}
            for scheme, plan in plans.items()
        },
        "rows": [result_row(result) for result in results.values()],
        "comparisons": comparison_dicts(results, POLICIES[0]),
    }


def earnings(instance: Instance, plan: Plan) -> dict[str, float]:
    """What the flows of a plan earn under each scheme, money per GPU and second ([Lin26] eq. 22, 23)."""
    prefilled = instance.mu_prefill * plan.x
    decoded = instance.mu_mixed * plan.y_mixed + instance.mu_solo * plan.y_solo
    return {
        "bundled": float(np.sum(instance.request_value * decoded)),
        "separate": float(np.sum(instance.prefill_value * prefilled + instance.decode_value * decoded)),
    }


def _names(summary: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(row["policy"] for row in summary["rows"]))


def table(summary: dict[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Plans, then policies by size: revenue and gap under both schemes, requests waiting, the claim."""
    head = ("plan or policy", "n", "bundled", "gap, %", "separate", "gap, %", "wait for prefill",
            "wait for decode", "[Lin26] claims")  # fmt: skip
    rows = []
    for scheme, plan in summary["plans"].items():
        cells: list[str] = []
        for other in SCHEMES:
            best = summary["plans"][other]["revenue"]
            cells += [
                f"{plan['earns'][other]:.2f}",
                f"{max(0.0, 100 * (1 - plan['earns'][other] / best)):.3f}",
            ]
        waiting = [f"{sum(plan[queue]):.3f}" for queue in ("q_prefill", "q_decode")]
        rows.append((f"{scheme} plan", "inf", *cells, *waiting, ""))
    for row in summary["rows"]:
        cells = []
        for scheme in SCHEMES:
            cells.append(with_interval(row[f"revenue_{scheme}"]))
            cells.append(with_interval(scaled(row[f"gap_{scheme}"], 100.0)))
        waiting = [with_interval(row["totals"][queue], 3) for queue in QUEUES]
        claims = [f"{scheme}: {text}" for (name, scheme), text in CLAIMS.items() if name == row["policy"]]
        rows.append((row["policy"], str(row["gpus"]), *cells, *waiting, "; ".join(claims)))
    return head, rows


def answer(summary: dict[str, Any]) -> str:
    """What following the other scheme's policy costs or brings at the largest size, by paired differences."""
    baseline, other = POLICIES[:2]
    differences = summary["comparisons"][-1]["differences"][other]
    told = []
    for scheme in reversed(SCHEMES):
        ahead = differences[f"revenue_{scheme}"]
        share = scaled(ahead, 100.0 / summary["plans"][scheme]["revenue"])
        told.append(f"{with_interval(share)} % of R* under {scheme} charging")
    return (
        f"At n = {sizes_of(summary)[-1]}, {other} is ahead of {baseline} by {' and by '.join(told)} "
        "(95 % intervals, paired)."
    )


def datasets(summary: dict[str, Any]) -> dict[str, xr.Dataset]:
    """Revenues and queues by policy and size, and what each plan earns under each scheme."""
    names, sizes = _names(summary), sizes_of(summary)
    rows = {(row["policy"], row["gpus"]): row for row in summary["rows"]}
    grid = [[rows[name, size] for size in sizes] for name in names]
    at = {"policy": names, "gpus": sizes}
    classes = [request["name"] for request in summary["instance"]["classes"]]
    revenues: dict[str, Any] = {}
    for scheme in SCHEMES:
        for name, units, about in ((f"revenue_{scheme}", "", ""), (f"gap_{scheme}", "1", "1 - R / R*")):
            estimates = [[row[name] for row in line] for line in grid]
            revenues |= estimate_variables(name, ["policy", "gpus"], estimates, units, about)
    queues: dict[str, Any] = {}
    for name in QUEUES:
        estimates = [[row[name] for row in line] for line in grid]
        queues |= estimate_variables(name, ["policy", "gpus", "class"], estimates)
    earned = [[plan["earns"][scheme] for scheme in SCHEMES] for plan in summary["plans"].values()]
    waiting = {
        queue: (
            ("plan", "class"),
            [plan[queue] for plan in summary["plans"].values()],
            {"units": "1 per GPU"},
        )
        for queue in ("q_prefill", "q_decode")
    }
    revenue = (("plan", "charging"), earned, {"units": "money/s per GPU"})
    return {
        "revenue": xr.Dataset(revenues, at),
        "queues": xr.Dataset(queues, at | {"class": classes}),
        "plan_revenue": xr.Dataset({"revenue": revenue}, {"plan": list(SCHEMES), "charging": list(SCHEMES)}),
        "plan_queues": xr.Dataset(waiting, {"plan": list(SCHEMES), "class": classes}),
    }


def draw(summary: dict[str, Any], looks: list[tuple[str, str]]) -> dict[str, Figure]:
    """`revenue`: by size under both schemes; `queues`: who waits at the largest size."""
    return {"revenue": _draw_revenue(summary, looks), "queues": _draw_queues(summary, looks)}


def _draw_revenue(summary: dict[str, Any], looks: list[tuple[str, str]]) -> Figure:
    figure = Figure(figsize=(WIDTH, 6.2), layout="constrained")
    panels = figure.subplots(2, 1, sharex=True)
    sizes = sizes_of(summary)
    for axes, scheme in zip(panels, SCHEMES, strict=True):
        for name, (colour, marker) in zip(_names(summary), looks, strict=False):
            rows = rows_of(summary, name)
            revenues = [row[f"revenue_{scheme}"] for row in rows]
            draw_points(axes, sizes, revenues, color=colour, marker=marker, label=label_text(name))
        (other,) = [each for each in SCHEMES if each != scheme]
        best, crossed = summary["plans"][scheme]["revenue"], summary["plans"][other]["earns"][scheme]
        axes.axhline(best, color="black", linestyle="--", linewidth=1, label="the scheme's own plan, R*")
        axes.axhline(crossed, color="0.5", linestyle=":", linewidth=1.3, label="the other scheme's plan")
        size_axis(axes, sizes)
        axes.set_ylabel("money per GPU and second")
        axes.set_title(f"{scheme} revenue (95 % intervals)")
    panels[0].set_xlabel("")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def _draw_queues(summary: dict[str, Any], looks: list[tuple[str, str]]) -> Figure:
    n_gpus, classes = sizes_of(summary)[-1], summary["instance"]["classes"]
    rows = [row for row in summary["rows"] if row["gpus"] == n_gpus]
    plans = list(summary["plans"].items())
    names = [f"{scheme} plan" for scheme, _ in plans] + [row["policy"] for row in rows]
    figure = Figure(figsize=(WIDTH, 1.6 + 0.34 * len(names)), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    titles = {stage: title for stage, _, title in STAGES}
    planned = {stage: name for stage, name, _ in STAGES}
    for axes, queue in zip(panels, QUEUES, strict=True):
        for i, request in enumerate(classes):
            colour, marker = looks[i % len(looks)]
            beside = 0.6 * ((i + 0.5) / len(classes) - 0.5)
            values = [plan[planned[queue]][i] for _, plan in plans]
            estimates = [component(row[queue], i) for row in rows]
            places = [k + beside for k in range(len(names))]
            style = {"color": colour, "marker": marker, "linestyle": "none"}
            draw_points(axes, values, places[: len(plans)], **style, markerfacecolor="white")
            draw_points(axes, estimates, places[len(plans) :], **style, label=label_text(request["name"]))
        axes.set_title(titles[queue])
        axes.set_xlabel("requests per GPU")
        axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))
    panels[0].set_yticks(range(len(names)), [label_text(name) for name in names])
    panels[0].set_ylim(len(names) - 0.4, -0.6)
    figure.suptitle(f"{n_gpus} GPUs (95 % intervals); open: the plans", fontsize=10)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure
