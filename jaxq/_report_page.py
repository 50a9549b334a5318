"""A web page in one file: its style, and the few elements of a report; texts are escaped here."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from ._output import write_file, writing

REPORT_FILE = "report.html"

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body {
  margin: 0; background: #fff; color: #1a1a1a;
  font: 16px/1.55 system-ui, "Segoe UI", "DejaVu Sans", sans-serif;
}
main { max-width: 1240px; margin: 0 auto; padding: 1.2rem 1rem 4rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: .6rem 0 .6rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.4rem 0 .5rem; border-top: 1px solid #d8d8d8; padding-top: 1.1rem; }
p, li { max-width: 46rem; overflow-wrap: break-word; }
p { margin: .5rem 0; }
.lead {
  font-size: 1.12rem; background: #f1f6fb; border-left: 4px solid #0072b2;
  padding: .8rem 1rem; max-width: 50rem;
}
.note { background: #fff7e6; border-left: 4px solid #b26a00; padding: .6rem 1rem; max-width: 50rem; }
.quiet { color: #4d4d4d; font-size: .93rem; }
.pair { display: grid; gap: 1.5rem; grid-template-columns: minmax(0, 1fr); }
.gallery { display: flex; flex-wrap: wrap; gap: 0 1.5rem; align-items: flex-start; }
.gallery figure { flex: 1 1 30rem; min-width: min(30rem, 100%); }
figure { margin: 1rem 0; }
.drawing { overflow-x: auto; }
figure svg { width: 100%; height: auto; display: block; }
figcaption { font-size: .93rem; color: #333; margin-top: .4rem; }
.table { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .93rem; font-variant-numeric: tabular-nums; }
th, td {
  padding: .32rem 1rem .32rem 0; text-align: right; vertical-align: top; border-bottom: 1px solid #e4e4e4;
}
td { white-space: nowrap; }
th { border-bottom: 2px solid #999; font-weight: 600; vertical-align: bottom; min-width: 5.5rem; }
th:first-child, td:first-child, td.text, th.text { text-align: left; }
td.long { min-width: 17rem; white-space: normal; }
tr.best td { background: #eef7ee; }
code, pre { font: .88rem/1.45 ui-monospace, "DejaVu Sans Mono", Menlo, monospace; }
pre { background: #f5f5f5; padding: .7rem .9rem; overflow-x: auto; }
summary { cursor: pointer; margin: .6rem 0; }
@media (max-width: 600px) {
  th:first-child, td:first-child { white-space: normal; overflow-wrap: anywhere; min-width: 7.5rem; }
}
@media (min-width: 1000px) { .pair { grid-template-columns: minmax(0, 1fr) minmax(0, 1fr); } }
"""


LONG = 30
"""Characters of a text in a table above which it is folded."""

LEGIBLE = 7.0
"""Pixels of the smallest text of a figure; a figure that would be narrower than that takes is scrolled."""

_WIDTH = re.compile(r'<svg [^>]*?width="([\d.]+)pt"')

_TEXT_SIZE = re.compile(r"font(?:-size)?: (?:[a-z]+ )*([\d.]+)px")


def page(title: str, body: Iterable[str]) -> str:
    """A whole page; `body` holds elements made by the functions below."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )


def write_page(html: str, folder: Path) -> Path:
    """Write a page into a folder, whole or not at all; returns where it is."""
    with writing(folder / REPORT_FILE):
        write_file(folder / REPORT_FILE, html.encode())
    return folder / REPORT_FILE


def heading(text: str, level: int = 2) -> str:
    """A heading."""
    return f"<h{level}>{escape(text)}</h{level}>"


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph; `kind` is a class of the style (lead, note, quiet)."""
    return f"<p{_class(kind)}>{escape(text)}</p>"


def bullets(items: Iterable[str]) -> str:
    """A list."""
    return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>"


def definitions(items: Iterable[tuple[str, str]]) -> str:
    """A list of names and what they mean."""
    return "<ul>" + "".join(f"<li><b>{escape(n)}</b>: {escape(text)}</li>" for n, text in items) + "</ul>"


def code(text: str) -> str:
    """Lines to be typed."""
    return f"<pre><code>{escape(text)}</code></pre>"


def table(
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    texts: Iterable[int] = (),
    best: int | None = None,
) -> str:
    """A table; numbers stand right, the first column and those in `texts` left; row `best` is marked."""
    kinds = {k: "text long" if any(len(row[k]) > LONG for row in rows) else "text" for k in texts}

    def cells(tag: str, row: Sequence[str]) -> str:
        return "".join(
            f"<{tag}{_class(kinds.get(k, ''))}>{escape(cell)}</{tag}>" for k, cell in enumerate(row)
        )

    body = "".join(
        f"<tr{_class('best' if k == best else '')}>{cells('td', row)}</tr>\n" for k, row in enumerate(rows)
    )
    head = f"<thead><tr>{cells('th', headings)}</tr></thead>"
    return f'<div class="table"><table>\n{head}\n<tbody>{body}</tbody>\n</table></div>'


def figure(svg: str, name: str, caption: str) -> str:
    """A figure; `svg` is trusted markup, `name` what a reader who cannot see it is told.

    It is shown up to a quarter larger than drawn, and no smaller than its texts are legible.
    """
    labelled = svg.replace("<svg ", f'<svg role="img" aria-label="{escape(name)}" {_least_width(svg)}', 1)
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure{_most_width(svg)}><div class="drawing">{labelled}</div>{below}</figure>'


def gallery(figures: Iterable[str]) -> str:
    """Figures beside each other, as many as there is room for."""
    return f'<div class="gallery">{"".join(figures)}</div>'


def side_by_side(*elements: str) -> str:
    """Elements beside each other where the page is wide enough."""
    return '<div class="pair">' + "".join(f"<div>{element}</div>" for element in elements) + "</div>"


def folded(title: str, *elements: str) -> str:
    """Elements that open on a click."""
    return f"<details><summary>{escape(title)}</summary>{''.join(elements)}</details>"


def _least_width(svg: str) -> str:
    """The style below which texts of a drawing are too small to be read; none where sizes are not told."""
    width, sizes = _WIDTH.search(svg), [float(size) for size in _TEXT_SIZE.findall(svg)]
    if width is None or not sizes:
        return ""
    return f'style="min-width: {math.ceil(float(width[1]) * LEGIBLE / min(sizes))}px" '


def _most_width(svg: str) -> str:
    """The style that keeps a drawing from being blown up: 1.24 times its size, 96 pixels an inch."""
    width = _WIDTH.search(svg)
    return "" if width is None else f' style="max-width: {float(width[1]) * 96 / 72 * 1.24:.0f}px"'


def _class(name: str) -> str:
    return f' class="{name}"' if name else ""
