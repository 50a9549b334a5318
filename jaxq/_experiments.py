"""The experiments that come with jaxq: found, run, and written down."""

from __future__ import annotations

import csv
import functools
import importlib.util
import sys
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import Any

from ._errors import InputError
from ._instance import Instance
from ._presets import bundled_folder
from ._progress import progress_bars
from ._summary import environment_dict, instance_dict, write_json

SUMMARY_FILE = "experiment.json"


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
    """

    name: str
    module: ModuleType

    @property
    def title(self) -> str:
        """What it is about, in a line."""
        return self.module.TITLE

    def run(self, instance: Instance, out: Path, *, quick: bool, seed: int) -> dict[str, Any]:
        """Run it and write its summary, table and figure into a folder.

        Replications are kept in `out`/kept as they finish: an interrupted experiment goes on from there.

        **Raises:** as `simulate`.
        """
        with progress_bars(self.module.piece_count(instance, quick)) as bars:
            found = self.module.run(instance, quick=quick, seed=seed, kept=out / "kept", bars=bars)
        summary = {
            "experiment": self.name,
            "quick": quick,
            "seed": seed,
            "instance": instance_dict(instance),
            "environment": environment_dict(),
            **found,
        }
        write_json(summary, out / SUMMARY_FILE)
        self._write_table(summary, out / "table.csv")
        for name, data in self.module.datasets(summary).items():
            data.to_netcdf(out / f"{name}.nc", engine="netcdf4")
            data.to_dataframe().reset_index().to_csv(out / f"{name}.csv", index=False)
        self._write_figures(summary, out)
        return summary

    def table(self, summary: dict[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Headings and rows for a person."""
        return self.module.table(summary)

    def _write_table(self, summary: dict[str, Any], file: Path) -> None:
        head, rows = self.table(summary)
        with open(file, "w", newline="", encoding="utf-8") as stream:
            csv.writer(stream).writerows([head, *rows])

    def _write_figures(self, summary: dict[str, Any], out: Path) -> None:
        import matplotlib

        from ._figures import COLOURS, MARKERS, STYLE, save_figures

        with matplotlib.rc_context(STYLE):
            figures = self.module.draw(summary, list(zip(COLOURS, MARKERS, strict=True)))
        save_figures(figures, out)


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
