"""Policies that are simulated as one run."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import equinox as eqx
import jax
import numpy as np

from .._errors import InputError
from .._policy.base import Policy
from .base import unlabelled


@dataclasses.dataclass(frozen=True)
class Group:
    """Policies that run together, the size of the mixed group of each, and the one for which it is
    largest.

    `together`: whether every replication has numbers of its own: one program then serves any number of
    policies. `scores`: of how many parameters the record keeps scores.
    """

    policies: tuple[Policy, ...]
    mixed_gpus: np.ndarray
    widest: Policy
    together: bool
    scores: int = 0

    @classmethod
    def of(cls, policies: Sequence[Policy], n_gpus: int, together: bool = False) -> Group:
        """The group of some policies on a cluster. **Raises:** `InputError` when they differ in structure."""
        if not policies:
            raise InputError("policies: expected at least one")
        # What differs may be numbers, and labels: these are part of a tree's structure.
        policies = tuple(unlabelled(policy) for policy in policies)
        kinds = [jax.tree.map(np.shape, policy) for policy in policies]
        if any(not eqx.tree_equal(kind, kinds[0]) for kind in kinds):
            raise InputError("policies: expected the same gate, router, partition or none, and shapes in all")
        mixed = np.asarray([policy.mixed_gpus(n_gpus) for policy in policies])
        return cls(policies, mixed, policies[int(np.argmax(mixed))], together)
