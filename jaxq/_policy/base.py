"""The border between policies and engines: what a policy sees, and what it answers."""

from __future__ import annotations

import abc
import enum
import math
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from .._errors import InputError
from .recipe import Recipe
from .soft_choice import averaged_choice, with_none


class Pool(enum.Enum):
    """Where a request that finished its prefill can go.

    A policy names pools, never GPUs: the engine picks a GPU of the pool that has a free decode slot,
    uniformly at random over GPUs. `SOLO` and `MIXED` need a partition. A request sent to a `WAIT` pool
    waits there for a slot.
    """

    OWN = "the GPU that ran its prefill"
    SOLO = "a GPU of the solo group"
    MIXED = "a GPU of the mixed group"
    WITH_PREFILL = "a GPU that runs a prefill"
    WITHOUT_PREFILL = "a GPU that runs no prefill"
    WAIT = "the decode buffer"
    WAIT_SOLO = "the decode buffer of the solo group"
    WAIT_MIXED = "the decode buffer of the mixed group"

    @property
    def is_buffer(self) -> bool:
        """Whether a request sent here waits."""
        return self in (Pool.WAIT, Pool.WAIT_SOLO, Pool.WAIT_MIXED)


class Observation(eqx.Module):
    """What a policy may look at when it decides. Classes come first; any trailing axes are replications.

    The arrays of a policy get the same trailing axes, so `observation.prefills / self.target` broadcasts
    whether the engine runs one replication or a thousand.

    - `n_gpus`, `mixed_gpus`: GPUs in the cluster, and those of the mixed group (all of them without a
      partition).
    - `prefills`: running prefills X_i.
    - `decodes_mixed`, `decodes_solo`: decodes on GPUs with and without a running prefill, Y_m,i and Y_s,i.
    - `prefill_queue`: requests waiting for prefill, Q_p,i.
    - `decode_queue`: requests waiting for a decode slot, by buffer (in the order of
      `AbstractRouter.buffers`).
    - `idle_prefill_slots`: GPUs that could start a prefill now.
    - `available`: GPUs with a free decode slot, for each pool of the router (slots for `SOLO`; buffers: 1).
      With `Leap`, gates see it as it was before the first decision of the step, and 1 for `OWN`.
    """

    n_gpus: Shaped[Any, "*#batch"]
    mixed_gpus: Shaped[Any, "*#batch"]
    prefills: Shaped[Array, "classes *batch"]
    decodes_mixed: Shaped[Array, "classes *batch"]
    decodes_solo: Shaped[Array, "classes *batch"]
    prefill_queue: Shaped[Array, "classes *batch"]
    decode_queue: Shaped[Array, "buffers classes *batch"]
    idle_prefill_slots: Shaped[Array, "*batch"]
    available: Shaped[Array, "pools *batch"]

    def per_gpu(self) -> Observation:
        """The same observation with every count divided by the number of GPUs (1 for `n_gpus`)."""
        # XLA divides by one number for all replications and by one for each with different rounding.
        share = 1.0 / jnp.asarray(self.n_gpus, jnp.float32)
        fields = {name: getattr(self, name) * share for name in self.__dataclass_fields__}
        return Observation(**fields | {"n_gpus": jnp.ones_like(share)})


class AbstractGate(eqx.Module):
    """Chooses which waiting request starts its prefill when a GPU can start one."""

    @abc.abstractmethod
    def scores(
        self, observation: Observation, uniform: Float[Array, "*batch"]
    ) -> Float[Array, "classes *batch"]:
        """One score a class: the engine starts the waiting class with the highest (lowest index on ties).

        `-inf` means: do not start this class; if every waiting class has it, the GPU stays without a prefill.
        `uniform` is a random number in [0, 1), fresh for each decision, for gates that randomise.
        """

    def chances(
        self, observation: Observation, width: Float[Array, ""]
    ) -> Float[Array, "classes_and_none *batch"]:
        """The chance of each class, and (last) of starting nothing, as the fluid limit takes decisions.

        Scores that differ by less than about `width`, of the size of the largest, share them. A gate whose
        scores jump where another class becomes the best overrides this.
        """

        def scores(uniform: Float[Array, ""]) -> Float[Array, "classes *batch"]:
            spread = jnp.full(observation.prefill_queue.shape[1:], uniform)
            found = self.scores(observation, spread)
            return jnp.where(observation.prefill_queue > 0, found, -jnp.inf)

        return with_none(averaged_choice(scores, width))


class AbstractRouter(eqx.Module):
    """Chooses where a request that finished its prefill decodes."""

    pools: eqx.AbstractClassVar[tuple[Pool, ...]]

    @abc.abstractmethod
    def preferences(
        self,
        observation: Observation,
        request_class: Int[Array, "*batch"],
        uniform: Float[Array, "*batch"],
    ) -> Float[Array, "pools *batch"]:
        """One score for each of `pools`: the request goes to the highest-scored one that has room.

        `-inf` means: never. Buffers always have room, and so has `OWN` unless the gate acted first and used
        the slot. At least one pool with room must have a finite score.
        """

    def chances(
        self, observation: Observation, request_class: Int[Array, "*batch"], width: Float[Array, ""]
    ) -> Float[Array, "pools *batch"]:
        """The chance of each pool, as the fluid limit takes decisions: see `AbstractGate.chances`."""

        def scores(uniform: Float[Array, ""]) -> Float[Array, "pools *batch"]:
            spread = jnp.full(request_class.shape, uniform)
            found = self.preferences(observation, request_class, spread)
            return jnp.where(observation.available > 0, found, -jnp.inf)

        return averaged_choice(scores, width)

    def admission(self, observation: Observation, group: Pool) -> Float[Array, "buffers classes *batch"]:
        """Weights with which a freed decode slot draws the next request among those that wait.

        `group` is `Pool.SOLO` or `Pool.MIXED` (without a partition: always `MIXED`). The default draws from
        every buffer in proportion to the numbers waiting. Must be 0 where nobody waits.
        """
        del group
        return jnp.asarray(observation.decode_queue, float)

    @property
    def buffers(self) -> tuple[Pool, ...]:
        """The buffers among `pools`, in order."""
        return tuple(pool for pool in self.pools if pool.is_buffer)


class Partition(eqx.Module):
    """A static partition: a share of the GPUs forms the mixed group, which alone runs prefills.

    GPUs of the mixed group take at most B - 1 decodes (one slot stays reserved for the prefill); the others
    form the solo group and take B ([Lin26] section 4.1).

    **Arguments:** `mixed_share`: share of the GPUs in the mixed group, usually the plan's sum of x.
    """

    mixed_share: Float[Any, ""] = eqx.field(converter=lambda value: np.asarray(value, np.float64))

    def __check_init__(self):
        if not 0 <= float(self.mixed_share) <= 1 + 1e-9:
            raise InputError(f"mixed_share: expected a share from 0 to 1, got {float(self.mixed_share):g}")

    def mixed_gpus(self, n_gpus: int) -> int:
        """Size of the mixed group, M = min(n, ceil(n * share - 1e-6)), in float64."""
        return max(0, min(n_gpus, math.ceil(n_gpus * float(self.mixed_share) - 1e-6)))


class Policy(eqx.Module):
    """A scheduling policy: a partition, a gate and a router ([Lin26] section 4).

    **Arguments:**

    - `gate`, `router`: see `AbstractGate`, `AbstractRouter`.
    - `partition`: a `Partition`, or None: any GPU without a prefill and with a free slot may start one.
    - `route_first`: after a prefill completes, whether the finished request is placed before its GPU is
      offered to the gate (`True`: immediate and packing policies) or after (`False`: partitioned policies).
    - `name`: for labels.
    - `recipe`: how it was made, for policies that can be kept in a file.

    **Raises:** `InputError` when the router names a pool that needs a partition and there is none.
    """

    gate: AbstractGate
    router: AbstractRouter
    partition: Partition | None = None
    route_first: bool = eqx.field(static=True, default=False)
    name: str = eqx.field(static=True, default="policy")
    recipe: Recipe | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        pools = self.router.pools
        groups = [pool for pool in pools if pool in (Pool.SOLO, Pool.MIXED, Pool.WAIT_SOLO, Pool.WAIT_MIXED)]
        if groups and self.partition is None:
            raise InputError(
                f"policy {self.name!r}: pool {groups[0].name} needs a partition, and there is none"
            )
        if len(set(pools)) != len(pools):
            raise InputError(f"policy {self.name!r}: the router names a pool twice")
        if Pool.MIXED in pools and (Pool.WITH_PREFILL in pools or Pool.WITHOUT_PREFILL in pools):
            raise InputError(
                f"policy {self.name!r}: pool MIXED overlaps WITH_PREFILL and WITHOUT_PREFILL; "
                "name either it or them"
            )

    def mixed_gpus(self, n_gpus: int) -> int:
        """GPUs that may run prefills: the mixed group, or all without a partition."""
        return n_gpus if self.partition is None else self.partition.mixed_gpus(n_gpus)
