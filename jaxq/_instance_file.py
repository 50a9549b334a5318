"""Instances as TOML files: one form, read with every mistake named, written to read back the same."""

from __future__ import annotations

import contextlib
import difflib
import json
import math
import os
import tempfile
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ._errors import InputError
from ._hardware import IterationTime
from ._instance import Instance
from ._pricing import Pricing
from ._service_levels import INDICATORS, ServiceLevels
from ._workload import Workload

_TOP = ("name", "hardware", "pricing", "classes", "sli")
_TIMES = ("alpha", "beta", "solo_iteration_time")
_HARDWARE = ("preset", *_TIMES, "batch_size", "chunk_size")
_PRICING = ("scheme", "prefill", "decode")
_NUMBERS = ("prompt_tokens", "output_tokens", "arrival_rate", "patience_rate")
_CLASS = ("name", *_NUMBERS)
_LEVELS = (*INDICATORS, *(f"{name}_penalty" for name in INDICATORS))


def load_instance(path: str | os.PathLike[str]) -> Instance:
    """An instance from a TOML file.

    The file has a table `[hardware]` (`alpha` s, `beta` s/token and `solo_iteration_time` s, or `preset` in
    place of these three; `batch_size`; `chunk_size` tokens), a table `[pricing]` (`scheme`, `"bundled"` when
    left out; `prefill` and `decode`, money per token) and one `[[classes]]` a class (`name`, optional;
    `prompt_tokens`, `output_tokens`, `arrival_rate` 1/s per GPU, `patience_rate` 1/s). A table `[sli]`,
    optional, holds service levels: any of the arguments of `ServiceLevels`. A `name` above the tables labels
    the instance; else the file's name does.

    **Raises:** `InputError`, one line that names the file, the field and what would be right.
    """
    file = Path(path)
    try:
        tables = _read(file)
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
        f"name = {_quoted(instance.name)}",
        "",
        "[hardware]",
        f"alpha = {float(time.alpha)!r}  # s",
        f"beta = {float(time.beta)!r}  # s/token",
        f"solo_iteration_time = {float(time.solo)!r}  # s",
        f"batch_size = {int(instance.batch_size)}",
        f"chunk_size = {int(instance.chunk_size)}  # tokens",
        "",
        "[pricing]",
        f"scheme = {_quoted(pricing.scheme)}",
        f"prefill = {float(pricing.prefill)!r}  # per prompt token",
        f"decode = {float(pricing.decode)!r}  # per output token",
    ]
    units = ("tokens", "tokens", "1/s per GPU", "1/s")
    for i, name in enumerate(workload.names):
        lines += ["", "[[classes]]", f"name = {_quoted(name)}"]
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
    return ["", "[sli]", *(f"{key} = {value!r}  # {units[key]}" for key, value in levels.numbers().items())]


def instance_from_tables(tables: Mapping[str, Any], default_name: str = "instance") -> Instance:
    """An instance from the tables of a parsed file.

    **Raises:** `InputError` that names the field (`hardware.batch_size`, `classes.1.arrival_rate`) and what
    would be right.
    """
    _check_keys(tables, _TOP, "")
    hardware, pricing = _table(tables, "hardware"), _table(tables, "pricing")
    _check_keys(hardware, _HARDWARE, "hardware.")
    _check_keys(pricing, _PRICING, "pricing.")
    chunk_size = _number(hardware, "chunk_size", "hardware.")
    return Instance(
        workload=_workload(tables),
        iteration_time=_iteration_time(hardware, chunk_size),
        pricing=Pricing(
            prefill=_number(pricing, "prefill", "pricing."),
            decode=_number(pricing, "decode", "pricing."),
            scheme=_text(pricing, "scheme", "pricing.", default="bundled"),
        ),
        batch_size=_number(hardware, "batch_size", "hardware."),
        chunk_size=chunk_size,
        name=_text(tables, "name", "", default=default_name),
        service_levels=_service_levels(tables),
    )


def _service_levels(tables: Mapping[str, Any]) -> ServiceLevels | None:
    """The service levels of `[sli]`; None without that table."""
    if "sli" not in tables:
        return None
    table = _table(tables, "sli")
    _check_keys(table, _LEVELS, "sli.")
    return ServiceLevels(**{key: _number(table, key, "sli.") for key in table})


def _read(file: Path) -> dict[str, Any]:
    """The tables of a TOML file."""
    try:
        text = file.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise InputError("no such file; expected the path of a TOML file") from None
    except IsADirectoryError:
        raise InputError("is a directory; expected the path of a TOML file") from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"not UTF-8 at byte {error.start}; expected a TOML file, which is UTF-8 text"
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"cannot be read ({reason}); expected the path of a TOML file") from None
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"not valid TOML: {' '.join(str(error).split())}") from None


def _iteration_time(hardware: Mapping[str, Any], chunk_size: float) -> IterationTime:
    """The hardware's iteration time, from its three numbers or from a preset."""
    if "preset" not in hardware:
        missing = [key for key in _TIMES if key not in hardware]
        if len(missing) == len(_TIMES):
            raise InputError(f"hardware: expected {', '.join(_TIMES)}, or preset; got none of them")
        alpha, beta, solo = (_number(hardware, key, "hardware.") for key in _TIMES)
        return IterationTime(alpha=alpha, beta=beta, solo=solo)
    from ._presets import load_preset

    name = _text(hardware, "preset", "hardware.")
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
        raise InputError(f"classes: expected one [[classes]] table a class, got {_shown(classes)}")
    if not classes:
        raise InputError("classes: expected at least one [[classes]] table, got none")
    for i, table in enumerate(classes):
        _check_keys(table, _CLASS, f"classes.{i}.")
    columns = {
        key: [_number(table, key, f"classes.{i}.") for i, table in enumerate(classes)] for key in _NUMBERS
    }
    names = [_text(table, "name", f"classes.{i}.", default=f"class-{i}") for i, table in enumerate(classes)]
    return Workload(**columns, names=names)


def _check_keys(table: Mapping[str, Any], known: Iterable[str], prefix: str) -> None:
    """Refuse unknown keys, with the nearest known one."""
    known = tuple(known)
    for key, value in table.items():
        if key in known:
            continue
        kind = "table" if isinstance(value, dict) or (isinstance(value, list) and not prefix) else "key"
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(known)}"
        raise InputError(f"{prefix}{_printable(key)}: unknown {kind}; {hint}")


def _table(tables: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A table that must be there."""
    if key not in tables:
        raise InputError(f"{key}: missing; expected a table [{key}]")
    if not isinstance(tables[key], dict):
        raise InputError(f"{key}: expected a table [{key}], got {_shown(tables[key])}")
    return tables[key]


def _number(table: Mapping[str, Any], key: str, prefix: str) -> float:
    """A number that must be there; its range is checked by the object that it goes into."""
    if key not in table:
        raise InputError(f"{prefix}{key}: missing; expected a number")
    value = table[key]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{prefix}{key}: expected a number, got {_shown(value)}")
    try:
        return float(value)
    except OverflowError:
        raise InputError(
            f"{prefix}{key}: expected a finite number, got one beyond the range of float64"
        ) from None


def _text(table: Mapping[str, Any], key: str, prefix: str, default: str | None = None) -> str:
    """A text that is not empty."""
    value = table.get(key, default)
    if not isinstance(value, str) or not value:
        raise InputError(f"{prefix}{key}: expected a text in quotes that is not empty, got {_shown(value)}")
    return value


def _shown(value: Any) -> str:
    """A value for an error message: short and on one line."""
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, bool):
        return "true" if value else "false"
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _printable(key: str) -> str:
    """A key for an error message: as it is when plain, else in quotes with escapes."""
    return key if key.isidentifier() else _quoted(key)


def _quoted(text: str) -> str:
    """A TOML basic string. JSON's is one too, but for DEL, which TOML wants escaped."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
