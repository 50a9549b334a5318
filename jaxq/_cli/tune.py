"""`jaxq tune`: a policy with parameters, tuned by gradient on the simulator."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from .._errors import InputError
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

OBJECTIVES = ("bundled", "separate")

Gpus = Annotated[str, typer.Option(metavar="N", help="GPUs of the cluster.")]
Family = Annotated[
    str,
    typer.Option(
        metavar="feedback|neural",
        help="Family: feedback has a dozen or so readable parameters; neural is a small network that "
        "serves any instance and any number of GPUs.",
    ),
]
Start = Annotated[
    str | None,
    typer.Option(
        metavar="NAME[,NAME...]",
        help="Published policies to start from; my_module:MyPolicy or policy.json as it is.",
        show_default="several, the best of which go on",
    ),
]
Revenue = Annotated[
    str | None,
    typer.Option(metavar="bundled|separate", help="Revenue to raise.", show_default="the file's scheme"),
]
Gradient = Annotated[
    str | None,
    typer.Option(
        metavar="score-function|pathwise|finite-difference",
        help="How slopes are estimated.",
        show_default="score-function where the policy draws at random",
    ),
]
Steps = Annotated[
    int | None,
    typer.Option(help="Steps of the optimiser, at most.", show_default="32 to 192; 16 with --quick"),
]
Quick = Annotated[bool, typer.Option("--quick", help="One start, few steps, wider intervals: within 90 s.")]
OutFolder = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Folder for policy.json, tune.json and the checkpoint, from which an interrupted tuning "
        "goes on when it is called again with the same arguments.",
        show_default="jaxq-tuned/INSTANCE-nN",
    ),
]


def tune(
    file: InstanceFile,
    gpus: Gpus = "50",
    policy: Family = "feedback",
    start: Start = None,
    objective: Revenue = None,
    gradient: Gradient = None,
    steps: Steps = None,
    quick: Quick = False,
    seed: Seed = 0,
    out: OutFolder = None,
    json: Json = False,
) -> None:
    """Tune a policy by gradient, from published policies towards the best possible revenue.

    Slopes come from simulations, the choice among policies from replications of their own, and the final
    gap from the exact chain on replications that played no part in either. Takes some minutes on two
    cores; with --quick about one. Large clusters are trained, and beyond a few hundred or thousand GPUs also
    valued, at a smaller size, which is told. The policy file is accepted wherever a policy's name is.

    \b
    Examples:
      jaxq tune cluster.toml --gpus 50
      jaxq tune cluster.toml --gpus 200 --start gate_and_route --objective separate
      jaxq simulate cluster.toml --policy jaxq-tuned/cluster-n50/policy.json,sarathi
    """
    sizes = whole_numbers(gpus, "--gpus")
    if len(sizes) != 1:
        raise InputError(f"--gpus: expected one number, as in 50; got {gpus!r}")
    check_seed(seed)
    if objective is not None and objective not in OBJECTIVES:
        raise InputError(f"--objective: expected {' or '.join(OBJECTIVES)}, got {objective!r}")
    if steps is not None:
        whole_numbers(str(steps), "--steps")
    instance = read_instance(file)
    configure_jax()
    from .. import _tuning_job as job
    from .._output import writable_folder
    from .._progress import progress_bars
    from .._tune import GRADIENTS

    if gradient is not None and gradient not in GRADIENTS:
        raise InputError(f"--gradient: expected {', '.join(GRADIENTS)}, got {gradient!r}")
    effort = job.QUICK if quick else job.FULL
    if steps is not None:
        effort = dataclasses.replace(effort, steps=steps)
    names = effort.starts if start is None else policy_references(start)
    # Groups of GPUs have not been worth their time in any instance that was studied: on request only.
    starts = job.starting_points(instance, policy, names, partition=start is not None)
    folder = out if out is not None else Path("jaxq-tuned") / f"{file.stem}-n{sizes[0]}"
    writable_folder(folder)
    with progress_bars(1) as bars:
        done = job.run_tuning_job(
            instance,
            starts,
            effort,
            bars,
            folder,
            n_gpus=sizes[0],
            objective=objective or instance.pricing.scheme,
            gradient=gradient,
            seed=seed,
        )
    if json:
        print_json(done.summary)
    else:
        _print(done.summary)


def _print(summary: dict[str, Any]) -> None:
    """A table for a person."""
    from .tables import print_table, print_text

    def percent(gap: dict[str, Any]) -> str:
        low, high = gap["ci95"]
        return f"{100 * gap['mean']:.2f} ± {50 * (high - low):.2f}"

    rows = [("tuned", percent(summary["gap"]))]
    rows += [(row["policy"], percent(row["gap"])) for row in summary["presets"]]
    title = f"{summary['scheme']} revenue at {summary['valued_gpus']} GPUs, 95 % intervals"
    print_table(("policy", "gap to the best possible, %"), rows, title=title)
    print_text(f"Started from {summary['start']}; {summary['replications']} replications of the exact chain.")
    if summary["training_gpus"] != summary["gpus"]:
        print_text(f"Trained on {summary['training_gpus']} GPUs.")
    if summary["valued_gpus"] != summary["gpus"]:
        print_text(
            f"Valued on {summary['valued_gpus']} GPUs, not {summary['gpus']}: the most that the exact chain "
            "does in minutes."
        )
    print_text(f"Policy file: {summary['policy_file']}")
