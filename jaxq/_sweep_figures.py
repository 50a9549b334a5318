"""Figures of a sweep: lines where one number varies, a heat map a policy where two do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ._figures import COLOURS, MARKERS, STYLE, WIDTH
from ._sweep_data import grid_axes, sweep_dataset

PANEL = 2.5
"""Inches of a heat map, each way."""


def sweep_figures(summary: Mapping[str, Any]) -> dict[str, Figure]:
    """Figures by name, one for each number of GPUs; none where more than two numbers vary, or two that do not
    form a grid."""
    data, scheme = sweep_dataset(summary), summary["instance"]["pricing"]["scheme"]
    paths, grid, sizes = list(summary["points"][0]), grid_axes(summary["points"]), data.gpus.values.tolist()
    with matplotlib.rc_context(STYLE):
        if len(paths) == 1:
            return {f"lines_n{n}": _lines(data.sel(gpus=n), paths[0], scheme) for n in sizes}
        if len(paths) == 2 and grid is not None:
            return {f"map_n{n}": _maps(data.sel(gpus=n), grid, scheme) for n in sizes}
    return {}


def _lines(data: Any, path: str, scheme: str) -> Figure:
    """Revenue with the bound, and the gap, against the number that varies."""
    figure = Figure(figsize=(WIDTH, 6.2), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    data = data.sortby(path)
    above.plot(data[path], data[f"bound_{scheme}"][0], color="0.35", linestyle="--", label="best possible")
    looks = zip(COLOURS, MARKERS, strict=True)
    for policy, (colour, marker) in zip(data.policy.values, looks, strict=False):
        own = data.sel(policy=policy)
        for axes, name, factor in ((above, "revenue", 1.0), (below, "gap", 100.0)):
            column = f"{name}_{scheme}"
            axes.errorbar(
                own[path],
                factor * own[column],
                yerr=factor * abs(np.stack([own[column] - own[f"{column}_{k}"] for k in ("low", "high")])),
                color=colour,
                marker=marker,
                markersize=4,
                linewidth=1.0,
                capsize=2,
                label=policy,
            )
    above.set_ylabel("revenue per GPU and second")
    below.set_ylabel("below the best possible, %")
    below.set_xlabel(path)
    above.set_title(f"{int(data.gpus):,} GPUs, {scheme} (95 % intervals)")
    figure.legend(*above.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def _maps(data: Any, grid: dict[str, np.ndarray], scheme: str) -> Figure:
    """The gap of each policy over two numbers, on one scale."""
    (across, xs), (up, ys) = grid.items()
    gaps = 100 * data[f"gap_{scheme}"].values
    order = np.lexsort((data[across].values, data[up].values))
    count = len(data.policy)
    columns = min(2, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(0.9 + PANEL * columns, 0.6 + PANEL * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    lowest, highest = min(0.0, float(gaps.min())), float(gaps.max())
    images = []
    for axes, policy, gap in zip(panels, data.policy.values, gaps, strict=False):
        field = gap[order].reshape(len(ys), len(xs))
        images.append(heat_map(axes, xs, ys, field, lowest, highest))
        axes.set_title(str(policy))
        axes.set_xlabel(across)
        axes.set_ylabel(up)
    for axes in panels[count:]:
        axes.set_visible(False)
    figure.colorbar(images[-1], ax=list(panels), label=f"below the best possible, %; {int(data.gpus):,} GPUs")
    return figure


def heat_map(axes: Axes, xs: np.ndarray, ys: np.ndarray, field: np.ndarray, low: float, high: float) -> Any:
    """Cells of equal size whatever the values, which label them."""
    image = axes.imshow(field, origin="lower", aspect="auto", cmap="viridis", vmin=low, vmax=high)
    for values, ticks, labels in (
        (xs, axes.set_xticks, axes.set_xticklabels),
        (ys, axes.set_yticks, axes.set_yticklabels),
    ):
        shown = np.unique(np.linspace(0, len(values) - 1, min(5, len(values))).round().astype(int))
        ticks(shown)
        labels([f"{values[k]:.4g}" for k in shown])
    axes.grid(False)
    return image
