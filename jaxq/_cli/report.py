"""`jaxq report`: the report of a finished run, study, sweep or sizing, made again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Json, print_json


def report(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR", help="Folder that `jaxq run`, `experiment`, `sweep` or `size --out` wrote."
        ),
    ],
    json: Json = False,
) -> None:
    """Make report.html and the figures of a finished run, study, sweep or sizing again, from what it keeps.

    Nothing is simulated: run.json, experiment.json, sweep.json or size.json in DIR is enough. A file that is
    missing or damaged is named.

    \b
    Examples:
      jaxq report jaxq-report
      jaxq report jaxq-experiments/asymptotics --json
    """
    from .._rebuilt_report import rebuild_report

    found = rebuild_report(folder)
    if json:
        print_json({"report": str(found)})
    else:
        typer.echo(f"Report: {found}")
