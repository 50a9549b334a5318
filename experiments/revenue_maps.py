"""Revenue over the batch size and the slope of the iteration time, and over the two prices."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from jaxq import Instance
from jaxq._experiment_rows import MONEY, estimate_variables, swept, with_interval
from jaxq._figures import WIDTH
from jaxq._progress import ProgressBars
from jaxq._sweep_figures import heat_map

TITLE = "Maps of revenue over batch size and slope, and over the two prices"

PAPER = "figure 10"

POLICIES = ("gate_and_route", "price_and_pack")

PATHS = {
    "hardware": ("hardware.batch_size", "hardware.beta"),
    "prices": ("pricing.prefill", "pricing.decode"),
}
"""What spans each map: across, and up."""

LABELS = {
    "hardware.batch_size": "batch size B",
    "hardware.beta": "beta, s/token",
    "pricing.prefill": "price of a prompt token",
    "pricing.decode": "price of an output token",
}


@dataclass(frozen=True)
class Effort:
    """How much is simulated: slope and prices are multiplied by the `factors`, on `n_gpus`, in `replications`
    of `horizon` s, of which `warmup` are discarded."""

    factors: tuple[float, ...]
    batch_sizes: tuple[int, ...]
    n_gpus: int
    replications: int
    horizon: float
    warmup: float


FULL = Effort((0.25, 0.5, 1.0, 2.0, 4.0), (4, 8, 16, 24, 32), 200, 16, 400.0, 150.0)

QUICK = Effort((0.5, 1.0, 2.0), (8, 16, 32), 50, 8, 200.0, 100.0)


def axes_of(instance: Instance, name: str, effort: Effort) -> dict[str, list[float]]:
    """The values of the two numbers of a map, increasing."""
    across, up = PATHS[name]
    now = {
        "hardware.beta": instance.iteration_time.beta,
        "pricing.prefill": instance.pricing.prefill,
        "pricing.decode": instance.pricing.decode,
    }
    return {
        path: [float(now[path]) * factor for factor in effort.factors]
        if path in now
        else [float(size) for size in effort.batch_sizes]
        for path in (across, up)
    }


def piece_count(instance: Instance, quick: bool) -> int:
    """One call for each map."""
    return len(PATHS)


def run(instance: Instance, *, quick: bool, seed: int, kept: Path, bars: ProgressBars) -> dict[str, Any]:
    """The study's summary; replications are kept in `kept` as they finish."""
    effort = QUICK if quick else FULL
    maps = {}
    for name in PATHS:
        axes = axes_of(instance, name, effort)
        found = swept(bars, f"map of {name}", instance, axes, POLICIES, effort, seed, kept / name)
        maps[name] = {"axes": axes, **found}
    return {"effort": asdict(effort), "scheme": instance.pricing.scheme, "maps": maps}


def answer(summary: dict[str, Any]) -> str:
    """How much of the best possible revenue each policy keeps over the maps, at worst."""
    told = []
    for policy in POLICIES:
        gaps = [gap for found in summary["maps"].values() for gap in found["gap"][policy]]
        worst = max(gaps, key=lambda gap: gap["mean"])
        low, high = (100 * end for end in worst["ci95"])
        told.append(f"{policy} is at most {100 * worst['mean']:.1f} % below ({low:.1f} to {high:.1f} %)")
    return f"Over both maps, of the best possible revenue {' and '.join(told)}; 95 % intervals."


def table(summary: dict[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The best possible revenue, and each policy's revenue, by point."""
    head = ("map", "across", "up", "best possible", *POLICIES)
    rows = []
    for name, found in summary["maps"].items():
        xs, ys = found["axes"].values()
        for k, bound in enumerate(found["bound"]):
            cells = [with_interval(found["revenue"][policy][k]) for policy in POLICIES]
            rows.append((name, f"{xs[k // len(ys)]:.4g}", f"{ys[k % len(ys)]:.4g}", f"{bound:.2f}", *cells))
    return head, rows


def datasets(summary: dict[str, Any]) -> dict[str, xr.Dataset]:
    """Bound, revenue and gap over the two numbers of each map."""
    found = {}
    for name, each in summary["maps"].items():
        axes = {path: np.asarray(values) for path, values in each["axes"].items()}
        shape = tuple(len(values) for values in axes.values())
        data: dict[str, Any] = {"bound": (tuple(axes), np.reshape(each["bound"], shape), {"units": MONEY})}
        for quantity, unit in (("revenue", MONEY), ("gap", "1")):
            rows = [_by_first(row, shape[1]) for row in each[quantity].values()]
            data |= estimate_variables(quantity, ("policy", *axes), rows, unit)
        found[name] = xr.Dataset(data, {"policy": list(POLICIES), **axes})
    return found


def _by_first(points: list[Any], count: int) -> list[list[Any]]:
    """Points by the first number, then by the second, which has `count` values."""
    return [points[first : first + count] for first in range(0, len(points), count)]


def draw(summary: dict[str, Any], looks: list[tuple[str, str]]) -> dict[str, Figure]:
    """A figure for each map: the best possible revenue, and what each policy earns of it, on one scale."""
    del looks
    return {name: _figure(summary, name) for name in summary["maps"]}


def _figure(summary: dict[str, Any], name: str) -> Figure:
    found = summary["maps"][name]
    (across, xs), (up, ys) = found["axes"].items()
    fields = {"best possible": found["bound"]}
    fields |= {policy: [r["mean"] for r in row] for policy, row in found["revenue"].items()}
    # Points come with the second number fastest; a map has it upwards.
    drawn = {title: np.reshape(values, (len(xs), len(ys))).T for title, values in fields.items()}
    highest = max(float(field.max()) for field in drawn.values())
    figure = Figure(figsize=(WIDTH, 2.4 * len(drawn)), layout="constrained")
    panels = figure.subplots(len(drawn), 1, sharex=True)
    images = []
    for axes, (title, field) in zip(panels, drawn.items(), strict=True):
        images.append(heat_map(axes, np.asarray(xs), np.asarray(ys), field, 0.0, highest))
        axes.set_title(title)
        axes.set_ylabel(LABELS[up])
    panels[-1].set_xlabel(LABELS[across])
    label = f"revenue per GPU and second, {summary['scheme']}; {summary['effort']['n_gpus']} GPUs"
    figure.colorbar(images[-1], ax=list(panels), label=label)
    return figure
