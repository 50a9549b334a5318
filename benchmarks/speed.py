"""jaxq against the native chain and SimPy, and the memory of a large run: every ratio is measured in one run.

Run it as `python -m benchmarks.speed`, or with `--json`. Contenders take turns (A B C, A B C, ...), each for
about a second and a half, on the reference instance in its stationary regime; the ratios of each round are
taken and their median reported. The native chain and SimPy use one core; jaxq uses all of them.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxq._cli.environment import configure_jax

SIZES = (50, 500)
POLICIES = ("gate_and_route", "gate_immediate")
ROUNDS = 5
PIECE = 1.5
"""About how long one contender runs in a round, s of wall time."""

WARMUP = 60.0
"""Seconds simulated before jaxq is timed: the slowest decode lasts 33 s, the patience 10 s on average."""

LEAP_REPLICATIONS = (64, 1024)
EXACT_REPLICATIONS = 1024
REQUIRED_NATIVE = {"gate_and_route": 6e6, "gate_immediate": 2.5e6}
"""Events per second at n = 500 below which a native chain would be no fair opponent."""

MEMORY_GPUS, MEMORY_REPLICATIONS, MEMORY_LIMIT = 10_000, 256, 2 * 2**30
MEMORY_SECONDS = {"leap": 100.0, "exact": 2.0}

Contender = Callable[[], tuple[float, float]]
"""Runs for about `PIECE` seconds; returns events and simulated GPU-seconds per second of wall time."""


def reference() -> Any:
    """The reference instance."""
    from jaxq._cli.options import read_instance

    return read_instance(None)


def jaxq_contender(stepper: Any, policy: str, n_gpus: int, replications: int) -> Contender:
    """A cluster of jaxq's that has passed its warm-up."""
    from jaxq._benchmark import RunningCluster
    from jaxq._engine.cluster import ClusterEngine
    from jaxq._policy.load import load_policy

    instance = reference()
    cluster = RunningCluster(
        ClusterEngine(stepper), instance, load_policy(policy, instance), n_gpus, replications
    )
    warm = cluster.advance(WARMUP)
    seconds = WARMUP * PIECE / warm.wall

    def run() -> tuple[float, float]:
        pace = cluster.advance(seconds)
        return pace.events / pace.wall, pace.gpu_seconds / pace.wall

    return run


def native_contender(policy: str, n_gpus: int) -> Contender:
    """The native chain: one long replication, of which the start from empty is a small part."""
    from jaxq._plan import solve_plan

    from .native import InstanceNumbers, PlanNumbers, simulate

    instance = reference()
    numbers, plan = InstanceNumbers.of(instance), PlanNumbers.of(solve_plan(instance, "bundled"))

    def simulated(horizon: float) -> tuple[float, float]:
        begin = time.perf_counter()
        result = simulate(numbers, policy, plan, n_gpus=n_gpus, horizon=horizon)
        wall = time.perf_counter() - begin
        return float(result["events"].sum()) / wall, n_gpus * horizon / wall

    simulated(100.0)
    _, pace = simulated(500_000.0 / n_gpus)
    return lambda: simulated(PIECE * pace / n_gpus)


def simpy_contender(policy: str, n_gpus: int) -> Contender:
    """The same in SimPy."""
    from jaxq._plan import solve_plan

    from .native import InstanceNumbers, PlanNumbers
    from .simpy_model import simulate

    instance = reference()
    numbers, plan = InstanceNumbers.of(instance), PlanNumbers.of(solve_plan(instance, "bundled"))

    def simulated(horizon: float) -> tuple[float, float]:
        run = simulate(numbers, policy, plan, n_gpus=n_gpus, horizon=horizon)
        return run.events / run.wall_time, n_gpus * horizon / run.wall_time

    _, pace = simulated(2000.0 / n_gpus)
    return lambda: simulated(PIECE * pace / n_gpus)


def contenders(policy: str, n_gpus: int) -> dict[str, Contender]:
    """All that run at one size, by name."""
    from jaxq._engine.steppers import Exact, Leap

    found = {"native": native_contender(policy, n_gpus), "simpy": simpy_contender(policy, n_gpus)}
    name = f"exact x {EXACT_REPLICATIONS}"
    found[name] = jaxq_contender(Exact(), policy, n_gpus, EXACT_REPLICATIONS)
    for replications in LEAP_REPLICATIONS if n_gpus == max(SIZES) else ():
        found[f"leap x {replications}"] = jaxq_contender(Leap(), policy, n_gpus, replications)
    return found


def measured(policy: str, n_gpus: int) -> list[dict[str, Any]]:
    """One row for each contender: medians over the rounds, also of the ratios to native and SimPy."""
    running = contenders(policy, n_gpus)
    rounds = [{name: run() for name, run in running.items()} for _ in range(ROUNDS)]
    return [_row(policy, n_gpus, name, rounds) for name in running]


def _row(policy: str, n_gpus: int, name: str, rounds: list[dict[str, tuple[float, float]]]) -> dict[str, Any]:
    # A time-stepped run is compared in what it simulates, an event-driven one in events.
    unit = 1 if name.startswith("leap") else 0
    ratios = [turn[name][unit] / turn["native"][unit] for turn in rounds]
    return {
        "policy": policy,
        "gpus": n_gpus,
        "contender": name,
        "events_per_second": _median(turn[name][0] for turn in rounds),
        "gpu_seconds_per_second": _median(turn[name][1] for turn in rounds),
        "compared_in": ("events", "GPU-seconds")[unit],
        "ratio_to_native": _median(ratios),
        "ratio_to_native_range": [min(ratios), max(ratios)],
        "ratio_to_simpy": _median(turn[name][0] / turn["simpy"][0] for turn in rounds),
    }


def _median(values: Any) -> float:
    return float(np.median(list(values)))


def use_memory(kind: str) -> None:
    """Simulate the large run in this process and print its peak memory in bytes as JSON."""
    configure_jax()
    import jax

    from jaxq._engine.cluster import ClusterEngine
    from jaxq._engine.steppers import Exact, Leap
    from jaxq._policy.load import load_policy

    instance = reference()
    begin = time.perf_counter()
    ClusterEngine(Leap() if kind == "leap" else Exact()).run(
        instance,
        load_policy("gate_immediate", instance),
        n_gpus=MEMORY_GPUS,
        horizon=MEMORY_SECONDS[kind],
        warmup=0.0,
        key=jax.random.key(0),
        replications=MEMORY_REPLICATIONS,
    )
    # Linux counts kibibytes, macOS bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    peak = unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"peak_bytes": peak, "wall_seconds": time.perf_counter() - begin}))


def memory(kind: str) -> dict[str, Any]:
    """Peak host memory of the large run, measured in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.speed", "--memory-of", kind]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {
        "stepper": kind,
        "policy": "gate_immediate",
        "gpus": MEMORY_GPUS,
        "replications": MEMORY_REPLICATIONS,
        "simulated_seconds": MEMORY_SECONDS[kind],
        **json.loads(done.stdout),
        "limit_bytes": MEMORY_LIMIT,
    }


def report(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    from .machine import machine_line

    lines = [
        machine_line(result["machine"]) + ".",
        "",
        "| policy | n | contender | M events/s | M GPU-s/s | against native (range) | in | SimPy, events |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        low, high = row["ratio_to_native_range"]
        lines.append(
            f"| `{row['policy']}` | {row['gpus']} | {row['contender']} "
            f"| {row['events_per_second'] / 1e6:.3g} | {row['gpu_seconds_per_second'] / 1e6:.3g} "
            f"| {row['ratio_to_native']:.2f} ({low:.2f} to {high:.2f}) "
            f"| {row['compared_in']} | {row['ratio_to_simpy']:.0f} |"
        )
    lines += ["", *_native_lines(result["rows"])]
    for row in result["memory"]:
        lines.append(
            f"{row['gpus']:,} GPUs x {row['replications']} replications, {row['simulated_seconds']:g} s with "
            f"{row['stepper']}: {row['peak_bytes'] / 2**30:.2f} GiB of host memory at the peak (limit "
            f"{row['limit_bytes'] / 2**30:.0f}), {row['wall_seconds']:.0f} s."
        )
    return "\n".join(lines)


def _native_lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """How strict the comparison is: the native chain's own speed against the least that a fair one needs."""
    lines = []
    for row in rows:
        if row["contender"] == "native" and row["gpus"] == max(SIZES):
            least, speed = REQUIRED_NATIVE[row["policy"]], row["events_per_second"]
            lines.append(
                f"The native chain makes {speed / 1e6:.1f} M events/s with {row['policy']} at n = "
                f"{row['gpus']}, where the comparison asks for at least {least / 1e6:g} M: against one of "
                f"just that speed, each ratio in its rows would be {speed / least:.1f} times as large."
            )
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure everything and print it."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed", description="Speed and memory of jaxq."
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--no-memory", action="store_true", help="leave the large run out (some minutes)")
    parser.add_argument("--memory-of", choices=("leap", "exact"), help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.memory_of:
        use_memory(chosen.memory_of)
        return
    configure_jax()
    from .machine import machine

    result: dict[str, Any] = {"machine": machine(), "rows": [], "memory": []}
    for policy in POLICIES:
        for n_gpus in SIZES:
            print(f"{policy}, n = {n_gpus} ...", file=sys.stderr, flush=True)
            result["rows"] += measured(policy, n_gpus)
    for kind in () if chosen.no_memory else ("leap", "exact"):
        print(f"memory of {kind} ...", file=sys.stderr, flush=True)
        result["memory"].append(memory(kind))
    print(json.dumps(result, indent=2) if chosen.json else report(result))


if __name__ == "__main__":
    main()
