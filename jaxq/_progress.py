"""Progress on stderr: bars on a terminal, one line a finished piece of work elsewhere."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class ProgressBars:
    """A bar for all the work, and one for the piece at hand. Made by `progress_bars`."""

    def __init__(self, console: Console, bars: Progress | None, pieces: int):
        self._console = console
        self._bars = bars
        self._pieces = pieces
        self._done = 0
        self._overall: TaskID | None = None
        self._current: TaskID | None = None
        if bars is not None:
            self._overall = bars.add_task("all", total=pieces, visible=pieces > 1)
            self._current = bars.add_task("starting", total=None)

    def start(self, label: str) -> Callable[[int, int], None]:
        """Show a piece of work; returns the function to call with how much of it is done, and the total."""
        if self._bars is None or self._current is None:
            return lambda done, total: None
        bars, task = self._bars, self._current
        bars.reset(task, description=label, total=None)

        def report(done: int, total: int) -> None:
            bars.update(task, completed=done, total=total)

        return report

    def finish(self, line: str) -> None:
        """The piece at hand is done; `line` says how it went."""
        self._done += 1
        counted = f"[{self._done}/{self._pieces}] {line}" if self._pieces > 1 else line
        self._console.print(counted, highlight=False, markup=False)
        if self._bars is not None and self._overall is not None:
            self._bars.advance(self._overall)

    def note(self, line: str) -> None:
        """A line of its own, such as a warning."""
        self._console.print(line, highlight=False, markup=False)

    @contextlib.contextmanager
    def warnings_as_notes(self, unless: type[Warning] | None = None) -> Iterator[None]:
        """Meanwhile every warning is a line of its own, once; those of a kind are not shown."""
        said = set()

        def show(message: Warning | str, *_: object, **__: object) -> None:
            line = f"jaxq: warning: {message}"
            if line not in said:
                said.add(line)
                self.note(line)

        with warnings.catch_warnings():
            warnings.simplefilter("always", UserWarning)
            if unless is not None:
                warnings.simplefilter("ignore", unless)
            warnings.showwarning = show
            yield


@contextlib.contextmanager
def progress_bars(pieces: int) -> Iterator[ProgressBars]:
    """Show progress over so many pieces of work on stderr; stdout is left alone."""
    console = Console(file=sys.stderr, soft_wrap=True)
    if not console.is_terminal:
        yield ProgressBars(console, None, pieces)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        yield ProgressBars(console, bars, pieces)
