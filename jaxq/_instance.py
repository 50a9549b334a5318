"""A cluster and its workload: everything the model knows, per GPU."""

from __future__ import annotations

import hashlib
from functools import partial
from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Float

from ._errors import InputError
from ._hardware import IterationTime, scalar
from ._pricing import Pricing
from ._service_level.levels import ServiceLevels
from ._workload import Workload

MAX_BATCH_SIZE = 256


class Instance(eqx.Module):
    """One instance of the model: a workload, the iteration time, the batch and the prices.

    Every number is a float64 leaf on the host, so that the planning LP keeps its precision; engines take
    float32 copies. The number of GPUs is not part of an instance: rates are per GPU.

    **Arguments:**

    - `workload`, `iteration_time`, `pricing`: see there.
    - `batch_size`: slots of a GPU, B: at most B decodes, or one prefill and B - 1 decodes; 2 to 256.
    - `chunk_size`: prompt tokens that one iteration prefills, C.
    - `name`: for labels in tables and figures.
    - `service_levels`: limits and penalties that the plan of this instance keeps to; none when None. Without
      convex penalties, which no file can hold: those are for `solve_plan`.

    **Raises:** `InputError` for a batch or chunk size that is not a whole number in range, a mixed iteration
    time that is not positive, numbers so extreme that a service rate or an offered load is 0 or infinite, or
    a service level for a class that is not there.
    """

    workload: Workload
    iteration_time: IterationTime
    pricing: Pricing
    batch_size: Float[Any, ""] = eqx.field(converter=partial(scalar, field="hardware.batch_size"))
    chunk_size: Float[Any, ""] = eqx.field(converter=partial(scalar, field="hardware.chunk_size"))
    name: str = eqx.field(static=True, default="instance")
    service_levels: ServiceLevels | None = None

    def __check_init__(self):
        for name, low, high in (("batch_size", 2, MAX_BATCH_SIZE), ("chunk_size", 1, None)):
            value = getattr(self, name)
            if not isinstance(value, np.ndarray):
                continue
            number = float(value)
            if not np.isfinite(number) or number != round(number) or number < low or (high and number > high):
                limits = f"from {low} to {high}" if high else f"of at least {low}"
                raise InputError(f"hardware.{name}: expected a whole number {limits}, got {number:g}")
        self._check_rates()
        for one in () if self.service_levels is None else self.service_levels.limits:
            one.weights(self.workload)
            if one.convex_penalty is not None:
                raise InputError(
                    f"{one.field}.convex_penalty: no file can hold it; expected it among the service_levels "
                    "that solve_plan is given"
                )

    def _check_rates(self):
        """Positive, finite times and rates, so that nothing later divides by 0 or by infinity."""
        with np.errstate(all="ignore"):
            mixed, load = self.mixed_iteration_time, self.workload.arrival_rate / self.mu_prefill
            rates = {"mu_prefill": self.mu_prefill, "mu_mixed": self.mu_mixed, "mu_solo": self.mu_solo}
        if isinstance(mixed, np.ndarray | np.floating) and not 0 < float(mixed) < np.inf:
            total = f"alpha + beta * chunk_size = {float(mixed):g} s"
            raise InputError(f"hardware: {total}; expected a positive, finite time of a mixed iteration")
        for name, rate in {**rates, "arrival_rate / mu_prefill": load}.items():
            for i, number in enumerate(rate if isinstance(rate, np.ndarray) else ()):
                if not 0 < number < np.inf:
                    raise InputError(
                        f"classes.{i}: expected less extreme numbers; {name} would be {number:g}"
                    )

    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that recognise the instance by its numbers and scheme, not names.

        Service levels count only when there are any.
        """
        workload, time, pricing = self.workload, self.iteration_time, self.pricing
        classes = np.stack(
            [workload.prompt_tokens, workload.output_tokens, workload.arrival_rate, workload.patience_rate]
        )
        times = [time.alpha, time.beta, time.solo]
        others = [pricing.prefill, pricing.decode, self.batch_size, self.chunk_size]
        # Adding 0 makes -0 and 0 one number.
        numbers = np.concatenate([classes.ravel(), np.stack([*times, *others])]).astype("<f8") + 0.0
        promised = "" if self.service_levels is None else self.service_levels.identity(workload)
        return hashlib.sha256(numbers.tobytes() + (pricing.scheme + promised).encode()).hexdigest()[:12]

    @property
    def n_classes(self) -> int:
        """The number of request classes, I."""
        return self.workload.n_classes

    @property
    def mixed_iteration_time(self) -> Any:
        """Time of an iteration with a prefill chunk, s (tau, eq. 3)."""
        return self.iteration_time.mixed(self.chunk_size)

    @property
    def mu_prefill(self) -> Float[Any, " classes"]:
        """Rate at which a running prefill completes, 1/s: C / (P_i tau) (eq. 4)."""
        return self.chunk_size / (self.workload.prompt_tokens * self.mixed_iteration_time)

    @property
    def mu_mixed(self) -> Float[Any, " classes"]:
        """Rate at which a decode beside a prefill completes, 1/s: 1 / (D_i tau) (eq. 4)."""
        return 1.0 / (self.workload.output_tokens * self.mixed_iteration_time)

    @property
    def mu_solo(self) -> Float[Any, " classes"]:
        """Rate at which a decode without a prefill beside it completes, 1/s: gamma / D_i (eq. 4)."""
        return 1.0 / (self.workload.output_tokens * self.iteration_time.solo)

    @property
    def prefill_value(self) -> Float[Any, " classes"]:
        """Price of a request's prompt, money: c_p P_i."""
        return self.pricing.prefill * self.workload.prompt_tokens

    @property
    def decode_value(self) -> Float[Any, " classes"]:
        """Price of a request's output, money: c_d D_i."""
        return self.pricing.decode * self.workload.output_tokens

    @property
    def request_value(self) -> Float[Any, " classes"]:
        """Value of a completed request, money: w_i = c_p P_i + c_d D_i (eq. 21)."""
        return self.prefill_value + self.decode_value
