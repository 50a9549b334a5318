"""Presets: iteration times of real hardware and models, each with its source and the range it holds in."""

from __future__ import annotations

import difflib
import functools
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from ._calibration import Coefficient
from ._errors import InputError
from ._hardware import IterationTime

_IN_A_CHECKOUT = {
    "calibration": "calibration_data",
    "instances": "experiments/instances",
    "policies": "experiments/policies",
    "studies": "experiments",
}


@dataclass(frozen=True, eq=False)
class Preset:
    """The iteration time of one model on one GPU, or on a group of GPUs that serve it together.

    - `name`: as in `hardware.preset` of an instance's file.
    - `gpu`, `model`: what was measured. With `tensor_parallel` above 1, a "GPU" of the model is that many
      cards.
    - `alpha` (s), `beta` (s/token), `solo` (s): the three numbers of [Lin26] eq. 2-3, with their 95 %
      intervals.
    - `chunk_range`: chunk sizes for which alpha + beta * C holds, tokens; infinite where no limit was
      published.
    - `fit`: `"law"` (the law with a knee, eq. 1, was fitted), `"line"` (the data do not identify a knee: a
      straight line was fitted in `chunk_range`) or `"published"` (numbers taken from a publication).
    - `base` (s), `slope` (s/token), `knee` (tokens): of the law, None for the other two.
    - `r2`, `max_relative_error`, `measurements`: quality of that fit and the number of measurements in it;
      None where a publication gives none.
    - `source`, `licence`: of the measurements.
    - `leaves_out`: what the measurements do not contain. Show it to whoever picks the preset.
    - `notes`: what else one should know of this preset; may be empty.
    """

    name: str
    gpu: str
    model: str
    tensor_parallel: int
    alpha: Coefficient
    beta: Coefficient
    solo: Coefficient
    chunk_range: tuple[float, float]
    fit: str
    base: Coefficient | None
    slope: Coefficient | None
    knee: Coefficient | None
    r2: float | None
    max_relative_error: float | None
    measurements: int | None
    source: str
    licence: str
    leaves_out: str
    notes: str

    @property
    def iteration_time(self) -> IterationTime:
        """The three numbers as an instance takes them."""
        return IterationTime(self.alpha.value, self.beta.value, self.solo.value)

    def to_dict(self) -> dict[str, Any]:
        """All fields as numbers, lists and texts that JSON holds; None for an infinite end of the range."""
        fields = dict(vars(self))
        for name, value in fields.items():
            if isinstance(value, Coefficient):
                fields[name] = value.to_dict()
        fields["chunk_range"] = [end if math.isfinite(end) else None for end in self.chunk_range]
        return fields


def list_presets() -> tuple[Preset, ...]:
    """All presets that come with jaxq, in the order of their files."""
    return tuple(_presets().values())


def load_preset(name: str) -> Preset:
    """The preset of this name.

    **Raises:** `InputError` for an unknown name, with the nearest known ones.
    """
    presets = _presets()
    if name not in presets:
        near = difflib.get_close_matches(str(name).lower(), presets, n=3, cutoff=0.5)
        hint = f"the nearest are {', '.join(near)}" if near else f"`jaxq presets` lists all {len(presets)}"
        raise InputError(f"unknown preset {name!r}; {hint}")
    return presets[name]


def bundled_folder(kind: str) -> Traversable:
    """The folder of files that come with jaxq: `"calibration"`, `"instances"` or `"policies"`.

    An installed wheel holds them inside the package, a checkout (also one installed as editable) beside it.
    """
    installed = resources.files("jaxq") / "_data" / kind
    if installed.is_dir():
        return installed
    checkout = Path(__file__).resolve().parents[1] / _IN_A_CHECKOUT[kind]
    if checkout.is_dir():
        return checkout
    raise InputError(f"the folder of {kind} files that comes with jaxq is missing; install jaxq again")


@functools.cache
def _presets() -> dict[str, Preset]:
    presets: dict[str, Preset] = {}
    for file in sorted(bundled_folder("calibration").iterdir(), key=lambda file: file.name):
        if not file.name.endswith(".toml"):
            continue
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
        for table in tables["presets"]:
            if table["name"] in presets:
                raise InputError(f"{file.name}: {table['name']!r} names two presets; each needs its own name")
            presets[table["name"]] = _preset(table, tables["campaign"])
    return presets


def _preset(table: Mapping[str, Any], campaign: Mapping[str, Any]) -> Preset:
    """A preset from its table and that of its measurement campaign."""
    low, high = table["chunk_range"]
    return Preset(
        name=table["name"],
        gpu=table["gpu"],
        model=table["model"],
        tensor_parallel=table["tensor_parallel"],
        alpha=_estimate(table, "alpha"),
        beta=_estimate(table, "beta"),
        solo=_estimate(table, "solo_iteration_time"),
        chunk_range=(float(low), float(high)),
        fit=table["fit"],
        base=_estimate(table, "base") if "base" in table else None,
        slope=_estimate(table, "slope") if "slope" in table else None,
        knee=_estimate(table, "knee") if "knee" in table else None,
        r2=table.get("r2"),
        max_relative_error=table.get("max_relative_error"),
        measurements=table.get("measurements"),
        source=campaign["source"],
        licence=campaign["licence"],
        leaves_out=campaign["leaves_out"],
        notes=table.get("notes", ""),
    )


def _estimate(table: Mapping[str, Any], name: str) -> Coefficient:
    interval = table.get(f"{name}_ci95")
    return Coefficient(
        float(table[name]), None if interval is None else (float(interval[0]), float(interval[1]))
    )
