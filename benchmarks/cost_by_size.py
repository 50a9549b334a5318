"""What a simulated second costs, by engine and number of GPUs, from 100 to 1,000,000.

Run it as `python -m benchmarks.cost_by_size`, on an idle machine. Each cell is the wall-clock time, without
compilation, of 1,000 simulated seconds of one replication, of `gate_and_route` on the reference instance; it
is measured over as many replications as fill the engine's blocks, over fewer seconds where n is large.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from jaxq._cli.environment import configure_jax

from .instances import studied_instance
from .machine import machine, machine_line

if TYPE_CHECKING:
    from jaxq import Instance

SIZES = (100, 1_000, 10_000, 100_000, 1_000_000)
POLICY = "gate_and_route"
LONGEST, SHORTEST = 100.0, 2.0
"""Simulated seconds of a measurement, at most and at least."""

GPU_SECONDS = 2e6
"""Simulated GPU-seconds of a measurement of the cluster engine, about."""

FLUID = [
    *((level, 16, horizon) for level in ("pooled", "configuration") for horizon in (1_000.0, math.inf)),
    ("configuration", 64, math.inf),
]
"""Runs of the fluid engine: level, batch size, horizon in s (infinite: the steady state)."""


def measured(instance: Instance, policy: Any, engine: Any, n_gpus: int, horizon: float, count: int) -> float:
    """Wall-clock seconds for 1,000 simulated seconds of one replication; the better of two runs."""
    from jaxq import simulate

    def once() -> float:
        started = time.perf_counter()
        simulate(
            instance, policy, n_gpus=n_gpus, horizon=horizon, warmup=0.0, replications=count, engine=engine
        )
        return time.perf_counter() - started

    once()  # compiles
    return min(once(), once()) * 1000.0 / (horizon * count)


def columns(instance: Instance, policy: Any) -> dict[str, Callable[[int], float | None]]:
    """What is measured, by its heading; None where it would take too long."""
    from jaxq import ClusterEngine, Exact, Leap, PooledEngine

    def cluster(stepper: Any, largest: int) -> Callable[[int], float | None]:
        def cell(n_gpus: int) -> float | None:
            if n_gpus > largest:
                return None
            count = 256 if n_gpus <= 1_000 else 16
            horizon = min(LONGEST, max(SHORTEST, GPU_SECONDS / (n_gpus * count)))
            return measured(instance, policy, ClusterEngine(stepper), n_gpus, horizon, count)

        return cell

    def pooled(n_gpus: int) -> float:
        return measured(instance, policy, PooledEngine(), n_gpus, LONGEST, 256)

    return {
        "cluster, exact": cluster(Exact(), 10_000),
        "cluster, leap": cluster(Leap(), 100_000),
        "pooled, leap": pooled,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table as it grows."""
    import warnings

    from jaxq import FluidEngine, simulate
    from jaxq.policies import PRESETS

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)), help="numbers of GPUs")
    parser.add_argument("--pooled", action="store_true", help="the pooled engine's column alone")
    options = parser.parse_args(arguments)
    configure_jax()
    warnings.simplefilter("ignore")
    instance = studied_instance("reference")
    policy = PRESETS[POLICY](instance)
    print(machine_line(machine()), file=sys.stderr)
    cells = {
        name: cell
        for name, cell in columns(instance, policy).items()
        if not options.pooled or name.startswith("pooled")
    }
    print(f"| n | {' | '.join(cells)} |\n|---|{'---|' * len(cells)}", flush=True)
    for n_gpus in map(int, options.sizes.split(",")):
        found = [cell(n_gpus) for cell in cells.values()]
        print(
            f"| {n_gpus:,} | " + " | ".join("" if f is None else f"{f:.3g}" for f in found) + " |", flush=True
        )
    for level, batch_size, horizon in () if options.pooled else FLUID:
        changed = dataclasses.replace(instance, batch_size=batch_size)
        made, engine = PRESETS[POLICY](changed), FluidEngine(level=level)
        result = simulate(changed, made, horizon=horizon, warmup=0.0, engine=engine)
        what = "steady state" if math.isinf(horizon) else f"path of {horizon:,.0f} s"
        print(
            f"fluid, {level} level, B = {batch_size}, {what}: {result.seconds:.3g} s, compilation included",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
