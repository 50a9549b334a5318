"""Sweeps: policies over a grid, or a list, of instances and sizes, as one call."""

from __future__ import annotations

import csv
import itertools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from ._cases import simulate_cases
from ._changed_instance import changed_instance
from ._engine.group import Case
from ._errors import InputError
from ._instance import Instance
from ._policy.base import Policy
from ._policy.load import load_policy
from ._pricing import SCHEMES
from ._result import Result
from ._simulate import Engine, Progress
from ._sweep_data import grid_axes, sweep_dataset

MAX_POINTS = 100_000
"""Points beyond which a grid is taken for a mistake."""

Number = float | int

Point = dict[str, Number]
"""Values by path."""


@dataclass(frozen=True)
class Sweep:
    """What a sweep found.

    - `instance`: where it started from.
    - `points`: the changes, in order; `policies`, `sizes`: names and numbers of GPUs.
    - `results`: by point (its position), policy and number of GPUs.
    """

    instance: Instance
    points: tuple[Point, ...]
    policies: tuple[str, ...]
    sizes: tuple[int, ...]
    results: dict[tuple[int, str, int], Result]

    @property
    def paths(self) -> tuple[str, ...]:
        """What is varied."""
        return tuple(self.points[0])

    @property
    def grid(self) -> dict[str, np.ndarray] | None:
        """The values of each path, sorted, when the points are all combinations of them; else None."""
        return grid_axes(list(self.points))

    def to_xarray(self) -> xr.Dataset:
        """See `sweep_dataset`."""
        return sweep_dataset(self.to_dict()).assign_attrs(instance=self.instance.name)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: a record for each point, policy and size."""
        return {
            "instance": self.instance.name,
            "points": list(self.points),
            "records": [
                {"point": self.points[k], "policy": policy, **_record(result)}
                for (k, policy, _), result in self.results.items()
            ],
        }


def sweep(
    instance: Instance,
    points: Mapping[str, Iterable[Number]] | Sequence[Point],
    policies: Sequence[str | Callable[[Instance], Policy]],
    n_gpus: Sequence[int],
    *,
    horizon: float,
    warmup: float,
    replications: int | None = None,
    key: Any = None,
    engine: Engine | None = None,
    progress: Progress | None = None,
    out: str | os.PathLike[str] | None = None,
) -> Sweep:
    """Simulate policies on variations of an instance: a grid, or a list of points.

    All points, policies and sizes run together, in one compiled program for each kind of policy
    (`simulate_cases`), with the same random numbers. A policy is made anew for each point: one that follows
    the plan follows that of the point.

    **Arguments:**

    - `points`: values by path for a grid of all their combinations, the last path fastest; or a list of
      points, each with a value for every path. Paths are as in `hardware.batch_size`, `pricing.decode`,
      `classes.0.arrival_rate` or `classes.*.arrival_rate`.
    - `policies`: names of presets, files of tuned policies, or functions from an instance to a policy.
    - `n_gpus`: cluster sizes.
    - `horizon`, `warmup`, `replications`, `key`, `engine`, `progress`, `out`: see `simulate_cases`.

    **Raises:** `InputError` that names the path or the point; `PlanError` for a point without a plan.
    """
    points = grid_points(points) if isinstance(points, Mapping) else _checked_points(points)
    if not policies or not n_gpus:
        raise InputError("policies, n_gpus: expected at least one of each")
    names = [policy if isinstance(policy, str) else policy.__name__ for policy in policies]
    made = [changed_instance(instance, point) for point in points]
    cases, where = [], []
    for name, policy in zip(names, policies, strict=True):
        for k, changed in enumerate(made):
            ready = load_policy(policy, changed) if isinstance(policy, str) else policy(changed)
            for size in n_gpus:
                cases.append(Case(changed, ready, size))
                where.append((k, name, size))
    results = simulate_cases(
        cases,
        horizon=horizon,
        warmup=warmup,
        replications=replications,
        key=key,
        engine=engine,
        progress=progress,
        out=out,
    )
    return Sweep(instance, tuple(points), tuple(names), tuple(n_gpus), dict(zip(where, results, strict=True)))


def grid_points(axes: Mapping[str, Iterable[Number]]) -> list[Point]:
    """All combinations of the values of each path, the last fastest."""
    lists = [np.asarray(list(values)).tolist() for values in axes.values()]
    count = int(np.prod([len(values) for values in lists])) if axes else 0
    if not 0 < count <= MAX_POINTS:
        raise InputError(f"points: expected 1 to {MAX_POINTS:,} combinations of values, got {count:,}")
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*lists)]


def _checked_points(points: Sequence[Point]) -> list[Point]:
    if not points or not points[0]:
        raise InputError("points: expected at least one, with a value for at least one path")
    for k, point in enumerate(points):
        if set(point) != set(points[0]):
            raise InputError(f"points.{k}: expected a value for each of {', '.join(points[0])}")
    return [dict(point) for point in points]


def read_points(path: Path) -> list[Point]:
    """The points of a CSV file: a heading with a path in each column, and a line for each point.

    **Raises:** `InputError` that names the file, the line and the column.
    """
    try:
        with open(path, newline="", encoding="utf-8") as stream:
            rows = list(csv.reader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read ({error}); expected a CSV file of points") from None
    if len(rows) < 2:
        raise InputError(f"{path}: expected a heading with paths, and a line for each point")
    head = [name.strip() for name in rows[0]]
    found = []
    for number, row in enumerate(rows[1:], start=2):
        if not row:
            continue
        if len(row) != len(head):
            raise InputError(f"{path}: line {number}: expected {len(head)} values, got {len(row)}")
        cells = zip(head, row, strict=True)
        found.append({name: number_of(cell, f"{path}: line {number}: {name}") for name, cell in cells})
    return found


def number_of(text: str, where: str) -> Number:
    """A number in a text. **Raises:** `InputError` that says where it stands."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        raise InputError(f"{where}: expected a number, got {text.strip()!r}")
    return int(value) if value == int(value) else value


def _estimates(result: Result) -> dict[str, Any]:
    """What a sweep keeps of a result, by name."""
    found = {f"revenue_{scheme}": getattr(result, f"revenue_{scheme}") for scheme in SCHEMES}
    found |= {f"gap_{scheme}": result.gap(scheme=scheme) for scheme in SCHEMES}
    return found | {"slot_utilisation": result.slot_utilisation}


def _record(result: Result) -> dict[str, Any]:
    """What JSON keeps of a result."""
    kept = {name: estimate.to_dict() for name, estimate in _estimates(result).items()}
    bounds = {scheme: float(result.bound(scheme)) for scheme in SCHEMES}
    return {"gpus": result.n_gpus, "replications": result.replications, "bound": bounds, **kept}
