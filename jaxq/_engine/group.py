"""Clusters that are simulated as one run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

import equinox as eqx
import jax
import numpy as np

from .._errors import InputError
from .._instance import Instance
from .._policy.base import Policy
from .base import Numbers, device_policy, numbers_of, numbers_of_several, unlabelled
from .shape import Shape

Own = Literal["none", "policy", "all"]
"""What every replication has of its own: nothing (one case), its policy's numbers, or its instance's and the
size of its cluster too."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One of the clusters of `simulate_cases`: a policy on `n_gpus` GPUs that serves an instance."""

    instance: Instance
    policy: Policy
    n_gpus: int


@dataclasses.dataclass(frozen=True)
class Group:
    """Cases that run together, and the sizes that serve all of them.

    `own`: what replications have of their own: one program then serves any number of cases. `scores`: of
    how many parameters the record keeps scores.
    """

    cases: tuple[Case, ...]
    mixed_gpus: np.ndarray
    shape: Shape
    own: Own
    scores: int = 0

    @classmethod
    def of(cls, cases: Sequence[Case], shape_of: Callable[[Case], Shape], own: Own = "none") -> Group:
        """The group of some cases. **Raises:** `InputError` when the policies differ in structure, or the
        instances in the number of classes."""
        if not cases:
            raise InputError("cases: expected at least one")
        kind = structure_of(cases[0].policy)
        if any(not eqx.tree_equal(structure_of(case.policy), kind) for case in cases):
            raise InputError("policies: expected the same gate, router, partition or none, and shapes in all")
        if len({case.instance.n_classes for case in cases}) > 1:
            raise InputError("instances: expected the same number of classes in all")
        mixed = np.asarray([case.policy.mixed_gpus(case.n_gpus) for case in cases])
        shapes = [shape_of(case) for case in cases]
        # What differs may be numbers, and labels: these are part of a tree's structure.
        cases = tuple(dataclasses.replace(case, policy=unlabelled(case.policy)) for case in cases)
        widest = {name: max(getattr(shape, name) for shape in shapes) for name in ("gpus", "batch")}
        return cls(cases, mixed, dataclasses.replace(shapes[0], **widest), own)

    @property
    def buffers(self) -> int:
        """Buffers of the router, the same in all."""
        return len(self.cases[0].policy.router.buffers)

    def lowered(self, follows: np.ndarray) -> tuple[Policy, Numbers]:
        """Policy and numbers on the device, for replications that each follow one of the cases."""
        first = self.cases[0]
        if self.own == "none":
            return device_policy(first.policy), numbers_of(first.instance, first.n_gpus, self.mixed_gpus)
        policy = device_policy(*(case.policy for case in self.cases), lanes=follows)
        if self.own == "policy":
            return policy, numbers_of(first.instance, first.n_gpus, self.mixed_gpus[follows])
        instances = [case.instance for case in self.cases]
        sizes = np.asarray([case.n_gpus for case in self.cases])
        return policy, numbers_of_several(instances, sizes, self.mixed_gpus[follows], follows)


def structure_of(policy: Policy) -> Policy:
    """The policy with the shapes of its arrays in their place."""
    return jax.tree.map(np.shape, unlabelled(policy))
