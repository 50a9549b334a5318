"""`jaxq run`: the main job."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Annotated

import typer

from .._errors import InputError, SimulationError
from .environment import configure_jax
from .options import Json, OptionalInstanceFile, Seed, check_seed, command_line, print_json, read_instance


def run(
    file: OptionalInstanceFile = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="20 and 50 GPUs only, with wider intervals.")
    ] = False,
    tuned: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A policy file of `jaxq tune`, shown as one more line.",
            show_default="the one that ships for the instance, if any",
        ),
    ] = None,
    out: Annotated[
        Path,
        typer.Option(
            metavar="DIR", help="Folder for the report; an earlier run there is replaced at the end."
        ),
    ] = Path("jaxq-report"),
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Measure every policy on a cluster and write a report: the place to start.

    Computes the best possible revenue and its plan, simulates all eight policies on 20, 50, 200 and 500 GPUs,
    compares them (and a tuned policy, where there is one), and writes to DIR: report.html (open it in a
    browser), figures as SVG and PNG, results as netCDF and CSV, and everything in run.json. Takes minutes on
    two cores; with --quick about one. Until it is done, replications are kept in DIR.part: after an
    interruption, the same command goes on from there.

    \b
    Examples:
      jaxq run --quick
      jaxq run cluster.toml --out reports/cluster
      jaxq run cluster.toml --tuned jaxq-tuned/cluster-n50/policy.json
    """
    check_seed(seed)
    instance = read_instance(file)
    configure_jax()
    from .. import _main_job as main_job
    from .._output import staged_folder
    from .._policy.load import load_policy
    from .._policy.shipped import shipped_policy
    from .._progress import progress_bars
    from .._report import RUN_FILE
    from .._report_page import REPORT_FILE

    effort = main_job.QUICK if quick else main_job.FULL
    policies = main_job.DEFAULT_POLICIES
    options = () if tuned is None else ("--tuned", tuned)
    command = command_line(["run"], file, quick, *options, seed=seed, out=out)
    extra = shipped_policy(instance) if tuned is None else load_policy(str(tuned), instance)
    count = len(policies) + (extra is not None)
    with staged_folder(out, RUN_FILE) as folder:
        kept = folder.parent / f"{os.path.basename(os.path.realpath(out))}.part"
        with progress_bars(count * len(effort.sizes)) as bars:
            job = main_job.run_main_job(
                instance, effort, bars, policies=policies, tuned=extra, seed=seed, command=command, kept=kept
            )
        try:
            main_job.write_main_job(job, folder)
        except (OSError, InputError) as error:
            raise SimulationError(
                f"{out}: the report cannot be written ({getattr(error, 'strerror', None) or error}); make "
                f"room, and the same command goes on from the replications in {kept}"
            ) from None
    shutil.rmtree(kept)
    if json:
        print_json({"report": str(out / REPORT_FILE), **job.summary})
    else:
        typer.echo(f"Report: {out / REPORT_FILE}")
