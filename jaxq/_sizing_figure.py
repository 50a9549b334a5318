"""The figure of a sizing: the measured share against the number of GPUs, drawn from its summary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ._figures import MARKERS, STYLE, WIDTH

LOOKS = {"suffices": "#009e73", "too few": "#d55e00", "undecided": "#777777"}
"""The colour of each verdict."""


def sizing_figure(summary: Mapping[str, Any]) -> Figure:
    """Measured shares with 95 % intervals, the target, and what no policy exceeds.

    **Arguments:** `summary`: `Sizing.to_dict()`.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.8), layout="constrained")
        axes = figure.subplots()
        target, curve = summary["target"], summary["best_possible"]
        axes.plot(
            [point["gpus"] for point in curve],
            [100 * point["share"] for point in curve],
            color="black",
            linewidth=1,
            linestyle="--",
            label="linear program: the best possible",
        )
        axes.axhline(100 * target["share"], color="black", linewidth=1, label="target")
        for verdict, colour in LOOKS.items():
            _draw_tested(axes, summary, verdict, colour)
        if summary["gpus"] is not None:
            axes.axvline(summary["gpus"], color=LOOKS["suffices"], linewidth=1, linestyle=":")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("GPUs in the cluster")
        axes.set_ylabel(f"{target['measure']}, %")
        axes.set_title(f"{summary['policy']} (95 % intervals)".replace("$", r"\$"))
        figure.legend(loc="outside lower center", ncols=2)
        return figure


def _draw_tested(axes: Axes, summary: Mapping[str, Any], verdict: str, colour: str) -> None:
    """The sizes with one verdict; a marker for each class where each has the limit."""
    rows = [row for row in summary["tested"] if row["verdict"] == verdict]
    if not rows:
        return
    sizes = [row["gpus"] for row in rows]
    means = np.array([np.atleast_1d(row["share"]["mean"]) for row in rows])
    ends = np.array([[np.atleast_1d(end) for end in row["share"]["ci95"]] for row in rows])
    for i in range(means.shape[1]):
        axes.errorbar(
            sizes,
            100 * means[:, i],
            yerr=100 * np.abs(ends[:, :, i] - means[:, None, i]).T,
            color=colour,
            marker=MARKERS[i % len(MARKERS)],
            markersize=5,
            linestyle="none",
            capsize=2.5,
            label=verdict if i == 0 else None,
        )
