"""Events with the outcomes of the decisions that follow them, each as one jump of the state with its rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Jumps = Float[np.ndarray, "jumps size"]
"""What is added to the counts of a state, in the order of `ravel_pytree`."""


class Outcomes(NamedTuple):
    """What decisions can do after an event, and the chance of it.

    - `jumps`: what each outcome adds to the counts.
    - `chances`: of each outcome, by the class of the event; one row where that does not matter.
    """

    jumps: Jumps
    chances: Float[Array, "#classes jumps"]

    def with_other(self, other: Outcomes) -> Outcomes:
        """Both of two decisions, which are independent given the state."""
        jumps = self.jumps[:, None] + other.jumps
        chances = self.chances[:, :, None] * other.chances[:, None]
        return Outcomes(jumps.reshape(-1, jumps.shape[-1]), chances.reshape(len(chances), -1))


class Transitions(NamedTuple):
    """The jumps of a density-dependent Markov chain: n GPUs make each at n times its rate, 1/s."""

    jumps: Jumps
    rates: Float[Array, " jumps"]

    @classmethod
    def of(cls, jumps: Jumps, rates: Float[Array, " jumps"], outcomes: Outcomes | None = None) -> Transitions:
        """Events, one a class, each with every outcome of the decisions that follow it."""
        if outcomes is None:
            return cls(jumps, rates)
        every = jumps[:, None] + outcomes.jumps
        return cls(every.reshape(-1, every.shape[-1]), jnp.ravel(rates[:, None] * outcomes.chances))

    @classmethod
    def together(cls, parts: Sequence[Transitions]) -> Transitions:
        """All of several."""
        jumps, rates = zip(*parts, strict=True)
        return cls(np.concatenate(jumps), jnp.concatenate(rates))

    def drift(self) -> Float[Array, " size"]:
        """The mean change of the state, 1/s."""
        return self.rates @ self.jumps

    def noise(self) -> Float[Array, "size size"]:
        """The covariance of the changes in a second, of n GPUs divided by n."""
        return (self.rates[:, None] * self.jumps).T @ self.jumps
