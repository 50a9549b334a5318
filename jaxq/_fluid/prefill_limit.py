"""The prefill stage of n GPUs about its fluid limit, where it is critical and so no Gaussian process."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from .._double_precision import double_precision
from .._errors import InputError
from .._policy.gates import OccupancyGate
from .pooled_model import PooledModel, PooledState

STEP = 0.1
"""A time step of a path, in units of the shortest mean prefill or patience."""

NONE = 1e-3
"""Requests or GPUs, per GPU, below which there are none in the fluid limit; so for relative differences."""

LAST = 1e-9
"""Prefills, per GPU, in place of a plan of 0: such a class takes what the others leave."""


class PrefillLimit(eqx.Module):
    """The limit of T = (N - n (x + q)) / sqrt(n), N the requests of each class that wait for prefill or run
    it, under the occupancy gate.

    A piecewise linear diffusion (that of Halfin and Whitt, and of Garnett, Mandelbaum and Reiman with
    patience):

        dT_i = -(mu_i X_i + theta_i (T_i - X_i)) dt + sqrt(2 lambda_i) dW_i

    The deviation X of the running prefills follows from T at once, since on this scale the gate's starts take
    no time: X is divided among the classes as the plan is and adds up to 0, but a class with q_i = 0 has no
    more than T_i of it. The queue's deviation is T - X. Decodes have no part in it.

    - `arrival`, `patience`, `service`: rates, 1/s. `target`: the plan's x.
    - `waits`, `critical`: classes whose queue is positive in the fluid limit, and those which it leaves at 0
      with as many prefills as the plan; others never wait.
    - `idles`: whether the fluid limit leaves GPUs of the mixed group idle.
    """

    arrival: Float[Array, " classes"]
    patience: Float[Array, " classes"]
    service: Float[Array, " classes"]
    target: Float[Array, " classes"]
    waits: Bool[Array, " classes"]
    critical: Bool[Array, " classes"]
    idles: Bool[Array, ""]

    @classmethod
    def of(cls, model: PooledModel, state: PooledState) -> PrefillLimit:
        """That about a steady state. **Raises:** `InputError` for another gate."""
        if not isinstance(model.gate, OccupancyGate):
            raise InputError(f"gate: expected the occupancy gate, got {type(model.gate).__name__}")
        target = jnp.maximum(model.gate.prefills[..., 0], LAST)
        waits = state.prefill_queue > NONE
        ratio = jnp.where(waits | (state.prefills > NONE), state.prefills / target, 0.0)
        most = jnp.max(jnp.where(target > LAST, ratio, 0.0))
        critical = ~waits & (target > LAST) & (ratio > most * (1 - NONE))
        rates = (model.rates.arrival, model.rates.patience, model.rates.mu_prefill)
        return cls(*rates, target, waits, critical, model.idle(state) > NONE)

    def running(self, total: Float[Array, "classes *paths"]) -> Float[Array, "classes *paths"]:
        """The deviation of the running prefills."""

        def column(row: Array) -> Array:
            return row.reshape(-1, *(1,) * (total.ndim - 1))

        target, waits, critical = column(self.target), column(self.waits), column(self.critical)
        own = jnp.broadcast_to(~(waits | critical) | self.idles, total.shape)
        share = jnp.zeros_like(total)
        # A class that takes all it has leaves more to the others, of which others then take all they have.
        for _ in range(len(self.target) + 1):
            rest = -jnp.sum(jnp.where(own, total, 0.0), axis=0)
            weight = jnp.sum(jnp.where(own, 0.0, target), axis=0)
            share = rest / jnp.where(weight > 0, weight, 1.0) * target
            own = own | (critical & (total < share))
        return jnp.where(own, total, share)

    def queues(
        self, key: Array, durations: Float[np.ndarray, " windows"], paths: int
    ) -> Float[np.ndarray, "windows classes paths"]:
        """Sample paths of the queues' deviations, averaged over successive windows, from T = 0.

        **Arguments:** `durations`: the windows' lengths, s; `paths`: how many, independent.
        """
        fastest = np.max(np.maximum(self.service, self.patience))
        steps = int(np.ceil(np.max(durations) * fastest / STEP))
        with double_precision():
            return np.asarray(_averaged(self, key, jnp.asarray(durations / steps), paths, steps))


@eqx.filter_jit
def _averaged(limit: PrefillLimit, key: Array, dt: Float[Array, " windows"], paths: int, steps: int) -> Array:
    """The queues' deviations averaged over windows of `steps` steps of Euler and Maruyama, `dt` s each."""
    mu, theta, noise = (row[:, None] for row in (limit.service, limit.patience, 2 * limit.arrival))

    def window(total: Array, given: tuple[Array, Array]) -> tuple[Array, Array]:
        key, dt = given

        def step(index: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            total, summed = carry
            running = limit.running(total)
            queue = total - running
            kick = jax.random.normal(jax.random.fold_in(key, index), total.shape, total.dtype)
            moved = total - dt * (mu * running + theta * queue) + jnp.sqrt(noise * dt) * kick
            return moved, summed + queue

        total, summed = jax.lax.fori_loop(0, steps, step, (total, jnp.zeros_like(total)))
        return total, summed / steps

    start = jnp.zeros((len(limit.arrival), paths), dt.dtype)
    return jax.lax.scan(window, start, (jax.random.split(key, len(dt)), dt))[1]
