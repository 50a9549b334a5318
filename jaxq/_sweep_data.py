"""The data of a sweep: its records as labelled arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from ._pricing import SCHEMES


def sweep_dataset(summary: Mapping[str, Any]) -> xr.Dataset:
    """Both revenues, their gaps and bounds with 95 % intervals, and utilisation.

    Dimensions `policy`, `gpus`, `point`; the values of each path are coordinates of `point`.

    **Arguments:** `summary`: `Sweep.to_dict()`, or what `jaxq sweep` keeps.
    """
    points, records = summary["points"], summary["records"]
    policies = list(dict.fromkeys(record["policy"] for record in records))
    sizes = list(dict.fromkeys(record["gpus"] for record in records))
    shape = (len(policies), len(points), len(sizes))
    columns: dict[str, list[float]] = {}
    for record in records:
        for scheme in SCHEMES:
            columns.setdefault(f"bound_{scheme}", []).append(record["bound"][scheme])
        for name, value in record.items():
            if isinstance(value, Mapping) and "ci95" in value:
                ends = (value["mean"], *value["ci95"])
                for column, number in zip((name, f"{name}_low", f"{name}_high"), ends, strict=True):
                    columns.setdefault(column, []).append(number)
    dimensions = ("policy", "gpus", "point")
    data = {
        name: (dimensions, np.array(values, np.float64).reshape(shape).swapaxes(1, 2), {"units": _unit(name)})
        for name, values in columns.items()
    }
    coordinates: dict[str, Any] = {"policy": policies, "gpus": sizes}
    coordinates |= {path: ("point", [point[path] for point in points]) for path in points[0]}
    return xr.Dataset(data, coordinates)


def grid_axes(points: list[dict[str, float]]) -> dict[str, np.ndarray] | None:
    """The values of each path, sorted, when the points are all combinations of them; else None."""
    axes = {path: np.unique([point[path] for point in points]) for path in points[0]}
    full = len(points) == np.prod([len(values) for values in axes.values()])
    distinct = len({tuple(point.values()) for point in points}) == len(points)
    return axes if full and distinct else None


def _unit(name: str) -> str:
    return "money per GPU and second" if name.startswith(("revenue", "bound")) else "1"
