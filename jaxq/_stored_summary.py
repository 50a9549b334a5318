"""The summary of a finished run or study, kept as JSON with a digest by which damage is seen."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ._errors import InputError
from ._instance import Instance
from ._instance_file import instance_to_toml
from ._output import writing
from ._summary import plain, write_json

DIGEST = "sha256"
"""The field that holds the SHA-256 of all others."""


def write_summary(summary: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Write a summary whole or not at all; returns it as `read_summary` will."""
    stored = plain(summary)
    write_json({**stored, DIGEST: _digest(stored)}, path)
    return stored


def read_summary(path: Path, fields: Iterable[str], command: str) -> dict[str, Any]:
    """A summary as it was written.

    **Arguments:** `fields`: what it must hold; `command`: what writes such files, for the message.

    **Raises:** `InputError` that names the file and what is missing or damaged.
    """
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); expected what {command} wrote"
        ) from None
    except ValueError as error:
        raise InputError(f"{path}: damaged, not JSON ({error}); give the command {command} again") from None
    if not isinstance(stored, dict):
        raise InputError(f"{path}: expected an object of JSON, as {command} writes it")
    missing = [name for name in (*fields, DIGEST) if name not in stored]
    if missing:
        raise InputError(
            f"{path}: field {missing[0]} is missing; the file is damaged, or {command} did not write it"
        )
    found = stored.pop(DIGEST)
    if found != _digest(stored):
        raise InputError(
            f"{path}: damaged or changed, its field {DIGEST} is that of other numbers; give the command "
            f"{command} again"
        )
    return stored


def write_finished(
    summary: Mapping[str, Any],
    instance: Instance,
    path: Path,
    write_report: Callable[[Mapping[str, Any], Path], Path],
) -> Path:
    """Write a summary, the instance beside it, and what `write_report` makes of the summary alone; returns
    where the report is. **Raises:** as `writing`."""
    with writing(path.parent):
        stored = write_summary(summary, path)
        (path.parent / "instance.toml").write_text(instance_to_toml(instance), encoding="utf-8")
        return write_report(stored, path.parent)


def _digest(stored: dict[str, Any]) -> str:
    text = json.dumps(stored, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
