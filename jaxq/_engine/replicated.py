"""What stochastic engines share: replications in blocks, spread over all devices, recorded by window."""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._errors import InputError, SimulationError
from .._instance import Instance
from .._policy.base import Policy
from .base import Totals, device_policy, numbers_of
from .group import Group
from .hosts import shared_blocks
from .program import Program, program
from .random import Generator, replication_keys
from .record import COUNTS, INTEGRALS, Record
from .score import count_scores
from .shape import Shape
from .steppers import AbstractStepper, Exact, Leap
from .windows import EVENTS_PER_WINDOW, WINDOWS, Windows, pace

Progress = Callable[[int, int], None]

LANES = 8
"""Replications a device come in multiples of this, so that its vector loops have no remainder."""

MAX_BLOCK = 512


class AbstractReplicatedEngine(eqx.Module):
    """Runs replications in parallel in blocks, spread over all devices.

    A replication's result depends on the key and its number alone: not on the block, the device, or on what
    else runs beside it.
    """

    stepper: eqx.AbstractVar[AbstractStepper]
    generator: eqx.AbstractVar[Generator]
    block: eqx.AbstractVar[int | None]

    @property
    def is_fluid(self) -> bool:
        """Whether it is the limit of many GPUs: no."""
        return False

    @property
    @abc.abstractmethod
    def chain(self) -> ModuleType:
        """The module whose chain the stepper follows; see `Program`."""

    @property
    @abc.abstractmethod
    def block_bytes(self) -> int:
        """State of one block of replications on one CPU device, about: what its caches serve well."""

    @abc.abstractmethod
    def shape(self, instance: Instance, policy: Policy, n_gpus: int) -> Shape:
        """The sizes of the arrays of a run. **Raises:** `InputError` for a policy that is not simulated."""

    @abc.abstractmethod
    def bytes_of(self, shape: Shape, buffers: int) -> int:
        """Bytes of state of one replication, about."""

    @abc.abstractmethod
    def events_per_step(self, policy: Policy) -> float:
        """Largest expected number of events on one GPU in a step of `Leap` that chooses its step itself."""

    @abc.abstractmethod
    def describe(self, instance: Instance, policy: Policy, n_gpus: int) -> str:
        """One line about how a run would go."""

    def step(self, instance: Instance, policy: Policy) -> float | None:
        """The time step of a run, s; None for the exact chain. **Raises:** `InputError` when too long."""
        if not isinstance(self.stepper, Leap):
            return None
        return self.stepper.step_of(instance, self.events_per_step(policy))

    def windows(
        self, instance: Instance, n_gpus: int, horizon: float, warmup: float, n_windows: int | None
    ) -> Windows:
        """The windows in which a run is recorded."""
        return Windows.plan(instance, n_gpus, horizon, warmup, n_windows or WINDOWS, EVENTS_PER_WINDOW)

    def check_options(self) -> None:
        """Refuse an unknown generator or a block below 1."""
        if self.generator not in ("hash", "threefry"):
            raise InputError(f"generator: expected 'hash' or 'threefry', got {self.generator!r}")
        if self.block is not None and self.block < 1:
            raise InputError(f"block: expected at least 1 replication, got {self.block}")

    def run(
        self,
        instance: Instance,
        policy: Policy,
        *,
        n_gpus: int,
        horizon: float,
        warmup: float,
        key: jax.Array,
        replications: int,
        first: int = 0,
        progress: Progress | None = None,
        n_windows: int | None = None,
        scores: bool = False,
    ) -> Record:
        """Simulate replications `first`, ..., `first + replications - 1` from an empty cluster to `horizon`
        seconds.

        **Arguments:** `scores`: whether the record also says how the chances of the policy's random
        decisions hang on its parameters.

        **Returns:** a `Record` of what happened, in windows of time. **Raises:** `InputError` when a step
        of `Leap` is too long, or scores are asked of it, or of a policy without random decisions;
        `SimulationError` when a router leaves a request without a place, naming the replication.
        """
        self.shape(instance, policy, n_gpus)
        plan = self.windows(instance, n_gpus, horizon, warmup, n_windows)
        group = Group.of([policy], n_gpus)
        if scores:
            group = dataclasses.replace(group, scores=self.score_count(policy))
        (record,) = self._run(instance, group, n_gpus, plan, key, replications, first, progress)
        return record

    def run_together(
        self,
        instance: Instance,
        policies: Sequence[Policy],
        *,
        n_gpus: int,
        horizon: float,
        warmup: float,
        key: jax.Array,
        replications: int,
        first: int = 0,
        progress: Progress | None = None,
        n_windows: int | None = None,
    ) -> list[Record]:
        """`run` for several policies that differ in their numbers alone, as one large run.

        Each is simulated for the same replications, with the same random numbers.

        **Returns:** a `Record` for each policy. **Raises:** as `run`; `InputError` when the policies differ
        in structure.
        """
        for policy in policies:
            self.shape(instance, policy, n_gpus)
        plan = self.windows(instance, n_gpus, horizon, warmup, n_windows)
        group = Group.of(policies, n_gpus, together=True)
        return self._run(instance, group, n_gpus, plan, key, replications, first, progress)

    def _run(
        self,
        instance: Instance,
        group: Group,
        n_gpus: int,
        windows: Windows,
        key: jax.Array,
        replications: int,
        first: int,
        progress: Progress | None,
    ) -> list[Record]:
        total = len(group.policies) * replications
        block = self.block_size(instance, group.widest, n_gpus, total)
        starts = range(0, total, block)
        pieces = len(starts) * len(windows.lengths)

        def run(b: int) -> Record:
            report = functools.partial(_report, progress, b * len(windows.lengths), pieces)
            lanes = np.arange(starts[b], starts[b] + block)
            follows = np.minimum(lanes // replications, len(group.policies) - 1)
            numbers = first + lanes - replications * follows
            return self._run_block(instance, group, n_gpus, windows, key, follows, numbers, report)

        record = Record.concatenate(shared_blocks(len(starts), run)).part(0, total)
        return [record.part(k * replications, replications) for k in range(len(group.policies))]

    def memory(self, instance: Instance, policy: Policy, n_gpus: int, replications: int) -> int:
        """Bytes that one call holds on all devices together, about."""
        block = self.block_size(instance, policy, n_gpus, replications)
        return 2 * block * self.bytes_of(self.shape(instance, policy, n_gpus), len(policy.router.buffers))

    def compile(self, instance: Instance, policy: Policy, n_gpus: int, replications: int) -> None:
        """Compile ahead of time what `run` would; several threads may do so at once."""
        block = self.block_size(instance, policy, n_gpus, replications)
        self._program(instance, policy, n_gpus, block)

    def state_bytes(self, instance: Instance, policy: Policy, n_gpus: int) -> int:
        """Bytes of state of one replication, about."""
        return self.bytes_of(self.shape(instance, policy, n_gpus), len(policy.router.buffers))

    def compiled_text(self, instance: Instance, policy: Policy, n_gpus: int, replications: int) -> str:
        """The optimised program (HLO) that advances a block, for counting what a step compiles to."""
        block = self.block_size(instance, policy, n_gpus, replications)
        return self._program(instance, policy, n_gpus, block).text() or ""

    def block_size(self, instance: Instance, policy: Policy, n_gpus: int, replications: int) -> int:
        """Replications per call on all devices together: a multiple of `LANES` on each."""
        devices = len(jax.local_devices())
        share = -(-replications // (devices * jax.process_count()))
        if self.block is None:
            size = self.bytes_of(self.shape(instance, policy, n_gpus), len(policy.router.buffers))
            budget = self.block_bytes if jax.default_backend() == "cpu" else 2**30
            fits = max(LANES, budget // size)
            # Blocks of equal size, so that the last one is not mostly padding.
            share = -(-share // -(-share // min(fits, MAX_BLOCK if jax.default_backend() == "cpu" else fits)))
        else:
            share = min(share, self.block)
        return devices * LANES * -(-share // LANES)

    def score_count(self, policy: Policy) -> int:
        """Of how many parameters a record can keep scores. **Raises:** `InputError` when of none."""
        if not isinstance(self.stepper, Exact):
            raise InputError("scores: expected the exact chain; a time step takes many decisions as one")
        count = count_scores(policy)
        if not count:
            raise InputError(
                f"scores: policy {policy.name!r} has no parameters that act through random decisions; "
                "expected a gate or a router that draws from stated chances, as in jaxq.policies.feedback"
            )
        return count

    def _program(
        self,
        instance: Instance,
        policy: Policy,
        n_gpus: int,
        block: int,
        together: bool = False,
        scores: int = 0,
    ) -> Program:
        lanes = np.zeros(block, int) if together else None
        leaves, structure = jax.tree.flatten(device_policy(policy, lanes=lanes))
        shapes = tuple((leaf.shape, str(leaf.dtype)) for leaf in leaves)
        shape = dataclasses.replace(self.shape(instance, policy, n_gpus), scores=scores)
        return program(
            self.chain, shape, self.generator, structure, shapes, block, len(jax.local_devices()), together
        )

    def _run_block(
        self,
        instance: Instance,
        group: Group,
        n_gpus: int,
        windows: Windows,
        key: jax.Array,
        follows: np.ndarray,
        replications: np.ndarray,
        report: Callable[[int], None],
    ) -> Record:
        policy = group.widest
        step = self.step(instance, policy)
        compiled = self._program(instance, policy, n_gpus, len(follows), group.together, group.scores)
        lowered = device_policy(*group.policies, lanes=follows if group.together else None)
        mixed = group.mixed_gpus[follows] if group.together else group.mixed_gpus
        fixed = compiled.place(
            jax.tree.leaves(lowered),
            numbers_of(instance, n_gpus, mixed),
            replication_keys(key, replications),
        )
        state = compiled.start(*fixed)
        rows = []
        for w, length in enumerate(windows.lengths):
            kept = []
            for part in range(windows.parts):
                index = jnp.asarray(w * windows.parts + part, jnp.int32)
                state, totals = compiled.advance(*fixed, state, index, *pace(length / windows.parts, step))
                kept.append(totals)
            host = jax.device_get(kept)
            report(w + 1)
            _check_status(compiled.status(state), replications)
            rows.append(_summed(host))
        return _record(rows, windows, compiled.levels(state), n_gpus, step)


def _report(progress: Progress | None, before: int, total: int, done: int) -> None:
    if progress is not None:
        progress(before + done, total)


def _check_status(status: jax.Array, replications: np.ndarray) -> None:
    bad = np.flatnonzero(np.asarray(status))
    if bad.size:
        number = int(replications[bad[0]])
        raise SimulationError(
            f"replication {number}: the router had no pool with room for a finished request; "
            "give it a buffer (Pool.WAIT) or another pool with a finite preference"
        )


def _summed(parts: list[Totals]) -> dict[str, np.ndarray]:
    """Totals of a window, added up in float64."""
    names = (*COUNTS, *INTEGRALS, "events", *(() if parts[0].scores is None else ("scores",)))
    # One after another, so that the sum is the same however the parts were computed.
    return {
        name: functools.reduce(np.add, [np.asarray(getattr(part, name), np.float64) for part in parts])
        for name in names
    }


def _record(
    rows: list[dict[str, np.ndarray]], windows: Windows, levels: Any, n_gpus: int, dt: float | None
) -> Record:
    levels = jax.device_get(levels)
    final = {
        "prefills": levels.prefills,
        "decodes": levels.decodes_mixed + levels.decodes_solo,
        "prefill_queue": levels.prefill_queue,
        "decode_queue": levels.decode_queue.sum(axis=0),
    }
    return Record(
        durations=np.asarray(windows.lengths),
        warmup_windows=windows.warmup,
        n_gpus=n_gpus,
        dt=dt,
        final={name: np.asarray(value, np.int64) for name, value in final.items()},
        **{name: np.stack([row[name] for row in rows]) for name in rows[0]},
    )
