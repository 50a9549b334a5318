"""What a sizing leaves in its folder: the figure, and a page without network, made of its summary alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from . import _report_page as page
from ._figures import save_figures
from ._report_sections import Summary, cluster_and_requests, how_to_repeat, source
from ._sizing_figure import sizing_figure
from ._summary import RUN_FACTS

SIZE_FILE = "size.json"

FIGURE = "sizing"
"""The name of the figure's files, without its end."""

FIELDS = (
    *RUN_FACTS, "answer", "gpus", "lower_bound", "confidence", "target", "policy", "load", "tested",
    "best_possible", "engine", "cautions", "horizon", "warmup",
)  # fmt: skip
"""What the report is made of."""


def write_sizing_report(summary: Summary, folder: Path) -> Path:
    """Write the figure (SVG, PNG) and report.html; returns where the page is."""
    (svg,) = save_figures({FIGURE: sizing_figure(summary)}, folder).values()
    return page.write_page(sizing_html(summary, svg), folder)


def tested_table(summary: Summary) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Headings and rows: every size that was simulated."""
    head = ("GPUs", f"{summary['target']['measure']}, %", "best possible, %", "replications", "verdict")
    rows = [
        (
            str(row["gpus"]),
            percent(row["share"]),
            f"{100 * row['best_possible']:.3f}",
            str(row["replications"]),
            row["verdict"],
        )
        for row in summary["tested"]
    ]
    return head, rows


def percent(share: Mapping) -> str:
    """A share with its 95 % interval, in %; of each class where each has the limit."""
    means = 100 * np.atleast_1d(share["mean"])
    widths = 50 * np.ptp([np.atleast_1d(end) for end in share["ci95"]], axis=0)
    return ", ".join(f"{mean:.3f} ± {width:.3f}" for mean, width in zip(means, widths, strict=True))


def sizing_html(summary: Summary, svg: str) -> str:
    """The report of a sizing; `svg`: its figure, an SVG element."""
    title = f"How many GPUs for {summary['instance']['name']}?"
    sections = (
        page.heading(title, 1),
        page.paragraph(summary["answer"], "lead"),
        *(page.paragraph(caution, "note") for caution in summary["cautions"]),
        *_asked(summary),
        page.heading("What was found"),
        page.figure(
            svg,
            "the measured share by the number of GPUs",
            "Each size that was simulated, with its 95 % interval. No policy can be beyond the dashed line.",
        ),
        page.table(*tested_table(summary), texts=(4,)),
        *how_to_repeat(summary, f"{SIZE_FILE} (everything), {FIGURE}.svg and {FIGURE}.png"),
        source(),
    )
    return page.page(title, sections)


def _asked(summary: Summary) -> Iterator[str]:
    """The load, the target, and how it was measured."""
    yield page.heading("What was asked")
    yield page.paragraph(
        f"The smallest number of GPUs that serves this load with {summary['target']['text']} under "
        f"{summary['policy']}, with a confidence of {100 * summary['confidence']:g} %."
    )
    names = [request["name"] for request in summary["instance"]["classes"]]
    rows = [(name, f"{rate:g}") for name, rate in zip(names, summary["load"], strict=True)]
    yield page.table(("class of requests", "requests per second, in all"), rows)
    yield page.paragraph(
        f"Each size is simulated for {summary['horizon']:g} s from an empty cluster, of which the first "
        f"{summary['warmup']:g} are discarded, until its replications decide; {summary['engine']}. The "
        "search takes for granted that more GPUs never do worse."
    )
    yield page.paragraph(f"Instance: {summary['instance']['name']}; its own arrival rates are not used.")
    yield from cluster_and_requests(summary["instance"])
