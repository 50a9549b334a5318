"""Summaries of a main job and of a study with made-up numbers: as large as real ones, and nothing is run."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import equinox as eqx
import numpy as np

from jaxq import Workload, load_instance, solve_plan
from jaxq import _main_job as main_job
from jaxq._experiments import SUMMARY_FILE, experiment
from jaxq._report import RUN_FILE, write_report
from jaxq._result import QUANTITIES
from jaxq._stored_summary import write_summary
from jaxq._summary import environment_dict, instance_dict, plan_dict
from jaxq.policies import PRESETS, TABLE

REFERENCE = Path(__file__).parents[1] / "experiments" / "instances" / "a100_qwen8b_two_class.toml"
CLASSES = ("customer-support-with-retrieval_and_tools", "batch")
SHOWN = (*PRESETS, "tuned")
PATHS = {
    "prefills": 0.2,
    "decodes_mixed": 3.0,
    "decodes_solo": 10.0,
    "prefill_queue": 2.0,
    "decode_queue": 0.1,
}


def written_run(folder: Path) -> Path:
    """The folder of a main job, but for its results: run.json, the figures and the report."""
    return write_report(write_summary(run_summary(), folder / RUN_FILE), folder)


def written_study(folder: Path) -> Path:
    """The folder of an asymptotic study, but for its data: experiment.json, the figures and the report."""
    summary = write_summary(study_summary(), folder / SUMMARY_FILE)
    return experiment("asymptotics").write_report(summary, folder)


def run_summary() -> dict[str, Any]:
    """As in run.json: eight policies and a tuned one at four sizes."""
    instance = _instance()
    plan = solve_plan(instance)
    records = [
        _record(name, k, size, float(plan.revenue))
        for k, name in enumerate(SHOWN)
        for size in main_job.FULL.sizes
    ]
    difference = _estimate(1.5) | {"correlation": 0.7}
    return _told("jaxq run --seed 0 --out jaxq-report") | {
        "format": 1,
        "effort": asdict(main_job.FULL),
        "instance": instance_dict(instance),
        "plan": plan_dict(instance, plan),
        "policies": list(TABLE),
        "records": records,
        "baseline": "sarathi",
        "comparisons": [
            {
                "gpus": size.n_gpus,
                "baseline": "sarathi",
                "differences": {name: {"revenue_bundled": difference} for name in SHOWN if name != "sarathi"},
            }
            for size in main_job.FULL.sizes
        ],
        "sample_paths": [_path(name) for name in ("price_and_pack", "sarathi")],
        "portrait": _portrait(plan),
    }


def study_summary() -> dict[str, Any]:
    """As in the experiment.json of `asymptotics`: two policies, from 10 to 1,000,000 GPUs."""
    effort = asdict(experiment("asymptotics").module.QUICK) | {"policies": ("gate_and_route", "sarathi")}
    gaps, fits = [], []
    for name, limit in (("gate_and_route", 0.0), ("sarathi", 0.02)):
        sizes = [("cluster", 10), ("cluster", 100), ("cluster", 1000)]
        sizes += [("pooled", 1000), ("pooled", 1_000_000)] if limit == 0 else []
        for engine, n in (*sizes, ("fluid", None)):
            gap = _estimate(limit + (0 if n is None else 0.3 / n**0.5))
            gaps.append(
                {"policy": name, "engine": engine, "gpus": n, "gap_bundled": gap, "gap_separate": gap}
            )
        rate = {"value": 0.5, "half_width": 0.1}
        fit = {"rate": rate, "limit": {"value": limit, "half_width": 0.01}}
        for scheme in ("bundled", "separate"):
            fits.append(
                {"policy": name, "scheme": scheme, "limit": limit, "converges_to_the_optimum": limit == 0}
                | {"fixed": fit, "free": fit, "claim": "asymptotically optimal (section 4.1)"}
            )
    time = np.linspace(0, 300, 100)
    paths = [
        {"gpus": n, "time": time, "fluid_scaled": [2 + np.sin(time / 9)] * 2}
        | {"diffusion_scaled": [np.sin(time / 9)] * 2, "diffusion_mean": [0.1, 0.0]}
        | {"diffusion_deviation": [0.7, 0.7], "diffusion_band": [[-1.0, 1.1]] * 2}
        for n in (100, 1_000_000, None)
    ]
    return _told("jaxq experiment asymptotics --quick --seed 0 --out jaxq-experiments/asymptotics") | {
        "experiment": "asymptotics",
        "quick": True,
        "instance": instance_dict(_instance()),
        "effort": effort,
        "gaps": gaps,
        "fits": fits,
        "paths": paths,
        "fluctuations": [],
    }


def _told(command: str) -> dict[str, Any]:
    return {
        "command": command,
        "seed": 0,
        "environment": environment_dict(),
        "finished": "2026-01-01 00:00:00 +0000",
        "seconds": 321.0,
    }


def _instance() -> Any:
    """The reference instance, with a class of a long name."""
    instance = load_instance(REFERENCE)
    w = instance.workload
    named = Workload(w.prompt_tokens, w.output_tokens, w.arrival_rate, w.patience_rate, CLASSES)
    return eqx.tree_at(lambda i: i.workload, instance, named)


def _estimate(mean: Any) -> dict[str, Any]:
    """A mean with an interval of 2 % around it."""
    mean = np.asarray(mean, float)
    width = 0.02 * np.abs(mean)
    return {
        "mean": mean.tolist(),
        "standard_error": (width / 2).tolist(),
        "ci95": [(mean - width).tolist(), (mean + width).tolist()],
        "count": 64,
    }


def _record(name: str, k: int, size: main_job.Size, best: float) -> dict[str, Any]:
    gap = (0.02 + 0.03 * k) / size.n_gpus**0.3
    earned = _estimate(best * (1 - gap))
    return {
        "policy": name,
        "gpus": size.n_gpus,
        "replications": size.replications,
        "classes": list(CLASSES),
        "engine": "cluster engine, exact chain",
        "cautions": ["warm-up too short"] if k == 0 else [],
        "bound": {"bundled": best, "separate": best},
        "gap_to_plan": None,
        "service_levels": None,
        **{key: _estimate(gap) for key in ("gap", "gap_bundled", "gap_separate")},
        **{key: _estimate([0.3, 0.5] if per_class else 0.4) for key, (*_, per_class) in QUANTITIES.items()},
        "revenue_bundled": earned,
        "revenue_separate": earned,
        "time_per_token_emitted": _estimate(0.026),
    }


def _path(name: str) -> dict[str, Any]:
    time = np.linspace(2, 400, 200)
    series = {
        key: [mean * (1 - np.exp(-time / 30)) / (i + 1) for i in range(2)] for key, mean in PATHS.items()
    }
    return {"policy": name, "gpus": 50, "window_end": time, **series}


def _portrait(plan: Any) -> dict[str, Any]:
    lengths = np.arange(13)
    first = np.clip(np.add.outer(-lengths, lengths) / 24 + 0.5, 0, 1)
    return {
        "gpus": 500,
        "classes": list(CLASSES),
        "shown": [1, 0],
        "queues": [lengths, lengths],
        "planned_queues": [2.0, 6.0],
        "starts": [first, 1 - first, 0 * first],
        "at_plan": [0.3, 0.6, 0.1],
        "idle": {
            "running": [0.0, 0.1, 0.2],
            "planned": float(np.sum(plan.x)),
            "starts_none": [0.0, 0.1, 0.8],
        },
        "pools": ["a GPU with a prefill", "a GPU without one", "wait"],
        "routes": [[0.7, 0.2, 0.1], [0.5, 0.5, 0.0]],
    }
