"""`jaxq experiment`: the studies that come with jaxq."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .environment import configure_jax
from .options import Json, OptionalInstanceFile, Seed, check_seed, command_line, print_json, read_instance


def experiment(
    name: Annotated[str, typer.Argument(metavar="NAME", help="An experiment; or list, or all.")],
    file: OptionalInstanceFile = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer policies and replications: within three minutes.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of the results.", show_default="jaxq-experiments/NAME"),
    ] = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Run a study that comes with jaxq: report.html, figures with their data, and a table.

    Everything is in experiment.json. Replications are kept in DIR/kept as they finish; after an interruption,
    the same command goes on from there.

    \b
    Examples:
      jaxq experiment list
      jaxq experiment asymptotics --quick
      jaxq experiment asymptotics cluster.toml --out studies/large-n
    """
    from .. import _experiments
    from .._output import writable_folder, writing
    from .._report_page import REPORT_FILE
    from .tables import print_table, print_text

    check_seed(seed)
    if name == "list":
        rows = [(found.name, found.title) for found in _experiments.experiments().values()]
        if json:
            print_json({"experiments": [dict(zip(("name", "title"), row, strict=True)) for row in rows]})
        else:
            print_table(("name", "what it shows"), rows, texts=("what it shows",), title="Experiments")
        return
    names = list(_experiments.experiments()) if name == "all" else [name]
    chosen = [_experiments.experiment(each) for each in names]
    instance = read_instance(file)
    configure_jax()
    reports = []
    for study in chosen:
        folder = (Path("jaxq-experiments") / study.name) if out is None else out
        folder = folder / study.name if out is not None and len(chosen) > 1 else folder
        writable_folder(folder)
        command = command_line(["experiment", study.name], file, quick, seed=seed, out=folder)
        with writing(folder):
            summary = study.run(instance, folder, quick=quick, seed=seed, command=command)
        reports.append({"report": str(folder / REPORT_FILE), **summary})
        if not json:
            print_table(*study.table(summary), title=study.title)
            print_text(study.answer(summary))
            print_text(f"Report: {folder / REPORT_FILE}")
    if json:
        print_json({"experiments": reports} if name == "all" else reports[0])
