"""The report of a finished run or study, made again from what its folder keeps."""

from __future__ import annotations

from pathlib import Path

from . import _report
from ._errors import InputError
from ._output import writable_folder
from ._stored_summary import read_summary


def rebuild_report(folder: Path) -> Path:
    """Write report.html and the figures again, from run.json or experiment.json alone; returns where it is.

    **Raises:** `InputError` that names what is missing, damaged, or cannot be written.
    """
    from . import _experiments

    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; expected one that `jaxq run` or `jaxq experiment` wrote")
    study_file, run_file = folder / _experiments.SUMMARY_FILE, folder / _report.RUN_FILE
    if study_file.exists():
        summary = read_summary(study_file, _experiments.FIELDS, "`jaxq experiment`")
        write = _experiments.experiment(summary["experiment"]).write_report
    elif run_file.exists():
        summary = read_summary(run_file, _report.FIELDS, "`jaxq run`")
        write = _report.write_report
    else:
        raise InputError(
            f"{folder}: holds neither {_report.RUN_FILE} nor {_experiments.SUMMARY_FILE}; expected the "
            "folder of a `jaxq run` or `jaxq experiment` that has finished"
        )
    writable_folder(folder, "DIR")
    try:
        return write(summary, folder)
    except KeyError as error:
        raise InputError(
            f"{folder}: the summary has no {error}; it was written by another version of jaxq"
        ) from None
