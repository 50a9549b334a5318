"""The report of a finished run, study, sweep or sizing, made again from what its folder keeps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import _report, _sizing_report, _sweep_report
from ._errors import InputError
from ._output import writable_folder
from ._stored_summary import read_summary


def rebuild_report(folder: Path) -> Path:
    """Write report.html and the figures again, from the summary alone; returns where the page is.

    **Raises:** `InputError` that names what is missing, damaged, or cannot be written.
    """
    kinds = _kinds()
    if not folder.is_dir():
        commands = _either([command for _, command, _ in kinds.values()])
        raise InputError(f"{folder}: no such folder; expected one that {commands} wrote")
    found = next((name for name in kinds if (folder / name).exists()), None)
    if found is None:
        raise InputError(
            f"{folder}: holds no {_either(list(kinds))}; expected the folder of a run, study, sweep or "
            "sizing that has finished"
        )
    fields, command, write = kinds[found]
    summary = read_summary(folder / found, fields, command)
    writable_folder(folder, "DIR")
    try:
        return write(summary, folder)
    except KeyError as error:
        raise InputError(
            f"{folder}: the summary has no {error}; it was written by another version of jaxq"
        ) from None


def _kinds() -> dict[str, tuple[tuple[str, ...], str, Callable[[Any, Path], Path]]]:
    """By the name of a summary: the fields that it must have, the command that wrote it, and what writes the
    report."""
    from . import _experiments

    def write_study(summary: Any, folder: Path) -> Path:
        return _experiments.experiment(summary["experiment"]).write_report(summary, folder)

    sweeps, sizings = _sweep_report, _sizing_report
    return {
        _experiments.SUMMARY_FILE: (_experiments.FIELDS, "`jaxq experiment`", write_study),
        _report.RUN_FILE: (_report.FIELDS, "`jaxq run`", _report.write_report),
        sweeps.SWEEP_FILE: (sweeps.FIELDS, "`jaxq sweep`", sweeps.write_sweep_report),
        sizings.SIZE_FILE: (sizings.FIELDS, "`jaxq size`", sizings.write_sizing_report),
    }


def _either(names: list[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"
