"""What commands report, as plain dictionaries for JSON: instance, plan, comparisons, environment."""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._output import write_file, writing
from ._versions import versions

if TYPE_CHECKING:
    from ._instance import Instance
    from ._plan import Plan
    from ._result import Result
    from ._service_level.levels import ServiceLevels


def plain(value: Any) -> Any:
    """Numbers, texts, lists and dictionaries that JSON holds; None for what is not finite."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def size_name(n_gpus: int | None) -> str:
    """A number of GPUs, infinite in the fluid limit."""
    return "inf" if n_gpus is None else str(n_gpus)


def write_json(value: Any, path: Path) -> None:
    """A JSON file that appears whole or not at all.

    **Raises:** as `writing`.
    """
    with writing(path):
        write_file(path, (json.dumps(plain(value), allow_nan=False, indent=2) + "\n").encode())


def instance_dict(instance: Instance) -> dict[str, Any]:
    """An instance: times in s, lengths in tokens, rates in 1/s (arrivals per GPU), prices per token, and the
    service levels that are set (None without that table)."""
    time, pricing, workload = instance.iteration_time, instance.pricing, instance.workload
    numbers = ("prompt_tokens", "output_tokens", "arrival_rate", "patience_rate")
    return {
        "name": instance.name,
        "fingerprint": instance.fingerprint(),
        "hardware": {
            "alpha": float(time.alpha),
            "beta": float(time.beta),
            "solo_iteration_time": float(time.solo),
            "mixed_iteration_time": float(instance.mixed_iteration_time),
            "batch_size": int(instance.batch_size),
            "chunk_size": int(instance.chunk_size),
        },
        "pricing": {
            "scheme": pricing.scheme,
            "prefill": float(pricing.prefill),
            "decode": float(pricing.decode),
        },
        "classes": [
            {"name": name} | {number: float(getattr(workload, number)[i]) for number in numbers}
            for i, name in enumerate(workload.names)
        ],
        "sli": None if instance.service_levels is None else _levels_dict(instance.service_levels),
    }


def _levels_dict(levels: ServiceLevels) -> dict[str, Any]:
    """What is set, and the further limits as they stand in the instance's file."""
    further = [{"name": one.name, **one.numbers(), **plain(one.coefficients)} for one in levels.limits]
    return levels.numbers() | ({"limits": further} if further else {})


def plan_dict(instance: Instance, plan: Plan) -> dict[str, Any]:
    """A plan: money per GPU and second, requests per GPU by class, prices by constraint, and what
    `plan_levels` gives."""
    return {
        "revenue": float(plan.revenue),
        "scheme": plan.scheme,
        "x": plain(plan.x),
        "y_mixed": plain(plan.y_mixed),
        "y_solo": plain(plan.y_solo),
        "q_prefill": plain(plan.q_prefill),
        "q_decode": plain(plan.q_decode),
        "bid_prices": plain(plan.bid_prices),
        "shadow_prices": plain(plan.shadow_prices),
        "unique": bool(plan.unique),
        "flows_unique": bool(plan.flows_unique),
        "no_decode_queue": bool(plan.no_decode_queue),
        "plan_revenue": float(plan.plan_revenue),
        "objective": float(plan.objective),
        "service_levels": plan_levels(plan),
        "instance": instance.name,
        "fingerprint": instance.fingerprint(),
        "classes": list(instance.workload.names),
    }


def plan_levels(plan: Plan) -> dict[str, Any]:
    """Each service level of a plan, by name, in the units of `ServiceLevels`.

    Its value; the limit and that limit's shadow price (None without); what a unit costs above
    `penalty_above`, and the shadow price of that threshold (None without a penalty); the slope of a convex
    penalty (None without); and what all penalties for it cost.
    """
    from ._service_level.levels import ServiceLevels

    levels = plan.service_levels or ServiceLevels()

    def price(constraint: str) -> float | None:
        return float(plan.shadow_prices[constraint][0]) if constraint in plan.shadow_prices else None

    return {
        name: {
            "value": float(value),
            "limit": levels.limit(name),
            "shadow_price": price(name),
            "penalty": levels.penalty(name),
            "penalty_above": levels.penalty_above(name),
            "penalty_shadow_price": price(f"{name}_penalty"),
            "convex_penalty_slope": price(f"{name}_convex_penalty"),
            "cost": levels.cost(name, float(value)),
        }
        for name, value in plan.indicators.items()
    }


def comparison_dicts(
    results: Mapping[tuple[str, Any], Result], baseline: str | None = None
) -> list[dict[str, Any]]:
    """At each number of GPUs, how far each policy is ahead of a baseline (the first policy when None).

    `results` are keyed by policy and number of GPUs; sizes with a single policy have no comparison.
    """
    from ._compare import compare

    rows = []
    for n_gpus in dict.fromkeys(size for _, size in results):
        labelled = {name: result for (name, size), result in results.items() if size == n_gpus}
        if len(labelled) > 1:
            rows.append({"gpus": n_gpus, **compare(labelled, baseline).to_dict()})
    return rows


RUN_FACTS = ("command", "seed", "instance", "environment", "finished", "seconds")
"""What `run_facts` holds: enough to do it again."""


def run_facts(instance: Instance, command: str, seed: int, started: float) -> dict[str, Any]:
    """What was run, on what, and for how long; `started`: `time.perf_counter()` at its beginning."""
    return {
        "command": command,
        "seed": seed,
        "instance": instance_dict(instance),
        "environment": environment_dict(),
        "finished": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "seconds": time.perf_counter() - started,
    }


def environment_dict() -> dict[str, Any]:
    """Versions, machine, cores and devices."""
    import jax

    return {
        "versions": versions(),
        "machine": f"{platform.system()} {platform.machine()}",
        "cores": usable_cores(),
        "devices": [{"platform": device.platform, "kind": device.device_kind} for device in jax.devices()],
    }


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
