"""The cluster engine: every GPU has its own state; thousands of GPUs, many replications, every policy."""

from __future__ import annotations

import dataclasses
from types import ModuleType

import equinox as eqx
import jax

from .._instance import Instance
from .._policy.base import Policy
from . import exact, leap
from .random import Generator
from .replicated import AbstractReplicatedEngine
from .shape import Shape, shape_of
from .steppers import AbstractStepper, Exact, Leap

EVENTS_PER_STEP = 0.5
"""Largest expected number of events on one GPU in a step of `Leap`, when it chooses its step itself."""

EVENTS_PER_STEP_BUFFERED = 0.25
"""The same for policies without a partition that let finished requests wait: whether a GPU starts a prefill
or serves its buffer then hangs on the order of arrivals and completions, which a step does not keep."""


class ClusterEngine(AbstractReplicatedEngine):
    """Simulates every GPU of a cluster: the running prefill's class, and its decodes by class.

    Replications run in parallel in blocks, spread over all devices. A replication's result depends on the
    key and its number alone: not on the block, the device, or on what else runs beside it.

    **Arguments:**

    - `stepper`: `Exact()` (the exact law) or `Leap(dt)` (time steps; quicker on large clusters).
    - `generator`: `"hash"` (a counter-based integer hash, quick) or `"threefry"` (JAX's own, several times
      slower; for checking that results do not hinge on the generator).
    - `block`: replications per device and call; None: chosen from the memory that they need and that is free.

    **Raises:** `InputError` for an unknown generator or a block below 1.
    """

    stepper: AbstractStepper = dataclasses.field(default_factory=Exact)
    generator: Generator = eqx.field(static=True, default="hash")
    block: int | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        self.check_options()

    @property
    def chain(self) -> ModuleType:
        return leap if isinstance(self.stepper, Leap) else exact

    @property
    def block_bytes(self) -> int:
        return (2 if isinstance(self.stepper, Leap) else 64) * 2**20

    def shape(self, instance: Instance, policy: Policy, n_gpus: int) -> Shape:
        return shape_of(policy, n_gpus, int(instance.batch_size), instance.n_classes)

    def events_per_step(self, policy: Policy) -> float:
        buffered = policy.partition is None and policy.router.buffers
        return EVENTS_PER_STEP_BUFFERED if buffered else EVENTS_PER_STEP

    def describe(self, instance: Instance, policy: Policy, n_gpus: int) -> str:
        """One line about how a run would go: the stepper and its step, the padded shape, the devices."""
        shape = self.shape(instance, policy, n_gpus)
        lumped = ", solo group lumped" if shape.partitioned else ""
        devices = jax.local_devices()
        kind = f"{len(devices)} {devices[0].platform} device{'s' if len(devices) > 1 else ''}"
        stepper = self.stepper.describe(instance, self.events_per_step(policy))
        return f"cluster engine, {stepper}; {shape.gpus} GPU states{lumped}; {kind}"

    def bytes_of(self, shape: Shape, buffers: int) -> int:
        small = 4 * shape.classes * (16 + buffers) + 64
        if isinstance(self.stepper, Leap):
            return small + shape.gpus * leap.bytes_per_gpu(shape)
        item = 2 if shape.gpus < 2**15 else 4
        row = 4 * (-(-(shape.classes + 1) // exact.FIELDS) + 1)
        return small + item * shape.items + row * shape.gpus
