"""The routers of [Lin26] sections 4 and 5, and the packing router: where a finished prefill decodes."""

from __future__ import annotations

from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .base import AbstractRouter, Observation, Pool


class AbstractOrderedRouter(AbstractRouter):
    """The first of `pools` that has room, or the first of some of them in an order that is drawn.

    By `orders` and their chances, an engine that counts requests places any number of them at once. It does
    so for the routers of this file alone: a subclass elsewhere may have preferences of its own.
    """

    @property
    def orders(self) -> tuple[tuple[Pool, ...], ...]:
        """The orders of pools between which a request draws. No pool stands in two; in each, the last has
        room whenever a request comes to it."""
        return (self.pools,)

    def order_chances(
        self, observation: Observation, request_class: Int[Array, "*batch"]
    ) -> Float[Array, "orders *batch"]:
        """The chance of each of `orders`."""
        return jnp.ones((1, *request_class.shape))

    def preferences(
        self, observation: Observation, request_class: Int[Array, "*batch"], uniform: Float[Array, "*batch"]
    ) -> Float[Array, "pools *batch"]:
        order = jnp.arange(len(self.pools), 0, -1, dtype=jnp.float32)
        order = order.reshape((-1,) + (1,) * request_class.ndim)
        return jnp.broadcast_to(order, (len(self.pools), *request_class.shape))


class ImmediateRouter(AbstractOrderedRouter):
    """A request decodes on the GPU that prefilled it, at once: the coupled execution of today's serving
    systems."""

    pools: ClassVar[tuple[Pool, ...]] = (Pool.OWN,)


class SoloFirstRouter(AbstractOrderedRouter):
    """A GPU of the solo group with a free slot, else one of the mixed group, else the one decode buffer
    ([Lin26] section 4.1)."""

    pools: ClassVar[tuple[Pool, ...]] = (Pool.SOLO, Pool.MIXED, Pool.WAIT)


class PrefillFirstRouter(AbstractOrderedRouter):
    """A GPU without a prefill and with a free slot, else any with a free slot, else the buffer."""

    pools: ClassVar[tuple[Pool, ...]] = (Pool.WITHOUT_PREFILL, Pool.WITH_PREFILL, Pool.WAIT)


class PackingRouter(AbstractOrderedRouter):
    """A GPU that runs a prefill and has a free slot, else any with a free slot.

    That keeps room on the GPUs without a prefill, where alone a prefill can start. It never waits: its own
    freed slot remains. Not in [Lin26].
    """

    pools: ClassVar[tuple[Pool, ...]] = (Pool.WITH_PREFILL, Pool.WITHOUT_PREFILL)


class RandomisedRouter(AbstractOrderedRouter):
    """Sends class i to the solo group with a fixed probability, else to the mixed group ([Lin26] section
    5.1).

    A request whose group is full waits in that group's own buffer, which freed slots of that group alone
    serve. A group without a GPU is replaced by the other.

    **Arguments:**

    - `solo_flow`, `mixed_flow`: the plan's decode completion rates mu_solo y_s and mu_mixed y_m of each
      class; the probability is solo_flow / (solo_flow + mixed_flow), 1 where both are 0.
    - `persistent`: 1 when the plan keeps requests waiting for decode (q_d > 0): a freed slot then draws the
      next class with the flows as weights over the classes that wait ([Lin26] section 13); 0: in proportion
      to the numbers waiting.
    """

    pools: ClassVar[tuple[Pool, ...]] = (Pool.SOLO, Pool.MIXED, Pool.WAIT_SOLO, Pool.WAIT_MIXED)
    solo_flow: Float[Any, "classes *batch"]
    mixed_flow: Float[Any, "classes *batch"]
    persistent: Float[Any, "*batch"]

    @property
    def orders(self) -> tuple[tuple[Pool, ...], ...]:
        return (Pool.SOLO, Pool.WAIT_SOLO), (Pool.MIXED, Pool.WAIT_MIXED)

    def order_chances(
        self, observation: Observation, request_class: Int[Array, "*batch"]
    ) -> Float[Array, "orders *batch"]:
        solo = self.solo_chance(observation, request_class)
        return jnp.stack([solo, 1.0 - solo])

    def preferences(
        self, observation: Observation, request_class: Int[Array, "*batch"], uniform: Float[Array, "*batch"]
    ) -> Float[Array, "pools *batch"]:
        solo = uniform < self.solo_chance(observation, request_class)
        never = jnp.full(request_class.shape, -jnp.inf)
        first, second = jnp.where(solo, 2.0, never), jnp.where(solo, never, 2.0)
        return jnp.stack([first, second, first - 1.0, second - 1.0])

    def chances(
        self, observation: Observation, request_class: Int[Array, "*batch"], width: Float[Array, ""]
    ) -> Float[Array, "pools *batch"]:
        solo = self.solo_chance(observation, request_class)
        has_room = observation.available[:2] > 0
        group = jnp.stack([solo, 1.0 - solo])
        return jnp.concatenate([jnp.where(has_room, group, 0.0), jnp.where(has_room, 0.0, group)])

    def solo_chance(
        self, observation: Observation, request_class: Int[Array, "*batch"]
    ) -> Float[Array, "*batch"]:
        """The chance that a request of a class goes to the solo group."""
        total = self.solo_flow + self.mixed_flow
        share = jnp.where(total > 0, self.solo_flow / jnp.where(total > 0, total, 1.0), 1.0)
        own = jnp.arange(share.shape[0]).reshape((-1,) + (1,) * request_class.ndim) == request_class
        probability = jnp.sum(jnp.where(own, share, 0.0), axis=0)
        probability = jnp.where(observation.mixed_gpus >= observation.n_gpus, 0.0, probability)
        return jnp.where(observation.mixed_gpus <= 0, 1.0, probability)

    def admission(self, observation: Observation, group: Pool) -> Float[Array, "buffers classes *batch"]:
        counts = jnp.asarray(observation.decode_queue, float)
        buffer, flow = (0, self.solo_flow) if group is Pool.SOLO else (1, self.mixed_flow)
        waiting = counts[buffer]
        weighted = jnp.where(waiting > 0, flow, 0.0)
        use_flow = (self.persistent > 0) & (jnp.sum(weighted, axis=0) > 0)
        return jnp.zeros_like(counts).at[buffer].set(jnp.where(use_flow, weighted, waiting))
