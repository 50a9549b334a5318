"""`jaxq ls` and `jaxq show`: what folders of runs hold."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .._errors import InputError
from .._report_page import REPORT_FILE
from .._summary import size_name
from .environment import configure_jax
from .options import Json, print_json
from .tables import print_table, print_text

Folders = Annotated[
    list[Path] | None,
    typer.Argument(metavar="[DIR]...", help="Folders that hold runs, at any depth.", show_default="."),
]

RUN_FILE = "run.json"


def ls(folders: Folders = None, json: Json = False) -> None:
    """List the runs that `--out` kept: policy, GPUs, engine, and how many replications are there.

    \b
    Examples:
      jaxq ls
      jaxq ls runs/first runs/second --json
    """
    rows = []
    from .._store.kept_run import summarise_run

    for path in _runs(folders or [Path(".")]):
        try:
            run = summarise_run(path)
        except InputError as error:
            rows.append({"run": str(path), "damaged": str(error)})
            continue
        rows.append(
            {
                "run": str(path),
                "policy": run.about["policy_name"],
                "gpus": run.n_gpus,
                "kept": run.kept,
                "asked": run.about["asked"],
                "complete": run.is_complete,
                "horizon": run.about["horizon"],
                "warmup": run.about["warmup"],
                "engine": run.about["engine_description"],
                "device": run.about["device"],
                "versions": run.about["versions"],
            }
        )
    if json:
        print_json({"runs": rows})
    else:
        _print_list(rows)


def show(
    folders: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs: see `jaxq ls`.")],
    json: Json = False,
) -> None:
    """Summarise kept runs: revenue, gap, occupancies and waiting times, of the replications that are there.

    \b
    Examples:
      jaxq show runs/mine/sarathi_n50
      jaxq show runs/mine --json > records.json
    """
    configure_jax()
    from .._store.kept_run import load_run

    results = {path: load_run(path) for path in _runs(folders)}
    if json:
        print_json({"records": [{"run": str(path), **found.to_dict()} for path, found in results.items()]})
        return
    from .simulate import print_results

    print_results(list(results.values()))
    for path, found in results.items():
        print_text("")
        print_table(
            ("quantity", "mean", "95 % half-width", "unit"),
            _quantities(found),
            title=f"{path}: {found.policy_name}, {found.replications} replications ({found.stopped_because})",
        )


def _runs(folders: list[Path]) -> list[Path]:
    """The folders of runs in and below some folders. **Raises:** `InputError` when there is none."""
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder; expected one that --out of a command wrote")
    holding = {file.parent for folder in folders for file in folder.rglob(RUN_FILE)}
    # A finished `jaxq run` has a file of this name too, beside its report; its replications are kept no more.
    found = sorted(folder for folder in holding if not (folder / REPORT_FILE).exists())
    if holding and not found:
        raise InputError(f"{min(holding)}: is of jaxq run, which has finished; open {REPORT_FILE} in it")
    if not found:
        raise InputError(f"{folders[0]}: holds no run; expected a folder that --out of a command wrote")
    return found


def _print_list(rows: list[dict[str, Any]]) -> None:
    lines = []
    for row in rows:
        if "damaged" in row:
            lines.append((row["run"], "", "", "", row["damaged"]))
            continue
        asked = "" if row["asked"] is None else f" of {row['asked']}"
        size, kept = size_name(row["gpus"]), f"{row['kept']}{asked}"
        lines.append((row["run"], row["policy"], size, kept, row["engine"]))
    print_table(
        ("run", "policy", "GPUs", "replications", "engine"), lines, texts=("policy", "engine"), title="Runs"
    )


def _quantities(result: Any) -> list[tuple[str, str, str, str]]:
    """Every quantity with its interval, classes by name."""
    from .._result import QUANTITIES

    rows = []
    for name, (description, unit, per_class) in QUANTITIES.items():
        found = result.estimate(name)
        if not per_class:
            rows.append((description, f"{float(found.mean):.6g}", f"{float(found.half_width):.2g}", unit))
            continue
        for label, mean, width in zip(
            result.instance.workload.names, found.mean, found.half_width, strict=True
        ):
            rows.append((f"{description}: {label}", f"{mean:.6g}", f"{width:.2g}", unit))
    return rows
