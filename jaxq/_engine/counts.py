"""Poisson and binomial numbers for the leap stepper: one uniform each, no loop of unknown length."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

INVERSION_MEAN = 12.0
"""Up to this mean the distribution function is inverted term by term; above, a corrected normal quantile is
used."""

TERMS = (10, 20, 44)
"""Terms of the inversion; more where some number needs them. A Poisson number of mean 12 exceeds 44 with
probability 1e-12."""

Real = Float[Array, "*shape"]
Common = Float[Array, "*#shape"]
Numbers = Int[Array, "*shape"]


def poisson(mean: Real, uniform: Real) -> Numbers:
    """Poisson numbers of the given mean."""

    def inverted(terms: int, mean: Real, uniform: Real) -> Numbers:
        return _inverted(terms, mean, jnp.zeros_like(mean), jnp.exp(-mean), uniform)

    def normal(mean: Real, uniform: Real) -> Numbers:
        return _normal_quantile(mean, mean, jnp.float32(1.0), uniform)

    return _quantile(mean, inverted, normal, mean, uniform)


def binomial(trials: Numbers, chance: Real, uniform: Real) -> Numbers:
    """Binomial numbers of 0 to `trials`; a chance above 1/2 by the number of failures."""
    often = chance > 0.5
    rare = jnp.where(often, 1.0 - chance, chance)
    # The largest uniform number is 1 - 2^-24.
    uniform = jnp.where(often, jnp.float32(1.0 - 2.0**-24) - uniform, uniform)

    def inverted(terms: int, trials: Numbers, chance: Real, uniform: Real) -> Numbers:
        n, odds = trials.astype(jnp.float32), chance / (1.0 - chance)
        return _inverted(terms, n * odds, odds, jnp.exp(n * jnp.log1p(-chance)), uniform)

    def normal(trials: Numbers, chance: Real, uniform: Real) -> Numbers:
        mean = trials.astype(jnp.float32) * chance
        return _normal_quantile(mean, mean * (1.0 - chance), 1.0 - 2.0 * chance, uniform)

    drawn = _quantile(trials.astype(jnp.float32) * rare, inverted, normal, trials, rare, uniform)
    drawn = jnp.minimum(drawn, trials)
    return jnp.where(often, trials - drawn, drawn)


def _quantile(mean: Real, inverted: Callable, normal: Callable, *law: Array) -> Numbers:
    """Small means by inversion, large ones by a normal quantile; on a CPU neither where no number needs it.

    Each branch computes all it needs from `law`: shared with another, an expression could be rounded
    otherwise, and a number would depend on those beside it.
    """
    small = mean < INVERSION_MEAN

    def within(terms: int, *more: int) -> Numbers:
        count = inverted(terms, *law)
        # The last term is not trusted: the compiler may round it otherwise than where another follows.
        beyond = small & (count >= terms - 1)
        if more:
            return jax.lax.cond(jnp.any(beyond), lambda: within(*more), lambda: count)
        # Rounding can leave the distribution function just under a uniform number next to 1.
        return jnp.where(beyond, jnp.round(mean).astype(jnp.int32), count)

    def none() -> Numbers:
        return jnp.zeros(mean.shape, jnp.int32)

    def as_needed() -> Numbers:
        few = jax.lax.cond(jnp.any(small), lambda: within(*TERMS), none)
        many = jax.lax.cond(jnp.all(small), none, lambda: normal(*law))
        return jnp.where(small, few, many)

    def all_at_once() -> Numbers:
        # A condition would make an accelerator wait for the host.
        return jnp.where(small, within(TERMS[-1]), normal(*law))

    return jax.lax.platform_dependent(cpu=as_needed, default=all_at_once)


def _inverted(terms: int, ratio: Real, decrease: Common, first: Real, uniform: Real) -> Numbers:
    """The quantile at `uniform`, or `terms` if that is more, of a law on 0, 1, ... that starts with the
    probability `first` and has P(k+1) / P(k) = (ratio - decrease k) / (k + 1)."""
    probability, upto, count = first, first, jnp.zeros(uniform.shape, jnp.int32)
    for k in range(terms):
        count = count + (uniform >= upto)
        probability = probability * jnp.maximum(ratio - decrease * k, 0.0) * jnp.float32(1.0 / (k + 1))
        upto = upto + probability
    return count


def _normal_quantile(mean: Real, variance: Real, skew: Common, uniform: Real) -> Int[Array, "*shape"]:
    """The normal quantile with Cornish and Fisher's correction for skewness, rounded to a whole number."""
    # Not at 0, whose quantile is infinite; the largest uniform number is 1 - 2^-24.
    z = jnp.float32(math.sqrt(2.0)) * jax.lax.erf_inv(2.0 * jnp.maximum(uniform, jnp.float32(2.0**-25)) - 1.0)
    # Rounding to whole numbers adds a variance of 1/12.
    deviation = jnp.sqrt(jnp.maximum(variance - 1.0 / 12.0, 0.0))
    third = skew * (z * z - 1.0) / 6.0
    # (1 - 6 p q) terms of the kurtosis and the squared skewness, for p small: (z - z^3) / 72.
    fourth = (z - z * z * z) / (72.0 * jnp.maximum(deviation, 1.0))
    return jnp.maximum(jnp.round(mean + deviation * z + third + fourth), 0.0).astype(jnp.int32)
