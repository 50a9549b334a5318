"""`jaxq simulate`: policies on clusters, with intervals and paired comparisons."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .._errors import InputError
from .._summary import comparison_dicts, plan_dict, write_json
from .environment import configure_jax
from .options import (
    InstanceFile,
    Json,
    Seed,
    check_number,
    check_seed,
    policy_references,
    print_json,
    read_instance,
    whole_numbers,
)

if TYPE_CHECKING:
    from .._engine.replicated import AbstractReplicatedEngine
    from .._instance import Instance
    from .._policy.base import Policy
    from .._progress import ProgressBars
    from .._result import Result

ENGINES = ("cluster", "pooled")

STEPPERS = ("exact", "leap")

EngineName = Annotated[
    str,
    typer.Option(
        "--engine",
        metavar="cluster|pooled",
        help="cluster: every GPU, every policy. pooled: counts by class and group, for policies with a "
        "partition and up to a million GPUs.",
    ),
]

Stepper = Annotated[
    str | None,
    typer.Option(
        metavar="exact|leap",
        help="exact: the exact law of the engine. leap: time steps, quicker when n is large.",
        show_default="exact with cluster, leap with pooled",
    ),
]


def simulate(
    file: InstanceFile,
    policy: Annotated[
        str,
        typer.Option(
            metavar="NAME[,NAME...]", help="Policies: see `jaxq policies`; my_module:MyPolicy; or all."
        ),
    ] = "gate_and_route",
    gpus: Annotated[str, typer.Option(metavar="N[,N...]", help="Numbers of GPUs.")] = "50",
    replications: Annotated[int, typer.Option(help="Independent replications.")] = 64,
    horizon: Annotated[float, typer.Option(help="Simulated seconds, from an empty cluster.")] = 1500.0,
    warmup: Annotated[float, typer.Option(help="Seconds of them that are discarded.")] = 300.0,
    engine: EngineName = "cluster",
    stepper: Stepper = None,
    dt: Annotated[
        float | None, typer.Option(help="Step of leap, s.", show_default="chosen from the instance's rates")
    ] = None,
    seed: Seed = 0,
    precision: Annotated[
        float | None,
        typer.Option(
            help="Run blocks of --replications until the revenue's 95 % interval is within this part of it "
            "(0.001: 0.1 %), or 64 blocks are done.",
            show_default="off",
        ),
    ] = None,
    time_limit: Annotated[
        float | None, typer.Option(help="With --precision: wall-clock seconds after which no block starts.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder for one netCDF file a record, and simulate.json."),
    ] = None,
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
      jaxq simulate cluster.toml --policy my_module:MyPolicy --precision 0.001 --out runs/mine
    """
    sizes, references = whole_numbers(gpus, "--gpus"), policy_references(policy)
    whole_numbers(str(replications), "--replications")
    check_seed(seed)
    check_times(horizon, warmup)
    check_precision(precision, time_limit)
    instance = read_instance(file)
    configure_jax()
    from .._policy.load import load_policy

    made = make_engine(engine, stepper, dt)
    run = Run(made, instance, replications, horizon, warmup, seed, precision, time_limit)
    found = [load_policy(reference, instance) for reference in references]
    run.check(found, sizes)
    results = _simulate_all(run, references, found, sizes, out)
    summary = _summary(instance, results, seed)
    if out is not None:
        write_json(summary, out / "simulate.json")
    if json:
        print_json(summary)
    else:
        print_results(list(results.values()))


@dataclass(frozen=True)
class Run:
    """What all records of a command share."""

    engine: AbstractReplicatedEngine
    instance: Instance
    replications: int
    horizon: float
    warmup: float
    seed: int
    precision: float | None = None
    time_limit: float | None = None

    def check(self, policies: Sequence[Policy], sizes: Sequence[int]) -> None:
        """Refuse a step that is too long, and what does not fit the free memory, before any work."""
        from .._memory import check_memory

        for policy in policies:
            for n_gpus in sizes:
                self.engine.describe(self.instance, policy, n_gpus)
                check_memory(
                    self.engine,
                    self.instance,
                    policy,
                    n_gpus,
                    self.replications,
                    horizon=self.horizon,
                    warmup=self.warmup,
                )

    def simulate(self, policy: Policy, label: str, n_gpus: int, bars: ProgressBars) -> Result:
        """One record, with its progress and, on stderr, what makes its intervals doubtful."""
        from .._simulate import StatisticsWarning, simulate

        report = bars.start(f"{label}, n = {n_gpus}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", StatisticsWarning)
            result = simulate(
                self.instance,
                policy,
                n_gpus=n_gpus,
                horizon=self.horizon,
                warmup=self.warmup,
                replications=self.replications,
                key=self.seed,
                engine=self.engine,
                precision=self.precision,
                time_limit=self.time_limit,
                progress=report,
            )
        gap = result.gap()
        bars.finish(
            f"{label}, n = {n_gpus}: gap {100 * gap.mean:.2f} ± {100 * gap.half_width:.2f} %, "
            f"{result.seconds:.1f} s"
        )
        for line in result.cautions():
            bars.note(f"jaxq: warning: {label}, n = {n_gpus}: {line}")
        return result


def check_times(horizon: float, warmup: float) -> None:
    """Refuse a horizon or a warm-up that leaves nothing to measure."""
    check_number(horizon, "--horizon", above=True)
    check_number(warmup, "--warmup")
    if warmup >= horizon:
        raise InputError(f"--warmup: expected less than --horizon ({horizon:g} s), got {warmup:g}")


def check_precision(precision: float | None, time_limit: float | None) -> None:
    """Refuse a precision out of range, and a time limit that has no meaning."""
    check_number(precision, "--precision", above=True)
    check_number(time_limit, "--time-limit", above=True)
    if precision is not None and precision >= 1:
        raise InputError(
            f"--precision: expected a part of the revenue below 1, as in 0.001; got {precision:g}"
        )
    if precision is None and time_limit is not None:
        raise InputError("--time-limit: expected only with --precision; a run without it has a fixed length")


def make_engine(engine: str, stepper: str | None, dt: float | None) -> AbstractReplicatedEngine:
    """The engine that the options name.

    **Raises:** `InputError` for an unknown engine or stepper, or a `--dt` without meaning.
    """
    if engine not in ENGINES:
        raise InputError(f"--engine: expected cluster or pooled, got {engine!r}")
    if stepper is None:
        stepper = "exact" if engine == "cluster" else "leap"
    if stepper not in STEPPERS:
        raise InputError(f"--stepper: expected exact or leap, got {stepper!r}")
    check_number(dt, "--dt", above=True)
    if stepper == "exact" and dt is not None:
        raise InputError("--dt: expected only with --stepper leap; the exact chain has no time step")
    from .._engine.cluster import ClusterEngine
    from .._engine.steppers import Exact, Leap
    from .._pooled.engine import PooledEngine

    kind = ClusterEngine if engine == "cluster" else PooledEngine
    return kind(stepper=Exact() if stepper == "exact" else Leap(dt))


def _simulate_all(
    run: Run, references: Sequence[str], policies: Sequence[Policy], sizes: Sequence[int], out: Path | None
) -> dict[tuple[str, int], Result]:
    """Every policy at every number of GPUs, saved as soon as it is done."""
    from .._output import writable_folder
    from .._progress import progress_bars

    if out is not None:
        writable_folder(out)
    results = {}
    with progress_bars(len(policies) * len(sizes)) as bars:
        for reference, policy in zip(references, policies, strict=True):
            for n_gpus in sizes:
                result = run.simulate(policy, reference, n_gpus, bars)
                results[reference, n_gpus] = result
                if out is not None:
                    result.save(out / record_name(reference, n_gpus))
    return results


def record_name(reference: str, n_gpus: int) -> str:
    """The file name of a record."""
    return f"{re.sub(r'[^A-Za-z0-9_.]+', '-', reference)}_n{n_gpus}.nc"


def _summary(instance: Instance, results: dict[tuple[str, int], Result], seed: int) -> dict[str, Any]:
    """The plan, the records and the paired comparisons, for JSON."""
    from .._plan import solve_plan

    records = [{**result.to_dict(), "policy": reference} for (reference, _), result in results.items()]
    return {
        "plan": plan_dict(instance, solve_plan(instance)),
        "records": records,
        "comparisons": comparison_dicts(results),
        "seed": seed,
    }


def print_results(results: Sequence[Result]) -> None:
    """A table of revenues and gaps for a person."""
    from .tables import print_table, print_text

    scheme = results[0].instance.pricing.scheme
    rows = []
    for result in results:
        revenue, gap = result.revenue, result.gap()
        rows.append(
            (
                result.policy_name,
                str(result.n_gpus),
                f"{revenue.mean:.2f} ± {revenue.half_width:.2f}",
                f"{100 * gap.mean:.2f} ± {100 * gap.half_width:.2f}",
                str(result.replications),
            )
        )
    print_table(
        ("policy", "GPUs", "revenue", "gap to the best possible, %", "replications"),
        rows,
        title=f"{scheme} revenue per GPU and second, 95 % intervals",
    )
    print_text(f"Best possible in the long run: {results[0].bound():.4f}. {results[0].engine_description}.")
