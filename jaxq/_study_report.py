"""The report of a study: one page without network, made of its stored summary alone."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from . import _report_page as page
from ._report_sections import Summary, cluster_and_requests, how_to_repeat, source

if TYPE_CHECKING:
    from ._experiments import Experiment

_NUMBER = re.compile(r"\s*([-−+±]?\.?\d|[-–]?\s*$)")
"""How a number starts; an empty cell counts as one."""


def study_html(study: Experiment, summary: Summary, figures: Mapping[str, str]) -> str:
    """The report of a study; `figures` are SVG elements by name."""
    sections = (
        page.heading(study.title, 1),
        page.paragraph(study.answer(summary), "lead"),
        *_asked(study, summary),
        *_found(study, summary, figures),
        *how_to_repeat(
            summary,
            "experiment.json (everything), table.csv, the figures (SVG and PNG) and their data (netCDF, CSV)",
        ),
        source(),
    )
    return page.page(study.title, sections)


def _asked(study: Experiment, summary: Summary) -> Iterator[str]:
    """What the study is about, on which instance, and with what effort."""
    yield page.heading("What was asked")
    for text in study.description:
        yield page.paragraph(text)
    if study.paper:
        yield page.paragraph(f"In [Lin26]: {study.paper}.")
    if summary["quick"]:
        yield page.paragraph("This is the quick version of the study: less of everything.", "note")
    yield page.paragraph(f"Instance: {summary['instance']['name']}.")
    yield from cluster_and_requests(summary["instance"])
    if "effort" in summary:
        rows = [(name.replace("_", " "), _shown(value)) for name, value in summary["effort"].items()]
        yield page.folded("Effort", page.table(("setting", "value"), rows, texts=(1,)))


def _found(study: Experiment, summary: Summary, figures: Mapping[str, str]) -> Iterator[str]:
    """The figures and the table."""
    yield page.heading("What was found")
    yield page.gallery(
        page.figure(svg, f"{study.title}: {name.replace('_', ' ')}", study.captions.get(name, ""))
        for name, svg in figures.items()
    )
    head, rows = study.table(summary)
    texts = [k for k, column in enumerate(zip(*rows, strict=True)) if not all(map(_NUMBER.match, column))]
    yield page.table(head, rows, texts=texts)


def _shown(value: Any) -> str:
    """A setting: lists of lists in brackets."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(f"({_shown(item)})" if isinstance(item, list) else _shown(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
