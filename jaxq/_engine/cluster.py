"""The cluster engine: every GPU has its own state; thousands of GPUs, many replications, every policy."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from .._errors import InputError, SimulationError
from .._instance import Instance
from .._policy.base import Policy
from . import exact, leap
from .base import Numbers, Totals, device_policy, numbers_of, unlabelled
from .random import Generator, replication_keys
from .record import Record
from .score import count_scores
from .shape import Shape, shape_of
from .steppers import AbstractStepper, Exact, Leap

Progress = Callable[[int, int], None]

LANES = 8
"""Replications a device come in multiples of this, so that its vector loops have no remainder."""

BLOCK_BYTES = {"exact": 64 * 2**20, "leap": 2 * 2**20}
"""State of one block of replications on one device, about: what its caches serve well."""

MAX_BLOCK = 512

WINDOWS = 40
"""Windows of time after the warm-up that a record keeps, unless told otherwise."""

EVENTS_PER_WINDOW = 2**15
"""Largest expected number of events of one replication between two transfers to the host: float32 integrals
and clocks keep six digits over so many."""

COUNTS = ("arrivals", "abandoned_prefill", "prefills_completed", "abandoned_decode", "completions")
INTEGRALS = ("prefills", "decodes_mixed", "decodes_solo", "prefill_queue", "decode_queue")


class ClusterEngine(eqx.Module):
    """Simulates every GPU of a cluster: the running prefill's class, and its decodes by class.

    Replications run in parallel in blocks, spread over all devices. A replication's result depends on the
    key and its number alone: not on the block, the device, or on what else runs beside it.

    **Arguments:**

    - `stepper`: `Exact()` (the exact law) or `Leap(dt)` (time steps; quicker on large clusters).
    - `generator`: `"hash"` (a counter-based integer hash, quick) or `"threefry"` (JAX's own, several times
      slower; for checking that results do not hinge on the generator).
    - `block`: replications per device and call; None: chosen from the memory that they need.

    **Raises:** `InputError` for an unknown generator or a block below 1.
    """

    stepper: AbstractStepper = dataclasses.field(default_factory=Exact)
    generator: Generator = eqx.field(static=True, default="hash")
    block: int | None = eqx.field(static=True, default=None)

    def __check_init__(self):
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
        plan = _Windows.plan(instance, n_gpus, horizon, warmup, n_windows or WINDOWS)
        group = _Group.of([policy], n_gpus)
        if scores:
            group = dataclasses.replace(group, scores=self._score_count(policy))
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
        plan = _Windows.plan(instance, n_gpus, horizon, warmup, n_windows or WINDOWS)
        group = _Group.of(policies, n_gpus, together=True)
        return self._run(instance, group, n_gpus, plan, key, replications, first, progress)

    def _run(
        self,
        instance: Instance,
        group: _Group,
        n_gpus: int,
        windows: _Windows,
        key: jax.Array,
        replications: int,
        first: int,
        progress: Progress | None,
    ) -> list[Record]:
        total = len(group.policies) * replications
        block = self._block(instance, group.widest, n_gpus, total)
        starts = range(0, total, block)
        pieces = len(starts) * len(windows.lengths)
        records = []
        for b, start in enumerate(starts):
            report = functools.partial(_report, progress, b * len(windows.lengths), pieces)
            lanes = np.arange(start, start + block)
            follows = np.minimum(lanes // replications, len(group.policies) - 1)
            numbers = first + lanes - replications * follows
            record = self._run_block(instance, group, n_gpus, windows, key, follows, numbers, report)
            records.append(record.part(0, min(block, total - start)))
        record = Record.concatenate(records)
        return [record.part(k * replications, replications) for k in range(len(group.policies))]

    def describe(self, instance: Instance, policy: Policy, n_gpus: int) -> str:
        """One line about how a run would go: the stepper and its step, the padded shape, the devices."""
        shape = _shape(instance, policy, n_gpus)
        lumped = ", solo group lumped" if shape.partitioned else ""
        devices = jax.devices()
        kind = f"{len(devices)} {devices[0].platform} device{'s' if len(devices) > 1 else ''}"
        stepper = self.stepper.describe(instance, policy)
        return f"cluster engine, {stepper}; {shape.gpus} GPU states{lumped}; {kind}"

    def memory(self, instance: Instance, policy: Policy, n_gpus: int, replications: int) -> int:
        """Bytes that one call holds on all devices together, about."""
        block = self._block(instance, policy, n_gpus, replications)
        return 2 * block * self._bytes(_shape(instance, policy, n_gpus), len(policy.router.buffers))

    def compile(self, instance: Instance, policy: Policy, n_gpus: int, replications: int) -> None:
        """Compile ahead of time what `run` would; several threads may do so at once."""
        block = self._block(instance, policy, n_gpus, replications)
        self._program(instance, policy, n_gpus, block)

    def state_bytes(self, instance: Instance, policy: Policy, n_gpus: int) -> int:
        """Bytes of state of one replication, about."""
        return self._bytes(_shape(instance, policy, n_gpus), len(policy.router.buffers))

    def compiled_text(self, instance: Instance, policy: Policy, n_gpus: int, replications: int) -> str:
        """The optimised program (HLO) that advances a block, for counting what a step compiles to."""
        block = self._block(instance, policy, n_gpus, replications)
        return self._program(instance, policy, n_gpus, block).text() or ""

    def _bytes(self, shape: Shape, buffers: int) -> int:
        small = 4 * shape.classes * (16 + buffers) + 64
        if isinstance(self.stepper, Leap):
            return small + shape.gpus * leap.bytes_per_gpu(shape)
        item = 2 if shape.gpus < 2**15 else 4
        row = 4 * (-(-(shape.classes + 1) // exact.FIELDS) + 1)
        return small + item * shape.items + row * shape.gpus

    def _block(self, instance: Instance, policy: Policy, n_gpus: int, replications: int) -> int:
        """Replications per call on all devices together: a multiple of `LANES` on each."""
        devices = len(jax.devices())
        share = -(-replications // devices)
        if self.block is None:
            size = self._bytes(_shape(instance, policy, n_gpus), len(policy.router.buffers))
            budget = BLOCK_BYTES["leap" if isinstance(self.stepper, Leap) else "exact"]
            if jax.default_backend() != "cpu":
                budget = 2**30
            fits = max(LANES, budget // size)
            # Blocks of equal size, so that the last one is not mostly padding.
            share = -(-share // -(-share // min(fits, MAX_BLOCK if jax.default_backend() == "cpu" else fits)))
        else:
            share = min(share, self.block)
        return devices * LANES * -(-share // LANES)

    def _score_count(self, policy: Policy) -> int:
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
    ) -> _Program:
        lanes = np.zeros(block, int) if together else None
        leaves, structure = jax.tree.flatten(device_policy(policy, lanes=lanes))
        shapes = tuple((leaf.shape, str(leaf.dtype)) for leaf in leaves)
        shape = dataclasses.replace(_shape(instance, policy, n_gpus), scores=scores)
        kind = "leap" if isinstance(self.stepper, Leap) else "exact"
        return _program(kind, shape, self.generator, structure, shapes, block, len(jax.devices()), together)

    def _run_block(
        self,
        instance: Instance,
        group: _Group,
        n_gpus: int,
        windows: _Windows,
        key: jax.Array,
        follows: np.ndarray,
        replications: np.ndarray,
        report: Callable[[int], None],
    ) -> Record:
        policy = group.widest
        step = self.stepper.step_of(instance, policy) if isinstance(self.stepper, Leap) else None
        program = self._program(instance, policy, n_gpus, len(follows), group.together, group.scores)
        lowered = device_policy(*group.policies, lanes=follows if group.together else None)
        mixed = group.mixed_gpus[follows] if group.together else group.mixed_gpus
        fixed = program.place(
            jax.tree.leaves(lowered),
            numbers_of(instance, n_gpus, mixed),
            replication_keys(key, replications),
        )
        state = program.start(*fixed)
        rows = []
        for w, length in enumerate(windows.lengths):
            kept = []
            for part in range(windows.parts):
                index = jnp.asarray(w * windows.parts + part, jnp.int32)
                pace = _pace(length / windows.parts, step)
                state, totals = program.advance(*fixed, state, index, *pace)
                kept.append(totals)
            host = jax.device_get(kept)
            report(w + 1)
            _check_status(program.status(state), replications)
            rows.append(_summed(host))
        return _record(rows, windows, program.levels(state), n_gpus, step)


def _shape(instance: Instance, policy: Policy, n_gpus: int) -> Shape:
    return shape_of(policy, n_gpus, int(instance.batch_size), instance.n_classes)


def _report(progress: Progress | None, before: int, total: int, done: int) -> None:
    if progress is not None:
        progress(before + done, total)


def _pace(length: float, step: float | None) -> tuple[jax.Array, jax.Array]:
    """Seconds of a window and (for `Leap`) its number of steps, which share it evenly."""
    steps = 1 if step is None else max(1, math.ceil(length / step - 1e-9))
    return jnp.asarray(length / steps if step is not None else length, jnp.float32), jnp.asarray(
        steps, jnp.int32
    )


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
    rows: list[dict[str, np.ndarray]], windows: _Windows, levels: Any, n_gpus: int, dt: float | None
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


@dataclasses.dataclass(frozen=True)
class _Group:
    """Policies that run together, the size of the mixed group of each, and the one for which it is
    largest.

    `together`: whether every replication has numbers of its own: one program then serves any number of
    policies. `scores`: of how many parameters the record keeps scores.
    """

    policies: tuple[Policy, ...]
    mixed_gpus: np.ndarray
    widest: Policy
    together: bool
    scores: int = 0

    @classmethod
    def of(cls, policies: Sequence[Policy], n_gpus: int, together: bool = False) -> _Group:
        if not policies:
            raise InputError("policies: expected at least one")
        # What differs may be numbers, and labels: these are part of a tree's structure.
        policies = tuple(unlabelled(policy) for policy in policies)
        kinds = [jax.tree.map(np.shape, policy) for policy in policies]
        if any(not eqx.tree_equal(kind, kinds[0]) for kind in kinds):
            raise InputError("policies: expected the same gate, router, partition or none, and shapes in all")
        mixed = np.asarray([policy.mixed_gpus(n_gpus) for policy in policies])
        return cls(policies, mixed, policies[int(np.argmax(mixed))], together)


@dataclasses.dataclass(frozen=True)
class _Windows:
    """The windows of time of a run: `lengths` in s, the first `warmup` of them before the end of the
    warm-up; each runs in `parts` equal parts."""

    lengths: tuple[float, ...]
    warmup: int
    parts: int

    @classmethod
    def plan(cls, instance: Instance, n_gpus: int, horizon: float, warmup: float, measured: int) -> _Windows:
        length = (horizon - warmup) / measured
        before = min(measured, math.ceil(warmup / length - 1e-9))
        longest = max(length, warmup / before) if before else length
        # Each request makes at most four events: arrival, two completions or an abandonment, and a null
        # event.
        rate = 4 * n_gpus * float(np.sum(instance.workload.arrival_rate))
        parts = max(1, math.ceil(longest * rate / EVENTS_PER_WINDOW))
        lengths = (warmup / before,) * before if before else ()
        return cls(lengths=lengths + (length,) * measured, warmup=before, parts=parts)


class _Program:
    """The compiled start and advance of one shape on the devices at hand."""

    def __init__(
        self,
        kind: str,
        shape: Shape,
        generator: Generator,
        structure: Any,
        shapes: tuple,
        block: int,
        devices: int,
        together: bool,
    ):
        self.mesh = Mesh(np.asarray(jax.devices()[:devices]), ("replications",))
        self.module = leap if kind == "leap" else exact

        def chain(leaves: Any, numbers: Any, keys: Any) -> Any:
            policy = jax.tree.unflatten(structure, leaves)
            return self.module.Chain(policy, numbers, keys, shape, generator)

        def start(leaves: Any, numbers: Any, keys: Any) -> Any:
            return self.module.initial_state(chain(leaves, numbers, keys))

        def advance(
            leaves: Any, numbers: Any, keys: Any, state: Any, window: Any, length: Any, steps: Any
        ) -> Any:
            return self.module.advance(chain(leaves, numbers, keys), state, window, length, steps)

        leaves = [jax.ShapeDtypeStruct(s, np.dtype(d)) for s, d in shapes]
        numbers = jax.eval_shape(lambda: _numbers_like(shape.classes, block if together else 1))
        keys = jax.ShapeDtypeStruct((2, block), np.uint32)
        state = jax.eval_shape(start, leaves, numbers, keys)
        totals = jax.eval_shape(lambda: Totals.zeros(shape.classes, block, shape.scores))
        spec = PartitionSpec

        # Arrays with one entry for each replication are spread with them; of the rest all have a copy.
        def own_axis(leaf: jax.ShapeDtypeStruct) -> int | None:
            return leaf.ndim - 1 if together and leaf.shape[-1:] == (block,) else None

        self.own_axes = jax.tree.map(own_axis, (leaves, numbers))
        own_specs = jax.tree.map(_spec, self.own_axes, is_leaf=lambda axis: axis is None)
        fixed = (*own_specs, spec(None, "replications"))
        state_specs = jax.tree.map(lambda axis: _spec(axis), self.module.replication_axes(state))
        total_specs = jax.tree.map(lambda leaf: _spec(leaf.ndim - 1), totals)
        scalar = spec()
        wrap = functools.partial(jax.shard_map, mesh=self.mesh, check_vma=False)
        start_mapped = wrap(start, in_specs=fixed, out_specs=state_specs)
        advance_mapped = wrap(
            advance,
            in_specs=(*fixed, state_specs, scalar, scalar, scalar),
            out_specs=(state_specs, total_specs),
        )
        i32, f32 = jax.ShapeDtypeStruct((), np.int32), jax.ShapeDtypeStruct((), np.float32)
        place = functools.partial(self._placed)
        given = (*self._placed_own((leaves, numbers)), place(keys, 1))
        state = jax.tree.map(
            lambda leaf, axis: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=self.sharding(axis)),
            state,
            self.module.replication_axes(state),
        )
        small = (place(i32, None), place(f32, None), place(i32, None))
        kept = jax.tree.map(lambda leaf: leaf.sharding, state)
        summed = jax.tree.map(lambda leaf: self.sharding(leaf.ndim - 1), totals)
        options = _compiler_options(devices)
        self._start = jax.jit(start_mapped, out_shardings=kept).lower(*given).compile(options)
        advance_jitted = jax.jit(advance_mapped, out_shardings=(kept, summed), donate_argnums=3)
        self._advance = advance_jitted.lower(*given, state, *small).compile(options)
        self.text = self._advance.as_text

    def sharding(self, axis: int | None) -> NamedSharding:
        """Replications along `axis` spread over the devices; None: every device has a copy."""
        return NamedSharding(self.mesh, _spec(axis))

    def _placed_own(self, trees: tuple[Any, Any]) -> tuple[Any, Any]:
        def placed(axis: int | None, leaf: Any) -> Any:
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=self.sharding(axis))

        return jax.tree.map(placed, self.own_axes, trees, is_leaf=lambda axis: axis is None)

    def _placed(self, tree: Any, axis: int | None) -> Any:
        sharding = self.sharding(axis)
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree
        )

    def _put(self, tree: Any) -> Any:
        return jax.device_put(tree, self.sharding(None))

    def place(self, leaves: Any, numbers: Any, keys: Any) -> tuple[Any, Any, Any]:
        """What stays the same from window to window, on the devices."""

        def put(axis: int | None, leaf: Any) -> Any:
            return jax.device_put(leaf, self.sharding(axis))

        own = jax.tree.map(put, self.own_axes, (leaves, numbers), is_leaf=lambda axis: axis is None)
        return (*own, jax.device_put(keys, self.sharding(1)))

    def start(self, leaves: Any, numbers: Any, keys: Any) -> Any:
        """An empty cluster; the arguments are as `place` gave them."""
        return self._start(leaves, numbers, keys)

    def advance(
        self, leaves: Any, numbers: Any, keys: Any, state: Any, window: Any, length: Any, steps: Any
    ) -> tuple[Any, Totals]:
        """One window on."""
        return self._advance(leaves, numbers, keys, state, *self._put((window, length, steps)))

    def status(self, state: Any) -> Any:
        """The status of each replication: 0 when all is well."""
        return state.status

    def levels(self, state: Any) -> Any:
        """The numbers in each stage."""
        return self.module.levels_of(state)


def _spec(axis: int | None) -> PartitionSpec:
    return PartitionSpec() if axis is None else PartitionSpec(*([None] * axis), "replications")


def _compiler_options(devices: int) -> dict[str, str | bool]:
    """On CPU devices that keep every core busy, XLA must not divide one device's loops among cores too."""
    busy = jax.default_backend() == "cpu" and devices >= (os.cpu_count() or 1)
    return {"xla_cpu_multi_thread_eigen": False} if busy else {}


def _numbers_like(classes: int, partitions: int) -> Numbers:
    one, column = jnp.zeros(1, jnp.int32), jnp.zeros((classes, 1), jnp.float32)
    partition, mean = jnp.zeros(partitions, jnp.int32), jnp.zeros(1, jnp.float32)
    return Numbers(one, partition, one, column, mean, column, column, column, column)


@functools.lru_cache(maxsize=256)
def _program(
    kind: str,
    shape: Shape,
    generator: Generator,
    structure: Any,
    shapes: tuple,
    block: int,
    devices: int,
    together: bool,
) -> _Program:
    return _Program(kind, shape, generator, structure, shapes, block, devices, together)
