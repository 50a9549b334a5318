"""A cluster and its workload: everything the model knows, per GPU."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Float

from ._errors import InputError
from ._hardware import IterationTime, scalar
from ._pricing import Pricing
from ._workload import Workload

MAX_BATCH_SIZE = 256


class Instance(eqx.Module):
    """One instance of the model: a workload, the iteration time, the batch and the prices.

    Every number is a float64 leaf on the host, so that the planning LP keeps its precision; engines take float32
    copies. The number of GPUs is not part of an instance: rates are per GPU.

    **Arguments:**

    - `workload`, `iteration_time`, `pricing`: see there.
    - `batch_size`: slots of a GPU, B: at most B decodes, or one prefill and B - 1 decodes; 2 to 256.
    - `chunk_size`: prompt tokens that one iteration prefills, C.
    - `name`: for labels in tables and figures.

    **Raises:** `InputError` for a batch or chunk size that is not a whole number in range, or a mixed iteration
    time that is not positive.
    """

    workload: Workload
    iteration_time: IterationTime
    pricing: Pricing
    batch_size: Float[Any, ""] = eqx.field(converter=scalar)
    chunk_size: Float[Any, ""] = eqx.field(converter=scalar)
    name: str = eqx.field(static=True, default="instance")

    def __check_init__(self):
        for name, low, high in (("batch_size", 2, MAX_BATCH_SIZE), ("chunk_size", 1, None)):
            value = getattr(self, name)
            if not isinstance(value, np.ndarray):
                continue
            number = float(value)
            if not np.isfinite(number) or number != round(number) or number < low or (high and number > high):
                limits = f"from {low} to {high}" if high else f"of at least {low}"
                raise InputError(f"hardware.{name}: expected a whole number {limits}, got {number:g}")
        mixed = self.mixed_iteration_time
        if isinstance(mixed, np.ndarray | np.floating) and not float(mixed) > 0:
            raise InputError(
                f"hardware: alpha + beta * chunk_size = {float(mixed):g} s; the time of an iteration must be positive"
            )

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
