"""Scores: the derivative of the logarithm of a decision's chance with respect to a policy's parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._policy.base import AbstractGate, AbstractRouter, Policy
from .._policy.parameters import Fixed
from .._policy.random_choice import is_random

SMALLEST = float(jnp.finfo(jnp.float32).tiny)


def count_scores(policy: Policy) -> int:
    """How many parameters (`jaxq.policies.parameters`) the random parts of a policy have together."""
    parts = [part for part in (policy.gate, policy.router) if is_random(part)]
    return sum(np.size(leaf) for part in parts for leaf in _leaves(part)[0] if _is_parameter(leaf))


def score(
    part: AbstractGate | AbstractRouter,
    weights: Callable[[Any], Float[Array, "choices replications"]],
    choice: Int[Array, " replications"],
    where: Bool[Array, " replications"],
) -> Float[Array, "parameters replications"]:
    """d/dtheta log(weights[choice] / sum(weights)), one row for each parameter of `part`; 0 outside `where`.

    `weights` gives the weights as a function of the part. A choice without alternative has the score 0, up
    to rounding.
    """
    replications = choice.shape[0]
    leaves, structure = _leaves(part)
    places = [place for place, leaf in enumerate(leaves) if _is_parameter(leaf)]

    def log_chance(values: list[Array]) -> Array:
        filled = list(leaves)
        for place, value in zip(places, values, strict=True):
            filled[place] = value
        rows = list(weights(jax.tree.unflatten(structure, filled)))
        chosen, total = jnp.zeros(replications), jnp.zeros(replications)
        for k, row in enumerate(rows):
            chosen, total = chosen + jnp.where(choice == k, row, 0.0), total + row
        # Rounding ends one draw in 2^24 on a choice without weight, whose logarithm has no slope.
        drawn = where & (chosen >= SMALLEST)
        return jnp.sum(jnp.log(jnp.where(drawn, chosen, 1.0)) - jnp.log(jnp.where(drawn, total, 1.0)))

    # With parameters of its own for each replication, the slope of the sum holds those of all of them.
    values = [jnp.broadcast_to(leaves[place], (*leaves[place].shape[:-1], replications)) for place in places]
    slopes = [slope.reshape(-1, replications) for slope in jax.grad(log_chance)(values)]
    return jnp.concatenate([jnp.zeros((0, replications), jnp.float32), *slopes])


def policy_slopes(slopes: Any, windows: int) -> Float[np.ndarray, "windows parameters replications"]:
    """The slopes of one part of a policy in each window of time, given in its shape with windows as a first
    axis, as rows in the order of its parameters."""
    rows = [np.asarray(leaf) for leaf in _leaves(slopes)[0] if _is_parameter(leaf)]
    return np.concatenate([row.reshape(windows, -1, row.shape[-1]) for row in rows], axis=1)


def _leaves(part: AbstractGate | AbstractRouter) -> tuple[list[Any], Any]:
    return jax.tree.flatten(part, is_leaf=lambda node: isinstance(node, Fixed))


def _is_parameter(leaf: Any) -> bool:
    return not isinstance(leaf, Fixed) and jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
