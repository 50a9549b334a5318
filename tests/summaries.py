"""Summaries of a run, a study, a sweep and a sizing with made-up numbers: as large as real ones, and nothing
is run."""

from __future__ import annotations

import itertools
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
from jaxq._sizing_report import SIZE_FILE, write_sizing_report
from jaxq._stored_summary import write_summary
from jaxq._summary import environment_dict, instance_dict, plan_dict
from jaxq._sweep_report import SWEEP_FILE, write_sweep_report
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


def written_sweep(folder: Path) -> Path:
    """The folder of a sweep, but for its instance."""
    return write_sweep_report(write_summary(sweep_summary(), folder / SWEEP_FILE), folder)


def written_sizing(folder: Path) -> Path:
    """The folder of a sizing, but for its instance."""
    return write_sizing_report(write_summary(sizing_summary(), folder / SIZE_FILE), folder)


def sweep_summary() -> dict[str, Any]:
    """As in sweep.json: four policies over 9 x 3 points."""
    paths = ("classes.0.arrival_rate", "hardware.batch_size")
    points = [
        dict(zip(paths, values, strict=True))
        for values in itertools.product(np.linspace(0.3, 0.7, 9).tolist(), (8, 16, 32))
    ]
    records = [
        {
            "point": point,
            "policy": name,
            "gpus": 50,
            "replications": 32,
            "bound": {"bundled": 300.0, "separate": 310.0},
            **{f"revenue_{scheme}": _estimate(280.0 - k - j) for scheme in ("bundled", "separate")},
            **{f"gap_{scheme}": _estimate((k + j) / 300) for scheme in ("bundled", "separate")},
            "slot_utilisation": _estimate(0.9),
        }
        for j, name in enumerate(SHOWN[:4])
        for k, point in enumerate(points)
    ]
    return _told("jaxq sweep cluster.toml --set hardware.batch_size=8,16,32") | {
        "instance": instance_dict(_instance()),
        "points": points,
        "records": records,
        "horizon": 400.0,
        "warmup": 150.0,
        "replications": 32,
        "engine": "cluster engine, exact jump chain",
    }


def sizing_summary() -> dict[str, Any]:
    """As in size.json: three sizes."""
    tested = [
        {
            "gpus": n,
            "verdict": verdict,
            "replications": 128,
            "share": _estimate(share),
            "bounds": [share - 0.01, share + 0.01],
            "level": 0.01,
            "best_possible": 0.999,
            "cautions": [],
        }
        for n, share, verdict in ((52, 0.97, "too few"), (53, 0.981, "suffices"), (56, 0.99, "suffices"))
    ]
    return _told("jaxq size cluster.toml --load 25,25 --target revenue=0.98 --out sizes") | {
        "instance": instance_dict(_instance()),
        "answer": "53 GPUs serve the load, and 52 do not (confidence 95 %).",
        "gpus": 53,
        "lower_bound": 52,
        "confidence": 0.95,
        "target": {
            "quantity": "revenue",
            "at_least": True,
            "share": 0.98,
            "measure": "share of the offered value",
            "text": "at least 98 % of its value",
        },
        "policy": "price_and_pack",
        "load": [25.0, 25.0],
        "tested": tested,
        "best_possible": [{"gpus": n, "share": min(1.0, n / 53)} for n in range(50, 58)],
        "engine": "cluster engine, exact jump chain",
        "cautions": ["56 GPUs did worse than 53."],
        "horizon": 600.0,
        "warmup": 200.0,
    }


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
