"""Tables and texts for a person, on stdout."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

WIDTH_IN_A_FILE = 200
"""Columns where stdout is no terminal: wide enough that nothing is folded."""


def print_table(
    headings: Sequence[str], rows: Iterable[Sequence[str]], *, texts: Iterable[str] = (), title: str = ""
) -> None:
    """A table; columns stand right, the first one and those headed `texts` left; cells fold, none is cut."""
    table = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    left = {headings[0], *texts}
    for heading in headings:
        table.add_column(heading, justify="left" if heading in left else "right", overflow="fold")
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    _console().print(table)


def print_text(text: str) -> None:
    """A paragraph, folded at the width of the terminal."""
    _console().print(text, highlight=False, markup=False)


def _console() -> Console:
    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else WIDTH_IN_A_FILE)
