"""The second verb: tune a policy's parameters by gradient, and say how far from the optimum the result is."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ._engine.cluster import ClusterEngine
from ._engine.steppers import Exact, Leap
from ._errors import InputError
from ._gradient.base import AbstractGradient, Experiment, Objective
from ._gradient.finite_difference import FiniteDifference
from ._instance import Instance
from ._policy.base import Policy
from ._policy.parameters import Vector, parameter_scales, parameters, with_parameters
from ._statistics import Estimate

LEARNING_RATE = 0.5
"""Of the default optimiser, in units of `parameter_scales` a step."""

VALIDATION_REPLICATIONS = 64
FINAL_REPLICATIONS = 256

LIFETIMES = 2.0
"""Warm-up, and time measured in a training run, in units of the slowest mean time in the system."""

FINAL_LIFETIMES = 8.0
"""Time measured for the final figure, likewise."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Check:
    """A policy valued on the validation replications: after `step` steps, mean value and the half-width of
    its 95 % interval."""

    step: int
    value: float
    half_width: float


@dataclass(frozen=True)
class Tuned:
    """What `tune` found.

    - `policy`: the best policy on the validation replications; `start`: where its descent began.
    - `value`: its value with `Exact`, on replications that played no part in tuning; `start_value`: that of
      the start, and `gain`: the paired difference.
    - `history`: the checks of each start's descent, in the order given.
    - `notes`: what went wrong on the way and was put right, such as a gradient that was not finite.
    - `seconds`: wall-clock time.
    """

    policy: Policy
    start: Policy
    value: Estimate
    start_value: Estimate
    gain: Estimate
    history: tuple[tuple[Check, ...], ...]
    notes: tuple[str, ...]
    seconds: float


def tune(
    instance: Instance,
    starts: Policy | Sequence[Policy],
    *,
    n_gpus: int,
    objective: str | Objective = "bundled",
    gradient: AbstractGradient | None = None,
    optimizer: optax.GradientTransformation | None = None,
    steps: int = 40,
    check_every: int = 4,
    patience: int = 4,
    key: int = 0,
    engine: ClusterEngine | None = None,
    progress: Progress | None = None,
) -> Tuned:
    """Climb from each start by stochastic gradient, and keep the best policy met on the way.

    Any policy will do: its floating-point arrays are its parameters (`jaxq.policies.parameters`), but for
    those in a `jaxq.policies.Fixed`. Training, validation and the final figure use disjoint random numbers.

    **Arguments:**

    - `starts`: one policy, or several of which the best result is kept.
    - `n_gpus`: GPUs of the cluster on which it is tuned.
    - `objective`: `"bundled"`, `"separate"` or a function of a `Result` that returns one number a
      replication.
    - `gradient`, `optimizer`: how slopes are estimated and followed; simultaneous perturbation and Adam when
      None. The optimiser works in units of `parameter_scales`.
    - `steps`, `check_every`, `patience`: at most so many steps; how often the policy is valued on validation
      replications; after how many checks without a better value a descent ends.
    - `key`: a whole number; the same key, the same result.
    - `engine`: for training and validation; time steps (`Leap`) when None. The final figure is always from
      `Exact`.
    - `progress`: called with (what, done, total).

    **Raises:** `InputError` for no start, a start without parameters, or a number out of range.
    """
    starts = [starts] if isinstance(starts, Policy) else list(starts)
    _check(starts, steps, check_every, patience)
    begin = time.perf_counter()
    training, validation, final = _experiments(instance, n_gpus, objective, engine, key)
    ascent = _Ascent(
        training,
        validation,
        gradient or FiniteDifference(directions=16, replications=8),
        optimizer or optax.adam(LEARNING_RATE, b2=0.99),
        steps,
        check_every,
        patience,
    )
    climbs = [
        ascent.climb(start, f"{start.name} [{k + 1}/{len(starts)}]", progress)
        for k, start in enumerate(starts)
    ]
    best = int(np.argmax([climb.best.value for climb in climbs]))
    policy, start = climbs[best].policy, starts[best]
    before, after = final.values([start, policy], FINAL_REPLICATIONS)
    return Tuned(
        policy=policy,
        start=start,
        value=Estimate.from_samples(after),
        start_value=Estimate.from_samples(before),
        gain=Estimate.from_samples(after - before),
        history=tuple(tuple(climb.checks) for climb in climbs),
        notes=tuple(note for climb in climbs for note in climb.notes),
        seconds=time.perf_counter() - begin,
    )


def _experiments(
    instance: Instance, n_gpus: int, objective: str | Objective, engine: ClusterEngine | None, key: int
) -> tuple[Experiment, Experiment, Experiment]:
    """Training, validation and the final figure, each with random numbers of its own."""
    lifetime = slowest_time(instance)
    warmup = LIFETIMES * lifetime
    keys = [jax.random.fold_in(jax.random.key(key), part) for part in range(3)]
    engine = engine or ClusterEngine(Leap())
    training = Experiment(instance, n_gpus, 2 * warmup, warmup, objective, engine, keys[0])
    final = replace(
        training,
        horizon=warmup + FINAL_LIFETIMES * lifetime,
        engine=ClusterEngine(Exact()),
        key=keys[2],
    )
    return training, replace(training, key=keys[1]), final


def slowest_time(instance: Instance) -> float:
    """The longest mean time of one stage of a request, s: a prefill, a decode beside one, or patience."""
    patience = np.asarray(instance.workload.patience_rate)
    rates = [np.asarray(instance.mu_prefill), np.asarray(instance.mu_mixed), np.asarray(instance.mu_solo)]
    return float(1.0 / min(np.min(rates), np.min(patience[patience > 0], initial=np.inf)))


@dataclass
class _Climb:
    """Where one start has got to: `values` now, the best `policy` and its check, and what went wrong."""

    values: Vector
    policy: Policy
    best: Check
    checks: list[Check] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Ascent:
    """How every start climbs."""

    training: Experiment
    validation: Experiment
    gradient: AbstractGradient
    optimizer: optax.GradientTransformation
    steps: int
    check_every: int
    patience: int

    def climb(self, start: Policy, label: str, progress: Progress | None) -> _Climb:
        """Follow the gradient from one start; ends early when the best check is `patience` checks old."""
        scales = parameter_scales(start)
        first = self.value(start, 0)
        climb = _Climb(parameters(start), start, first, [first])
        memory = self.optimizer.init(jnp.zeros(len(scales), jnp.float32))
        for step in range(self.steps):
            here = with_parameters(start, climb.values)
            found = self.gradient.estimate(self.training, here, step * self.gradient.replications_used())
            slope = found.gradient * scales
            if not np.isfinite(slope).all():
                climb.notes.append(
                    f"{label}, step {step + 1}: the gradient was not finite; back to the best so far"
                )
                climb.values = parameters(climb.policy)
                memory = self.optimizer.init(jnp.zeros(len(scales), jnp.float32))
                continue
            # Optimisers descend.
            move, memory = self.optimizer.update(jnp.asarray(-slope, jnp.float32), memory)
            climb.values = climb.values + scales * np.asarray(move, np.float64)
            climb.values = parameters(with_parameters(start, climb.values))
            if progress is not None:
                progress(label, step + 1, self.steps)
            if (step + 1) % self.check_every == 0 or step + 1 == self.steps:
                self.check(climb, start, step + 1)
                best = max(range(len(climb.checks)), key=lambda k: climb.checks[k].value)
                if len(climb.checks) - 1 - best >= self.patience:
                    break
        return climb

    def check(self, climb: _Climb, start: Policy, step: int) -> None:
        """Value the present policy, and keep it if it is the best."""
        policy = with_parameters(start, climb.values)
        found = self.value(policy, step)
        climb.checks.append(found)
        if found.value > climb.best.value:
            climb.policy, climb.best = policy, found

    def value(self, policy: Policy, step: int) -> Check:
        """A policy on the validation replications."""
        estimate = Estimate.from_samples(self.validation.values([policy], VALIDATION_REPLICATIONS)[0])
        return Check(step, float(estimate.mean), float(estimate.half_width))


def _check(starts: Sequence[Policy], steps: int, check_every: int, patience: int) -> None:
    """Refuse what cannot be tuned."""
    if not starts:
        raise InputError("starts: expected at least one policy")
    for start in starts:
        if not len(parameters(start)):
            raise InputError(
                f"starts: {start.name!r} has no parameters (floating-point arrays); start from "
                "jaxq.policies.feedback(instance), or give it some"
            )
    for name, value in (("steps", steps), ("check_every", check_every), ("patience", patience)):
        if not isinstance(value, int) or value < 1:
            raise InputError(f"{name}: expected a whole number of at least 1, got {value!r}")
