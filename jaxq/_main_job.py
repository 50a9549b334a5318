"""The main job, `jaxq run`: every policy at several sizes, compared, drawn, and written up."""

from __future__ import annotations

import csv
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ._compile_ahead import compiling_ahead
from ._engine.cluster import ClusterEngine
from ._experiment_rows import measured
from ._instance import Instance
from ._instance_file import instance_to_toml
from ._memory import check_memory
from ._plan import solve_plan
from ._policy.base import Policy
from ._policy.presets import PRESETS, TABLE
from ._policy.shipped import TUNED
from ._portrait import portrait
from ._progress import ProgressBars
from ._report import RUN_FILE, write_report
from ._result import QUANTITIES, Result
from ._stored_summary import write_summary
from ._summary import comparison_dicts, plan_dict, run_facts

DEFAULT_POLICIES = tuple(PRESETS)
"""The policies that are measured."""

BASELINE = "sarathi"
"""What the other policies are compared with: chunked prefill as serving systems do it today."""


@dataclass(frozen=True)
class Size:
    """A cluster of `n_gpus`, simulated so many times."""

    n_gpus: int
    replications: int


@dataclass(frozen=True)
class Effort:
    """How much the main job simulates.

    - `sizes`: the clusters.
    - `horizon`, `warmup`: simulated seconds of each replication, and how many of them are discarded.
    - `path_size`: which of the sizes the sample paths show; `path_horizon` s of them, in `path_windows`
      averages.
    """

    name: str
    sizes: tuple[Size, ...]
    horizon: float
    warmup: float
    path_size: int = 1
    path_horizon: float = 400.0
    path_windows: int = 200


FULL = Effort(
    "full", (Size(20, 512), Size(50, 512), Size(200, 256), Size(500, 128)), horizon=600.0, warmup=200.0
)
"""Half-widths of about 0.1 % of the revenue on the reference instance; within 8 minutes on two cores."""

QUICK = Effort(
    "quick", (Size(20, 128), Size(50, 128)), horizon=300.0, warmup=120.0, path_horizon=150.0, path_windows=150
)
"""Half-widths of about 0.25 % of the revenue on the reference instance; within 90 s on two cores."""


@dataclass(frozen=True)
class MainJob:
    """What the main job found.

    - `summary`: everything, as it stands in run.json; figures and report are made of it alone.
    - `results`: by policy and number of GPUs.
    """

    summary: dict[str, Any]
    instance: Instance
    results: dict[tuple[str, int], Result]


def run_main_job(
    instance: Instance,
    effort: Effort,
    bars: ProgressBars,
    *,
    policies: Sequence[str] = DEFAULT_POLICIES,
    tuned: Policy | None = None,
    seed: int = 0,
    command: str = "jaxq run",
    kept: Path | None = None,
) -> MainJob:
    """Simulate every policy at every size of `effort`, and put together what a report needs.

    **Arguments:** `policies`: names of presets; `tuned`: one more policy, shown as `TUNED`; `command`: the
    command line that repeats the run; `kept`: a folder in which replications are kept as they finish, and
    from which an interrupted run goes on.

    **Raises:** `InputError` when the memory does not suffice, or `kept` is of another run; `PlanError` when
    no plan exists.
    """
    started = time.perf_counter()
    plan = solve_plan(instance)
    made = {name: PRESETS[name](instance) for name in policies}
    if tuned is not None:
        made[TUNED] = replace(tuned, name=TUNED)
    engine = ClusterEngine()
    for size in effort.sizes:
        for policy in made.values():
            check_memory(
                engine,
                instance,
                policy,
                size.n_gpus,
                size.replications,
                horizon=effort.horizon,
                warmup=effort.warmup,
                kept=kept is not None,
            )
        line = engine.describe_blocks(instance, list(made.values()), size.n_gpus, size.replications)
        bars.note(f"n = {size.n_gpus}: {line}")
    results: dict[tuple[str, int], Result] = {}
    jobs = {name: partial(_compile_all, engine, instance, made[name], effort.sizes) for name in made}
    with compiling_ahead(jobs) as compiled:
        for name, policy in made.items():
            compiled[name].result()
            for size in effort.sizes:
                folder = None if kept is None else kept / f"{name}_n{size.n_gpus}"
                results[name, size.n_gpus] = _simulate(
                    engine, instance, policy, size, effort, seed, bars, folder
                )
    baseline = BASELINE if BASELINE in made else policies[0]
    shown = _policies_to_show(results, effort.sizes[effort.path_size].n_gpus, baseline)
    paths = [_sample_path(engine, instance, made[name], effort, seed, bars) for name in shown]
    summary = {
        "format": 1,
        "effort": asdict(effort),
        "plan": plan_dict(instance, plan),
        "policies": [row for row in TABLE if row["name"] in made] + _tuned_rows(tuned),
        "records": [result.to_dict(plan) for result in results.values()],
        "baseline": baseline,
        "comparisons": comparison_dicts(results, baseline),
        "sample_paths": paths,
        "portrait": None if tuned is None else portrait(tuned, instance, plan, effort.sizes[-1].n_gpus),
        **run_facts(instance, command, seed, started),
    }
    return MainJob(summary, instance, results)


def write_main_job(job: MainJob, folder: Path) -> None:
    """Write run.json, results (netCDF and one CSV), the instance, figures (SVG, PNG) and report.html."""
    summary = write_summary(job.summary, folder / RUN_FILE)
    (folder / "results").mkdir()
    for (name, n_gpus), result in job.results.items():
        result.save(folder / "results" / f"{name}_n{n_gpus}.nc")
    _write_table(job.summary, folder / "results.csv")
    (folder / "instance.toml").write_text(instance_to_toml(job.instance), encoding="utf-8")
    write_report(summary, folder)


def _compile_all(engine: ClusterEngine, instance: Instance, policy: Policy, sizes: Sequence[Size]) -> None:
    """Compile the programs of all sizes, one after another: they often share a program, which must not be
    compiled twice."""
    for size in sizes:
        engine.compile(instance, policy, size.n_gpus, size.replications)


def _tuned_rows(policy: Policy | None) -> list[dict[str, str]]:
    """What a tuned policy is made of, as a row of the presets' table."""
    if policy is None:
        return []
    return [
        {
            "name": TUNED,
            "partition": "none" if policy.partition is None else "static (tuned share)",
            "gate": "tuned",
            "router": "tuned",
            "role": policy.name,
        }
    ]


def _simulate(
    engine: ClusterEngine,
    instance: Instance,
    policy: Policy,
    size: Size,
    effort: Effort,
    seed: int,
    bars: ProgressBars,
    folder: Path | None,
) -> Result:
    """One policy at one size."""
    return measured(
        bars,
        f"{policy.name}, n = {size.n_gpus}",
        instance,
        policy,
        n_gpus=size.n_gpus,
        horizon=effort.horizon,
        warmup=effort.warmup,
        replications=size.replications,
        key=seed,
        engine=engine,
        out=folder,
    )


def _policies_to_show(results: dict[tuple[str, int], Result], n_gpus: int, baseline: str) -> list[str]:
    """The policy that earns most at this size, and the baseline."""
    means = {name: float(result.revenue.mean) for (name, size), result in results.items() if size == n_gpus}
    return list(dict.fromkeys([max(means, key=lambda name: means[name]), baseline]))


def _sample_path(
    engine: ClusterEngine, instance: Instance, policy: Policy, effort: Effort, seed: int, bars: ProgressBars
) -> dict[str, Any]:
    """One replication in time: averages per GPU over short windows, by class."""
    size = effort.sizes[effort.path_size]
    report = bars.start(f"{policy.name}, sample path")
    record = engine.run(
        instance,
        policy,
        n_gpus=size.n_gpus,
        horizon=effort.path_horizon,
        warmup=0.0,
        key=jax.random.key(np.uint32(seed)),
        replications=size.replications,  # all of them: the program for so many is compiled already
        progress=report,
        n_windows=effort.path_windows,
    )
    seconds = record.durations * size.n_gpus
    names = ("prefills", "decodes_mixed", "decodes_solo", "prefill_queue", "decode_queue")
    series = {name: getattr(record, name)[:, :, 0].T / seconds for name in names}
    return {
        "policy": policy.name,
        "gpus": size.n_gpus,
        "window_end": np.cumsum(record.durations).tolist(),
        **{name: np.round(values, 6).tolist() for name, values in series.items()},
    }


def _write_table(summary: dict[str, Any], path: Path) -> None:
    """Every estimate, one a line: policy, gpus, quantity, class, unit, mean, standard error, interval."""
    units = {name: quantity.unit for name, quantity in QUANTITIES.items()} | {"gap": "1"}
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(
            ("policy", "gpus", "quantity", "class", "unit", "mean", "standard_error", "low", "high")
        )
        for record in summary["records"]:
            for name, unit in units.items():
                for label, row in _by_class(record[name], record["classes"]):
                    writer.writerow((record["policy"], record["gpus"], name, label, unit, *row))


def _by_class(estimate: dict[str, Any], classes: Sequence[str]) -> list[tuple[str, tuple[Any, ...]]]:
    """A label (a class, or empty) and mean, standard error, low, high for each number of an estimate."""
    columns = (estimate["mean"], estimate["standard_error"], *estimate["ci95"])
    if not isinstance(estimate["mean"], list):
        return [("", columns)]
    return list(zip(classes, zip(*columns, strict=True), strict=True))
