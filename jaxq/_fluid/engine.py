"""The fluid engine: the limit of many GPUs behind the same verb as the stochastic engines."""

from __future__ import annotations

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._double_precision import double_precision
from .._engine.record import Record
from .._engine.windows import WINDOWS, window_lengths
from .._errors import InputError
from .._instance import Instance
from .._policy.base import Policy
from .._pricing import SCHEMES
from .configuration_model import ConfigurationModel
from .fluctuation import Fluctuations, fluctuations
from .model import AbstractFluidModel, Rates, Stages
from .path import Progress, path
from .pooled_model import PooledModel
from .prefill_limit import PrefillLimit
from .steady_state import steady_state

LEVELS = ("configuration", "pooled")

PATH_WIDTH = 1e-4
"""Default width of a path; a hundredth of that in a steady state, where narrow widths cost nothing."""

STEADY_WIDTH = 1e-6


class FluidEngine(eqx.Module):
    """The deterministic limit of a cluster as the number of GPUs grows ([Lin26] eq. 24-37).

    `simulate` takes it without `n_gpus`, `replications` and `key`; counts are per GPU and intervals have no
    width. A horizon of `math.inf` asks for the steady state that an empty cluster reaches, which a root
    finder gives in place of a path.

    **Arguments:**

    - `level`: `"configuration"`, the share of GPUs in each configuration (the class of the running prefill,
      decodes of each class), the limit of every policy; or `"pooled"`, counts by class and group, the fluid
      model of [Lin26] and the limit of `PooledEngine`: for policies with a partition, and right while the
      GPUs of the mixed group are always busy.
    - `width`: requests or GPUs, per GPU, about which decisions are smoothed: something whose mass is m is
      found with the chance m / (m + width). The error is in proportion to it. 1e-4 for a path and 1e-6 for a
      steady state when None.

    **Raises:** `InputError` for an unknown level, or a width that is not between 0 and 0.1.
    """

    level: str = eqx.field(static=True, default="configuration")
    width: float | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        if self.level not in LEVELS:
            raise InputError(f"level: expected configuration or pooled, got {self.level!r}")
        if self.width is not None and not 0 < self.width <= 0.1:
            raise InputError(f"width: expected above 0 and at most 0.1, got {self.width:g}")

    @property
    def is_fluid(self) -> bool:
        """Whether it is the limit of many GPUs: yes."""
        return True

    def run(
        self,
        instance: Instance,
        policy: Policy,
        *,
        n_gpus: None = None,
        horizon: float,
        warmup: float,
        key: jax.Array | None = None,
        replications: int = 1,
        first: int = 0,
        n_windows: int | None = None,
        progress: Progress | None = None,
    ) -> Record:
        """The path from an empty cluster, or for an infinite horizon one second of the steady state.

        `n_gpus`, `key`, `replications` and `first` are those of other engines, and have no meaning here.

        **Arguments:** `progress`: called with (done, total): windows of a path, widths of a steady state.

        **Raises:** `InputError` for a policy that the level cannot follow, or too many configurations;
        `SimulationError` when no steady state is found.
        """
        steady = math.isinf(horizon)
        width = self.smoothing(steady)
        with double_precision():
            model = self.model(instance, policy)
            if steady:
                durations, before = np.ones(1), 0
                state = steady_state(model, width, progress)
                integrals = jax.tree.map(lambda stage: stage[None], model.stages(state))
            else:
                lengths, before = window_lengths(horizon, warmup, n_windows or WINDOWS)
                durations = np.asarray(lengths)
                found = path(model, model.empty(), jnp.asarray(width), np.cumsum(durations), progress)
                state = jax.tree.map(lambda leaf: leaf[-1], found.states)
                integrals = jax.tree.map(lambda sums: jnp.diff(sums, axis=0, prepend=0.0), found.integrals)
            last = model.stages(state)
            rates = model.rates
        return _record(rates, integrals, last, durations, before)

    def smoothing(self, steady: bool) -> float:
        """The width of a steady state or of a path."""
        if self.width is not None:
            return self.width
        return STEADY_WIDTH if steady else PATH_WIDTH

    def model(self, instance: Instance, policy: Policy) -> AbstractFluidModel:
        """The model of a policy on an instance at this level, in the present precision."""
        kind = PooledModel if self.level == "pooled" else ConfigurationModel
        return kind.of(instance, policy)

    def check(self, instance: Instance, policy: Policy) -> None:
        """Refuse what `run` would. **Raises:** `InputError`."""
        self.model(instance, policy)

    def steady_gradient(
        self, instance: Instance, policy: Policy, scheme: str | None = None
    ) -> tuple[float, Policy]:
        """The revenue of the steady state and its slope in every number of a policy.

        By the implicit derivative of the steady state, at the engine's width.

        **Arguments:** `scheme`: `"bundled"` or `"separate"`; the instance's own when None.

        **Returns:** money per GPU and second, and a policy whose numbers are the slopes.

        **Raises:** as `run`; `InputError` for an unknown scheme.
        """
        scheme = instance.pricing.scheme if scheme is None else scheme
        if scheme not in SCHEMES:
            raise InputError(f"scheme: expected one of {', '.join(SCHEMES)}, got {scheme!r}")
        self.check(instance, policy)
        with double_precision():
            numbers, rest = eqx.partition(jax.tree.map(_wide, policy), eqx.is_inexact_array)

            def revenue(numbers: Policy) -> Float[Array, ""]:
                model = self.model(instance, eqx.combine(numbers, rest))
                stages = model.stages(steady_state(model, self.smoothing(True)))
                return _revenue(instance, stages, scheme)

            value, slopes = jax.value_and_grad(revenue)(numbers)
            return float(value), jax.tree.map(np.asarray, eqx.combine(slopes, rest))

    def fluctuations(self, instance: Instance, policy: Policy) -> Fluctuations:
        """What n GPUs fluctuate about the steady state, in units of the square root of n, as n grows.

        For the pooled level. `Fluctuations.is_gaussian` says whether that has a Gaussian limit.

        **Raises:** as `run`; `InputError` for another level.
        """
        with double_precision():
            return fluctuations(self._pooled(instance, policy), self.smoothing(True))

    def prefill_limit(self, instance: Instance, policy: Policy) -> PrefillLimit:
        """What the prefill stage of n GPUs does about the steady state, in units of the square root of n, as
        n grows: also where that is no Gaussian process.

        For the pooled level and the occupancy gate.

        **Raises:** as `run`; `InputError` for another level or gate.
        """
        with double_precision():
            model = self._pooled(instance, policy)
            return PrefillLimit.of(model, steady_state(model, self.smoothing(True)))

    def _pooled(self, instance: Instance, policy: Policy) -> PooledModel:
        if self.level != "pooled":
            raise InputError(f"level: expected pooled, whose jumps are known, got {self.level!r}")
        return PooledModel.of(instance, policy)

    def block_size(self, instance: Instance, policy: Policy, n_gpus: None, replications: int) -> int:
        """Replications that it simulates at a time: one, there being no chance."""
        return 1

    def describe(self, instance: Instance, policy: Policy, n_gpus: None = None) -> str:
        """One line about how a run would go."""
        widths = (
            f"width {self.width:g}"
            if self.width is not None
            else f"width {PATH_WIDTH:g}, {STEADY_WIDTH:g} in a steady state"
        )
        return f"fluid engine, {self.level} level, {widths}"


def _wide(leaf: Any) -> Any:
    """Numbers in double precision on the device."""
    return jnp.asarray(leaf, float) if eqx.is_inexact_array_like(leaf) else leaf


def _revenue(instance: Instance, stages: Stages, scheme: str) -> Float[Array, ""]:
    """Money per GPU and second in a state ([Lin26] eq. 22, 23)."""
    rates = Rates.of(instance)
    decoded = rates.mu_mixed * stages.decodes_mixed + rates.mu_solo * stages.decodes_solo
    if scheme == "bundled":
        return jnp.sum(jnp.asarray(instance.request_value) * decoded)
    prefilled = rates.mu_prefill * stages.prefills
    paid = jnp.asarray(instance.prefill_value) * prefilled + jnp.asarray(instance.decode_value) * decoded
    return jnp.sum(paid)


def _record(rates: Rates, integrals: Stages, last: Stages, durations: np.ndarray, before: int) -> Record:
    """The record of one replication, per GPU: flows follow from stages and rates."""

    def wide(values: Any) -> np.ndarray:
        return np.asarray(values, np.float64)[..., None]

    decodes_mixed, decodes_solo = integrals.decodes_mixed, integrals.decodes_solo
    counts = {
        "arrivals": durations[:, None] * np.asarray(rates.arrival),
        "abandoned_prefill": rates.patience * integrals.prefill_queue,
        "prefills_completed": rates.mu_prefill * integrals.prefills,
        "abandoned_decode": rates.patience * integrals.decode_queue,
        "completions": rates.mu_mixed * decodes_mixed + rates.mu_solo * decodes_solo,
    }
    stages = {name: getattr(integrals, name) for name in Stages.__dataclass_fields__}
    final = {
        "prefills": last.prefills,
        "decodes": last.decodes_mixed + last.decodes_solo,
        "prefill_queue": last.prefill_queue,
        "decode_queue": last.decode_queue,
    }
    events = sum(np.asarray(flow).sum(axis=1) for flow in counts.values())
    arrays = {name: wide(values) for name, values in (counts | stages).items()}
    return Record(
        durations=durations,
        final={name: wide(stage) for name, stage in final.items()},
        warmup_windows=before,
        n_gpus=None,
        events=wide(events),
        dt=None,
        **arrays,
    )
