"""An instance with some of its numbers changed, each named by its place in a TOML file."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from typing import Any

from ._errors import InputError
from ._instance import Instance
from ._instance_file import instance_from_tables, instance_to_toml

EVERY = "*"
"""In a path, in place of a class: all classes."""


def changed_instance(instance: Instance, changes: Mapping[str, Any]) -> Instance:
    """The instance with other numbers.

    **Arguments:** `changes`: values by path, as in `hardware.batch_size`, `pricing.decode`,
    `classes.0.arrival_rate`, or `classes.*.arrival_rate` for all classes; classes also go by their names.

    **Raises:** `InputError` that names the path and what would be right.
    """
    tables = tomllib.loads(instance_to_toml(instance))
    for path, value in changes.items():
        for table, key in _places(tables, path):
            table[key] = value
    try:
        return instance_from_tables(tables, default_name=instance.name)
    except InputError as error:
        shown = ", ".join(f"{path} = {value}" for path, value in changes.items())
        raise InputError(f"{shown}: {error}") from None


def _places(tables: dict[str, Any], path: str) -> list[tuple[dict[str, Any], str]]:
    """The tables and keys that a path names."""
    parts = path.split(".")
    if parts[0] == "classes" and len(parts) == 3:
        found = [(request, parts[2]) for request in _classes(tables["classes"], parts[1], path)]
    elif parts[0] in ("hardware", "pricing", "sli") and len(parts) == 2:
        found = [(tables.setdefault(parts[0], {}), parts[1])]
    else:
        raise InputError(
            f"{path}: expected a number of an instance, as in hardware.batch_size, pricing.decode or "
            "classes.0.arrival_rate"
        )
    for table, key in found:
        if parts[0] != "sli" and key not in table:
            numbers = [name for name, value in table.items() if not isinstance(value, str)]
            raise InputError(f"{path}: expected one of {', '.join(numbers)}; got {key!r}")
    return found


def _classes(classes: list[dict[str, Any]], which: str, path: str) -> list[dict[str, Any]]:
    if which == EVERY:
        return classes
    named = [request for k, request in enumerate(classes) if which in (str(k), request["name"])]
    if not named:
        names = ", ".join(str(request["name"]) for request in classes)
        raise InputError(f"{path}: expected a class from 0 to {len(classes) - 1}, a name ({names}) or *")
    return named
