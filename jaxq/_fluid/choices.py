"""Chances of decisions in the fluid limit, where queues and room are there for part of the decisions only."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._policy.base import AbstractGate, AbstractRouter, Observation, Pool
from .model import Stages, Width

CLUSTER = 1e9
"""GPUs of the cluster that a policy is shown: so many that it decides as in the limit."""

NEXT_TO_NOTHING = 1e-100
"""Smaller sums are not divided by: their squares, which slopes have below, would be 0."""


def seen_cluster(
    stages: Stages,
    decode_queue: Float[Array, "buffers classes"],
    mixed_share: Float[Array, ""],
    idle: Float[Array, ""],
    available: Sequence[Any],
) -> Observation:
    """What a policy sees of a cluster of `CLUSTER` GPUs.

    **Arguments:** per GPU: requests that wait for decode, by buffer; the mixed group; GPUs that could start a
    prefill; and for each pool of the router GPUs with a free slot (slots for `SOLO`; 1 / `CLUSTER` for what
    always has room).
    """
    seen = Observation(
        n_gpus=jnp.ones_like(mixed_share),
        mixed_gpus=mixed_share,
        prefills=stages.prefills,
        decodes_mixed=stages.decodes_mixed,
        decodes_solo=stages.decodes_solo,
        prefill_queue=stages.prefill_queue,
        decode_queue=decode_queue,
        idle_prefill_slots=idle,
        available=jnp.stack([jnp.asarray(row, float) for row in available]),
    )
    return jax.tree.map(lambda leaf: CLUSTER * leaf, seen)


def there(mass: Float[Array, "*shape"], width: Width) -> Float[Array, "*shape"]:
    """The chance that something of this mass is there when it is asked for."""
    return mass / (jnp.abs(mass) + width)


def start_chances(
    gate: AbstractGate, seen: Observation, waiting: Float[Array, "cases classes"], width: Width
) -> Float[Array, "cases classes_and_none"]:
    """The chance that a decision starts each class, or (last) none.

    **Arguments:** `seen`: the cluster of `CLUSTER` GPUs; `waiting`: the chance that somebody of a class
    waits, in several cases; `width`: as for `AbstractGate.chances`.
    """
    rows = _subsets(waiting.shape[1])
    queue = jnp.where(rows.T > 0, jnp.maximum(seen.prefill_queue, 1.0)[:, None], 0.0)
    chances = gate.chances(replace(_repeated(seen, len(rows)), prefill_queue=queue), width)
    return jnp.einsum("cs,ks->kc", chances, _subset_chances(waiting))


def pool_chances(
    router: AbstractRouter, seen: Observation, available: Float[Array, " pools"], width: Width
) -> Float[Array, "classes pools"]:
    """The chance that a finished request of each class goes to each pool.

    **Arguments:** `available`: the chance that a pool has room; the others as for `start_chances`.
    """
    rows, classes = _subsets(available.shape[0]), seen.prefills.shape[0]
    room = jnp.where(rows.T > 0, jnp.maximum(seen.available, 1.0)[:, None], 0.0)
    shown = replace(_repeated(seen, len(rows) * classes), available=jnp.repeat(room, classes, axis=1))
    request_class = jnp.tile(jnp.arange(classes), len(rows))
    chances = router.chances(shown, request_class, width).reshape(len(router.pools), len(rows), classes)
    return jnp.einsum("psc,s->cp", chances, _subset_chances(available[None])[0])


def admission_chances(
    router: AbstractRouter, seen: Observation, group: Pool, present: Float[Array, "buffers classes"]
) -> Float[Array, "buffers classes"]:
    """The chance that a freed decode slot of a group takes each of those that wait.

    **Arguments:** `present`: the chance that somebody of a buffer and class waits.
    """
    shown = _repeated(seen, 1)
    shown = eqx.tree_at(lambda s: s.decode_queue, shown, jnp.maximum(shown.decode_queue, 1.0))
    wanted = router.admission(shown, group)[..., 0]
    nobody = jnp.prod(jnp.where(wanted > 0, 1 - present, 1.0))
    weights = wanted * present
    total = jnp.sum(weights)
    return (1 - nobody) * weights / jnp.where(total > NEXT_TO_NOTHING, total, 1.0)


def _subsets(size: int) -> Float[np.ndarray, "subsets size"]:
    """Every subset of `size` things, as rows of 0 and 1."""
    return np.array(list(itertools.product((0.0, 1.0), repeat=size))).reshape(-1, size)


def _subset_chances(present: Float[Array, "cases size"]) -> Float[Array, "cases subsets"]:
    """The chance of each subset when each thing is there with its own chance."""
    rows = _subsets(present.shape[1])
    return jnp.prod(jnp.where(rows > 0, present[:, None], 1.0 - present[:, None]), axis=2)


def _repeated(seen: Observation, times: int) -> Observation:
    """The observation with a last axis along which it is the same."""
    fields = {name: jnp.asarray(getattr(seen, name))[..., None] for name in seen.__dataclass_fields__}
    return Observation(
        **{name: jnp.broadcast_to(value, (*value.shape[:-1], times)) for name, value in fields.items()}
    )
