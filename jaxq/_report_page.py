"""A web page in one file: its style, and the few elements of a report; texts are escaped here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

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
figure { margin: 1rem 0; max-width: 620px; }
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
td.text { min-width: 17rem; white-space: normal; }
tr.best td { background: #eef7ee; }
code, pre { font: .88rem/1.45 ui-monospace, "DejaVu Sans Mono", Menlo, monospace; }
pre { background: #f5f5f5; padding: .7rem .9rem; overflow-x: auto; }
summary { cursor: pointer; margin: .6rem 0; }
@media (min-width: 1000px) { .pair { grid-template-columns: minmax(0, 1fr) minmax(0, 1fr); } }
"""


def page(title: str, body: Iterable[str]) -> str:
    """A whole page; `body` holds elements made by the functions below."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )


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
    texts = set(texts)

    def cells(tag: str, row: Sequence[str]) -> str:
        return "".join(
            f"<{tag}{_class('text' if k in texts else '')}>{escape(cell)}</{tag}>"
            for k, cell in enumerate(row)
        )

    body = "".join(
        f"<tr{_class('best' if k == best else '')}>{cells('td', row)}</tr>\n" for k, row in enumerate(rows)
    )
    head = f"<thead><tr>{cells('th', headings)}</tr></thead>"
    return f'<div class="table"><table>\n{head}\n<tbody>{body}</tbody>\n</table></div>'


def figure(svg: str, name: str, caption: str) -> str:
    """A figure; `svg` is trusted markup, `name` what a reader who cannot see it is told."""
    labelled = svg.replace("<svg ", f'<svg role="img" aria-label="{escape(name)}" ', 1)
    return f"<figure>{labelled}<figcaption>{escape(caption)}</figcaption></figure>"


def side_by_side(*elements: str) -> str:
    """Elements beside each other where the page is wide enough."""
    return '<div class="pair">' + "".join(f"<div>{element}</div>" for element in elements) + "</div>"


def folded(title: str, *elements: str) -> str:
    """Elements that open on a click."""
    return f"<details><summary>{escape(title)}</summary>{''.join(elements)}</details>"


def _class(name: str) -> str:
    return f' class="{name}"' if name else ""
