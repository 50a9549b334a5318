"""The figures of the main job, drawn from its summary without a display or a global state.

Studies of `experiments` draw in the same style and share its parts.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

Summary = Mapping[str, Any]

WIDTH = 5.2
"""Inches; narrow, so that texts stay legible when a telephone shows the whole width."""

STYLE: Any = {
    "font.size": 9.5,
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.constrained_layout.h_pad": 0.09,
    "svg.fonttype": "none",
    "svg.hashsalt": "jaxq",
}

_METADATA = re.compile(r"\s*<metadata>.*?</metadata>", re.DOTALL)

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#000000", "#cc79a7", "#56b4e9", "#e69f00", "#777777", "#882255")
_POOL_COLOURS = ("#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#777777", "#000000")
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*", "<")

STAGES = (
    ("prefills", "x", "running prefills"),
    ("decodes_mixed", "y_mixed", "decodes beside a prefill"),
    ("decodes_solo", "y_solo", "decodes on GPUs without a prefill"),
    ("prefill_queue", "q_prefill", "waiting for prefill"),
    ("decode_queue", "q_decode", "waiting for a decode slot"),
)
"""Names in a record and in a plan, and what they mean."""


def draw_figures(summary: Summary) -> dict[str, Figure]:
    """`gap`, `revenue`, `occupancies` and `sample_path`, by name; `learned` where a tuned policy is shown."""
    drawn = {"gap": _gap, "revenue": _revenue, "occupancies": _occupancies, "sample_path": _sample_path}
    if summary.get("portrait") is not None:
        drawn["learned"] = _learned
    with matplotlib.rc_context(STYLE):
        return {name: draw(summary) for name, draw in drawn.items()}


def save_figures(figures: Mapping[str, Figure], folder: Path) -> dict[str, str]:
    """Each figure as SVG and PNG; returns the texts of the SVG elements by name."""
    texts = svg_texts(figures)
    for name, text in texts.items():
        (folder / f"{name}.svg").write_text(text, encoding="utf-8")
        with matplotlib.rc_context(STYLE):
            figures[name].savefig(folder / f"{name}.png", dpi=200)
    return texts


def svg_texts(figures: Mapping[str, Figure]) -> dict[str, str]:
    """Each figure as the text of an SVG element; the same figure gives the same text."""
    texts = {}
    for name, figure in figures.items():
        stream = io.StringIO()
        with matplotlib.rc_context(STYLE):
            figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
        text = stream.getvalue()
        texts[name] = _METADATA.sub("", text[text.index("<svg") :])
    return texts


def _gap(summary: Summary) -> Figure:
    """Gap to the best possible revenue against the number of GPUs, a line a policy."""
    figure = Figure(figsize=(WIDTH, 4.6), layout="constrained")
    axes = figure.subplots()
    for name, colour, marker in _looks(summary):
        rows = [record for record in summary["records"] if record["policy"] == name]
        gaps = [record["gap"] for record in rows]
        axes.errorbar(
            [record["gpus"] for record in rows],
            [100 * gap["mean"] for gap in gaps],
            yerr=interval_bars(gaps, 100.0),
            color=colour,
            marker=marker,
            markersize=5,
            linewidth=1.2,
            capsize=2.5,
            label=label_text(name),
        )
    sizes = sorted({record["gpus"] for record in summary["records"]})
    size_axis(axes, sizes)
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    axes.axhline(0.0, color="black", linewidth=1)
    axes.set_ylabel("below the best possible revenue, %")
    axes.set_title("Gap to the optimum (95 % intervals)")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def _revenue(summary: Summary) -> Figure:
    """Revenue of each policy at the largest size, best first, with the most that any policy can earn."""
    scheme, records = summary["plan"]["scheme"], _largest(summary)
    key = f"revenue_{scheme}"
    records = sorted(records, key=lambda record: record[key]["mean"])
    figure = Figure(figsize=(WIDTH, 0.8 + 0.34 * (len(records) + 1)), layout="constrained")
    axes = figure.subplots()
    looks = {name: (colour, marker) for name, colour, marker in _looks(summary)}
    for row, record in enumerate(records):
        colour, marker = looks[record["policy"]]
        estimate = record[key]
        axes.errorbar(
            estimate["mean"],
            row,
            xerr=interval_bars([estimate]),
            color=colour,
            marker=marker,
            markersize=6,
            capsize=3,
        )
    best = records[0]["bound"][scheme]
    axes.axvline(best, color="black", linewidth=1, linestyle="--")
    where = {"xytext": (-4, 0), "textcoords": "offset points", "ha": "right", "va": "center"}
    axes.annotate(f"best possible {best:.1f}", (best, len(records) - 0.35), **where)
    axes.set_yticks(range(len(records)), [label_text(record["policy"]) for record in records])
    axes.set_ylim(-0.6, len(records))
    axes.set_xlabel(f"{scheme} revenue per GPU and second")
    axes.set_title(f"{records[0]['gpus']} GPUs (95 % intervals)")
    return figure


def _occupancies(summary: Summary) -> Figure:
    """What each policy keeps a GPU busy with, by class, against the plan's lines."""
    records, plan = _largest(summary), summary["plan"]
    classes = plan["classes"]
    figure = Figure(figsize=(WIDTH, 0.9 + len(STAGES) * (0.55 + 0.19 * len(records))), layout="constrained")
    panels = figure.subplots(len(STAGES), 1)
    for axes, (stage, planned, title) in zip(panels, STAGES, strict=True):
        for i in range(len(classes)):
            axes.axvline(plan[planned][i], color=_class_colour(i), linewidth=1, linestyle="--")
            estimates = [component(record[stage], i) for record in records]
            axes.errorbar(
                [estimate["mean"] for estimate in estimates],
                range(len(records)),
                xerr=interval_bars(estimates),
                color=_class_colour(i),
                marker=MARKERS[i % len(MARKERS)],
                markersize=4.5,
                linestyle="none",
            )
        axes.set_yticks(range(len(records)), [label_text(record["policy"]) for record in records])
        axes.set_ylim(len(records) - 0.4, -0.6)
        axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))
        axes.locator_params(axis="x", nbins=6)
        axes.set_title(title)
    panels[-1].set_xlabel(f"requests per GPU, {records[0]['gpus']} GPUs")
    figure.legend(handles=_class_handles(classes, plan_line=True), loc="outside lower center", ncols=2)
    return figure


def _sample_path(summary: Summary) -> Figure:
    """One replication in time: a column a policy; decodes, prefills, and those that wait, by class."""
    paths, plan = summary["sample_paths"], summary["plan"]
    classes = plan["classes"]
    decodes_planned = np.add(plan["y_mixed"], plan["y_solo"])
    figure = Figure(figsize=(WIDTH, 6.4), layout="constrained")
    panels = figure.subplots(3, len(paths), sharex=True, sharey="row", squeeze=False)
    for column, path in enumerate(paths):
        time = np.asarray(path["window_end"])
        decodes = np.add(path["decodes_mixed"], path["decodes_solo"])
        waiting = np.add(path["prefill_queue"], path["decode_queue"])
        rows = (
            (decodes, decodes_planned, "decodes"),
            (np.asarray(path["prefills"]), plan["x"], "running prefills"),
            (waiting, np.add(plan["q_prefill"], plan["q_decode"]), "waiting"),
        )
        for axes, (values, planned, label) in zip(panels[:, column], rows, strict=True):
            for i in range(len(classes)):
                axes.plot(time, values[i], color=_class_colour(i), linewidth=0.9)
                axes.axhline(planned[i], color=_class_colour(i), linewidth=1, linestyle="--")
            if column == 0:
                axes.set_ylabel(f"{label}\nper GPU")
        panels[0, column].set_title(label_text(path["policy"]))
        panels[-1, column].set_xlabel("seconds from the empty start")
    figure.legend(handles=_class_handles(classes, plan_line=True), loc="outside lower center", ncols=2)
    return figure


def _learned(summary: Summary) -> Figure:
    """What a tuned policy does: which class starts by the two queues, when none does, where requests go."""
    portrait = summary["portrait"]
    figure = Figure(figsize=(WIDTH, 7.8), layout="constrained")
    choice, none, routes = figure.subplots(3, 1, height_ratios=(2.2, 1.0, 1.0))
    if len(portrait["shown"]) == 2:
        _draw_choice(choice, portrait)
    else:
        choice.plot(portrait["queues"][0], portrait["starts"][0], color=_class_colour(0))
        choice.set(xlabel="requests waiting for prefill", ylabel="chance of a start", ylim=(0, 1.02))
    idle = portrait["idle"]
    none.plot(idle["running"], idle["starts_none"], color="0.2")
    none.axvline(idle["planned"], color="0.4", linestyle="--", linewidth=1, label="the plan")
    none.set(xlabel="running prefills per GPU", ylim=(-0.02, 1.02))
    none.set_title("chance that a free GPU starts nothing")
    none.legend()
    left = np.zeros(len(portrait["classes"]))
    rows = range(len(portrait["classes"]))
    for k, pool in enumerate(portrait["pools"]):
        chances = np.asarray(portrait["routes"])[:, k]
        routes.barh(rows, chances, left=left, color=_POOL_COLOURS[k], label=pool)
        left = left + chances
    routes.set_yticks(rows, [label_text(name) for name in portrait["classes"]])
    routes.set_ylim(len(rows) - 0.4, -0.6)
    routes.grid(visible=False)
    routes.set_title("where requests decode (room everywhere)")
    routes.legend(loc="upper left", bbox_to_anchor=(-0.02, -0.2), ncols=1)
    return figure


def _draw_choice(axes: Axes, portrait: Mapping[str, Any]) -> None:
    """Which of two classes a gate starts, over the lengths of their queues."""
    first, second = portrait["shown"]
    starts, (across, up) = np.asarray(portrait["starts"]), portrait["queues"]
    either = starts[first] + starts[second]
    share = np.where(either > 0, starts[second] / np.where(either > 0, either, 1.0), np.nan)
    colours = LinearSegmentedColormap.from_list(
        "classes", [_class_colour(first), "0.97", _class_colour(second)]
    )
    axes.pcolormesh(across, up, share, vmin=0, vmax=1, cmap=colours, shading="nearest")
    names = [label_text(portrait["classes"][i]) for i in (first, second)]
    axes.plot(*portrait["planned_queues"], marker="x", color="0", linestyle="none", label="the plan")
    handles = [
        Patch(color=_class_colour(i), label=name) for i, name in zip((first, second), names, strict=True)
    ]
    handles += axes.get_legend_handles_labels()[0]
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(-0.02, -0.14), ncols=1)
    axes.set_xlabel(f"{names[0]}, waiting for prefill")
    axes.set_ylabel(f"{names[1]}, waiting")
    axes.set_title("which class starts next (pale: either)")


def _looks(summary: Summary) -> Iterable[tuple[str, str, str]]:
    """Name, colour and marker of each policy."""
    names = dict.fromkeys(record["policy"] for record in summary["records"])
    return [(name, COLOURS[k % len(COLOURS)], MARKERS[k % len(MARKERS)]) for k, name in enumerate(names)]


def _largest(summary: Summary) -> list[Mapping[str, Any]]:
    """The records of the largest cluster."""
    most = max(record["gpus"] for record in summary["records"])
    return [record for record in summary["records"] if record["gpus"] == most]


def size_axis(axes: Axes, sizes: Sequence[int]) -> None:
    """Numbers of GPUs along x, on a logarithmic scale."""
    axes.set_xscale("log")
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.set_xlabel("GPUs in the cluster")


def component(estimate: Mapping[str, Any], i: int) -> dict[str, Any]:
    """One class of an estimate."""
    return {"mean": estimate["mean"][i], "ci95": [end[i] for end in estimate["ci95"]]}


def interval_bars(estimates: Sequence[Mapping[str, Any]], scale: float = 1.0) -> np.ndarray:
    """Error bars, shape `(2, estimates)`; none where there is no interval."""
    ends = [
        (0.0, 0.0) if None in e["ci95"] else (e["mean"] - e["ci95"][0], e["ci95"][1] - e["mean"])
        for e in estimates
    ]
    return scale * np.maximum(np.asarray(ends).T, 0.0)


def _class_colour(i: int) -> str:
    return COLOURS[i % len(COLOURS)]


def _class_handles(classes: Sequence[str], plan_line: bool) -> list[Line2D]:
    """Legend entries of the classes, and of the plan's dashed lines."""
    handles = [
        Line2D(
            [],
            [],
            color=_class_colour(i),
            marker=MARKERS[i % len(MARKERS)],
            markersize=4.5,
            label=label_text(name),
        )
        for i, name in enumerate(classes)
    ]
    return handles + [Line2D([], [], color="0.4", linestyle="--", label="the plan")] * plan_line


def label_text(name: str, longest: int = 26) -> str:
    """A user's text as a label: printable, short, no formula, not hidden by a first underscore."""
    shown = "".join(character if character.isprintable() else "?" for character in name)
    shown = shown if len(shown) <= longest else f"{shown[: longest - 1]}…"
    return (" " + shown if shown.startswith("_") else shown).replace("$", r"\$")
