"""Every pair of engines that must agree: pooled and fluid against cluster, at 1,000 and 10,000 GPUs.

Run it as `python -m benchmarks.engine_agreement`. Differences are in % of R* of the same scheme. The pooled
and the cluster engine share their arrivals, so that their differences are paired; the fluid limit has no
chance, and its row is that of its steady state. A pair agrees when the difference is below 0.2 % of R* and
three standard errors.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxq._cli.environment import configure_jax

from .instances import studied_instance

if TYPE_CHECKING:
    from jaxq import Instance, Result

INSTANCES = ("reference", "overload")
PARTITIONED = ("gate_and_route", "prioritize_and_route", "sli_gate_and_route", "fcfs_route")
LIMITS = ("gate_and_route", "prioritize_and_route", "sarathi", "gate_immediate", "price_and_pack")
SIZES = (1_000, 10_000)
SCHEMES = ("bundled", "separate")

HORIZON, WARMUP = 300.0, 150.0
"""Simulated seconds, and those that are discarded."""

GPUS_IN_ALL = 64_000
"""GPUs of all replications together; eight replications at least."""

FINENESS = 5
"""The default step of the cluster engine over the one that is taken here: its own bias is to be small."""

EXACT_BELOW = 2_000
"""GPUs up to which the cluster engine runs its exact chain."""

ALLOWED = 0.2
"""% of R* that engines may differ by, and three standard errors."""


@dataclass(frozen=True)
class Pair:
    """How far an engine's revenue is from the cluster engine's, % of R*, with its standard error."""

    instance: str
    policy: str
    n_gpus: int
    engine: str
    scheme: str
    gap: float
    cluster_gap: float
    difference: float
    standard_error: float

    @property
    def agrees(self) -> bool:
        """Whether the pair is as close as it must be."""
        return abs(self.difference) < ALLOWED + 3 * self.standard_error

    def row(self) -> str:
        """A line of the table."""
        return (
            f"| `{self.instance}` | `{self.policy}` | {self.n_gpus:,} | {self.engine} | {self.scheme} | "
            f"{self.cluster_gap:.3f} | {self.gap:.3f} | {self.difference:+.3f} ± {self.standard_error:.3f} | "
            f"{'yes' if self.agrees else 'no'} |"
        )


HEAD = (
    "| instance | policy | n | engine | scheme | cluster's gap | its gap | difference ± error | agrees |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


def pairs(names: Sequence[str], sizes: Sequence[int], only: Sequence[str]) -> Iterator[Pair]:
    """Every pair of results that must agree, one after another."""
    from jaxq.policies import PRESETS

    for name in names:
        instance = studied_instance(name)
        for policy_name in dict.fromkeys((*PARTITIONED, *LIMITS)):
            if policy_name not in only:
                continue
            policy = PRESETS[policy_name](instance)
            limit = _limit(instance, policy) if policy_name in LIMITS else None
            for n_gpus in sizes:
                cluster = _cluster(instance, policy, n_gpus)
                others = {} if limit is None else {"fluid": limit}
                if policy_name in PARTITIONED:
                    others["pooled"] = _pooled(instance, policy, n_gpus)
                for engine, other in others.items():
                    for scheme in SCHEMES:
                        yield _pair(name, policy_name, n_gpus, engine, scheme, cluster, other)


def _pair(
    name: str, policy: str, n_gpus: int, engine: str, scheme: str, cluster: Result, other: Result
) -> Pair:
    bound = cluster.bound(scheme)
    here, there = (100 * r.per_replication(f"revenue_{scheme}") / bound for r in (cluster, other))
    difference = there - here
    return Pair(
        *(name, policy, n_gpus, engine, scheme),
        gap=100 - float(there.mean()),
        cluster_gap=100 - float(here.mean()),
        difference=float(difference.mean()),
        standard_error=float(difference.std(ddof=1) / math.sqrt(len(difference))),
    )


def _cluster(instance: Instance, policy: Any, n_gpus: int) -> Result:
    from jaxq import ClusterEngine, Exact, Leap

    step = ClusterEngine(Leap()).step(instance, policy)
    stepper = Exact() if n_gpus < EXACT_BELOW or step is None else Leap(step / FINENESS)
    return _simulate(instance, policy, n_gpus, ClusterEngine(stepper))


def _pooled(instance: Instance, policy: Any, n_gpus: int) -> Result:
    from jaxq import PooledEngine

    return _simulate(instance, policy, n_gpus, PooledEngine())


def _simulate(instance: Instance, policy: Any, n_gpus: int, engine: Any) -> Result:
    from jaxq import simulate

    return simulate(
        instance,
        policy,
        n_gpus=n_gpus,
        horizon=HORIZON,
        warmup=WARMUP,
        replications=max(8, GPUS_IN_ALL // n_gpus),
        key=5,
        engine=engine,
    )


def _limit(instance: Instance, policy: Any) -> Result:
    from jaxq import FluidEngine, simulate

    return simulate(instance, policy, horizon=math.inf, warmup=0.0, engine=FluidEngine())


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table as it grows; 1 when a pair does not agree."""
    import warnings

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--instances", default=",".join(INSTANCES))
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)), help="numbers of GPUs")
    parser.add_argument("--policies", default=",".join(dict.fromkeys((*PARTITIONED, *LIMITS))))
    options = parser.parse_args(arguments)
    configure_jax()
    warnings.simplefilter("ignore")
    print(HEAD, flush=True)
    sizes = [int(size) for size in options.sizes.split(",")]
    found = []
    for pair in pairs(options.instances.split(","), sizes, options.policies.split(",")):
        found.append(pair)
        print(pair.row(), flush=True)
    worst = max(found, key=lambda pair: abs(pair.difference))
    print(f"Largest difference: {worst.row()}", file=sys.stderr)
    return int(np.any([not pair.agrees for pair in found]))


if __name__ == "__main__":
    sys.exit(main())
