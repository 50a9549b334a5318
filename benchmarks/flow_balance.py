"""How much noise flow balance takes out of values and of their differences.

Run it as `python -m benchmarks.flow_balance [--instances NAME,NAME]`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np

from jaxq._cli.environment import configure_jax

from .instances import FILES, studied_instance

STARTS = ("gate_and_route", "price_and_pack")
N_GPUS, DIRECTIONS, REPLICATIONS = 50, 16, 32


def row(name: str, start: str) -> str:
    """One line: by what factor variances within a direction, and of a value, fall."""
    from jaxq._engine.record import Record
    from jaxq._gradient.base import Experiment
    from jaxq._policy.feedback import starting_points
    from jaxq._policy.parameters import parameters, with_parameters
    from jaxq._time_scale import slowest_time

    instance = studied_instance(name)
    (policy,) = starting_points(instance, start, partition=False)
    lifetime = slowest_time(instance)
    experiment = Experiment(instance, N_GPUS, 4 * lifetime, 2 * lifetime)
    centre, rng = parameters(policy), np.random.default_rng(0)
    signs = rng.choice([-1.0, 1.0], (DIRECTIONS, len(centre)))
    moved = [with_parameters(policy, centre + sign * move) for move in signs for sign in (1, -1)]
    records: Sequence[Record] = experiment.engine.run_together(
        instance,
        moved,
        n_gpus=N_GPUS,
        horizon=experiment.horizon,
        warmup=experiment.warmup,
        key=experiment.key,
        replications=REPLICATIONS,
        n_windows=experiment.windows,
    )
    counted = np.stack([experiment.worth(experiment.result(policy, record)) for record in records])
    found = experiment.flow_values(moved, REPLICATIONS)
    differences = (counted[0::2] - counted[1::2]) / 2
    within = _variance(differences) / _variance(found.half_differences().steadied())
    value = _variance(counted) / _variance(found.steadied_alone())
    return f"| {name} | {start} | {within:.1f} | {value:.1f} |"


def _variance(values: np.ndarray) -> float:
    """Over replications, the median of the rows."""
    return float(np.median(values.var(axis=1, ddof=1)))


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.flow_balance", description=__doc__)
    parser.add_argument("--instances", default="reference", help=f"which, of {', '.join(FILES)}")
    options = parser.parse_args(arguments)
    configure_jax()
    print("| instance | start | differences: variance falls by a factor of | values |\n|---|---|---|---|")
    for name in options.instances.split(","):
        for start in STARTS:
            print(row(name, start), flush=True)


if __name__ == "__main__":
    main()
