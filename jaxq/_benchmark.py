"""How fast this machine simulates, and what one step compiles to: `jaxq benchmark`."""

from __future__ import annotations

import dataclasses
import math
import re
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ._engine.base import device_policy, numbers_of
from ._engine.cluster import ClusterEngine
from ._engine.random import replication_keys
from ._engine.steppers import AbstractStepper, Exact, Leap
from ._engine.windows import EVENTS_PER_WINDOW
from ._instance import Instance
from ._policy.base import Policy

POLICIES = ("gate_and_route", "gate_immediate")
GPUS = (50, 500)
REPLICATIONS = {"exact": 1024, "leap": 256}
WARMUP = 20.0
"""Seconds simulated before anything is timed: then every GPU is busy and the queues stand."""

REPEATS = 3
MOST = 0.5
"""A loop that holds this share of the loop around it is the loop over steps, not one within a step."""

TIMED_WALL_SECONDS = 0.5
"""About how long one timed piece takes."""

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = (?:\(.*?\)|\S+) ([a-z][a-z0-9\-]*)\(")
_CALLED = re.compile(
    r"(?:body|condition|calls|to_apply|branch_computations|called_computations)=(\{.*?\}|[^,\s]+)"
)
_BRANCHES = frozenset({"while", "conditional", "call"})
_NAME = re.compile(r"[\w.\-]+")
_FREE = frozenset(
    {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "iota"}
)


@dataclasses.dataclass(frozen=True)
class Pace:
    """What was simulated in a stretch of wall time: `events`, `gpu_seconds`, `wall` (s)."""

    events: float
    gpu_seconds: float
    wall: float


class RunningCluster:
    """A block of replications that can be run on, piece by piece, with the time each piece takes.

    Between pieces the state stays as it is, so that after a long first one all others time the
    stationary regime.

    **Arguments:** as for `ClusterEngine.run`; `replications` are rounded up to a block of the engine.
    """

    def __init__(
        self,
        engine: ClusterEngine,
        instance: Instance,
        policy: Policy,
        n_gpus: int,
        replications: int,
        seed: int = 0,
    ):
        block = engine.block_size(instance, policy, n_gpus, replications)
        program = engine.program_of(instance, policy, n_gpus, block)
        keys = replication_keys(jax.random.key(seed), np.arange(block))
        numbers = numbers_of(instance, n_gpus, policy.mixed_gpus(n_gpus))
        self.program, self.replications, self.n_gpus = program, block, n_gpus
        self.step = engine.step(instance, policy)
        self.longest = EVENTS_PER_WINDOW / (4 * n_gpus * float(np.sum(instance.workload.arrival_rate)))
        self._fixed = program.place(jax.tree.leaves(device_policy(policy)), numbers, keys)
        self._state = program.start(*self._fixed)
        self._window = 0

    @property
    def bytes_per_replication(self) -> int:
        """Bytes of state of one replication."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self._state)) // self.replications

    def advance(self, seconds: float) -> Pace:
        """Simulate `seconds` more in every replication."""
        parts = max(1, math.ceil(seconds / self.longest))
        length = seconds / parts
        steps = 1 if self.step is None else max(1, math.ceil(length / self.step - 1e-9))
        pace = jnp.float32(length if self.step is None else length / steps), jnp.int32(steps)
        kept = []
        begin = time.perf_counter()
        for _ in range(parts):
            self._state, totals = self.program.advance(
                *self._fixed, self._state, jnp.int32(self._window), *pace
            )
            kept.append(totals.events)
            self._window += 1
        events = float(sum(np.asarray(value, np.float64).sum() for value in kept))
        wall = time.perf_counter() - begin
        return Pace(events, self.replications * self.n_gpus * seconds, wall)


def step_counts(text: str) -> dict[str, int]:
    """What the body of a program's main loop compiles to, from its optimised HLO text.

    **Returns:** `fusions`, `while_loops`, `conditionals`, `gathers`, `scatters` and `copies` within a step
    (those inside fusions included), and `kernels`: instructions outside fusions that do work (on a GPU,
    launches). The body of an inner loop counts once.
    """
    computations, entry = _computations(text)
    step = _step(computations, entry)
    inner = {
        name
        for body in computations.values()
        for operation, called in body
        if operation not in _BRANCHES
        for name in called
    }
    inside = [operation for name in step for operation, _ in computations[name]]
    outside = [operation for name in step - inner for operation, _ in computations[name]]
    return {
        "fusions": inside.count("fusion"),
        "while_loops": inside.count("while"),
        "conditionals": inside.count("conditional"),
        "gathers": inside.count("gather"),
        "scatters": inside.count("scatter"),
        "copies": inside.count("copy"),
        "kernels": sum(operation not in _FREE for operation in outside),
    }


def _step(computations: dict[str, list[tuple[str, list[str]]]], entry: str) -> set[str]:
    """The computations of the innermost loop that holds most of the program."""
    step: set[str] = set()
    around = [entry]
    while True:
        inside = [called for name in around for op, called in computations[name] if op == "while"]
        loops = [(_reached(computations, called), called) for called in inside]
        largest, called = max(loops, key=lambda loop: len(loop[0]), default=(set(), []))
        if not largest or len(largest) < MOST * len(step):
            return step or _reached(computations, around)
        step, around = largest, called


def _computations(text: str) -> tuple[dict[str, list[tuple[str, list[str]]]], str]:
    """Each computation's instructions (operation, computations it calls), and the name of the entry."""
    computations: dict[str, list[tuple[str, list[str]]]] = {}
    entry = name = ""
    for line in text.splitlines():
        if header := _HEADER.match(line):
            name = header[2]
            entry = name if header[1] else entry
            computations[name] = []
        elif name and (instruction := _INSTRUCTION.match(line)):
            called = [found for group in _CALLED.findall(line) for found in _NAME.findall(group)]
            computations[name].append((instruction[1], called))
    return computations, entry


def _reached(computations: dict[str, list[tuple[str, list[str]]]], names: list[str]) -> set[str]:
    reached: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in computations and name not in reached:
            reached.add(name)
            waiting += [called for _, names in computations[name] for called in names]
    return reached


def benchmark_main(*, quiet: bool = False) -> dict[str, Any]:
    """Time both steppers on the reference instance and count what their steps compile to.

    **Arguments:** `quiet`: print nothing.

    **Returns:** `{"versions", "devices", "rows": [{"stepper", "policy", "gpus", "replications",
    "events_per_second", "gpu_seconds_per_second", "bytes_per_replication", "step": step_counts}]}`.
    """
    from ._cli.options import read_instance
    from ._policy.load import load_policy
    from ._versions import versions

    instance = read_instance(None)
    rows = []
    for policy in POLICIES:
        for n_gpus in GPUS:
            for stepper in (Exact(), Leap()):
                if not quiet:
                    print(f"{policy}, {n_gpus} GPUs, {_name(stepper)} ...", file=sys.stderr, flush=True)
                rows.append(_row(stepper, instance, policy, load_policy(policy, instance), n_gpus))
    result = {"versions": versions(), "devices": [str(device) for device in jax.devices()], "rows": rows}
    if not quiet:
        _print(result)
    return result


def _name(stepper: AbstractStepper) -> str:
    return "exact" if isinstance(stepper, Exact) else "leap"


def _row(
    stepper: AbstractStepper, instance: Instance, name: str, policy: Policy, n_gpus: int
) -> dict[str, Any]:
    cluster = RunningCluster(ClusterEngine(stepper), instance, policy, n_gpus, REPLICATIONS[_name(stepper)])
    warm = cluster.advance(WARMUP)
    seconds = TIMED_WALL_SECONDS * WARMUP / warm.wall
    paces = [cluster.advance(seconds) for _ in range(REPEATS)]
    return {
        "stepper": _name(stepper),
        "policy": name,
        "gpus": n_gpus,
        "replications": cluster.replications,
        "events_per_second": float(np.median([pace.events / pace.wall for pace in paces])),
        "gpu_seconds_per_second": float(np.median([pace.gpu_seconds / pace.wall for pace in paces])),
        "bytes_per_replication": cluster.bytes_per_replication,
        "step": step_counts(cluster.program.text() or ""),
    }


def _print(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    speed = Table(title="Speed on the reference instance")
    step = Table(title="What the body of one step compiles to")
    for table in (speed, step):
        for heading in ("policy", "GPUs", "stepper"):
            table.add_column(heading, no_wrap=True)
    for heading in ("repl.", "M events/s", "M GPU-s/s", "kB/repl."):
        speed.add_column(heading, justify="right")
    counted = {"fusions": "fusions", "while_loops": "loops", "gathers": "gathers", "scatters": "scatters"}
    for heading in (*counted.values(), "copies"):
        step.add_column(heading, justify="right")
    for row in result["rows"]:
        title = row["policy"], str(row["gpus"]), row["stepper"]
        speed.add_row(
            *title,
            str(row["replications"]),
            f"{row['events_per_second'] / 1e6:.2f}",
            f"{row['gpu_seconds_per_second'] / 1e6:.2f}",
            f"{row['bytes_per_replication'] / 1e3:.1f}",
        )
        step.add_row(*title, *(str(row["step"][name]) for name in (*counted, "copies")))
    console = Console()
    console.print(speed, step)
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    console.print(f"{versions}; {', '.join(result['devices'])}")
