"""Calibration: the law of iteration times fitted to measurements, and the classes of Databricks Dolly-15k.

The fits are those that come with jaxq (`jaxq presets`), each from published measurements; the measurements
themselves do not come with it. `jaxq calibrate FILE.csv` fits the same law to a file of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from jaxq import Instance, list_presets
from jaxq._experiment_rows import draw_points
from jaxq._figures import WIDTH, label_text
from jaxq._progress import ProgressBars

TITLE = "Calibration: iteration times of real hardware, and the classes of real requests"

PAPER = "figure 3 and table 1"

CLAIMED_R2 = 0.99
"""[Lin26] states R^2 above this for its two fits."""

REFIT = "jaxq calibrate FILE.csv"
"""Fits the law to measurements: columns num_tokens and iteration_time_s, any further ones make groups."""

COMPARED = ("a100-40gb/qwen-8b", "vidur-a100/llama-3-8b-tp1")
"""The reference instance's preset, and the measured fit of the nearest model and card."""

DRAWN = (
    "a100-40gb/qwen-8b",
    "a100-40gb/qwen-4b",
    "vidur-a40/llama-2-7b-tp1",
    "vidur-a100/llama-2-7b-tp1",
    "vidur-h100/llama-2-7b-tp1",
    "vidur-a100/llama-3-8b-tp1",
)
"""Laws that are drawn: the published ones, and measured ones of models of about their size."""

COEFFICIENTS = {
    "solo": ("s", "iteration without a prefill, ms (95 % intervals)", 1e3),
    "beta": ("s/token", "each prompt token in an iteration adds, µs", 1e6),
    "alpha": ("s", "alpha, ms", 1e3),
    "base": ("s", "base, ms", 1e3),
    "slope": ("s/token", "slope, microseconds per token", 1e6),
    "knee": ("tokens", "knee, tokens (none was published)", 1.0),
}
"""Of each coefficient: its unit, what an axis says, and the axis' unit in that."""

FORESTS = ("solo", "beta", "knee")
"""Coefficients that are drawn for all measured cards and models."""


class TaskClass(NamedTuple):
    """A class of requests: mean tokens of prompt and answer, and how many samples they are means of."""

    name: str
    prompt_tokens: float
    output_tokens: float
    samples: int


DOLLY = (
    TaskClass("brainstorming", 61, 331, 1764),
    TaskClass("classification", 123, 142, 2136),
    TaskClass("closed QA", 992, 182, 1738),
    TaskClass("creative writing", 89, 915, 699),
    TaskClass("general QA", 69, 572, 2187),
    TaskClass("information extraction", 1139, 273, 1462),
    TaskClass("open QA", 45, 293, 3739),
    TaskClass("summarization", 1177, 436, 1150),
)
"""Databricks Dolly-15k, [Lin26] table 1. It fits exponential lengths with Kullback-Leibler divergences from
0.06 (open QA) to 0.26 (information extraction): real lengths are not exponential."""


def piece_count(instance: Instance, quick: bool) -> int:
    """Pieces of work, for the progress."""
    del instance, quick
    return 1


def run(instance: Instance, *, quick: bool, seed: int, kept: Path, bars: ProgressBars) -> dict[str, Any]:
    """The study's summary; nothing is simulated, and nothing depends on chance."""
    del quick, seed, kept
    bars.start("calibration")
    bars.note(
        "calibration: the same for every instance, but for the work of the request classes on its hardware"
    )
    fits = [preset.to_dict() for preset in list_presets()]
    bars.finish(f"calibration: {len(fits)} fits")
    return {"fits": fits, "refit": REFIT, "classes": [_class_row(instance, task) for task in DOLLY]}


def _class_row(instance: Instance, task: TaskClass) -> dict[str, Any]:
    """A class with what a request of it asks of the instance's hardware, s."""
    prefill = task.prompt_tokens / float(instance.chunk_size) * float(instance.mixed_iteration_time)
    return {
        **task._asdict(),
        "prefill_time": prefill,
        "solo_decode_time": task.output_tokens * float(instance.iteration_time.solo),
        "mixed_decode_time": task.output_tokens * float(instance.mixed_iteration_time),
    }


def is_measured(fit: dict[str, Any]) -> bool:
    """Whether a fit has measurements of its own: a power-capped card's are scaled from the uncapped one's."""
    return fit["r2"] is not None and not fit["gpu"].endswith("-pcap")


def least_parallel(fits: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each card and model the fit with the fewest cards together; none of power-capped cards."""
    first: dict[tuple[str, str], dict[str, Any]] = {}
    for fit in sorted(fits, key=lambda fit: fit["tensor_parallel"]):
        if fit["fit"] == "published" or is_measured(fit):
            first.setdefault((fit["name"].split("/")[0], fit["model"]), fit)
    return [fit for fit in fits if fit in first.values()]


def table(summary: dict[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The fits with the fewest cards together; all of them are in the data set."""
    head = ("preset", "fit", "tau_solo, ms", "alpha, ms", "beta, us/token", "knee, tokens", "R^2",
            "largest error, %", "measurements", "[Lin26] claims")  # fmt: skip
    rows = []
    for fit in least_parallel(summary["fits"]):
        published = fit["fit"] == "published"
        rows.append(
            (
                fit["name"],
                fit["fit"],
                *(_with_ends(fit[name], COEFFICIENTS[name][2]) for name in ("solo", "alpha", "beta", "knee")),
                "" if published else f"{fit['r2']:.4f}",
                "" if published else f"{100 * fit['max_relative_error']:.1f}",
                "" if published else str(fit["measurements"]),
                f"R^2 > {CLAIMED_R2}" if published else "",
            )
        )
    return head, rows


def _with_ends(coefficient: dict[str, Any] | None, factor: float) -> str:
    """A coefficient with the ends of its 95 % interval."""
    if coefficient is None:
        return ""
    value = f"{factor * coefficient['estimate']:.4g}"
    if coefficient["ci95"] is None:
        return value
    low, high = (factor * end for end in coefficient["ci95"])
    return f"{value} ({low:.4g} to {high:.4g})"


def answer(summary: dict[str, Any]) -> str:
    """How well the law holds, and how the nearest measured fit compares with that of [Lin26]."""
    measured = [fit for fit in summary["fits"] if is_measured(fit) and fit["fit"] == "law"]
    good = sum(fit["r2"] > CLAIMED_R2 for fit in measured)
    by_name = {fit["name"]: fit for fit in summary["fits"]}
    published, nearest = (by_name[name] for name in COMPARED)
    return (
        f"The law with a knee has R^2 > {CLAIMED_R2} in {good} of {len(measured)} measured fits, as [Lin26] "
        f"states of its two; a prompt token costs {_with_ends(nearest['beta'], 1e6)} microseconds "
        f"(95 % interval; {nearest['name']}) where [Lin26] has {_with_ends(published['beta'], 1e6)} "
        f"({published['name']}; `{summary['refit']}` refits the law)."
    )


def datasets(summary: dict[str, Any]) -> dict[str, xr.Dataset]:
    """Every fit with its quality, and the request classes."""
    fits = summary["fits"]
    columns: dict[str, Any] = {
        name: ("preset", [fit[name] for fit in fits]) for name in ("gpu", "model", "fit", "source", "licence")
    }
    columns["tensor_parallel"] = ("preset", [fit["tensor_parallel"] for fit in fits], {"units": "cards"})
    for name, (unit, _, _) in COEFFICIENTS.items():
        for end, pick in (("", None), ("_low", 0), ("_high", 1)):
            values = [_number(fit[name], pick) for fit in fits]
            columns[f"{name}{end}"] = ("preset", values, {"units": unit})
    for name in ("r2", "max_relative_error", "measurements"):
        values = [np.nan if fit[name] is None else float(fit[name]) for fit in fits]
        columns[name] = ("preset", values, {"units": "1"})
    classes = summary["classes"]
    units = {
        "prompt_tokens": "tokens",
        "output_tokens": "tokens",
        "samples": "1",
        "prefill_time": "s",
        "solo_decode_time": "s",
        "mixed_decode_time": "s",
    }
    return {
        "fits": xr.Dataset(columns, {"preset": [fit["name"] for fit in fits]}),
        "classes": xr.Dataset(
            {
                name: ("class", [row[name] for row in classes], {"units": unit})
                for name, unit in units.items()
            },
            {"class": [row["name"] for row in classes]},
        ),
    }


def _number(coefficient: dict[str, Any] | None, end: int | None) -> float:
    """A coefficient (None), or an end of its interval; NaN where there is none."""
    if coefficient is None or (end is not None and coefficient["ci95"] is None):
        return np.nan
    return float(coefficient["estimate"] if end is None else coefficient["ci95"][end])


def draw(summary: dict[str, Any], looks: list[tuple[str, str]]) -> dict[str, Figure]:
    """`laws`, `coefficients` with their intervals, `quality` of the fits, and the request `classes`."""
    return {
        "laws": _draw_laws(summary, looks),
        "coefficients": _draw_coefficients(summary, looks),
        "quality": _draw_quality(summary, looks),
        "classes": _draw_classes(summary, looks),
    }


def _draw_laws(summary: dict[str, Any], looks: list[tuple[str, str]]) -> Figure:
    figure = Figure(figsize=(WIDTH, 4.4), layout="constrained")
    axes = figure.subplots()
    by_name = {fit["name"]: fit for fit in summary["fits"]}
    tokens = np.geomspace(16, 4096, 300)
    for name, (colour, marker) in zip(DRAWN, looks, strict=False):
        fit = by_name[name]
        numbers = [fit[each]["estimate"] for each in ("solo", "alpha", "beta")]
        published = fit["fit"] == "published"
        axes.plot(
            tokens,
            1000 * _law(tokens, *numbers),
            color=colour,
            marker=marker,
            markersize=4,
            markevery=(10, 60),
            linewidth=1.3,
            linestyle="-" if published else "--",
            label=f"{name}{', [Lin26]' if published else ''}",
        )
    axes.set_xscale("log", base=2)
    axes.set_xticks([16, 64, 256, 1024, 4096], ["16", "64", "256", "1024", "4096"])
    axes.minorticks_off()
    _logarithmic(axes, "y")
    axes.set_xlabel("tokens in the batch")
    axes.set_ylabel("iteration time, ms")
    axes.set_title("Fitted laws")
    figure.legend(loc="outside lower center", ncols=1)
    return figure


def _law(tokens: np.ndarray, solo: float, alpha: float, beta: float) -> np.ndarray:
    """The iteration time, s ([Lin26] eq. 1)."""
    return np.maximum(solo, alpha + beta * tokens)


def _draw_coefficients(summary: dict[str, Any], looks: list[tuple[str, str]]) -> Figure:
    """A panel a coefficient, a row a model, a colour a card; models that one card serves alone."""
    fits = [fit for fit in summary["fits"] if fit["tensor_parallel"] == 1]
    models, cards = list(dict.fromkeys(map(_model, fits))), list(dict.fromkeys(map(_card, fits)))
    figure = Figure(figsize=(WIDTH, 1.0 + len(FORESTS) * (0.6 + 0.2 * len(models))), layout="constrained")
    panels = figure.subplots(len(FORESTS), 1)
    for axes, name in zip(panels, FORESTS, strict=True):
        for card, (colour, marker) in zip(cards, looks, strict=False):
            own = [fit for fit in fits if _card(fit) == card and fit[name] is not None]
            beside = 0.2 * (cards.index(card) - (len(cards) - 1) / 2)
            places = [models.index(_model(fit)) + beside for fit in own]
            estimates = [_estimate(fit[name], COEFFICIENTS[name][2]) for fit in own]
            draw_points(axes, estimates, places, color=colour, marker=marker, linestyle="none",
                        markersize=3.5, capsize=1.5, label=card)  # fmt: skip
        axes.set_yticks(range(len(models)), [label_text(model) for model in models], fontsize=8)
        axes.set_ylim(len(models) - 0.4, -0.6)
        axes.set_title(COEFFICIENTS[name][1])
        if name != "knee":
            _logarithmic(axes, "x")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def _card(fit: dict[str, Any]) -> str:
    """The measurement campaign and card of a fit; of a published one the card."""
    return fit["name"].split("/")[0] + (", [Lin26]" if fit["fit"] == "published" else "")


def _model(fit: dict[str, Any]) -> str:
    return fit["name"].split("/")[1].removesuffix("-tp1")


def _estimate(coefficient: dict[str, Any], factor: float) -> dict[str, Any]:
    """A coefficient as an estimate in another unit."""
    ends = coefficient["ci95"]
    return {
        "mean": factor * coefficient["estimate"],
        "ci95": [None, None] if ends is None else [factor * end for end in ends],
    }


def _logarithmic(axes: Axes, which: str, ticks: tuple[float, ...] = (1.0, 2.0, 5.0)) -> None:
    """A logarithmic axis with ticks in plain figures."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    axes.set(**{f"{which}scale": "log"})
    axis.set_major_locator(LogLocator(subs=ticks))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def _draw_quality(summary: dict[str, Any], looks: list[tuple[str, str]]) -> Figure:
    figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
    axes = figure.subplots()
    kinds = {"law": "law with a knee", "line": "line (no knee found)"}
    for (kind, text), (colour, marker) in zip(kinds.items(), looks, strict=False):
        own = [fit for fit in summary["fits"] if is_measured(fit) and fit["fit"] == kind]
        axes.plot(
            [100 * fit["max_relative_error"] for fit in own],
            [1 - fit["r2"] for fit in own],
            color=colour,
            marker=marker,
            markersize=4.5,
            linestyle="none",
            label=f"{text}, {len(own)} fits",
        )
    axes.axhline(1 - CLAIMED_R2, color="black", linestyle="--", linewidth=1, label="[Lin26]: below this")
    _logarithmic(axes, "y")
    axes.set_xlim(left=0)
    axes.set_xlabel("largest relative error of a measurement, %")
    axes.set_ylabel("1 − R²")
    axes.set_title("How well measured times follow the law")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def _draw_classes(summary: dict[str, Any], looks: list[tuple[str, str]]) -> Figure:
    classes = summary["classes"]
    figure = Figure(figsize=(WIDTH, 3.8), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    shown = (
        ("mean tokens", (("prompt_tokens", "prompt"), ("output_tokens", "answer"))),
        ("seconds on this cluster", (("prefill_time", "prompt"), ("solo_decode_time", "answer"))),
    )
    for axes, (label, pairs) in zip(panels, shown, strict=True):
        for (name, text), (colour, marker) in zip(pairs, looks, strict=False):
            axes.plot([row[name] for row in classes], range(len(classes)), color=colour, marker=marker,
                      linestyle="none", label=text)  # fmt: skip
        _logarithmic(axes, "x", (1.0,))
        axes.set_xlabel(label)
    panels[0].set_yticks(
        range(len(classes)), [f"{row['name']} ({row['samples']:,})" for row in classes], fontsize=8
    )
    panels[0].set_ylim(len(classes) - 0.4, -0.6)
    figure.suptitle("Classes of Databricks Dolly-15k (samples)", fontsize=10)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure
