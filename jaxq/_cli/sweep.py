"""`jaxq sweep`: policies over variations of an instance."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .._errors import InputError
from .choices import check_times
from .engines import ReplicatedEngineName, Stepper, make_engine
from .environment import configure_jax
from .options import (
    InstanceFile,
    Json,
    Seed,
    check_seed,
    command_line,
    given,
    policy_references,
    print_json,
    read_instance,
    whole_numbers,
)

if TYPE_CHECKING:
    from .._instance import Instance
    from .._sweep import Number, Point, Sweep


Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="PATH=VALUES",
        help="What varies, and its values: low:high:count, or a list as in 8,16,32. Several make a grid.",
    ),
]
PointsFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE.csv", help="In place of --set: a column for each path, a line a point."),
]
Policies = Annotated[str, typer.Option(metavar="NAME[,NAME]", help="As for jaxq simulate.")]
Gpus = Annotated[str, typer.Option(metavar="N[,N]", help="Numbers of GPUs.")]
Replications = Annotated[int, typer.Option(help="Independent replications of each point.")]
Horizon = Annotated[float, typer.Option(help="Simulated seconds of a replication.")]
Warmup = Annotated[float, typer.Option(help="Simulated seconds to discard.")]
TimeStep = Annotated[float | None, typer.Option(help="With --stepper leap: time step in s.")]
OutFolder = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Folder of the results.", show_default="jaxq-sweeps/INSTANCE"),
]


def sweep(
    file: InstanceFile,
    set_: Settings = None,
    points: PointsFile = None,
    policy: Policies = "gate_and_route,price_and_pack",
    gpus: Gpus = "50",
    replications: Replications = 32,
    horizon: Horizon = 400.0,
    warmup: Warmup = 150.0,
    engine: ReplicatedEngineName = "cluster",
    stepper: Stepper = None,
    dt: TimeStep = None,
    seed: Seed = 0,
    out: OutFolder = None,
    json: Json = False,
) -> None:
    """Simulate policies on variations of an instance: a grid, or a list of points.

    A path is the place of a number in the instance's file: hardware.batch_size, pricing.decode,
    classes.0.arrival_rate, or classes.*.arrival_rate for all classes. All points run together, in one
    compiled program for each kind of policy. Written to DIR: report.html, sweep.nc, sweep.csv, sweep.json,
    and a figure for each number of GPUs where one or two numbers vary. The same command goes on after an
    interruption.

    \b
    Examples:
      jaxq sweep cluster.toml --set classes.0.arrival_rate=0.3:0.7:9 --set hardware.batch_size=8,16,32
      jaxq sweep cluster.toml --points loads.csv --policy all --gpus 20,200 --json > sweep.json
    """
    check_seed(seed)
    check_times(horizon, warmup)
    sizes = whole_numbers(gpus, "--gpus")
    whole_numbers(str(replications), "--replications")
    references = policy_references(policy)
    if bool(set_) == (points is not None):
        raise InputError("--set, --points: expected one of the two, as in --set hardware.batch_size=8,16,32")
    instance = read_instance(file)
    varied = asked_points(set_ or [], points)
    made = make_engine(engine, stepper, dt)
    folder = Path("jaxq-sweeps") / instance.name if out is None else out
    options = {"--points": points, "--policy": policy, "--gpus": gpus, "--replications": replications,
               "--horizon": horizon, "--warmup": warmup, "--engine": engine, "--stepper": stepper,
               "--dt": dt}  # fmt: skip
    settings = [part for setting in set_ or [] for part in ("--set", setting)]
    command = command_line(["sweep"], file, False, *settings, *given(options), seed=seed, out=folder)
    configure_jax()
    run = {"horizon": horizon, "warmup": warmup, "replications": replications}
    started = time.perf_counter()
    found = _swept(instance, varied, references, sizes, folder, key=seed, engine=made, **run)
    from .._stored_summary import write_finished
    from .._summary import run_facts
    from .._sweep_report import SWEEP_FILE, write_sweep_report

    described = {"engine": next(iter(found.results.values())).engine_description}
    summary = {**found.to_dict(), **run_facts(instance, command, seed, started), **run, **described}
    report = write_finished(summary, instance, folder / SWEEP_FILE, write_sweep_report)
    if json:
        print_json(summary)
    else:
        _print(summary, report)


def _swept(
    instance: Instance,
    points: list[Point],
    policies: Sequence[str],
    sizes: Sequence[int],
    folder: Path,
    **arguments: Any,
) -> Sweep:
    """The sweep, as one piece of work with its progress; cases are kept in the folder."""
    from .._output import writable_folder
    from .._progress import progress_bars
    from .._sweep import sweep

    writable_folder(folder)
    label = f"{len(points)} points, {len(policies)} policies, {len(sizes)} sizes"
    with progress_bars(1) as bars, bars.warnings_as_notes():
        progress, kept = bars.start(label), folder / "kept"
        found = sweep(instance, points, policies, sizes, progress=progress, out=kept, **arguments)
        bars.finish(f"{label}: done")
    return found


def asked_points(settings: Sequence[str], file: Path | None) -> list[Point]:
    """The points of the options. **Raises:** `InputError` that names the option and what would be right."""
    from .._sweep import grid_points, read_points

    if file is not None:
        return read_points(file)
    axes: dict[str, list[Number]] = {}
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals or path in axes:
            raise InputError(f"--set: expected PATH=VALUES, each path once; got {setting!r}")
        axes[path.strip()] = values_of(text, f"--set {path}")
    return grid_points(axes)


def values_of(text: str, option: str) -> list[Number]:
    """The values in a text like `0.3:0.7:9` (nine, evenly spaced) or `8,16,32`.

    **Raises:** `InputError` that names the option.
    """
    import numpy as np

    from .._sweep import number_of

    parts = text.split(":")
    if len(parts) == 1:
        values = [number_of(part, option) for part in text.split(",")]
    elif len(parts) == 3:
        low, high, count = (number_of(part, option) for part in parts)
        if count != int(count) or count < 2:
            raise InputError(f"{option}: expected low:high:count with a count of at least 2, got {text!r}")
        # Rounded, so that 0.3:0.7:9 has 0.35 and not 0.35000000000000003.
        values = [float(f"{value:.12g}") for value in np.linspace(low, high, int(count))]
    else:
        raise InputError(f"{option}: expected low:high:count, or a list as in 8,16,32; got {text!r}")
    if len(set(values)) < len(values):
        raise InputError(f"{option}: expected each value once, got {text!r}")
    return values


def _print(summary: dict[str, Any], report: Path) -> None:
    """The gaps of each policy over the points, for a person."""
    from .._sweep_report import answer, gap_table
    from .tables import print_table, print_text

    scheme, count = summary["instance"]["pricing"]["scheme"], len(summary["points"])
    title = f"Gap to the best possible {scheme} revenue over {count} points"
    print_table(*gap_table(summary), title=title)
    print_text(answer(summary))
    print_text(f"Report: {report}")
