"""The gates of [Lin26] section 4, and the bid-price gate: which waiting request starts its prefill."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from .base import AbstractGate, Observation
from .soft_choice import soft_choice, with_none

TIE = 1e-6
"""Relative difference below which two occupancy ratios count as tied."""

FAR_BEHIND = 1e6
"""In the fluid limit: what classes that the plan never starts are behind the others, in ratios X_i / x_i."""


class OccupancyGate(AbstractGate):
    """Starts the class whose running prefills are furthest below the plan ([Lin26] section 4.1).

    The order is that of X_i / x_i; ties within a relative 1e-6 go to the largest Q_p,i - n q_p,i, then to
    the lowest index. Classes with x_i = 0 come last. It never leaves a slot idle while someone waits.

    **Arguments:** `prefills`: the plan's x, per GPU; `prefill_queue`: the plan's q_p, per GPU.
    """

    prefills: Float[Any, "classes *batch"]
    prefill_queue: Float[Any, "classes *batch"]

    def scores(
        self, observation: Observation, uniform: Float[Array, "*batch"]
    ) -> Float[Array, "classes *batch"]:
        waiting = observation.prefill_queue > 0
        planned = jnp.where(self.prefills > 0, self.prefills, 1.0)
        ratio = jnp.where(self.prefills > 0, observation.prefills / planned, jnp.inf)
        least = jnp.min(jnp.where(waiting, ratio, jnp.inf), axis=0, keepdims=True)
        tied = waiting & (ratio <= least * (1 + TIE))
        excess = observation.prefill_queue - observation.n_gpus * self.prefill_queue
        return jnp.where(tied, excess, -jnp.inf)

    def chances(
        self, observation: Observation, width: Float[Array, ""]
    ) -> Float[Array, "classes_and_none *batch"]:
        planned, n = self.prefills > 0, observation.n_gpus
        ratio = observation.prefills / (n * jnp.where(planned, self.prefills, 1.0))
        excess = observation.prefill_queue / n - self.prefill_queue
        scores = jnp.where(planned, -ratio, jnp.arctan(excess) - FAR_BEHIND)
        scores = jnp.where(observation.prefill_queue > 0, scores, -jnp.inf)
        return with_none(soft_choice(scores, width, tie=0.0))


class QueueGate(AbstractGate):
    """Starts the class whose queue is furthest above the plan: the largest Q_p,i - n q_p,i.

    **Arguments:** `prefill_queue`: the plan's q_p, per GPU.
    """

    prefill_queue: Float[Any, "classes *batch"]

    def scores(
        self, observation: Observation, uniform: Float[Array, "*batch"]
    ) -> Float[Array, "classes *batch"]:
        return observation.prefill_queue - observation.n_gpus * self.prefill_queue

    def chances(
        self, observation: Observation, width: Float[Array, ""]
    ) -> Float[Array, "classes_and_none *batch"]:
        scores = observation.prefill_queue / observation.n_gpus - self.prefill_queue
        scores = jnp.where(observation.prefill_queue > 0, scores, -jnp.inf)
        return with_none(soft_choice(scores, width, tie=0.0))


class PriorityGate(AbstractGate):
    """Starts the class with the highest fixed priority: D_i / P_i for prioritize-and-route ([Lin26] section
    4.2), the bid price dR*/dlambda_i for price-and-pack.

    **Arguments:** `priority`: one number a class; ties go to the lowest index.
    """

    priority: Float[Any, "classes *batch"]

    def scores(
        self, observation: Observation, uniform: Float[Array, "*batch"]
    ) -> Float[Array, "classes *batch"]:
        return jnp.broadcast_to(self.priority, observation.prefill_queue.shape)


class FcfsGate(AbstractGate):
    """First come, first served over all classes.

    Engines that keep counts and not the order of arrival draw the class in proportion to the waiting
    numbers. With equal patience this changes no long-run average of the prefill queue; with unequal
    patience it changes the mix of classes (0.5 % of revenue has been seen).
    """

    def scores(
        self, observation: Observation, uniform: Float[Array, "*batch"]
    ) -> Float[Array, "classes *batch"]:
        return pick(jnp.asarray(observation.prefill_queue, float), uniform)

    def chances(
        self, observation: Observation, width: Float[Array, ""]
    ) -> Float[Array, "classes_and_none *batch"]:
        waiting = jnp.sum(observation.prefill_queue, axis=0)
        return with_none(observation.prefill_queue / jnp.where(waiting > 0, waiting, 1.0))


def pick(
    weights: Float[Array, "choices *batch"], uniform: Float[Array, "*batch"]
) -> Float[Array, "choices *batch"]:
    """Scores that make one choice the best: drawn in proportion to `weights`, which are at least 0."""
    target = uniform * jnp.sum(weights, axis=0)
    before = jnp.zeros_like(target)
    scores = []
    for weight in weights:
        after = before + weight
        scores.append(jnp.where((before <= target) & (target < after), 1.0, 0.0))
        before = after
    # Rounding can put the target at the total; every choice then scores 0, and the engine takes one that
    # waits.
    return jnp.stack(scores)
