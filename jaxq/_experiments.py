"""The experiments that come with jaxq: found, run, and written down."""

from __future__ import annotations

import csv
import functools
import importlib.util
import inspect
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ._errors import InputError
from ._instance import Instance
from ._instance_file import instance_to_toml
from ._presets import bundled_folder
from ._progress import progress_bars
from ._report_page import write_page
from ._stored_summary import write_summary
from ._study_report import study_html
from ._summary import RUN_FACTS, run_facts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUMMARY_FILE = "experiment.json"

FIELDS = ("experiment", "quick", *RUN_FACTS)
"""What the summary of every study holds, whatever it found."""


@dataclass(frozen=True)
class Experiment:
    """One experiment: a file of the folder `experiments`.

    Its module has

    - `TITLE`, a line; `PAPER`, which figures of [Lin26] it is about ("" for none);
    - `piece_count(instance, quick)`: simulations, for the progress;
    - `run(instance, quick=, seed=, kept=, bars=)`: its summary, plain enough for JSON; all else is made of
      the summary alone:
    - `answer(summary)`: what was found, in a sentence with its interval;
    - `table(summary)`: headings and rows for a person;
    - `datasets(summary)`: the data of its figures by name, labelled, with units;
    - `draw(summary, looks)`: its figures by name; `looks` are colours and markers.

    `CAPTIONS`, a sentence for each figure, may be there too. Its docstring stands in its report.
    """

    name: str
    module: ModuleType

    @property
    def title(self) -> str:
        """What it is about, in a line."""
        return self.module.TITLE

    @property
    def paper(self) -> str:
        """Which figures of [Lin26] it is about; empty for none."""
        return self.module.PAPER

    @property
    def description(self) -> list[str]:
        """What it does, in paragraphs."""
        paragraphs = (inspect.getdoc(self.module) or "").replace("`", "").split("\n\n")
        return [" ".join(paragraph.split()) for paragraph in paragraphs]

    @property
    def captions(self) -> Mapping[str, str]:
        """Sentences below its figures, by name."""
        return getattr(self.module, "CAPTIONS", {})

    def run(
        self, instance: Instance, out: Path, *, quick: bool, seed: int, command: str = "jaxq experiment"
    ) -> dict[str, Any]:
        """Run it and write its summary, table, figures with their data, and report into a folder.

        Replications are kept in `out`/kept as they finish: an interrupted experiment goes on from there.

        **Arguments:** `command`: the command line that repeats it.

        **Raises:** as `simulate`.
        """
        started = time.perf_counter()
        with progress_bars(self.module.piece_count(instance, quick)) as bars:
            found = self.module.run(instance, quick=quick, seed=seed, kept=out / "kept", bars=bars)
        summary = {
            "experiment": self.name,
            "quick": quick,
            **run_facts(instance, command, seed, started),
            **found,
        }
        stored = write_summary(summary, out / SUMMARY_FILE)
        (out / "instance.toml").write_text(instance_to_toml(instance), encoding="utf-8")
        self._write_table(summary, out / "table.csv")
        for name, data in self.module.datasets(summary).items():
            data.to_netcdf(out / f"{name}.nc", engine="netcdf4")
            data.to_dataframe().reset_index().to_csv(out / f"{name}.csv", index=False)
        self.write_report(stored, out)
        return summary

    def answer(self, summary: Mapping[str, Any]) -> str:
        """What was found, in a sentence."""
        return self.module.answer(summary)

    def table(self, summary: Mapping[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Headings and rows for a person."""
        return self.module.table(summary)

    def figures(self, summary: Mapping[str, Any]) -> dict[str, Figure]:
        """Its figures by name."""
        import matplotlib

        from ._figures import COLOURS, MARKERS, STYLE

        with matplotlib.rc_context(STYLE):
            return self.module.draw(summary, list(zip(COLOURS, MARKERS, strict=True)))

    def write_report(self, summary: Mapping[str, Any], folder: Path) -> Path:
        """Draw the figures of a stored summary and write the report beside them; returns where it is."""
        from ._figures import save_figures

        figures = save_figures(self.figures(summary), folder)
        return write_page(study_html(self, summary, figures), folder)

    def _write_table(self, summary: Mapping[str, Any], file: Path) -> None:
        head, rows = self.table(summary)
        with open(file, "w", newline="", encoding="utf-8") as stream:
            csv.writer(stream).writerows([head, *rows])


@functools.cache
def experiments() -> dict[str, Experiment]:
    """Every experiment by its name."""
    found = {}
    for entry in sorted(bundled_folder("studies").iterdir(), key=lambda entry: entry.name):
        if entry.name.endswith(".py"):
            name = entry.name.removesuffix(".py")
            with resources.as_file(entry) as file:
                found[name] = Experiment(name, _module(name, file))
    return found


def experiment(name: str) -> Experiment:
    """One of `experiments`. **Raises:** `InputError` for an unknown name."""
    if name not in experiments():
        raise InputError(f"experiment: expected one of {', '.join(experiments())}; got {name!r}")
    return experiments()[name]


def _module(name: str, file: Path) -> ModuleType:
    """A module of a file, whatever the folder that it is in."""
    full_name = f"jaxq_experiments_{name}"
    spec = importlib.util.spec_from_file_location(full_name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[full_name] = module
    spec.loader.exec_module(module)
    return module
