"""The second verb: tune a policy's parameters by gradient, and say how far from the optimum the result is."""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float64

from ._ascent import Ascent, Check, Climb
from ._checkpoint import Checkpoint
from ._engine.cluster import ClusterEngine
from ._engine.steppers import Exact
from ._errors import InputError
from ._gradient.base import AbstractGradient, Experiment, Objective
from ._gradient.finite_difference import FiniteDifference
from ._gradient.flow_balance import FREEDOM
from ._gradient.pathwise import Pathwise
from ._gradient.score_function import ScoreFunction
from ._instance import Instance
from ._policy.base import Policy
from ._policy.parameters import parameters
from ._policy.policy_file import save_policy
from ._policy.random_choice import is_random
from ._race import Pick, Race
from ._search import Search
from ._statistics import Estimate
from ._time_scale import slowest_time
from ._versions import versions

LEARNING_RATE = (0.5, 0.05)
"""Of the default optimiser, in units of `parameter_scales` a step; and what part of it is left at the end."""

FEW_CLASSES = 2
"""Classes up to which the learning rate is as above; with more it falls with the root of their number, since
the parameters of all of them move at once, and most by chance."""

TRAINING_GPUS, VALIDATION_GPUS = (20, 50), (50, 500)
"""Larger clusters are trained and validated at a size between these: parameters mean the same at every
size."""

LIFETIMES = 2.0
"""Warm-up, and time measured in a training run, in units of the slowest mean time in the system."""

FINAL_LIFETIMES = (1.0, 8.0)
"""Time measured for the final figure, likewise: at least, and at most."""

GRADIENTS = ("score-function", "pathwise", "finite-difference")
"""The gradients that are sized to the cluster when asked for by name."""

DIRECTIONS = 16
"""Of finite differences, when sized to the cluster."""

TRAINING_GPU_RUNS, TRAINING_EVENTS = 6_400, 1e7
"""A gradient that is sized to the cluster: GPUs times runs, and events in all its runs, about."""

TRAINING_REPLICATIONS = (32, 512)
"""Of the score function, when sized to the cluster: at least, and at most."""

PATHWISE_COST = 8
"""By so much fewer are the replications of the pathwise gradient: each takes longer."""

STEPS, STEP_EVENTS = (32, 192), 1.3e6
"""Steps at least and at most, and what they may cost: events one after another in all of them, about."""

VALIDATION_GPU_RUNS, VALIDATION_RUNS = 6_400, 64
"""GPUs times replications in a check, about; and replications, at least."""

TRAINING_SUCCESSION, CHECK_SUCCESSION, FINAL_SUCCESSION = 8e4, 2e5, 5.2e5
"""Events one after another in a replication, about: of a training run, of a check and of the final figure.
Clusters with more are trained and checked at a smaller size, and in the end measured for less time, or at a
smaller size where that is not enough."""

FINAL_EVENTS = 3e7
"""Of each policy in the final figure, in all replications, about."""

FINAL_REPLICATIONS = (4, 512)
"""At least, and at most."""

Progress = Callable[[str, int, int, Check | None], None]


@dataclass(frozen=True)
class Tuned:
    """What `tune` found.

    - `policy`: the best policy on the validation replications; `start`: where its climb began.
    - `value`: its value with `Exact`, on replications that played no part in tuning; `start_value`: that of
      the start, and `gain`: the paired difference.
    - `final`: the experiment that gave these, for valuing other policies on the same replications;
      `final_values`: the value in each of them.
    - `history`: the checks of each start's climb, in the order given.
    - `notes`: what went wrong on the way and was put right, such as a gradient that was not finite.
    - `training`: how it was tuned, as the policy file tells it.
    - `seconds`: wall-clock time.
    """

    policy: Policy
    start: Policy
    value: Estimate
    start_value: Estimate
    gain: Estimate
    final: Experiment
    final_values: Float64[np.ndarray, " replications"]
    history: tuple[tuple[Check, ...], ...]
    notes: tuple[str, ...]
    training: dict[str, Any]
    seconds: float

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the policy to a `.json` file that `load_policy` and `--policy FILE` accept.

        **Raises:** `InputError` as `jaxq.policies.save_policy`.
        """
        save_policy(self.policy, path, self.final.instance, self.training)


def tune(
    instance: Instance,
    starts: Policy | Sequence[Policy],
    *,
    n_gpus: int,
    objective: str | Objective = "bundled",
    gradient: AbstractGradient | str | None = None,
    optimizer: optax.GradientTransformation | None = None,
    steps: int | None = None,
    key: int = 0,
    search: Search | None = None,
    engine: ClusterEngine | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Tuned:
    """Climb from each start by stochastic gradient, and keep the best policy met on the way.

    Any policy will do: its floating-point arrays are its parameters (`jaxq.policies.parameters`), but for
    those in a `jaxq.policies.Fixed`. Training, validation and the final figure use disjoint random numbers.
    Slopes come from a cluster of at most 50 GPUs, and the final figure from one that can be afforded
    (`Tuned.final.n_gpus`).

    **Arguments:**

    - `starts`: one policy, or several, of which the best go on.
    - `n_gpus`: GPUs of the cluster for which it is tuned.
    - `objective`: `"bundled"`, `"separate"` or a function of a `Result` that returns one number a
      replication.
    - `gradient`: how slopes are estimated: one of `jaxq`'s gradients, or its name (`"score-function"`,
      `"pathwise"`, `"finite-difference"`) to have it sized to the cluster. None: the score function where
      the starts draw at random from chances that they state, as `feedback` and `neural` do; else finite
      differences.
    - `optimizer`: how slopes are followed; Adam when None. It works in units of `parameter_scales`.
    - `steps`: at most so many; 32 to 192 when None, more where they are quick.
    - `key`: a whole number; the same key, the same result.
    - `search`: how many starts climb, how often they are checked, when they end.
    - `engine`: for training and validation; `Exact` when None, as the final figure always is.
    - `checkpoint`: a file that is written after every check, and from which an interrupted tuning goes on to
      the same result, bit for bit; the one before it stays beside it. Damaged ones are named by a
      `StoreWarning`, set aside, and what they held is computed again.
    - `progress`: called with (start, step, steps, the check just made or None).

    **Raises:** `InputError` for no start, a start without parameters, a number out of range, or a checkpoint
    of another tuning or another version of jaxq; `SimulationError` when the disk is full.
    """
    starts = [starts] if isinstance(starts, Policy) else list(starts)
    begin = time.perf_counter()
    search = search or Search()
    training, validation, final = _experiments(instance, n_gpus, objective, engine, key, search.scale)
    steps = _default_steps(training) if steps is None else steps
    _check(starts, steps)
    search = search.sized(steps, _check_replications(validation), _final_replications(final))
    gradient = _gradient(gradient, training, starts, search.scale)
    optimizer = optimizer or _default_optimizer(steps, instance.n_classes)
    ascent = Ascent(training, validation, gradient, optimizer, search)
    told = _told(ascent, starts, n_gpus, steps, key)
    climbs = [ascent.begin(start, f"{start.name} [{k + 1}/{len(starts)}]") for k, start in enumerate(starts)]
    store = None if checkpoint is None else Checkpoint(Path(checkpoint), told)
    report = _Reporter(climbs, steps, store, progress)
    report.restore()
    best = Race(ascent, steps).run(climbs, report)
    return _valued(best, climbs, final, told, begin)


@dataclass(frozen=True)
class _Reporter:
    """Keeps all climbs in a file after every check of one, and tells how it stands."""

    climbs: list[Climb]
    steps: int
    store: Checkpoint | None
    progress: Progress | None

    def restore(self) -> None:
        """Bring the climbs to where the file left them."""
        if self.store is not None:
            self.store.load(self.climbs)

    def __call__(self, climb: Climb) -> None:
        last = climb.checks[-1] if climb.checks[-1].step == climb.step else None
        if last is not None and self.store is not None:
            self.store.save(self.climbs)
        if self.progress is not None:
            self.progress(climb.label, climb.step, self.steps, last)


def _valued(best: Pick, climbs: list[Climb], final: Experiment, told: dict[str, Any], begin: float) -> Tuned:
    """The best policy met, valued on replications that played no part in tuning."""
    start = climbs[best.start].start
    policy = replace(best.policy, name=f"tuned {start.name}")
    before, after = final.values([start, policy], told["search"]["final_replications"])
    return Tuned(
        policy=policy,
        start=start,
        value=Estimate.from_samples(after),
        start_value=Estimate.from_samples(before),
        gain=Estimate.from_samples(after - before),
        final=final,
        final_values=after,
        history=tuple(tuple(climb.checks) for climb in climbs),
        notes=tuple(note for climb in climbs for note in climb.notes),
        training=told | {"sharpened": best.factor},
        seconds=time.perf_counter() - begin,
    )


def _gradient(
    given: AbstractGradient | str | None, training: Experiment, starts: Sequence[Policy], scale: float = 1.0
) -> AbstractGradient:
    """The gradient that is asked for; by name or None, with as many replications as fit the cluster."""
    if isinstance(given, AbstractGradient):
        return given
    if given is not None and given not in GRADIENTS:
        raise InputError(f"gradient: expected {', '.join(GRADIENTS)}, got {given!r}")
    drawn = all(is_random(start.gate) and is_random(start.router) for start in starts)
    runs = min(TRAINING_GPU_RUNS / training.n_gpus, scale * TRAINING_EVENTS / _events(training))
    if given == "score-function" or (given is None and drawn):
        return ScoreFunction(replications=int(np.clip(round(runs), *TRAINING_REPLICATIONS)))
    if given == "pathwise":
        least, most = (bound // PATHWISE_COST for bound in TRAINING_REPLICATIONS)
        # An even number, which two devices can share.
        return Pathwise(replications=2 * int(np.clip(round(runs / PATHWISE_COST), least, most) // 2))
    # Enough to fit the weights of flow balance.
    least = 1 + math.ceil(2 * FREEDOM * training.instance.n_classes / DIRECTIONS)
    return FiniteDifference(directions=DIRECTIONS, replications=max(least, round(runs / (2 * DIRECTIONS))))


def _default_steps(training: Experiment) -> int:
    """More steps on small clusters, whose runs are quick."""
    return int(np.clip(round(STEP_EVENTS / _events(training)), *STEPS))


def _default_optimizer(steps: int, classes: int) -> optax.GradientTransformation:
    """Adam for so many classes, with steps that shrink along a cosine."""
    rate, left = LEARNING_RATE
    rate *= math.sqrt(FEW_CLASSES / max(FEW_CLASSES, classes))
    return optax.adam(optax.cosine_decay_schedule(rate, steps, left), b2=0.99)


def _experiments(
    instance: Instance,
    n_gpus: int,
    objective: str | Objective,
    engine: ClusterEngine | None,
    key: int,
    scale: float = 1.0,
) -> tuple[Experiment, Experiment, Experiment]:
    """Training, validation and the final figure, each with random numbers of its own."""
    lifetime = slowest_time(instance)
    warmup = LIFETIMES * lifetime
    keys = [jax.random.fold_in(jax.random.key(key), part) for part in range(3)]
    engine = engine or ClusterEngine(Exact())
    whole = Experiment(instance, n_gpus, 2 * warmup, warmup, objective, engine, keys[0])
    training = replace(whole, n_gpus=_size(whole, scale * TRAINING_SUCCESSION, *TRAINING_GPUS))
    checked = _size(whole, scale * CHECK_SUCCESSION, *VALIDATION_GPUS)
    validation = replace(whole, n_gpus=checked, key=keys[1])
    least, most = (warmup + lifetimes * lifetime for lifetimes in FINAL_LIFETIMES)
    shortest = replace(whole, horizon=least, engine=ClusterEngine(Exact()), key=keys[2])
    events = scale * FINAL_SUCCESSION
    final = replace(shortest, n_gpus=_size(shortest, events, 1, n_gpus))
    final = replace(final, horizon=float(np.clip(events / _events(final) * least, least, most)))
    return training, validation, final


def _size(experiment: Experiment, events: float, least: int, most: int) -> int:
    """GPUs with which it has so many events in a replication, about, within bounds; no more than it has."""
    affordable = round(events * experiment.n_gpus / _events(experiment))
    return min(experiment.n_gpus, int(np.clip(affordable, least, most)))


def _check_replications(validation: Experiment) -> int:
    """A multiple of 8, more on smaller clusters."""
    return max(VALIDATION_RUNS, 8 * max(1, round(VALIDATION_GPU_RUNS / (8 * validation.n_gpus))))


def _final_replications(final: Experiment) -> int:
    """As many as `FINAL_EVENTS` allow."""
    least, most = FINAL_REPLICATIONS
    return int(np.clip(round(FINAL_EVENTS / _events(final)), least, most))


def _events(experiment: Experiment) -> float:
    """Events of one replication, about: every request makes four."""
    rate = experiment.n_gpus * float(np.sum(experiment.instance.workload.arrival_rate))
    return 4 * rate * experiment.horizon


def _told(ascent: Ascent, starts: Sequence[Policy], n_gpus: int, steps: int, key: int) -> dict[str, Any]:
    """How a tuning is done, as JSON holds it: two that tell the same give the same result.

    A function as objective is told by its name alone: what it computes cannot be compared.
    """
    objective = ascent.training.objective
    name = objective if isinstance(objective, str) else getattr(objective, "__qualname__", "a function")
    return {
        "instance": ascent.training.instance.fingerprint(),
        "gpus": n_gpus,
        "training_gpus": ascent.training.n_gpus,
        "validation_gpus": ascent.validation.n_gpus,
        "objective": name,
        "starts": [start.name for start in starts],
        "start_parameters": [parameters(start).tolist() for start in starts],
        "gradient": str(ascent.gradient),
        "optimizer": _moves(ascent.optimizer),
        "engine": str(ascent.training.engine),
        "steps": steps,
        "search": dataclasses.asdict(ascent.search) | {"sharper": list(ascent.search.sharper)},
        "seed": key,
        "versions": versions(),
    }


def _moves(optimizer: optax.GradientTransformation) -> list[float]:
    """Two steps of an optimiser on a made-up slope, which tell it from others: it has no name to go by."""
    slope = jnp.asarray([1.0, -3.0], jnp.float32)
    memory, moves = optimizer.init(slope), []
    for size in (1.0, 0.5):
        move, memory = optimizer.update(size * slope, memory, slope)
        moves += np.asarray(move, np.float64).tolist()
    return moves


def _check(starts: Sequence[Policy], steps: int) -> None:
    """Refuse what cannot be tuned."""
    if not starts:
        raise InputError("starts: expected at least one policy")
    for start in starts:
        if not len(parameters(start)):
            raise InputError(
                f"starts: {start.name!r} has no parameters (floating-point arrays); start from "
                "jaxq.policies.feedback(instance), or give it some"
            )
    if not isinstance(steps, int) or steps < 1:
        raise InputError(f"steps: expected a whole number of at least 1, got {steps!r}")
