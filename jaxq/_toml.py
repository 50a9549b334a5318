"""Tables of TOML files, read with every mistake named: which field, and what would be right."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ._errors import InputError


def read_toml(file: Path) -> dict[str, Any]:
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


def check_keys(table: Mapping[str, Any], known: Iterable[str], prefix: str) -> None:
    """Refuse unknown keys, with the nearest known one."""
    known = tuple(known)
    for key, value in table.items():
        if key in known:
            continue
        kind = "table" if isinstance(value, dict) or (isinstance(value, list) and not prefix) else "key"
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(known)}"
        raise InputError(f"{prefix}{printable(key)}: unknown {kind}; {hint}")


def table_of(tables: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A table that must be there."""
    if key not in tables:
        raise InputError(f"{key}: missing; expected a table [{key}]")
    if not isinstance(tables[key], dict):
        raise InputError(f"{key}: expected a table [{key}], got {shown(tables[key])}")
    return tables[key]


def number_of(table: Mapping[str, Any], key: str, prefix: str) -> float:
    """A number that must be there; its range is checked by the object that it goes into."""
    if key not in table:
        raise InputError(f"{prefix}{key}: missing; expected a number")
    value = table[key]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{prefix}{key}: expected a number, got {shown(value)}")
    try:
        return float(value)
    except OverflowError:
        raise InputError(
            f"{prefix}{key}: expected a finite number, got one beyond the range of float64"
        ) from None


def whole_of(table: Mapping[str, Any], key: str, prefix: str, least: int) -> int:
    """A whole number of at least `least` that must be there."""
    value = table.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{prefix}{key}: expected a whole number of at least {least}, got {shown(value)}")
    return value


def text_of(table: Mapping[str, Any], key: str, prefix: str, default: str | None = None) -> str:
    """A text that is not empty."""
    value = table.get(key, default)
    if not isinstance(value, str) or not value:
        raise InputError(f"{prefix}{key}: expected a text in quotes that is not empty, got {shown(value)}")
    return value


def shown(value: Any) -> str:
    """A value for an error message: short and on one line."""
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, bool):
        return "true" if value else "false"
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def printable(key: str) -> str:
    """A key for an error message: as it is when plain, else in quotes with escapes."""
    return key if key.isidentifier() else quoted(key)


def quoted(text: str) -> str:
    """A TOML basic string. JSON's is one too, but for DEL, which TOML wants escaped."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
