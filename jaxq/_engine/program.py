"""What is compiled for a shape: one program starts a block of replications, one brings it a window on."""

from __future__ import annotations

import functools
import os
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from .base import Numbers, Totals
from .group import Own
from .random import Generator
from .shape import Shape


class Program:
    """The compiled start and advance of one shape on the devices at hand.

    `module` is the stepper's: it has `Chain`, `initial_state`, `advance`, `levels_of` and
    `replication_axes`.
    """

    def __init__(
        self,
        module: ModuleType,
        shape: Shape,
        generator: Generator,
        structure: Any,
        shapes: tuple,
        block: int,
        devices: int,
        own: Own,
    ):
        self.mesh = Mesh(np.asarray(jax.local_devices()[:devices]), ("replications",))
        self.module = module

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
        numbers = jax.eval_shape(lambda: _numbers_like(shape.classes, block, own))
        keys = jax.ShapeDtypeStruct((2, block), np.uint32)
        state = jax.eval_shape(start, leaves, numbers, keys)
        totals = jax.eval_shape(lambda: Totals.zeros(shape.classes, block, shape.scores))
        spec = PartitionSpec

        # Arrays with one entry for each replication are spread with them; of the rest all have a copy.
        def own_axis(leaf: jax.ShapeDtypeStruct) -> int | None:
            return leaf.ndim - 1 if own != "none" and leaf.shape[-1:] == (block,) else None

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


def _numbers_like(classes: int, block: int, own: Own) -> Numbers:
    lanes = block if own == "all" else 1
    whole, mean = jnp.zeros(lanes, jnp.int32), jnp.zeros(lanes, jnp.float32)
    column = jnp.zeros((classes, lanes), jnp.float32)
    partition = jnp.zeros(1 if own == "none" else block, jnp.int32)
    return Numbers(whole, partition, whole, column, mean, column, column, column, column)


@functools.lru_cache(maxsize=256)
def program(
    module: ModuleType,
    shape: Shape,
    generator: Generator,
    structure: Any,
    shapes: tuple,
    block: int,
    devices: int,
    own: Own,
) -> Program:
    """The program of these sizes, compiled once."""
    return Program(module, shape, generator, structure, shapes, block, devices, own)
