"""What every stepper of the cluster engine shares: the instance's numbers, the totals, the observation."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped, UInt32

from .._instance import Instance
from .._policy.base import Observation, Policy, Pool
from .random import Generator
from .shape import Shape

PerClass = Int[Array, "classes replications"]


class Numbers(eqx.Module):
    """The numbers of one run, as float32 with a trailing axis for replications: nothing here is a shape.

    That axis has length 1 for what all replications share. `n_gpus` n, `mixed_gpus` M (n without a
    partition), `batch_size` B; rates of each class in 1/s, `arrival_rate` of the whole cluster;
    `mean_interarrival_time` in s: the reciprocal of their sum, taken on the host, since a compiler may or
    may not replace a division by it.
    """

    n_gpus: Int[Array, " #replications"]
    mixed_gpus: Int[Array, " #replications"]
    batch_size: Int[Array, " #replications"]
    arrival_rate: Float[Array, "classes #replications"]
    mean_interarrival_time: Float[Array, " #replications"]
    patience_rate: Float[Array, "classes #replications"]
    mu_prefill: Float[Array, "classes #replications"]
    mu_mixed: Float[Array, "classes #replications"]
    mu_solo: Float[Array, "classes #replications"]

    @property
    def solo_capacity(self) -> Int[Array, " #replications"]:
        """Decode slots of the solo group, B (n - M)."""
        return self.batch_size * (self.n_gpus - self.mixed_gpus)


def numbers_of(instance: Instance, n_gpus: int, mixed_gpus: int | np.ndarray) -> Numbers:
    """Lower an instance to the engine's precision; `mixed_gpus` may differ between replications."""
    return numbers_of_several([instance], np.asarray([n_gpus]), np.atleast_1d(mixed_gpus))


def numbers_of_several(
    instances: Sequence[Instance], n_gpus: np.ndarray, mixed_gpus: np.ndarray, lanes: np.ndarray | None = None
) -> Numbers:
    """Lower clusters to the engine's precision.

    `lanes` says which of them each replication is of; `mixed_gpus` is by replication.
    """
    lanes = np.arange(len(instances)) if lanes is None else lanes

    def columns(rows: list[Any]) -> Array:
        return jnp.asarray(np.stack(rows, axis=-1, dtype=np.float64)[..., lanes], jnp.float32)

    rates = [
        n * np.asarray(instance.workload.arrival_rate, np.float64)
        for instance, n in zip(instances, n_gpus, strict=True)
    ]
    return Numbers(
        n_gpus=jnp.asarray(n_gpus[lanes], jnp.int32),
        mixed_gpus=jnp.asarray(mixed_gpus, jnp.int32),
        batch_size=jnp.asarray([int(instances[k].batch_size) for k in lanes], jnp.int32),
        arrival_rate=columns(rates),
        mean_interarrival_time=columns([1.0 / rate.sum() for rate in rates]),
        patience_rate=columns([instance.workload.patience_rate for instance in instances]),
        mu_prefill=columns([instance.mu_prefill for instance in instances]),
        mu_mixed=columns([instance.mu_mixed for instance in instances]),
        mu_solo=columns([instance.mu_solo for instance in instances]),
    )


def unlabelled(policy: Policy) -> Policy:
    """The policy without name and recipe, so that policies that act alike share a compiled program."""
    return dataclasses.replace(policy, name="", recipe=None)


def device_policy(policy: Policy, *others: Policy, lanes: np.ndarray | None = None) -> Policy:
    """The gate and the router with float32 arrays and a trailing axis for replications.

    Of length one for a single policy; of several, `lanes` says which one each replication follows. The
    partition stays on the host: engines see its size as `Numbers.mixed_gpus`.
    """

    def lower(*leaves: Any) -> Any:
        if not isinstance(leaves[0], float | int | np.ndarray | np.generic | jax.Array):
            return leaves[0]
        array = np.stack([np.asarray(leaf) for leaf in leaves], axis=-1)
        array = array if lanes is None else array[..., lanes]
        return jnp.asarray(array, jnp.float32 if np.issubdtype(array.dtype, np.floating) else None)

    parts = [(p.gate, p.router) for p in (policy, *others)]
    gate, router = jax.tree.map(lower, *parts)
    return eqx.tree_at(lambda p: (p.gate, p.router), unlabelled(policy), (gate, router))


class Totals(eqx.Module):
    """Counts of events and time integrals of the state since the start of a window, by class and replication.

    Counts are int32, integrals float32 in seconds; windows are short enough for both, and the host adds
    them up in float64. `scores`, where they are asked for: the sums over all random decisions of
    d/dtheta log(chance), by parameter and replication.
    """

    arrivals: PerClass
    abandoned_prefill: PerClass
    prefills_completed: PerClass
    abandoned_decode: PerClass
    completions: PerClass
    prefills: Float[Array, "classes replications"]
    decodes_mixed: Float[Array, "classes replications"]
    decodes_solo: Float[Array, "classes replications"]
    prefill_queue: Float[Array, "classes replications"]
    decode_queue: Float[Array, "classes replications"]
    events: Int[Array, " replications"]
    scores: Float[Array, "parameters replications"] | None = None

    @classmethod
    def zeros(cls, n_classes: int, replications: int, scores: int = 0) -> Totals:
        """Nothing counted yet."""
        count = jnp.zeros((n_classes, replications), jnp.int32)
        time = jnp.zeros((n_classes, replications), jnp.float32)
        events = jnp.zeros(replications, jnp.int32)
        rows = jnp.zeros((scores, replications), jnp.float32) if scores else None
        return cls(count, count, count, count, count, time, time, time, time, time, events, rows)


class Levels(eqx.Module):
    """The numbers in each stage at one moment, by class and replication."""

    prefills: PerClass
    decodes_mixed: PerClass
    decodes_solo: PerClass
    prefill_queue: PerClass
    decode_queue: Int[Array, "buffers classes replications"]

    def observe(self, numbers: Numbers, idle: Array, available: list[Array]) -> Observation:
        """What the policy sees."""
        shape = self.prefills.shape[1:]
        rows = [jnp.broadcast_to(row, shape).astype(jnp.int32) for row in available]
        return Observation(
            n_gpus=numbers.n_gpus,
            mixed_gpus=numbers.mixed_gpus,
            prefills=self.prefills,
            decodes_mixed=self.decodes_mixed,
            decodes_solo=self.decodes_solo,
            prefill_queue=self.prefill_queue,
            decode_queue=self.decode_queue,
            idle_prefill_slots=idle,
            available=jnp.stack(rows),
        )


class AbstractChain(eqx.Module):
    """One policy on one instance: all that stays the same from step to step of a stepper.

    `keys`: two random words of each replication.
    """

    policy: Policy
    numbers: Numbers
    keys: UInt32[Array, "2 replications"]
    shape: Shape = eqx.field(static=True)
    generator: Generator = eqx.field(static=True)

    def once(self, values: Any) -> Any:
        """The same values, but computed once on a CPU however many later expressions use them.

        XLA's CPU backend repeats cheap producers in every fused loop that reads them: a random word and a
        draw among ten rates would be evaluated again for each of dozens of results, which costs a factor of
        ten. A conditional ends a fused loop; its condition always holds, which the compiler cannot know.
        """
        always = self.numbers.n_gpus[0] > 0

        def on_cpu(tree: Any) -> Any:
            return jax.lax.cond(always, lambda t: t, lambda t: jax.tree.map(jnp.zeros_like, t), tree)

        return jax.lax.platform_dependent(values, cpu=on_cpu, default=lambda tree: tree)


def integrate(totals: Totals, levels: Levels, elapsed: Float[Array, "*#replications"]) -> Totals:
    """The totals after `elapsed` seconds in a state."""
    waiting = levels.decode_queue
    queued = class_sum(waiting) if waiting.shape[0] else jnp.zeros_like(levels.prefills)
    return dataclasses.replace(
        totals,
        prefills=totals.prefills + elapsed * levels.prefills,
        decodes_mixed=totals.decodes_mixed + elapsed * levels.decodes_mixed,
        decodes_solo=totals.decodes_solo + elapsed * levels.decodes_solo,
        prefill_queue=totals.prefill_queue + elapsed * levels.prefill_queue,
        decode_queue=totals.decode_queue + elapsed * queued,
    )


def gpu_pools(policy: Policy) -> tuple[Pool, ...]:
    """The router's pools that are sets of single GPUs."""
    return tuple(p for p in policy.router.pools if p in (Pool.MIXED, Pool.WITH_PREFILL, Pool.WITHOUT_PREFILL))


def choose_start(
    policy: Policy, observation: Observation, uniform: Float[Array, " replications"]
) -> Int[Array, " replications"]:
    """The class that the gate starts next; the number of classes if it starts none."""
    scores = policy.gate.scores(observation, uniform)
    scores = jnp.where(observation.prefill_queue > 0, scores, -jnp.inf)
    best, choice = scores[0], jnp.zeros(scores.shape[1:], jnp.int32)
    for i in range(1, scores.shape[0]):
        better = scores[i] > best
        best, choice = jnp.where(better, scores[i], best), jnp.where(better, i, choice)
    return jnp.where(best > -jnp.inf, choice, scores.shape[0])


def choose_pool(
    policy: Policy, observation: Observation, request_class: Array, uniform: Array
) -> Int[Array, " replications"]:
    """The index of the pool that the router prefers among those with room; the number of pools if none."""
    scores = policy.router.preferences(observation, request_class, uniform)
    scores = jnp.where(observation.available > 0, scores, -jnp.inf)
    best, choice = (
        jnp.full(scores.shape[1:], -jnp.inf),
        jnp.full(scores.shape[1:], scores.shape[0], jnp.int32),
    )
    for i in range(scores.shape[0]):
        better = scores[i] > best
        best, choice = jnp.where(better, scores[i], best), jnp.where(better, i, choice)
    return choice


def draw(
    weights: Float[Array, "choices replications"] | list[Array], uniform: Float[Array, " replications"]
) -> tuple[Int[Array, " replications"], Float[Array, " replications"]]:
    """An index drawn in proportion to `weights`, and their sum; an index of positive weight if the sum is
    positive."""
    total = weights[0]
    for weight in weights[1:]:
        total = total + weight
    target = uniform * total
    upto, choice = jnp.zeros_like(total), jnp.zeros(total.shape, jnp.int32)
    found = jnp.zeros(total.shape, bool)
    for i, weight in enumerate(weights):
        upto = upto + weight
        positive = weight > 0
        choice = jnp.where(positive & ~found, i, choice)
        found = found | (positive & (target < upto))
    return choice, total


def one_hot(
    index: Int[Array, " replications"], n: int, where: Bool[Array, " replications"] | bool = True
) -> Array:
    """Integer indicator of `index` in n rows; all zero outside `where`, or where the index is n or more."""
    return ((jnp.arange(n)[:, None] == index) & where).astype(jnp.int32)


def class_sum(rows: Shaped[Array, "classes *batch"] | tuple[Array, ...] | list[Array]) -> Array:
    """The sum over classes, unrolled: one fused loop over replications instead of a reduction kernel."""
    total = rows[0]
    for row in rows[1:]:
        total = total + row
    return total
