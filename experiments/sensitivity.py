"""How revenue and gap hang on the batch size and on the times of an iteration, one number at a time."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from jaxq import Instance
from jaxq._experiment_rows import MONEY, draw_points, estimate_variables, scaled, swept, with_interval
from jaxq._figures import WIDTH
from jaxq._progress import ProgressBars

TITLE = "Sensitivity to the batch size and the times of an iteration"

PAPER = "figure 9"

VARIED = {
    "batch_size": ("hardware.batch_size", "batch size B"),
    "alpha": ("hardware.alpha", "alpha, s"),
    "beta": ("hardware.beta", "beta, s/token"),
    "gamma": ("hardware.solo_iteration_time", "gamma, iterations/s with decodes only"),
}
"""What is varied: its path in an instance's file, and what the axis says."""

POLICIES = ("gate_and_route", "sarathi", "price_and_pack")


@dataclass(frozen=True)
class Effort:
    """How much is simulated: each number is multiplied by the `factors` (batch sizes are as given), on
    `n_gpus`, in `replications` of `horizon` s, of which `warmup` are discarded."""

    factors: tuple[float, ...]
    batch_sizes: tuple[int, ...]
    n_gpus: int
    replications: int
    horizon: float
    warmup: float


FULL = Effort((0.5, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0), (4, 8, 12, 16, 24, 32, 48), 200, 32, 400.0, 150.0)

QUICK = Effort((0.5, 1.0, 2.0), (8, 16, 32), 50, 16, 200.0, 100.0)


def values(instance: Instance, name: str, effort: Effort) -> list[float]:
    """The values of one number, increasing."""
    if name == "batch_size":
        return [float(size) for size in effort.batch_sizes]
    time = instance.iteration_time
    now = {"alpha": time.alpha, "beta": time.beta, "gamma": 1.0 / time.solo}[name]
    return [float(now) * factor for factor in effort.factors]


def piece_count(instance: Instance, quick: bool) -> int:
    """One call for each number."""
    return len(VARIED)


def run(instance: Instance, *, quick: bool, seed: int, kept: Path, bars: ProgressBars) -> dict[str, Any]:
    """The study's summary; replications are kept in `kept` as they finish."""
    effort = QUICK if quick else FULL
    curves = {}
    for name, (path, _) in VARIED.items():
        given = values(instance, name, effort)
        points = [{path: 1.0 / value if name == "gamma" else value} for value in given]
        found = swept(bars, name, instance, points, POLICIES, effort, seed, kept / name)
        curves[name] = {"values": given, **found}
    return {"effort": asdict(effort), "scheme": instance.pricing.scheme, "curves": curves}


def answer(summary: dict[str, Any]) -> str:
    """Which number the best possible revenue hangs on most over its range."""
    rises = {name: curve["bound"][-1] / curve["bound"][0] for name, curve in summary["curves"].items()}
    most = max(rises, key=lambda name: abs(np.log(rises[name])))
    curve = summary["curves"][most]
    gaps = [gap for policy in curve["gap"].values() for gap in policy]
    worst = max(gaps, key=lambda gap: gap["mean"])
    return (
        f"Of the four numbers, {VARIED[most][1].split(',')[0]} matters most: from {curve['values'][0]:.4g} "
        f"to {curve['values'][-1]:.4g} the best possible revenue goes from {curve['bound'][0]:.1f} to "
        f"{curve['bound'][-1]:.1f}; the largest gap on the way is {100 * worst['mean']:.1f} % "
        f"(95 % interval {100 * worst['ci95'][0]:.1f} to {100 * worst['ci95'][1]:.1f} %)."
    )


def table(summary: dict[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The best possible revenue, and each policy's gap, by value."""
    head = ("varied", "value", "best possible", *(f"{name}, gap %" for name in POLICIES))
    rows = []
    for name, curve in summary["curves"].items():
        for k, value in enumerate(curve["values"]):
            gaps = [with_interval(scaled(curve["gap"][policy][k], 100.0)) for policy in POLICIES]
            rows.append((name, f"{value:.4g}", f"{curve['bound'][k]:.2f}", *gaps))
    return head, rows


def datasets(summary: dict[str, Any]) -> dict[str, xr.Dataset]:
    """Bounds, revenues and gaps of each number, by value and policy."""
    found = {}
    for name, curve in summary["curves"].items():
        data: dict[str, Any] = {"bound": ("value", curve["bound"], {"units": MONEY})}
        for quantity, unit in (("revenue", MONEY), ("gap", "1")):
            data |= estimate_variables(quantity, ("policy", "value"), list(curve[quantity].values()), unit)
        coordinates = {"policy": list(POLICIES), "value": curve["values"]}
        found[name] = xr.Dataset(data, coordinates, {"varied": VARIED[name][1]})
    return found


def draw(summary: dict[str, Any], looks: list[tuple[str, str]]) -> dict[str, Figure]:
    """A figure for each number: revenue with the best possible above, the gap below."""
    return {name: _figure(summary, name, looks) for name in summary["curves"]}


def _figure(summary: dict[str, Any], name: str, looks: list[tuple[str, str]]) -> Figure:
    curve = summary["curves"][name]
    figure = Figure(figsize=(WIDTH, 5.6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    above.plot(curve["values"], curve["bound"], color="0.35", linestyle="--", label="best possible")
    for policy, (colour, marker) in zip(POLICIES, looks, strict=False):
        for axes, quantity, factor in ((above, "revenue", 1.0), (below, "gap", 100.0)):
            estimates = [scaled(estimate, factor) for estimate in curve[quantity][policy]]
            draw_points(axes, curve["values"], estimates, color=colour, marker=marker, label=policy)
    above.set_ylabel("revenue per GPU and second")
    below.set_ylabel("below the best possible, %")
    below.set_xlabel(VARIED[name][1])
    above.set_title(f"{summary['effort']['n_gpus']} GPUs, {summary['scheme']} charging (95 % intervals)")
    figure.legend(*above.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure
