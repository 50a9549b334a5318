"""Several processes that share the replications of one run (`jax.distributed`): one a host, as a rule."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from .._errors import InputError, SimulationError
from .record import Record


def shared_blocks(blocks: int, run: Callable[[int], Record]) -> list[Record]:
    """The records of blocks 0, ..., `blocks` - 1 of the same shape, each simulated by one process.

    Every process must call it with the same arguments, and gets all records. Only they are communicated: no
    state of a simulation leaves its host.
    """
    count = jax.process_count()
    if count == 1:
        return [run(block) for block in range(blocks)]
    found: list[Record] = []
    for first in range(0, blocks, count):
        # Where blocks run out, a process repeats the last one: all take part in each exchange.
        found += _exchanged(run(min(first + jax.process_index(), blocks - 1)))
    return found[:blocks]


def _exchanged(record: Record) -> list[Record]:
    """The records of all processes, in their order, bit by bit."""
    from jax.experimental import multihost_utils

    leaves, structure = jax.tree.flatten(record)
    # As 32-bit words: JAX would round float64 to float32.
    words = np.concatenate([np.ascontiguousarray(leaf).ravel().view(np.uint32) for leaf in leaves])
    rows = np.asarray(multihost_utils.process_allgather(words))
    return [jax.tree.unflatten(structure, _leaves(row, leaves)) for row in rows]


def _leaves(words: np.ndarray, like: list[np.ndarray]) -> list[np.ndarray]:
    """Arrays of the same shapes and types as others, from their words."""
    found, start = [], 0
    for leaf in like:
        end = start + leaf.nbytes // 4
        found.append(np.ascontiguousarray(words[start:end]).view(leaf.dtype).reshape(leaf.shape))
        start = end
    return found


def smallest_of_all(number: int) -> int:
    """The smallest of the numbers that the processes have, at each of them."""
    if jax.process_count() == 1:
        return number
    from jax.experimental import multihost_utils

    return int(np.min(multihost_utils.process_allgather(np.int32(number))))


def by_first(action: Callable[[], Any]) -> Any:
    """What an action of the first process returns, as JSON has it, at every process; the others wait.

    **Raises:** what the action raises, at every process: an `InputError` as such, others as a
    `SimulationError`.
    """
    if jax.process_count() == 1:
        return action()
    if jax.process_index() > 0:
        kind, value = json.loads(_told_by_first(""))
        if kind == "returned":
            return value
        raise (InputError if kind == "refused" else SimulationError)(value)
    try:
        value = action()
    except InputError as error:
        _told_by_first(json.dumps(["refused", str(error)]))
        raise
    except Exception as error:
        _told_by_first(json.dumps(["failed", str(error)]))
        raise
    return json.loads(_told_by_first(json.dumps(["returned", value])))[1]


def _told_by_first(text: str) -> str:
    """The text of the first process."""
    from jax.experimental.multihost_utils import broadcast_one_to_all

    written = np.frombuffer(text.encode(), np.uint8)
    size = int(broadcast_one_to_all(np.int32(len(written))))
    padded = written if len(written) == size else np.zeros(size, np.uint8)
    return np.asarray(broadcast_one_to_all(padded)).astype(np.uint8).tobytes().decode()
