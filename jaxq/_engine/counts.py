"""Poisson and binomial numbers for the leap stepper: one uniform each, no loop of unknown length."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri
from jaxtyping import Array, Float, Int

INVERSION_MEAN = 12.0
"""Up to this mean the distribution function is inverted term by term; above, a corrected normal quantile is
used."""

TERMS = 44
"""Terms of the inversion: a Poisson number of mean 12 exceeds them with probability 1e-12."""

Real = Float[Array, "*shape"]
Common = Float[Array, "*#shape"]


def poisson(mean: Real, uniform: Real) -> Int[Array, "*shape"]:
    """Poisson numbers of the given mean."""
    return _quantile(mean, mean, jnp.zeros_like(mean), jnp.exp(-mean), mean, jnp.float32(1.0), uniform)


def binomial(trials: Int[Array, "*shape"], chance: Real, uniform: Real) -> Int[Array, "*shape"]:
    """Binomial numbers; `chance` below 1. Never more than `trials`."""
    n = trials.astype(jnp.float32)
    odds = chance / (1.0 - chance)
    none = jnp.exp(n * jnp.log1p(-chance))
    mean = n * chance
    drawn = _quantile(mean, n * odds, odds, none, mean * (1.0 - chance), 1.0 - 2.0 * chance, uniform)
    return jnp.minimum(drawn, trials)


def _quantile(
    mean: Real, ratio: Real, decrease: Common, first: Real, variance: Real, skew: Common, uniform: Real
) -> Int[Array, "*shape"]:
    """The quantile at `uniform` of a law on 0, 1, ... with P(k+1) / P(k) = (ratio - decrease k) / (k + 1)."""
    small = mean < INVERSION_MEAN
    probability, upto, count = first, first, jnp.zeros(mean.shape, jnp.int32)
    for k in range(TERMS):
        count = count + (uniform >= upto)
        probability = probability * jnp.maximum(ratio - decrease * k, 0.0) * jnp.float32(1.0 / (k + 1))
        upto = upto + probability
    # Rounding can leave the distribution function just under a uniform number next to 1.
    inverted = jnp.where(count == TERMS, jnp.round(mean).astype(jnp.int32), count)

    def with_normal(inverted: Array) -> Array:
        return jnp.where(small, inverted, _normal_quantile(mean, variance, skew, uniform))

    return jax.lax.cond(jnp.all(small), lambda x: x, with_normal, inverted)


def _normal_quantile(mean: Real, variance: Real, skew: Common, uniform: Real) -> Int[Array, "*shape"]:
    """The normal quantile with Cornish and Fisher's correction for skewness, rounded to a whole number."""
    # Not at 0, whose quantile is infinite; the largest uniform number is 1 - 2^-24.
    z = ndtri(jnp.maximum(uniform, jnp.float32(2.0**-25)))
    # Rounding to whole numbers adds a variance of 1/12.
    deviation = jnp.sqrt(jnp.maximum(variance - 1.0 / 12.0, 0.0))
    third = skew * (z * z - 1.0) / 6.0
    # (1 - 6 p q) terms of the kurtosis and the squared skewness, for p small: (z - z^3) / 72.
    fourth = (z - z * z * z) / (72.0 * jnp.maximum(deviation, 1.0))
    return jnp.maximum(jnp.round(mean + deviation * z + third + fourth), 0.0).astype(jnp.int32)
