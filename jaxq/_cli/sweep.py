"""`jaxq sweep`: policies over variations of an instance."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
    policy_references,
    print_json,
    read_instance,
    whole_numbers,
)

if TYPE_CHECKING:
    from .._sweep import Number, Point, Sweep

DATA, SUMMARY = "sweep", "sweep.json"


def sweep(
    file: InstanceFile,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="PATH=VALUES",
            help="What varies, and its values: low:high:count, or a list as in 8,16,32. Several make a grid.",
        ),
    ] = None,
    points: Annotated[
        Path | None,
        typer.Option(metavar="FILE.csv", help="In place of --set: a column for each path, a line a point."),
    ] = None,
    policy: Annotated[str, typer.Option(metavar="NAME[,NAME]", help="As for jaxq simulate.")] = (
        "gate_and_route,price_and_pack"
    ),
    gpus: Annotated[str, typer.Option(metavar="N[,N]", help="Numbers of GPUs.")] = "50",
    replications: Annotated[int, typer.Option(help="Independent replications of each point.")] = 32,
    horizon: Annotated[float, typer.Option(help="Simulated seconds of a replication.")] = 400.0,
    warmup: Annotated[float, typer.Option(help="Simulated seconds to discard.")] = 150.0,
    engine: ReplicatedEngineName = "cluster",
    stepper: Stepper = None,
    dt: Annotated[float | None, typer.Option(help="With --stepper leap: time step in s.")] = None,
    seed: Seed = 0,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of the results.", show_default="jaxq-sweeps/INSTANCE"),
    ] = None,
    json: Json = False,
) -> None:
    """Simulate policies on variations of an instance: a grid, or a list of points.

    A path is the place of a number in the instance's file: hardware.batch_size, pricing.decode,
    classes.0.arrival_rate, or classes.*.arrival_rate for all classes. All points run together, in one
    compiled program for each kind of policy. Written to DIR: sweep.nc, sweep.csv, sweep.json, and a figure
    for each number of GPUs where one or two numbers vary. The same command goes on after an interruption.

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
    given = asked_points(set_ or [], points)
    made = make_engine(engine, stepper, dt)
    configure_jax()
    from .._output import writable_folder
    from .._progress import progress_bars
    from .._sweep import sweep as run_sweep

    folder = Path("jaxq-sweeps") / instance.name if out is None else out
    writable_folder(folder)
    label = f"{len(given)} points, {len(references)} policies, {len(sizes)} sizes"
    with progress_bars(1) as bars, bars.warnings_as_notes():
        found = run_sweep(
            instance,
            given,
            references,
            sizes,
            horizon=horizon,
            warmup=warmup,
            replications=replications,
            key=seed,
            engine=made,
            progress=bars.start(label),
            out=folder / "kept",
        )
        bars.finish(f"{label}: done")
    _write(found, folder, seed)
    if json:
        print_json({**found.to_dict(), "seed": seed})
    else:
        _print(found, folder)


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


def _write(found: Sweep, folder: Path, seed: int) -> None:
    """The data as netCDF and CSV, the summary, and the figures."""
    from .._figures import save_figures
    from .._summary import environment_dict, instance_dict, write_json
    from .._sweep_figures import sweep_figures

    data = found.to_xarray()
    data.to_netcdf(folder / f"{DATA}.nc", engine="netcdf4")
    data.to_dataframe().reset_index().to_csv(folder / f"{DATA}.csv", index=False)
    save_figures(sweep_figures(found), folder)
    about = {"instance": instance_dict(found.instance), "environment": environment_dict(), "seed": seed}
    write_json({**found.to_dict(), **about}, folder / SUMMARY)


def _print(found: Sweep, folder: Path) -> None:
    """The gaps of each policy over the points, for a person."""
    from .tables import print_table, print_text

    scheme = found.instance.pricing.scheme
    gaps = 100 * found.to_xarray()[f"gap_{scheme}"]
    rows = [
        (policy, str(n), *(f"{float(value):.2f}" for value in (own.min(), own.mean(), own.max())))
        for policy in found.policies
        for n in found.sizes
        for own in [gaps.sel(policy=policy, gpus=n)]
    ]
    head = ("policy", "GPUs", "smallest gap, %", "mean", "largest")
    print_table(
        head, rows, title=f"Gap to the best possible {scheme} revenue over {len(found.points)} points"
    )
    print_text(f"Data, figures and numbers: {folder}")
