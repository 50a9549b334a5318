"""What a sweep leaves in its folder: data, figures, and a page without network, made of its summary alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from . import _report_page as page
from ._experiment_rows import scaled, with_interval
from ._figures import save_figures
from ._report_sections import Summary, cluster_and_requests, how_to_repeat, source
from ._summary import RUN_FACTS
from ._sweep_data import sweep_dataset
from ._sweep_figures import sweep_figures

SWEEP_FILE = "sweep.json"

DATA = "sweep"
"""The name of the data files, without its end."""

FIELDS = (*RUN_FACTS, "points", "records", "horizon", "warmup", "replications", "engine")
"""What the report is made of."""

MOST_ROWS = 400
"""Records beyond which the page leaves them to the data files."""


def write_sweep_report(summary: Summary, folder: Path) -> Path:
    """Write the data (netCDF, CSV), the figures (SVG, PNG) and report.html; returns where the page is."""
    data = sweep_dataset(summary).assign_attrs(instance=summary["instance"]["name"])
    data.to_netcdf(folder / f"{DATA}.nc", engine="netcdf4")
    data.to_dataframe().reset_index().to_csv(folder / f"{DATA}.csv", index=False)
    figures = save_figures(sweep_figures(summary), folder)
    return page.write_page(sweep_html(summary, figures), folder)


def answer(summary: Summary) -> str:
    """Which policy is the least below the best possible revenue over the points, in a sentence."""
    scheme, count = summary["instance"]["pricing"]["scheme"], len(summary["points"])
    told = []
    for n, own in _by_size(summary).items():
        best = min(own, key=lambda policy: np.mean([row["mean"] for row in own[policy]]))
        gaps = [100 * row["mean"] for row in own[best]]
        # The points share their random numbers: their errors may all go one way.
        width = float(np.mean([50 * (row["ci95"][1] - row["ci95"][0]) for row in own[best]]))
        told.append(
            f"{best} at n = {n:,}: {np.mean(gaps):.2f} ± {width:.2f} % in the mean over {count} points, "
            f"{min(gaps):.2f} to {max(gaps):.2f} % at single ones"
        )
    return f"Least below the best possible {scheme} revenue: {'; '.join(told)} (95 % intervals)."


def gap_table(summary: Summary) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Headings and rows: the gaps of each policy and size over the points."""
    rows = []
    for n, own in _by_size(summary).items():
        for policy, gaps in own.items():
            means = [100 * gap["mean"] for gap in gaps]
            ends = (min(means), float(np.mean(means)), max(means))
            rows.append((policy, f"{n:,}", *(f"{value:.2f}" for value in ends)))
    return ("policy", "GPUs", "smallest gap, %", "mean", "largest"), rows


def _by_size(summary: Summary) -> dict[int, dict[str, list[Mapping]]]:
    """The gap at each point, by number of GPUs and policy."""
    name = f"gap_{summary['instance']['pricing']['scheme']}"
    found: dict[int, dict[str, list[Mapping]]] = {}
    for record in summary["records"]:
        found.setdefault(record["gpus"], {}).setdefault(record["policy"], []).append(record[name])
    return found


def sweep_html(summary: Summary, figures: Mapping[str, str]) -> str:
    """The report of a sweep; `figures` are SVG elements by name."""
    title = f"Sweep of {summary['instance']['name']}: {', '.join(summary['points'][0])}"
    sections = (
        page.heading(title, 1),
        page.paragraph(answer(summary), "lead"),
        *_asked(summary),
        *_found(summary, figures),
        *how_to_repeat(
            summary, f"{SWEEP_FILE} (everything), {DATA}.nc and {DATA}.csv, the figures (SVG and PNG)"
        ),
        source(),
    )
    return page.page(title, sections)


def _asked(summary: Summary) -> Iterator[str]:
    """What varied, from which instance on, and with what effort."""
    yield page.heading("What was asked")
    points = summary["points"]
    rows = []
    for path in points[0]:
        values = np.unique([point[path] for point in points])
        shown = ", ".join(f"{value:g}" for value in values) if len(values) <= 12 else "see the data"
        rows.append((path, f"{values[0]:g}", f"{values[-1]:g}", str(len(values)), shown))
    yield page.table(("what varies", "from", "to", "values", ""), rows, texts=(4,))
    yield page.paragraph(
        f"{summary['replications']} replications of {summary['horizon']:g} simulated seconds, of which the "
        f"first {summary['warmup']:g} are discarded; at the first point: {summary['engine']}."
    )
    yield page.paragraph(f"All else is as in the instance {summary['instance']['name']}.")
    yield from cluster_and_requests(summary["instance"])


def _found(summary: Summary, figures: Mapping[str, str]) -> Iterator[str]:
    """The figures, the gaps of each policy, and every record where they are few."""
    scheme = summary["instance"]["pricing"]["scheme"]
    yield page.heading("What was found")
    yield page.gallery(
        page.figure(
            svg, name.replace("_", " "), f"How far each policy stays below the best {scheme} revenue."
        )
        for name, svg in figures.items()
    )
    yield page.table(*gap_table(summary))
    if len(summary["records"]) <= MOST_ROWS:
        paths = list(summary["points"][0])
        head = ("policy", "GPUs", *paths, "revenue", "best possible", "gap, %")
        yield page.folded(
            "Every point", page.table(head, [_row(each, scheme) for each in summary["records"]])
        )


def _row(record: Mapping, scheme: str) -> tuple[str, ...]:
    """A record of the folded table."""
    point = [f"{value:g}" for value in record["point"].values()]
    revenue, gap = record[f"revenue_{scheme}"], record[f"gap_{scheme}"]
    return (
        record["policy"],
        f"{record['gpus']:,}",
        *point,
        with_interval(revenue),
        f"{record['bound'][scheme]:.2f}",
        with_interval(scaled(gap, 100.0)),
    )
