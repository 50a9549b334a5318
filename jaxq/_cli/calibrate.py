"""`jaxq calibrate`: iteration times from measurements."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import Json, check_seed, print_json

if TYPE_CHECKING:
    from .._calibration import Calibration, Coefficient, FileCalibration


def calibrate(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE.csv",
            help="Measurements with a header: num_tokens, iteration_time_s, and any further columns.",
            show_default=False,
        ),
    ],
    group_by: Annotated[
        str | None,
        typer.Option(
            help="Columns whose values make the groups, as in gpu,model; all further ones when left out."
        ),
    ] = None,
    bootstrap: Annotated[int, typer.Option(help="Resamples for the intervals.")] = 2000,
    seed: Annotated[int, typer.Option(help="Seed of the resamples.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder for calibration.json and a residual plot a group."),
    ] = None,
    json: Json = False,
) -> None:
    """Fit the iteration time of a GPU to measurements.

    Fits tau(b) = base + slope * max(0, b - knee) to the time of an iteration with b tokens in the batch, one
    law for each group of rows that share the further columns, with bootstrap intervals. alpha, beta and
    solo_iteration_time of an instance are base - slope * knee, slope and base. Data that cannot tell where
    the knee is are refused.

    \b
    Examples:
      jaxq calibrate measured.csv
      jaxq calibrate measured.csv --group-by gpu,model --out calibration --json
    """
    from .._calibration import calibrate_file
    from .._output import staged_folder

    check_seed(seed)
    columns = None if group_by is None else [name.strip() for name in group_by.split(",") if name.strip()]
    fitted = calibrate_file(file, group_by=columns, bootstrap=bootstrap, seed=seed)
    if out is not None:
        with staged_folder(out, marker="calibration.json") as folder:
            _save(fitted, folder)
    if json:
        print_json(fitted.to_dict())
    else:
        _print(fitted)


def _save(fitted: FileCalibration, folder: Path) -> None:
    """The numbers and the plots."""
    import json

    from .._calibration import plot_calibration

    names: set[str] = set()
    for calibration in fitted.calibrations:
        name = _file_name(calibration.label, names)
        figure = plot_calibration(calibration)
        for kind in ("svg", "png"):
            figure.savefig(folder / f"{name}.{kind}", dpi=150)
    text = json.dumps(fitted.to_dict(), allow_nan=False, indent=2)
    (folder / "calibration.json").write_text(text + "\n", encoding="utf-8")


def _file_name(label: str, taken: set[str]) -> str:
    """A group's label as the name of a file, unlike the earlier ones."""
    stem = re.sub(r"[^A-Za-z0-9.]+", "-", label).strip("-.")[:80] or "group"
    name, number = stem, 1
    while name in taken:
        number += 1
        name = f"{stem}-{number}"
    taken.add(name)
    return name


def _print(fitted: FileCalibration) -> None:
    """Each group's law as a table for a person."""
    from .tables import print_table, print_text

    print_table(
        ("group", "alpha, s", "beta = slope, s/token", "solo = base, s", "knee, tokens", "R²", "worst error"),
        [_row(calibration) for calibration in fitted.calibrations],
        title=f"{fitted.path}: estimate (95 % interval)",
    )
    for refusal in fitted.refused:
        print_text(f"refused: {refusal.label}: {refusal.reason}")


def _row(calibration: Calibration) -> tuple[str, ...]:
    def text(estimate: Coefficient) -> str:
        low, high = estimate.ci95 or (float("nan"), float("nan"))
        return f"{estimate.value:.4g} ({low:.4g} to {high:.4g})"

    numbers = (calibration.alpha, calibration.slope, calibration.base, calibration.knee)
    quality = (f"{calibration.r2:.4f}", f"{100 * calibration.max_relative_error:.1f} %")
    return (calibration.label, *map(text, numbers), *quality)
