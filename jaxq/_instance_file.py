"""Instances as TOML files: one form, read with every mistake named, written to read back the same."""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ._errors import InputError
from ._hardware import IterationTime
from ._instance import Instance
from ._pricing import Pricing
from ._service_level.levels import INDICATORS, ServiceLevels
from ._service_level.limits import STAGES, OccupancyLimit
from ._toml import check_keys, number_of, quoted, read_toml, shown, table_of, text_of
from ._workload import Workload

_TOP = ("name", "hardware", "pricing", "classes", "sli")
_TIMES = ("alpha", "beta", "solo_iteration_time")
_HARDWARE = ("preset", *_TIMES, "batch_size", "chunk_size")
_PRICING = ("scheme", "prefill", "decode")
_NUMBERS = ("prompt_tokens", "output_tokens", "arrival_rate", "patience_rate")
_CLASS = ("name", *_NUMBERS)
_LEVELS = (*INDICATORS, *(f"{name}_penalty" for name in INDICATORS))
_LIMIT = ("at_most", "penalty", "penalty_above")


def load_instance(path: str | os.PathLike[str]) -> Instance:
    """An instance from a TOML file.

    The file has a table `[hardware]` (`alpha` s, `beta` s/token and `solo_iteration_time` s, or `preset` in
    place of these three; `batch_size`; `chunk_size` tokens), a table `[pricing]` (`scheme`, `"bundled"` when
    left out; `prefill` and `decode`, money per token) and one `[[classes]]` a class (`name`, optional;
    `prompt_tokens`, `output_tokens`, `arrival_rate` 1/s per GPU, `patience_rate` 1/s). A table `[sli]`,
    optional, holds service levels: any of the arguments of `ServiceLevels`, each further limit as a table
    `[[sli.limits]]` with `name`, `at_most`, `penalty`, `penalty_above` and the coefficients by stage, as in
    `prefill_queue = { chat = 1.0, batch = 0.5 }` or, for every class, `decode_queue = 1.0` (see
    `OccupancyLimit`). A `name` above the tables labels the instance; else the file's name does.

    **Raises:** `InputError`, one line that names the file, the field and what would be right.
    """
    file = Path(path)
    try:
        tables = read_toml(file)
        return instance_from_tables(tables, default_name=file.stem or "instance")
    except InputError as error:
        raise InputError(f"{file}: {error}") from None


def save_instance(instance: Instance, path: str | os.PathLike[str]) -> None:
    """Write an instance as a TOML file that `load_instance` reads back to equal numbers and names.

    The file appears whole or not at all.

    **Raises:** `InputError` when the path cannot be written.
    """
    file = Path(path)
    try:
        descriptor, temporary = tempfile.mkstemp(dir=file.parent, prefix=".jaxq-", suffix=".toml")
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(instance_to_toml(instance).encode())
            os.chmod(temporary, 0o644)
            os.replace(temporary, file)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(
            f"{file}: cannot be written ({reason}); expected a path in a writable directory"
        ) from None


def instance_to_toml(instance: Instance) -> str:
    """The text of an instance's TOML file; every number reads back to the same float64."""
    time, workload, pricing = instance.iteration_time, instance.workload, instance.pricing
    lines = [
        f"name = {quoted(instance.name)}",
        "",
        "[hardware]",
        f"alpha = {float(time.alpha)!r}  # s",
        f"beta = {float(time.beta)!r}  # s/token",
        f"solo_iteration_time = {float(time.solo)!r}  # s",
        f"batch_size = {int(instance.batch_size)}",
        f"chunk_size = {int(instance.chunk_size)}  # tokens",
        "",
        "[pricing]",
        f"scheme = {quoted(pricing.scheme)}",
        f"prefill = {float(pricing.prefill)!r}  # per prompt token",
        f"decode = {float(pricing.decode)!r}  # per output token",
    ]
    units = ("tokens", "tokens", "1/s per GPU", "1/s")
    for i, name in enumerate(workload.names):
        lines += ["", "[[classes]]", f"name = {quoted(name)}"]
        lines += [
            f"{key} = {float(getattr(workload, key)[i])!r}  # {unit}"
            for key, unit in zip(_NUMBERS, units, strict=True)
        ]
    return "\n".join(lines + _level_lines(instance.service_levels)) + "\n"


def _level_lines(levels: ServiceLevels | None) -> list[str]:
    """The lines of the table of service levels; none without them."""
    if levels is None:
        return []
    units = dict(INDICATORS) | {
        f"{name}_penalty": f"money/s per GPU, over {unit}" for name, unit in INDICATORS.items()
    }
    lines = ["", "[sli]", *(f"{key} = {value!r}  # {units[key]}" for key, value in levels.numbers().items())]
    for one in levels.limits:
        lines += ["", "[[sli.limits]]", f"name = {quoted(one.name)}"]
        lines += [f"{key} = {value!r}" for key, value in one.numbers().items()]
        lines += [f"{stage} = {_by_class(given)}" for stage, given in one.coefficients.items()]
    return lines


def _by_class(given: Any) -> str:
    """One number, or numbers by class as an inline table."""
    if not isinstance(given, dict):
        return repr(float(given))
    return "{ " + ", ".join(f"{quoted(label)} = {float(one)!r}" for label, one in given.items()) + " }"


def instance_from_tables(tables: Mapping[str, Any], default_name: str = "instance") -> Instance:
    """An instance from the tables of a parsed file.

    **Raises:** `InputError` that names the field (`hardware.batch_size`, `classes.1.arrival_rate`) and what
    would be right.
    """
    check_keys(tables, _TOP, "")
    hardware, pricing = table_of(tables, "hardware"), table_of(tables, "pricing")
    check_keys(hardware, _HARDWARE, "hardware.")
    check_keys(pricing, _PRICING, "pricing.")
    chunk_size = number_of(hardware, "chunk_size", "hardware.")
    return Instance(
        workload=_workload(tables),
        iteration_time=_iteration_time(hardware, chunk_size),
        pricing=Pricing(
            prefill=number_of(pricing, "prefill", "pricing."),
            decode=number_of(pricing, "decode", "pricing."),
            scheme=text_of(pricing, "scheme", "pricing.", default="bundled"),
        ),
        batch_size=number_of(hardware, "batch_size", "hardware."),
        chunk_size=chunk_size,
        name=text_of(tables, "name", "", default=default_name),
        service_levels=_service_levels(tables),
    )


def _service_levels(tables: Mapping[str, Any]) -> ServiceLevels | None:
    """The service levels of `[sli]`; None without that table."""
    if "sli" not in tables:
        return None
    table = table_of(tables, "sli")
    check_keys(table, (*_LEVELS, "limits"), "sli.")
    numbers = {key: number_of(table, key, "sli.") for key in table if key != "limits"}
    limits = table.get("limits", [])
    if not isinstance(limits, list) or not all(isinstance(one, dict) for one in limits):
        raise InputError(f"sli.limits: expected one [[sli.limits]] table a limit, got {shown(limits)}")
    return ServiceLevels(**numbers, limits=[_occupancy_limit(one, i) for i, one in enumerate(limits)])


def _occupancy_limit(table: Mapping[str, Any], i: int) -> OccupancyLimit:
    """A limit of `[[sli.limits]]`."""
    prefix = f"sli.limits.{i}."
    check_keys(table, ("name", *_LIMIT, *STAGES), prefix)
    coefficients: dict[str, Any] = {}
    for stage in STAGES:
        value = table.get(stage)
        if isinstance(value, list):
            value = dict(enumerate(value))
        if isinstance(value, dict):
            by_class = {str(label): number for label, number in value.items()}
            coefficients[stage] = {
                label: number_of(by_class, label, f"{prefix}{stage}.") for label in by_class
            }
        elif stage in table:
            coefficients[stage] = number_of(table, stage, prefix)
    numbers: dict[str, Any] = {key: number_of(table, key, prefix) for key in _LIMIT if key in table}
    return OccupancyLimit(text_of(table, "name", prefix), coefficients, **numbers)


def _iteration_time(hardware: Mapping[str, Any], chunk_size: float) -> IterationTime:
    """The hardware's iteration time, from its three numbers or from a preset."""
    if "preset" not in hardware:
        missing = [key for key in _TIMES if key not in hardware]
        if len(missing) == len(_TIMES):
            raise InputError(f"hardware: expected {', '.join(_TIMES)}, or preset; got none of them")
        alpha, beta, solo = (number_of(hardware, key, "hardware.") for key in _TIMES)
        return IterationTime(alpha=alpha, beta=beta, solo=solo)
    from ._presets import load_preset

    name = text_of(hardware, "preset", "hardware.")
    for key in _TIMES:
        if key in hardware:
            raise InputError(
                f"hardware.{key}: the preset gives it; expected either preset or {', '.join(_TIMES)}"
            )
    try:
        preset = load_preset(name)
    except InputError as error:
        raise InputError(f"hardware.preset: {error}") from None
    low, high = preset.chunk_range
    if not low <= chunk_size <= high:
        limits = f"from {low:g} to {high:g}" if math.isfinite(high) else f"at least {low:g}"
        right = f"{limits} tokens, where preset {name!r} holds"
        raise InputError(f"hardware.chunk_size: expected {right}, got {chunk_size:g}")
    return preset.iteration_time


def _workload(tables: Mapping[str, Any]) -> Workload:
    """The request classes of `[[classes]]`."""
    classes = tables.get("classes", [])
    if not isinstance(classes, list) or not all(isinstance(table, dict) for table in classes):
        raise InputError(f"classes: expected one [[classes]] table a class, got {shown(classes)}")
    if not classes:
        raise InputError("classes: expected at least one [[classes]] table, got none")
    for i, table in enumerate(classes):
        check_keys(table, _CLASS, f"classes.{i}.")
    columns = {
        key: [number_of(table, key, f"classes.{i}.") for i, table in enumerate(classes)] for key in _NUMBERS
    }
    names = [text_of(table, "name", f"classes.{i}.", default=f"class-{i}") for i, table in enumerate(classes)]
    return Workload(**columns, names=names)
