"""The pooled engine: counts by class and group, whatever the number of GPUs."""

from __future__ import annotations

import dataclasses
from types import ModuleType

import equinox as eqx
import jax

from .._engine.random import Generator
from .._engine.replicated import AbstractReplicatedEngine
from .._engine.shape import Shape, shape_of
from .._engine.steppers import AbstractStepper, Leap
from .._engine.windows import WINDOWS, Windows
from .._errors import InputError
from .._instance import Instance
from .._policy.base import Policy
from . import exact, leap
from .bias import bias_line
from .pools import check_pooled

EVENTS_PER_STEP = 0.05
"""Largest expected number of events on one GPU in a step of `Leap`, when it chooses its step itself: short
prefills end and start within a step, and large clusters feel small shifts between classes."""

EVENTS_PER_WINDOW = 2.0**28
"""Largest expected number of events of one replication between two transfers to the host with `Leap`, which
counts them as int32."""


class PooledEngine(AbstractReplicatedEngine):
    """Simulates a cluster under a partition as counts by class and group, for up to 10^6 GPUs.

    The solo group is exact. In the mixed group, decodes take the mixed rate for that share of them which is
    the share of its GPUs that run a prefill: exact while all of them do, else an approximation. Policies
    without a partition, and routers that tell GPUs of the mixed group apart, are refused: for these the
    counts have no law of their own.

    **Arguments:**

    - `stepper`: `Leap(dt)` (time steps, of tens of decisions at most) or `Exact()` (one event after
      another).
    - `generator`, `block`: as for `ClusterEngine`.

    **Raises:** `InputError` for an unknown generator or a block below 1.
    """

    stepper: AbstractStepper = dataclasses.field(default_factory=Leap)
    generator: Generator = eqx.field(static=True, default="hash")
    block: int | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        self.check_options()

    @property
    def chain(self) -> ModuleType:
        return leap if isinstance(self.stepper, Leap) else exact

    @property
    def block_bytes(self) -> int:
        return 2**20

    def shape(self, instance: Instance, policy: Policy, n_gpus: int) -> Shape:
        check_pooled(policy, "the pooled engine", "use the cluster engine")
        return dataclasses.replace(shape_of(policy, 1, int(instance.batch_size), instance.n_classes), gpus=0)

    def events_per_step(self, policy: Policy) -> float:
        return EVENTS_PER_STEP

    def windows(
        self, instance: Instance, n_gpus: int, horizon: float, warmup: float, n_windows: int | None
    ) -> Windows:
        if not isinstance(self.stepper, Leap):
            return super().windows(instance, n_gpus, horizon, warmup, n_windows)
        return Windows.plan(instance, n_gpus, horizon, warmup, n_windows or WINDOWS, EVENTS_PER_WINDOW)

    def score_count(self, policy: Policy) -> int:
        raise InputError("scores: expected the cluster engine, which alone knows the chances of decisions")

    def describe(self, instance: Instance, policy: Policy, n_gpus: int) -> str:
        """One line about how a run would go: the stepper and its step, the devices, the measured bias."""
        self.shape(instance, policy, n_gpus)
        devices = jax.local_devices()
        kind = f"{len(devices)} {devices[0].platform} device{'s' if len(devices) > 1 else ''}"
        stepper = self.stepper.describe(instance, self.events_per_step(policy))
        return f"pooled engine, {stepper}; {kind}; {bias_line(policy.name)}"

    def bytes_of(self, shape: Shape, buffers: int) -> int:
        return 4 * shape.classes * (16 + buffers) + 64
