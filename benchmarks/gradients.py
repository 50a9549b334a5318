"""Bias and noise of the gradient estimators at equal seconds of compute.

Run it as `python -m benchmarks.gradients` on an idle machine: it prints the table of `docs/tuning.md` and
draws `docs/images/gradients.svg`. Each estimator is sized to the cluster as `jaxq tune` sizes it, and run 24
times with fresh random numbers. What it is compared with is exact where that can be had.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jaxq._cli.environment import configure_jax

from .instances import ROOT, studied_instance

if TYPE_CHECKING:
    from jaxq import Policy
    from jaxq._gradient.base import AbstractGradient, Experiment

COLOURS = {
    "score function": "#0072B2",
    "score function, twice the credit": "#56B4E9",
    "pathwise": "#009E73",
    "simultaneous perturbation": "#D55E00",
}
"""The estimators, and how they are drawn."""

PARAMETERS = (
    "gate.priority[0]",
    "gate.bid_price",
    "gate.log_queue",
    "gate.start[0]",
    "router.preference[0]",
    "router.beside_prefill[1]",
)
RUNS = 24
STEP, PRECISE_REPLICATIONS = 0.25, 4_096
"""Of the central differences that estimates are compared with where nothing is known exactly."""


@dataclass(frozen=True)
class System:
    """A policy and how it is valued; `names`, `slopes`, `errors`: the parameters that are compared, their
    slopes, and the standard errors of these."""

    label: str
    experiment: Experiment
    policy: Policy
    names: Sequence[str]
    slopes: np.ndarray
    errors: np.ndarray


def loss_system() -> System:
    """One GPU and nobody who waits (M/M/1/1), which a stream of rate l enters with the chance
    p = 1 / (1 + exp(-s)), s being `gate.start[0]`.

    With prefills of one second it carries a / (1 + a), a = l p.
    """
    import jaxq
    from jaxq.policies import feedback, parameter_names, parameters, with_parameters

    rate, log_odds = 0.9, 0.4
    workload = jaxq.Workload([256.0], [1.0], [rate], [2e4])
    hardware = jaxq.IterationTime(0.5, 0.5 / 256, 0.5)
    instance = jaxq.Instance(workload, hardware, jaxq.Pricing(0.1, 0.2), 32, 256, name="M/M/1/1")
    policy = feedback(instance, start="sarathi")
    names = parameter_names(policy)
    moved = np.where(np.asarray(names) == "gate.start[0]", log_odds, parameters(policy))
    chance = 1 / (1 + np.exp(-log_odds))
    slope = float(instance.request_value[0]) * rate * chance * (1 - chance) / (1 + rate * chance) ** 2
    found = (("gate.start[0]",), np.array([slope]), np.zeros(1))
    return System("M/M/1/1", _experiment(instance, 1), with_parameters(policy, moved), *found)


def tiny_system(seed: int) -> System:
    """One of the tiny clusters, whose revenue is known exactly."""
    import jaxq
    from jaxq._policy.feedback import starting_points
    from jaxq.policies import parameter_names, parameters, with_parameters

    from .tiny_instances import random_tiny_instance

    tiny = random_tiny_instance(seed)
    (policy,) = starting_points(tiny.instance, "price_and_pack")
    evaluator = jaxq.PolicyEvaluator(tiny.instance, tiny.n_gpus, queue_limit=tiny.queue_limit)
    index = [parameter_names(policy).index(name) for name in PARAMETERS]
    slopes = []
    for k in index:
        move = STEP * (np.arange(len(parameters(policy))) == k)
        up, down = (
            evaluator.value(with_parameters(policy, parameters(policy) + sign * move), scheme="bundled")
            for sign in (1, -1)
        )
        slopes.append((up - down) / (2 * STEP))
    found = (PARAMETERS, np.array(slopes), np.zeros(len(slopes)))
    return System(f"tiny {seed}, n = {tiny.n_gpus}", _experiment(tiny.instance, tiny.n_gpus), policy, *found)


def cluster_system(name: str, n_gpus: int, start: str) -> System:
    """A cluster too large for that: central differences of many replications."""
    from jaxq._gradient.finite_difference import slopes_across
    from jaxq._policy.feedback import starting_points
    from jaxq.policies import parameter_names

    instance = studied_instance(name)
    (policy,) = starting_points(instance, start, partition=False)
    experiment = _experiment(instance, n_gpus)
    names = parameter_names(policy)
    moves = STEP * np.eye(len(names))[[names.index(name) for name in PARAMETERS]]
    # Numbered far above the replications of the estimates.
    _, halves = slopes_across(experiment, policy, moves, PRECISE_REPLICATIONS, 1_000_000)
    slopes, errors = halves.mean(axis=1), halves.std(axis=1, ddof=1) / np.sqrt(PRECISE_REPLICATIONS)
    return System(
        f"{name}, n = {n_gpus}, {start}", experiment, policy, PARAMETERS, slopes / STEP, errors / STEP
    )


def _experiment(instance: object, n_gpus: int) -> Experiment:
    from jaxq._tune import _experiments

    return _experiments(instance, n_gpus, "bundled", None, 0)[0]  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True)
class Measured:
    """Per parameter, in % of the value: the mean error with its standard error, and the standard deviation
    that an estimate of one second would have; `seconds`: what an estimate takes."""

    bias: np.ndarray
    bias_error: np.ndarray
    noise: np.ndarray
    seconds: float

    @property
    def error(self) -> float:
        """Root mean square error of one second, over the parameters."""
        return float(np.sqrt(np.mean(self.bias**2 + self.noise**2)))


def estimators(system: System) -> dict[str, AbstractGradient]:
    """As `jaxq tune` sizes them."""
    from jaxq._time_scale import slowest_time
    from jaxq._tune import _gradient

    score, pathwise, difference = (
        _gradient(name, system.experiment, [system.policy])
        for name in ("score-function", "pathwise", "finite-difference")
    )
    patient = dataclasses.replace(score, credit=2 * slowest_time(system.experiment.instance))
    return dict(zip(COLOURS, (score, patient, pathwise, difference), strict=True))


def measure(system: System, gradient: AbstractGradient) -> Measured:
    """Run an estimator many times."""
    from jaxq.policies import parameter_names

    index = [parameter_names(system.policy).index(name) for name in system.names]
    found, seconds = [], []
    for run in range(RUNS + 1):
        began = time.perf_counter()
        estimate = gradient.estimate(system.experiment, system.policy, run * gradient.replications_used())
        seconds.append(time.perf_counter() - began)
        found.append(np.append(estimate.gradient[index], estimate.value))
    found, second = np.array(found[1:]), float(np.median(seconds[1:]))  # the first one compiles
    percent = 100 / found[:, -1].mean()
    slopes = found[:, :-1]
    spread = slopes.std(axis=0, ddof=1)
    return Measured(
        bias=percent * (slopes.mean(axis=0) - system.slopes),
        bias_error=percent * np.hypot(spread / np.sqrt(RUNS), system.errors),
        noise=percent * spread * np.sqrt(second),
        seconds=second,
    )


def draw(results: dict[str, dict[str, Measured]], path: Path) -> None:
    """Root mean square error of one second, by system and estimator."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for (estimator, colour), marker in zip(COLOURS.items(), "os^D", strict=True):
        errors = [measured[estimator].error for measured in results.values()]
        axes.plot(errors, range(len(results)), marker, color=colour, label=estimator)
    axes.set_yticks(range(len(results)), [label.replace("0, ", "0,\n") for label in results])
    axes.set_ylim(len(results) - 0.5, -0.5)
    axes.set_xscale("log")
    axes.grid(axis="y", color="0.9")
    axes.set_xlabel("error from one second of compute, % of the value")
    figure.legend(loc="outside upper center", frameon=False)
    figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table and draw the picture."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gradients", description=__doc__)
    parser.add_argument("--figure", type=Path, default=ROOT / "docs" / "images" / "gradients.svg")
    options = parser.parse_args(arguments)
    configure_jax()
    systems = [
        loss_system(),
        tiny_system(11),
        cluster_system("reference", 10, "gate_and_route"),
        cluster_system("overload", 10, "price_and_pack"),
        cluster_system("reference", 50, "gate_and_route"),
    ]
    print("| system | parameter | slope | " + " | ".join(f"{name}: bias | noise" for name in COLOURS) + " |")
    print("|---" * (3 + 2 * len(COLOURS)) + "|")
    results = {}
    for system in systems:
        results[system.label] = {
            name: measure(system, gradient) for name, gradient in estimators(system).items()
        }
        value = system.experiment.value(system.policy, 64).mean()
        for k, name in enumerate(system.names):
            cells = [system.label, f"`{name}`", f"{100 * system.slopes[k] / value:+.3f}"]
            for of in results[system.label].values():
                cells += [f"{of.bias[k]:+.3f} ± {1.96 * of.bias_error[k]:.3f}", f"{of.noise[k]:.3f}"]
            print(f"| {' | '.join(cells)} |", flush=True)
    for label, measured in results.items():
        times = ", ".join(f"{name} {of.error:.3f} ({of.seconds:.2f} s)" for name, of in measured.items())
        print(f"{label}: error of one second {times}")
    draw(results, options.figure)


if __name__ == "__main__":
    main()
