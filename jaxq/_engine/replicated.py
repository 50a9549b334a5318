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
from .._memory import block_limit, in_words
from .._policy.base import Policy
from .base import Totals
from .group import Case, Group, Own
from .hosts import shared_blocks, smallest_of_all
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
        group = self._group([Case(instance, policy, n_gpus)])
        if scores:
            group = dataclasses.replace(group, scores=self.score_count(policy))
        run = _Run(horizon, warmup, n_windows, key, replications, first)
        (record,) = self._run(group, [0], run, progress)
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
        group = self._group([Case(instance, policy, n_gpus) for policy in policies], "policy")
        run = _Run(horizon, warmup, n_windows, key, replications, first)
        return self._run(group, range(len(policies)), run, progress)

    def run_cases(
        self,
        cases: Sequence[Case],
        *,
        horizon: float,
        warmup: float,
        key: jax.Array,
        replications: int,
        first: int = 0,
        progress: Progress | None = None,
        only: Sequence[int] | None = None,
    ) -> list[Record]:
        """`run` for clusters of many sizes and instances, under policies that differ in their numbers alone,
        as one large run: one program serves all.

        **Arguments:** `only`: positions of the cases that are wanted now; all when None. The program is the
        same whichever these are.

        **Returns:** a `Record` for each case that is wanted, the same as of `run`. **Raises:** as `run`;
        `InputError` when the policies differ in structure, or the instances in the number of classes.
        """
        group = self._group(cases, "all")
        run = _Run(horizon, warmup, None, key, replications, first)
        return self._run(group, range(len(cases)) if only is None else only, run, progress)

    def block_of_cases(self, cases: Sequence[Case], replications: int) -> int:
        """Replications that `run_cases` simulates at a time, when it is asked for so many of each case."""
        group = self._group(cases, "all")
        return self._fitting_block(group.shape, group.buffers, len(cases) * replications)

    def _group(self, cases: Sequence[Case], own: Own = "none") -> Group:
        return Group.of(cases, lambda case: self.shape(case.instance, case.policy, case.n_gpus), own)

    def _run(self, group: Group, wanted: Sequence[int], run: _Run, progress: Progress | None) -> list[Record]:
        """A record for each case that is wanted; those that go through time alike share blocks."""
        by_timing: dict[_Timing, list[int]] = {}
        for k in wanted:
            by_timing.setdefault(self._timing(group.cases[k], run), []).append(k)
        block = smallest_of_all(
            self._fitting_block(group.shape, group.buffers, len(group.cases) * run.replications)
        )
        blocks = [-(-len(some) * run.replications // block) for some in by_timing.values()]
        windows = [len(timing.windows.lengths) for timing in by_timing]
        total = sum(count * each for count, each in zip(blocks, windows, strict=True))
        done, records = 0, {}
        for count, (timing, some) in zip(blocks, by_timing.items(), strict=True):
            report = functools.partial(_report, progress, done, total)
            records.update(self._run_alike(group, some, timing, run, block, report))
            done += count * len(timing.windows.lengths)
        return [records[k] for k in wanted]

    def _timing(self, case: Case, run: _Run) -> _Timing:
        """How a case goes through time."""
        windows = self.windows(case.instance, case.n_gpus, run.horizon, run.warmup, run.n_windows)
        return _Timing(windows, self.step(case.instance, case.policy))

    def _run_alike(
        self,
        group: Group,
        wanted: Sequence[int],
        timing: _Timing,
        run: _Run,
        block: int,
        report: Callable[[int], None],
    ) -> dict[int, Record]:
        """A record for each of the cases `wanted`, which go through time alike."""
        total = len(wanted) * run.replications
        starts = range(0, total, block)
        cases = np.asarray(wanted)

        def run_block(b: int) -> Record:
            lanes = np.arange(starts[b], starts[b] + block)
            position = np.minimum(lanes // run.replications, len(wanted) - 1)
            numbers = run.first + lanes - run.replications * position
            before = b * len(timing.windows.lengths)

            def progress(done: int) -> None:
                report(before + done)

            return self._run_block(group, cases[position], timing, run.key, numbers, progress)

        record = Record.concatenate(shared_blocks(len(starts), run_block)).part(0, total)
        return {
            k: dataclasses.replace(
                record.part(position * run.replications, run.replications), n_gpus=group.cases[k].n_gpus
            )
            for position, k in enumerate(wanted)
        }

    def memory(self, instance: Instance, policy: Policy, n_gpus: int, replications: int) -> int:
        """Bytes that one call holds on all devices together, about."""
        block = self.block_size(instance, policy, n_gpus, replications)
        return 2 * block * self.bytes_of(self.shape(instance, policy, n_gpus), len(policy.router.buffers))

    def compile(self, instance: Instance, policy: Policy, n_gpus: int, replications: int) -> None:
        """Compile ahead of time what `run` would; several threads may do so at once."""
        block = self.block_size(instance, policy, n_gpus, replications)
        self.program_of(instance, policy, n_gpus, block)

    def state_bytes(self, instance: Instance, policy: Policy, n_gpus: int) -> int:
        """Bytes of state of one replication, about."""
        return self.bytes_of(self.shape(instance, policy, n_gpus), len(policy.router.buffers))

    def compiled_text(self, instance: Instance, policy: Policy, n_gpus: int, replications: int) -> str:
        """The optimised program (HLO) that advances a block, for counting what a step compiles to."""
        block = self.block_size(instance, policy, n_gpus, replications)
        return self.program_of(instance, policy, n_gpus, block).text() or ""

    def program_of(self, instance: Instance, policy: Policy, n_gpus: int, block: int) -> Program:
        """What is compiled for blocks of so many replications of one cluster."""
        return self._program(self._group([Case(instance, policy, n_gpus)]), block)

    def block_size(self, instance: Instance, policy: Policy, n_gpus: int, replications: int) -> int:
        """Replications per call on all devices together: a multiple of `LANES` on each.

        As many as fit a share of the free memory, and on a CPU its caches: another call may choose another
        size, and no result depends on it.
        """
        shape = self.shape(instance, policy, n_gpus)
        return self._fitting_block(shape, len(policy.router.buffers), replications)

    def _fitting_block(self, shape: Shape, buffers: int, replications: int) -> int:
        devices = jax.local_devices()
        share = -(-replications // (len(devices) * jax.process_count()))
        if self.block is None:
            state = self.bytes_of(shape, buffers)
            fits = block_limit(len(devices), state, shape.classes)
            if devices[0].platform == "cpu":
                fits = min(fits, self.block_bytes // state, MAX_BLOCK)
            # Blocks of equal size, so that the last one is not mostly padding.
            share = -(-share // -(-share // max(LANES, fits)))
        else:
            share = min(share, self.block)
        return len(devices) * LANES * -(-share // LANES)

    def describe_blocks(
        self, instance: Instance, policies: Sequence[Policy], n_gpus: int, replications: int
    ) -> str:
        """One line about how many replications run at a time, of that of some policies with the largest
        state."""
        largest = max(policies, key=lambda policy: self.state_bytes(instance, policy, n_gpus))
        block = self.block_size(instance, largest, n_gpus, replications)
        count, devices = -(-replications // block), jax.local_devices()
        state = in_words(block // len(devices) * self.state_bytes(instance, largest, n_gpus))
        return (
            f"{count} block{'s' if count > 1 else ''} of {block} replications on {len(devices)} "
            f"{devices[0].platform.upper()} device{'s' if len(devices) > 1 else ''}, {state} of state on each"
        )

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

    def _program(self, group: Group, block: int) -> Program:
        policy, _ = group.lowered(np.zeros(block, int))
        leaves, structure = jax.tree.flatten(policy)
        shapes = tuple((leaf.shape, str(leaf.dtype)) for leaf in leaves)
        shape = dataclasses.replace(group.shape, scores=group.scores)
        devices = len(jax.local_devices())
        return program(self.chain, shape, self.generator, structure, shapes, block, devices, group.own)

    def _run_block(
        self,
        group: Group,
        follows: np.ndarray,
        timing: _Timing,
        key: jax.Array,
        replications: np.ndarray,
        report: Callable[[int], None],
    ) -> Record:
        """A block of replications, each of the case that it follows; the record names the first case's n."""
        compiled = self._program(group, len(follows))
        policy, numbers = group.lowered(follows)
        fixed = compiled.place(jax.tree.leaves(policy), numbers, replication_keys(key, replications))
        state = compiled.start(*fixed)
        windows, rows = timing.windows, []
        for w, length in enumerate(windows.lengths):
            kept = []
            for part in range(windows.parts):
                index = jnp.asarray(w * windows.parts + part, jnp.int32)
                seconds = length / windows.parts
                state, totals = compiled.advance(*fixed, state, index, *pace(seconds, timing.step))
                kept.append(totals)
            host = jax.device_get(kept)
            report(w + 1)
            _check_status(compiled.status(state), replications)
            rows.append(_summed(host))
        return _record(rows, windows, compiled.levels(state), group.cases[0].n_gpus, timing.step)


@dataclasses.dataclass(frozen=True)
class _Run:
    """What all cases of a call have in common; `n_windows`: after the warm-up, when not as many as usual."""

    horizon: float
    warmup: float
    n_windows: int | None
    key: jax.Array
    replications: int
    first: int


@dataclasses.dataclass(frozen=True)
class _Timing:
    """How a run goes through time: its windows, and the step of a time-stepped one, s."""

    windows: Windows
    step: float | None


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
