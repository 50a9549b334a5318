"""The numbers of a policy that tuning may change: as one vector, with names and scales."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Float64

from .._errors import InputError
from .base import Partition, Policy

SHARE_SCALE = 0.05
"""What counts as a unit step for the share of the mixed group; for every other parameter it is 1."""

Vector = Float64[np.ndarray, " parameters"]


class Fixed(eqx.Module):
    """Numbers that a policy knows and tuning leaves alone, such as the plan that it compares with.

    Every other floating-point array of a policy is a parameter.
    """


def _paths(policy: Policy) -> list[tuple[str, Any]]:
    """Name and value of each parameter array, in the order of the tree."""
    found, _ = jax.tree_util.tree_flatten_with_path(policy, is_leaf=lambda node: isinstance(node, Fixed))
    return [
        (jax.tree_util.keystr(path).lstrip("."), leaf)
        for path, leaf in found
        if not isinstance(leaf, Fixed) and np.issubdtype(np.asarray(leaf).dtype, np.floating)
    ]


def parameters(policy: Policy) -> Vector:
    """All parameters of a policy."""
    values = [np.asarray(leaf, np.float64).ravel() for _, leaf in _paths(policy)]
    return np.concatenate(values) if values else np.zeros(0)


def parameter_names(policy: Policy) -> tuple[str, ...]:
    """A name for each parameter: `gate.priority[1]`."""
    names = []
    for name, leaf in _paths(policy):
        shape = np.shape(leaf)
        indices = [f"[{','.join(map(str, index))}]" for index in np.ndindex(shape)] if shape else [""]
        names += [name + index for index in indices]
    return tuple(names)


def parameter_scales(policy: Policy) -> Vector:
    """What a step of one unit means for each parameter."""
    share = [name.endswith("partition.mixed_share") for name in parameter_names(policy)]
    return np.where(share, SHARE_SCALE, 1.0)


def with_parameters(policy: Policy, values: Vector) -> Policy:
    """The policy with other parameters; the share of the mixed group is kept between 0 and 1.

    **Raises:** `InputError` for another number of values, or one that is not finite.
    """
    values = np.asarray(values, np.float64)
    count = len(parameters(policy))
    if values.shape != (count,):
        raise InputError(f"parameters: expected {count} numbers, got shape {values.shape}")
    if not np.isfinite(values).all():
        name = parameter_names(policy)[int(np.flatnonzero(~np.isfinite(values))[0])]
        raise InputError(f"parameters: expected finite numbers, {name} is not")
    rest = iter(values)

    def replaced(leaf: Any) -> Any:
        if isinstance(leaf, Fixed):
            return leaf
        if isinstance(leaf, Partition):
            return Partition(np.clip(next(rest), 0.0, 1.0))
        array = np.asarray(leaf)
        if not np.issubdtype(array.dtype, np.floating):
            return leaf
        return np.asarray([next(rest) for _ in range(array.size)]).reshape(array.shape)

    return jax.tree.map(replaced, policy, is_leaf=lambda node: isinstance(node, Fixed | Partition))
