"""Gates and routers that draw from stated chances: what a likelihood-ratio gradient can differentiate."""

from __future__ import annotations

import abc
from typing import final

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .base import AbstractGate, AbstractRouter, Observation
from .gates import pick
from .soft_choice import with_none


class AbstractRandomGate(AbstractGate):
    """A gate that draws the class to start, or that none starts, in proportion to `weights`."""

    @abc.abstractmethod
    def weights(self, observation: Observation) -> Float[Array, "choices *batch"]:
        """One number of at least 0 for each class (0 where nobody waits), and a last one for starting
        nothing; smooth in the gate's parameters."""

    @final
    def scores(
        self, observation: Observation, uniform: Float[Array, "*batch"]
    ) -> Float[Array, "classes *batch"]:
        chosen = pick(self.weights(observation), uniform)
        return jnp.where(chosen[:-1] > 0, 1.0, -jnp.inf)

    @final
    def chances(
        self, observation: Observation, width: Float[Array, ""]
    ) -> Float[Array, "classes_and_none *batch"]:
        return with_none(_shares(self.weights(observation))[:-1])


class AbstractRandomRouter(AbstractRouter):
    """A router that draws a pool in proportion to `weights`."""

    @abc.abstractmethod
    def weights(
        self, observation: Observation, request_class: Int[Array, "*batch"]
    ) -> Float[Array, "pools *batch"]:
        """One number of at least 0 for each pool, 0 where there is no room; smooth in the router's
        parameters."""

    @final
    def preferences(
        self, observation: Observation, request_class: Int[Array, "*batch"], uniform: Float[Array, "*batch"]
    ) -> Float[Array, "pools *batch"]:
        weights = self.weights(observation, request_class)
        return jnp.where(observation.available > 0, pick(weights, uniform), -jnp.inf)

    @final
    def chances(
        self, observation: Observation, request_class: Int[Array, "*batch"], width: Float[Array, ""]
    ) -> Float[Array, "pools *batch"]:
        return _shares(self.weights(observation, request_class))


def _shares(weights: Float[Array, "choices *batch"]) -> Float[Array, "choices *batch"]:
    total = jnp.sum(weights, axis=0)
    return weights / jnp.where(total > 0, total, 1.0)


def is_random(part: AbstractGate | AbstractRouter) -> bool:
    """Whether a gate or a router draws from stated chances."""
    return isinstance(part, AbstractRandomGate | AbstractRandomRouter)
