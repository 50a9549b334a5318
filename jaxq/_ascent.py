"""Stochastic gradient ascent on a policy's value: one climb from each start, and a file to resume from."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ._errors import InputError
from ._gradient.base import AbstractGradient, Experiment
from ._policy.base import Policy
from ._policy.parameters import Vector, parameter_scales, parameters, with_parameters
from ._statistics import Estimate

DIVERGED = 0.05
"""A check this part below the best (and 5 half-widths of its interval) sends the climb back to the best."""


@dataclass(frozen=True)
class Check:
    """A policy valued on the validation replications: after `step` steps, mean value and the half-width of
    its 95 % interval."""

    step: int
    value: float
    half_width: float


Report = Callable[["Climb"], None]


@dataclass
class Climb:
    """Where one start has got to.

    - `values`, `memory`: parameters now, and the optimiser's state; `best_values` and `best`: the best
      policy met, and its check.
    - `step`: steps taken; `ended`: whether it has stopped for good.
    - `checks`, `notes`: how it went, and what went wrong.
    """

    start: Policy
    label: str
    values: Vector
    best_values: Vector
    memory: Any
    best: Check | None = None
    step: int = 0
    ended: bool = False
    checks: list[Check] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def policy(self) -> Policy:
        """The best policy met."""
        return with_parameters(self.start, self.best_values)

    @property
    def best_value(self) -> float:
        """The best check's value; minus infinity before the first."""
        return self.best.value if self.best is not None else -np.inf


@dataclass(frozen=True)
class Ascent:
    """How every start climbs: slopes from `training`, checks on `validation` replications."""

    training: Experiment
    validation: Experiment
    gradient: AbstractGradient
    optimizer: optax.GradientTransformation
    replications: int
    check_every: int
    patience: int

    def begin(self, start: Policy, label: str) -> Climb:
        """A climb that has not moved."""
        values = parameters(start)
        memory = self.optimizer.init(jnp.zeros(len(values), jnp.float32))
        return Climb(start, label, values, values, memory)

    def climb(self, climb: Climb, until: int, report: Report) -> None:
        """Follow the gradient to step `until`; ends early when the best check is `patience` checks old.
        `report` is called after every step and check."""
        if not climb.checks:
            self.check(climb)
            report(climb)
        while climb.step < until and not climb.ended:
            climb.step += 1
            self.move(climb)
            if climb.step % self.check_every == 0 or climb.step == until:
                self.check(climb)
                best = max(range(len(climb.checks)), key=lambda k: climb.checks[k].value)
                climb.ended = len(climb.checks) - 1 - best >= self.patience
            report(climb)

    def move(self, climb: Climb) -> None:
        """One step of the optimiser, in units of `parameter_scales`."""
        scales = parameter_scales(climb.start)
        here = with_parameters(climb.start, climb.values)
        first = (climb.step - 1) * self.gradient.replications_used()
        found = self.gradient.estimate(self.training, here, first)
        slope = found.gradient * scales
        if not np.isfinite(slope).all():
            self.return_to_best(climb, "the gradient was not finite")
            return
        # Optimisers descend.
        move, climb.memory = self.optimizer.update(jnp.asarray(-slope, jnp.float32), climb.memory)
        moved = climb.values + scales * np.asarray(move, np.float64)
        if not np.isfinite(moved).all():
            self.return_to_best(climb, "the step was not finite")
            return
        climb.values = parameters(with_parameters(climb.start, moved))

    def check(self, climb: Climb) -> None:
        """Value the present policy, and keep it if it is the best; go back if it is far below."""
        policy = with_parameters(climb.start, climb.values)
        estimate = Estimate.from_samples(self.validation.values([policy], self.replications)[0])
        found = Check(climb.step, float(estimate.mean), float(estimate.half_width))
        climb.checks.append(found)
        if found.value > climb.best_value:
            climb.best, climb.best_values = found, climb.values
        elif climb.best is not None:
            limit = max(DIVERGED * abs(climb.best.value), 5 * found.half_width)
            if not found.value > climb.best.value - limit:
                self.return_to_best(climb, f"the value fell to {found.value:g}")

    def return_to_best(self, climb: Climb, reason: str) -> None:
        """Start again from the best policy met, and say why."""
        climb.notes.append(f"{climb.label}, step {climb.step}: {reason}; back to the best so far")
        climb.values = climb.best_values
        climb.memory = self.optimizer.init(jnp.zeros(len(climb.values), jnp.float32))


FORMAT = "jaxq tuning 1"


@dataclass(frozen=True)
class Checkpoint:
    """A file from which climbs go on; written whole or not at all.

    `arguments` say what is being tuned, and how: a file with others is refused.
    """

    path: Path
    arguments: dict[str, Any]

    def save(self, climbs: list[Climb]) -> None:
        """Write the state of all climbs."""
        arrays: dict[str, Any] = {}
        told = []
        for k, climb in enumerate(climbs):
            arrays[f"values_{k}"], arrays[f"best_values_{k}"] = climb.values, climb.best_values
            for j, leaf in enumerate(jax.tree.leaves(climb.memory)):
                arrays[f"memory_{k}_{j}"] = np.asarray(leaf)
            told.append(
                {
                    "step": climb.step,
                    "ended": climb.ended,
                    "checks": [asdict(check) for check in climb.checks],
                    "best": None if climb.best is None else asdict(climb.best),
                    "notes": climb.notes,
                }
            )
        told = json.dumps({"format": FORMAT, "arguments": self.arguments, "climbs": told})
        buffer = io.BytesIO()
        np.savez(buffer, told=np.frombuffer(told.encode(), np.uint8), **arrays)
        temporary = self.path.with_name(f".{self.path.name}.part")
        temporary.write_bytes(buffer.getvalue())
        os.replace(temporary, self.path)

    def load(self, climbs: list[Climb]) -> bool:
        """Bring fresh climbs to where the file left them; False when there is no file.

        **Raises:** `InputError` that names the file, when it is damaged or is of another tuning.
        """
        if not self.path.exists():
            return False
        try:
            with np.load(io.BytesIO(self.path.read_bytes()), allow_pickle=False) as arrays:
                told = json.loads(arrays["told"].tobytes())
                self._check(told)
                for k, (climb, was) in enumerate(zip(climbs, told["climbs"], strict=True)):
                    self._restore(climb, was, arrays, k)
        except InputError:
            raise
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(
                f"{self.path}: is damaged and cannot be resumed ({reason}); move it away to start again"
            ) from None
        return True

    def _check(self, told: dict[str, Any]) -> None:
        if told["format"] != FORMAT:
            raise InputError(
                f"{self.path}: was written by another version of jaxq; move it away to start again"
            )
        expected = json.loads(json.dumps(self.arguments))
        for name in {**expected, **told["arguments"]}:
            was, now = told["arguments"].get(name), expected.get(name)
            if was != now:
                raise InputError(
                    f"{self.path}: is of another tuning ({name} was {was}, is {now}); choose another folder, "
                    "or move it away to start again"
                )

    @staticmethod
    def _restore(climb: Climb, was: dict[str, Any], arrays: Any, k: int) -> None:
        climb.values, climb.best_values = arrays[f"values_{k}"], arrays[f"best_values_{k}"]
        leaves, structure = jax.tree.flatten(climb.memory)
        climb.memory = jax.tree.unflatten(
            structure, [jnp.asarray(arrays[f"memory_{k}_{j}"]) for j in range(len(leaves))]
        )
        climb.step, climb.ended, climb.notes = was["step"], was["ended"], was["notes"]
        climb.checks = [Check(**check) for check in was["checks"]]
        climb.best = None if was["best"] is None else Check(**was["best"])
