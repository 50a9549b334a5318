"""`jaxq simulate`: policies on clusters, with intervals and paired comparisons."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .._summary import comparison_dicts, plan_dict, size_name, write_json
from .choices import Choices
from .engines import Block, EngineName, Level, Stepper
from .environment import configure_jax
from .options import (
    InstanceFile,
    Json,
    OptionalSeed,
    policy_references,
    print_json,
    read_instance,
    whole_numbers,
)
from .simulated import AbstractRun

if TYPE_CHECKING:
    from .._instance import Instance
    from .._plan import Plan
    from .._policy.base import Policy
    from .._result import Result


Policies = Annotated[
    str,
    typer.Option(metavar="NAME[,NAME...]", help="Policies: see `jaxq policies`; my_module:MyPolicy; or all."),
]
Gpus = Annotated[str | None, typer.Option(metavar="N[,N...]", help="Numbers of GPUs.", show_default="50")]
Replications = Annotated[int | None, typer.Option(help="Independent replications.", show_default="64")]
Horizon = Annotated[
    float,
    typer.Option(
        help="Simulated seconds, from an empty cluster; inf with --engine fluid: the steady state, by a "
        "root finder."
    ),
]
Warmup = Annotated[float, typer.Option(help="Seconds of them that are discarded.")]
Step = Annotated[
    float | None, typer.Option(help="Step of leap, s.", show_default="chosen from the instance's rates")
]
Precision = Annotated[
    float | None,
    typer.Option(
        help="Run blocks of --replications until the revenue's 95 % interval is within this part of it "
        "(0.001: 0.1 %), or 64 blocks are done.",
        show_default="off",
    ),
]
TimeLimit = Annotated[
    float | None, typer.Option(help="With --precision: wall-clock seconds after which no block starts.")
]
OutFolder = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Folder that keeps replications as they finish, one folder a record, and simulate.json at "
        "the end. The same command goes on from what it holds.",
    ),
]


def simulate(
    file: InstanceFile,
    policy: Policies = "gate_and_route",
    gpus: Gpus = None,
    replications: Replications = None,
    horizon: Horizon = 1500.0,
    warmup: Warmup = 300.0,
    engine: EngineName = "cluster",
    level: Level = None,
    stepper: Stepper = None,
    dt: Step = None,
    block: Block = None,
    seed: OptionalSeed = None,
    precision: Precision = None,
    time_limit: TimeLimit = None,
    out: OutFolder = None,
    json: Json = False,
) -> None:
    """Simulate policies on clusters and measure how far each is from the best possible revenue.

    Every policy sees the same arrivals (common random numbers), so that differences between policies have
    much narrower intervals than the policies themselves. Each record has both revenues, the gap to the
    optimum of the planning problem, occupancies, queues, flows and waiting times, with 95 % intervals over
    replications.

    \b
    Examples:
      jaxq simulate cluster.toml --policy gate_and_route,sarathi --gpus 50,200
      jaxq simulate cluster.toml --policy all --gpus 500 --stepper leap --json > records.json
      jaxq simulate cluster.toml --engine pooled --policy gate_and_route --gpus 1000,1000000
      jaxq simulate cluster.toml --engine fluid --policy all --horizon inf
      jaxq simulate cluster.toml --policy my_module:MyPolicy --precision 0.001 --out runs/mine
    """
    choices = Choices(
        horizon=horizon,
        warmup=warmup,
        engine=engine,
        level=level,
        gpus=None if gpus is None else whole_numbers(gpus, "--gpus"),
        replications=replications,
        seed=seed,
        stepper=stepper,
        dt=dt,
        block=block,
        precision=precision,
        time_limit=time_limit,
    )
    for name, value in (("--replications", replications), ("--block", block)):
        if value is not None:
            whole_numbers(str(value), name)
    choices.check()
    references = policy_references(policy)
    instance = read_instance(file)
    configure_jax()
    from .._plan import solve_plan
    from .._policy.load import load_policy

    run = choices.run(instance)
    found = [load_policy(reference, instance) for reference in references]
    plan = solve_plan(instance)
    run.check(found, kept=out is not None)
    results = _simulate_all(run, references, found, out)
    summary = _summary(instance, plan, results, run.seed)
    if out is not None:
        write_json(summary, out / "simulate.json")
    if json:
        print_json(summary)
    else:
        print_results(list(results.values()))


def _simulate_all(
    run: AbstractRun, references: Sequence[str], policies: Sequence[Policy], out: Path | None
) -> dict[tuple[str, int | None], Result]:
    """Every policy at every number of GPUs, kept in `out` as replications finish."""
    from .._output import writable_folder
    from .._progress import progress_bars

    if out is not None:
        writable_folder(out)
    results = {}
    with progress_bars(len(policies) * len(run.sizes)) as bars:
        for line in run.block_lines(policies):
            bars.note(line)
        for reference, policy in zip(references, policies, strict=True):
            for n_gpus in run.sizes:
                folder = None if out is None else out / record_name(reference, n_gpus)
                results[reference, n_gpus] = run.simulate(policy, reference, n_gpus, bars, folder)
    return results


def record_name(reference: str, n_gpus: int | None) -> str:
    """The name of a record's folder."""
    return f"{re.sub(r'[^A-Za-z0-9_.]+', '-', reference)}_n{size_name(n_gpus)}"


def _summary(
    instance: Instance, plan: Plan, results: dict[tuple[str, int | None], Result], seed: int | None
) -> dict[str, Any]:
    """The plan, the records and the paired comparisons, for JSON."""
    records = [{**result.to_dict(plan), "policy": reference} for (reference, _), result in results.items()]
    return {
        "plan": plan_dict(instance, plan),
        "records": records,
        "comparisons": comparison_dicts(results),
        "seed": seed,
    }


def print_results(results: Sequence[Result]) -> None:
    """A table of revenues and gaps for a person."""
    from .tables import print_table, print_text

    scheme = results[0].instance.pricing.scheme
    rows = [
        (result.policy_name, size_name(result.n_gpus), *interval_cells(result), str(result.replications))
        for result in results
    ]
    print_table(
        ("policy", "GPUs", "revenue", "gap to the best possible, %", "replications"),
        rows,
        title=f"{scheme} revenue per GPU and second, 95 % intervals",
    )
    print_text(f"Best possible in the long run: {results[0].bound():.4f}. {results[0].engine_description}.")
    _print_service_levels(results)


def _print_service_levels(results: Sequence[Result]) -> None:
    """What policies keep of the service levels of their instances, and how far they are from those plans."""
    from .tables import print_table

    rows = []
    for result in results:
        levels = result.instance.service_levels
        if levels is None or not levels.any:
            continue
        label, gap = (result.policy_name, size_name(result.n_gpus)), result.gap_to_plan()
        for name, level in result.service_levels().items():
            limit = "none" if level.limit is None else f"{level.limit:.6g}"
            measured = f"{level.measured.mean:.6g} ± {level.measured.half_width:.2g}"
            rows.append((*label, name, level.unit, limit, f"{level.planned:.6g}", measured))
        percent = f"{100 * gap.mean:.2f} ± {100 * gap.half_width:.2f}"
        rows.append((*label, "gap to this plan", "%", "none", "0", percent))
    if rows:
        print_table(
            ("policy", "GPUs", "service level", "unit", "limit", "planned", "measured"),
            rows,
            texts=("service level", "unit"),
            title="Service levels: planned and measured, 95 % intervals",
        )


def interval_cells(result: Result) -> tuple[str, str]:
    """Revenue and gap in % as they stand in a table."""
    revenue, gap = result.revenue, result.gap()
    return (
        f"{revenue.mean:.2f} ± {revenue.half_width:.2f}",
        f"{100 * gap.mean:.2f} ± {100 * gap.half_width:.2f}",
    )
