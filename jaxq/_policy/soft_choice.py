"""Choices by score in the fluid limit, where the best can change between two choices without end."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

MIDPOINTS = 64
"""Values of the uniform number over which a choice is averaged."""

TIE = 20.0
"""Widths by which a choice is ahead of the next one with the same score."""


def soft_choice(
    scores: Float[Array, "choices *batch"], width: Float[Array, ""], tie: float = TIE
) -> Float[Array, "choices *batch"]:
    """The chance of each choice, proportional to exp(score / width); all 0 where no score is finite.

    **Arguments:** `tie`: widths by which equal scores differ in favour of the earlier one.
    """
    index = jnp.arange(scores.shape[0]).reshape((-1,) + (1,) * (scores.ndim - 1))
    finite = scores > -jnp.inf
    # Slopes of what is masked must be finite too.
    found = jnp.where(finite, jnp.where(finite, scores, 0.0) / width - tie * index, -jnp.inf)
    best = jnp.max(found, axis=0)
    weights = jnp.where(finite, jnp.exp(found - jnp.where(best > -jnp.inf, best, 0.0)), 0.0)
    total = jnp.sum(weights, axis=0)
    return weights / jnp.where(total > 0, total, 1.0)


def averaged_choice(
    scores: Callable[[Float[Array, ""]], Float[Array, "choices *batch"]], width: Float[Array, ""]
) -> Float[Array, "choices *batch"]:
    """`soft_choice` averaged over the uniform number, with `width` in units of the largest score."""

    def chances(uniform: Float[Array, ""]) -> Float[Array, "choices *batch"]:
        found = scores(uniform)
        finite = found > -jnp.inf
        found = jnp.where(finite, found, 0.0)
        size = jnp.max(jnp.abs(found), axis=0)
        return soft_choice(jnp.where(finite, found / jnp.where(size > 0, size, 1.0), -jnp.inf), width)

    midpoints = (jnp.arange(MIDPOINTS) + 0.5) / MIDPOINTS
    return jnp.mean(jax.vmap(chances)(midpoints), axis=0)


def with_none(chances: Float[Array, "classes *batch"]) -> Float[Array, "classes_and_none *batch"]:
    """The chances of classes, and that of starting nothing, which is what is left."""
    return jnp.concatenate([chances, 1.0 - jnp.sum(chances, axis=0, keepdims=True)])
