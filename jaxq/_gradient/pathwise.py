"""The pathwise gradient: derivatives along the paths of a relaxed chain."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Float64

from .._engine.base import device_policy, numbers_of
from .._engine.random import replication_keys
from .._engine.record import COUNTS, FINAL, INTEGRALS, Record
from .._engine.score import policy_slopes
from .._errors import InputError
from .._policy.base import Policy
from .._policy.random_choice import AbstractRandomGate, AbstractRandomRouter, is_random
from .._time_scale import slowest_time
from .base import AbstractGradient, Experiment, GradientEstimate
from .by_chance import with_differences
from .finite_difference import CLIFF
from .flow_balance import expected_counts
from .relaxed_chain import RelaxedChain, RelaxedState, Sums

EVENTS_OF_A_REQUEST = 3
"""Arrival, end of prefill, end of decode."""

LEAST_EVENTS = 256.0
"""After the warm-up: a path ends after a number of events, and time averages over few of them are biased."""

USUAL = 0.98
"""The quantile of the sizes of a parameter's slopes that counts as usual."""

NUDGE = 1e-4
"""Part of an average by which it is moved to see how the objective hangs on it."""

Averages = Float64[np.ndarray, "stages classes replications"]


class Pathwise(AbstractGradient):
    """Derivatives along simulated paths, through choices that are relaxed (`RelaxedChain`).

    The path is one of the exact chain, so values are right; slopes are those of a smooth chain beside it
    (straight-through), with little noise and a bias: none where rates are linear in the state, more where
    it meets limits, such as full batches and empty queues. Time counts as its mean in each state. A window
    of a replication whose slope is far above the usual counts as little more than usual.

    A path is cut into windows of about `credit` seconds. The slope of what a window earns goes back to the
    start of the window before it, and memory holds no more than the states of a few hundred steps, however
    long the run.

    Parameters that do not act through random decisions get central finite differences, as with
    `ScoreFunction`.

    **Arguments:**

    - `temperature`: of relaxed choices: lower follows the state's effect on later decisions more closely,
      with more noise.
    - `credit`: s; None: the longest mean time of a stage of a request.
    - `replications`: of each run.
    - `straight_through`: if False, relaxed choices also go forward: a smooth system, whose values are not
      those of the cluster, and whose slopes grow without limit at low temperatures.
    - `step`: of the finite differences, in units of `parameter_scales`.

    **Raises:** `InputError` for a number out of range; when estimating, for a gate or a router that does not
    draw from stated chances, or a cluster that runs no prefill.
    """

    temperature: float = eqx.field(static=True, default=1.0)
    credit: float | None = eqx.field(static=True, default=None)
    replications: int = eqx.field(static=True, default=64)
    straight_through: bool = eqx.field(static=True, default=True)
    step: float = eqx.field(static=True, default=1.0)

    def __check_init__(self):
        for name in ("temperature", "credit", "step"):
            value = getattr(self, name)
            if value is not None and not (np.isfinite(value) and value > 0):
                raise InputError(f"{name}: expected a positive number, got {value:g}")
        if self.replications < 2:
            raise InputError(f"replications: expected at least 2, got {self.replications}")

    def replications_used(self) -> int:
        return self.replications

    def estimate(self, experiment: Experiment, policy: Policy, first: int = 0) -> GradientEstimate:
        chain = self._chain(experiment, policy, first)
        pieces = _Pieces.of(
            experiment, slowest_time(experiment.instance) if self.credit is None else self.credit
        )
        sums = jax.device_get(_spread(_path, chain, pieces))
        time = np.asarray(sums.time, np.float64)
        averages = np.asarray(sums.stages, np.float64) / time
        worth = functools.partial(_worth, experiment, policy)
        per_average = _slope(worth, averages)
        weights = Sums(
            time=jnp.asarray(-(per_average * averages).sum(axis=(0, 1)) / time, jnp.float32),
            stages=jnp.asarray(per_average / time, jnp.float32),
        )
        found = jax.device_get(_spread(_path_slopes, chain, pieces, weights))
        drawn = np.concatenate([policy_slopes(part, pieces.measured) for part in found], axis=1)
        slopes = with_differences(experiment, policy, _bounded(drawn).sum(axis=0), self.step, first)
        error = slopes.std(axis=1, ddof=1) / np.sqrt(self.replications)
        return GradientEstimate(float(worth(averages).mean()), slopes.mean(axis=1), error)

    def _chain(self, experiment: Experiment, policy: Policy, first: int) -> RelaxedChain:
        n_gpus = experiment.n_gpus
        if not (is_random(policy.gate) and is_random(policy.router)):
            raise InputError(
                f"policy {policy.name!r}: expected a gate and a router that draw from stated chances, as in "
                "jaxq.policies.feedback"
            )
        gpus = policy.mixed_gpus(n_gpus)
        if gpus == 0:
            raise InputError(f"policy {policy.name!r}: no GPU of {n_gpus} is in the mixed group")
        # Every replication has parameters of its own, so that each gives a slope.
        lowered = device_policy(policy, lanes=np.zeros(self.replications, int))
        return RelaxedChain(
            gate=cast(AbstractRandomGate, lowered.gate),
            router=cast(AbstractRandomRouter, lowered.router),
            numbers=numbers_of(experiment.instance, n_gpus, gpus),
            keys=replication_keys(experiment.key, first + np.arange(self.replications)),
            temperature=jnp.asarray(self.temperature, jnp.float32),
            gpus=gpus,
            route_first=policy.route_first,
            partitioned=policy.partition is not None,
            straight_through=self.straight_through,
        )


@dataclass(frozen=True)
class _Pieces:
    """A path in `windows` windows of `spans` spans of `steps` steps; the first `warmup` are not measured."""

    windows: int
    warmup: int
    spans: int
    steps: int

    @property
    def measured(self) -> int:
        """Windows that are measured."""
        return self.windows - self.warmup

    @classmethod
    def of(cls, experiment: Experiment, credit: float) -> _Pieces:
        rate = experiment.n_gpus * float(np.sum(experiment.instance.workload.arrival_rate))
        events = max(1.0, EVENTS_OF_A_REQUEST * rate * credit)
        spans = math.ceil(math.sqrt(events))
        warmup = max(1, math.ceil(experiment.warmup / credit - 1e-9))
        seconds = experiment.horizon - experiment.warmup
        measured = max(1, round(seconds / credit), math.ceil(LEAST_EVENTS / events))
        return cls(warmup + measured, warmup, spans, math.ceil(events / spans))


def _window(
    chain: RelaxedChain, pieces: _Pieces, state: RelaxedState, window: Array
) -> tuple[RelaxedState, Sums]:
    """One window on; differentiated, it keeps the state at the start of each span, and runs it again."""

    def one(carry: tuple[RelaxedState, Sums], index: Array) -> tuple:
        state, sums = carry
        state, added = chain.step(state, window, index)
        return (state, jax.tree.map(jnp.add, sums, added)), None

    @jax.checkpoint
    def span(carry: tuple[RelaxedState, Sums], number: Array) -> tuple:
        return jax.lax.scan(one, carry, number * pieces.steps + jnp.arange(pieces.steps))[0], None

    return jax.lax.scan(span, (state, _nothing(chain)), jnp.arange(pieces.spans))[0]


def _nothing(chain: RelaxedChain) -> Sums:
    replications = chain.keys.shape[1]
    stages = jnp.zeros((len(INTEGRALS), chain.classes, replications), jnp.float32)
    return Sums(jnp.zeros(replications, jnp.float32), stages)


def _path(chain: RelaxedChain, pieces: _Pieces) -> Sums:
    """The sums over the measured windows."""

    def window(carry: tuple[RelaxedState, Sums], number: Array) -> tuple:
        state, sums = carry
        state, added = _window(chain, pieces, state, number)
        kept = jax.tree.map(
            lambda total, new: jnp.where(number < pieces.warmup, total, total + new), sums, added
        )
        return (state, kept), None

    return jax.lax.scan(window, (chain.empty(), _nothing(chain)), jnp.arange(pieces.windows))[0][1]


def _path_slopes(chain: RelaxedChain, pieces: _Pieces, weights: Sums) -> Any:
    """The slopes of the weighted sums in each measured window, in the shape of the gate and the router."""
    changing, fixed = eqx.partition((chain.gate, chain.router), eqx.is_inexact_array)

    def two_windows(changing: Any, before: RelaxedState, number: Array) -> tuple:
        gate, router = eqx.combine(changing, fixed)
        moved = replace(chain, gate=gate, router=router)
        state, _ = _window(moved, pieces, before, number - 1)
        return _window(moved, pieces, state, number)[1], jax.lax.stop_gradient(state)

    def window(before: RelaxedState, number: Array) -> tuple[RelaxedState, Any]:
        _, pull, state = jax.vjp(lambda c: two_windows(c, before, number), changing, has_aux=True)
        return state, pull(weights)[0]

    def lead(state: RelaxedState, number: Array) -> tuple:
        return _window(chain, pieces, state, number)[0], None

    state = jax.lax.scan(lead, chain.empty(), jnp.arange(pieces.warmup - 1))[0]
    return jax.lax.scan(window, state, jnp.arange(pieces.warmup, pieces.windows))[1]


def _spread(work: Callable, chain: RelaxedChain, pieces: _Pieces, *more: Any) -> Any:
    """`work` on all devices that can have equally many replications."""
    devices = math.gcd(chain.keys.shape[1], len(jax.local_devices()))
    return _program(work, pieces, devices)(chain, *more)


@functools.lru_cache(maxsize=64)
def _program(work: Callable, pieces: _Pieces, devices: int) -> Callable:
    mesh = Mesh(np.asarray(jax.local_devices()[:devices]), ("replications",))

    def run(chain: RelaxedChain, *more: Any) -> Any:
        replications = chain.keys.shape[1]

        def spec(leaf: Any) -> PartitionSpec:
            own = leaf.ndim > 0 and leaf.shape[-1] == replications
            return PartitionSpec(*[None] * (leaf.ndim - 1), "replications") if own else PartitionSpec()

        given = (chain, *more)
        shapes = jax.eval_shape(lambda *given: work(given[0], pieces, *given[1:]), *given)
        return jax.shard_map(
            lambda *given: work(given[0], pieces, *given[1:]),
            mesh=mesh,
            in_specs=jax.tree.map(spec, given),
            out_specs=jax.tree.map(spec, shapes),
            check_vma=False,
        )(*given)

    return jax.jit(run)


def _bounded(
    slopes: Float[np.ndarray, "windows parameters replications"],
) -> Float64[np.ndarray, "windows parameters replications"]:
    """Slopes of windows, none above `CLIFF` times what is usual for the parameter; 0 where one overflowed,
    and not finite where more than a few did.

    A change that grows along a path says nothing of what a real one does, which soon meets a limit.
    """
    finite = np.isfinite(slopes)
    if finite.mean() < USUAL:
        return np.full(slopes.shape, np.nan)
    found = np.where(finite, slopes, 0.0).astype(np.float64)
    usual = CLIFF * np.quantile(np.abs(found), USUAL, axis=(0, 2))[None, :, None]
    limit = np.where(usual > 0, usual, np.inf)
    return np.clip(found, -limit, limit)


def _worth(
    experiment: Experiment, policy: Policy, averages: Averages
) -> Float64[np.ndarray, " replications"]:
    """The objective of a run in which the numbers in each stage have these averages."""
    _, classes, replications = averages.shape
    length = experiment.horizon - experiment.warmup
    none = np.zeros((1, classes, replications))
    record = Record(
        durations=np.array([length]),
        events=none[:, 0],
        final={name: np.zeros((classes, replications), np.int64) for name in FINAL},
        warmup_windows=0,
        n_gpus=experiment.n_gpus,
        **{name: none for name in COUNTS},
        **{name: length * row[None] for name, row in zip(INTEGRALS, averages, strict=True)},
    )
    return experiment.worth(experiment.result(policy, expected_counts(experiment.instance, record)))


def _slope(worth: Callable[[Averages], Float64[np.ndarray, " replications"]], averages: Averages) -> Averages:
    """How the objective hangs on each average, by central differences."""
    found = np.zeros_like(averages)
    for place in np.ndindex(averages.shape[:2]):
        move = np.zeros_like(averages)
        move[place] = NUDGE * (1.0 + averages[place])
        found[place] = (worth(averages + move) - worth(averages - move)) / (2 * move[place])
    return found
