"""The file of a batch: studies as TOML tables, with defaults that they share."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import as_file
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._errors import InputError
from .._toml import check_keys, number_of, read_toml, shown, table_of, text_of, whole_of
from .choices import CHANCE, Choices

if TYPE_CHECKING:
    from .._instance import Instance

POLICY = "gate_and_route"
"""The policy of a study that names none."""

Read = Callable[[Mapping[str, Any], str], Any]

FIELDS: dict[str, Read] = {
    "instance": lambda table, key: text_of(table, key, ""),
    "policy": lambda table, key: text_of(table, key, ""),
    "gpus": lambda table, key: whole_of(table, key, "", 1),
    "replications": lambda table, key: whole_of(table, key, "", 1),
    "seed": lambda table, key: whole_of(table, key, "", 0),
    **dict.fromkeys(
        ("horizon", "warmup", "dt", "precision", "time_limit"), lambda table, key: number_of(table, key, "")
    ),
    **dict.fromkeys(("engine", "level", "stepper"), lambda table, key: text_of(table, key, "")),
}
"""How each field of a study is read."""


@dataclass(frozen=True)
class BatchEntry:
    """A study as a file says it.

    - `instance`: a file, or the name of an instance that comes with jaxq.
    - `policy`: a reference as of `load_policy`; a file's path is one from the folder of the batch.
    """

    instance: Path | str
    policy: str
    choices: Choices


def read_batch(file: Path) -> dict[str, BatchEntry]:
    """The studies in a file, by name.

    The file has a table `[studies.NAME]` a study: `instance` (a TOML file, its path from the folder of this
    one, or the name of an instance that comes with jaxq), `policy`, `gpus`, `replications`, `horizon`,
    `warmup`, `seed`, `engine`, `level`, `stepper`, `dt`, `precision`, `time_limit`, each as in `jaxq simulate
    --help`. A table `[defaults]` holds what they share; a default that a study's engine has no use for is
    left out.

    **Raises:** `InputError`, one line that names the file, the study, the field and what would be right.
    """
    from .._batch import check_name

    where = str(file)
    try:
        tables = read_toml(file)
        check_keys(tables, ("defaults", "studies"), "")
        studies = table_of(tables, "studies")
        if not studies:
            raise InputError("studies: expected at least one table [studies.NAME], got none")
        where = f"{file}: defaults"
        defaults = _fields(tables.get("defaults", {}))
        entries = {}
        for name, table in studies.items():
            where = str(file)
            check_name(name)
            where = f"{file}: studies.{name}"
            entries[name] = _entry(defaults, _fields(table), file.parent)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    return entries


def _fields(table: Any) -> dict[str, Any]:
    """The fields of a table, each of its kind."""
    if not isinstance(table, dict):
        raise InputError(f"expected a table, got {shown(table)}")
    check_keys(table, FIELDS, "")
    return {key: FIELDS[key](table, key) for key in table}


def _entry(defaults: dict[str, Any], own: dict[str, Any], folder: Path) -> BatchEntry:
    """A study, checked as far as that goes without its instance."""
    fluid = own.get("engine", defaults.get("engine")) == "fluid"
    useless = CHANCE if fluid else ("level",)
    fields = {key: value for key, value in defaults.items() if key not in useless} | own
    if "instance" not in fields:
        raise InputError("instance: missing; expected a TOML file, or the name of one that comes with jaxq")
    instance, policy = fields.pop("instance"), fields.pop("policy", POLICY)
    if "gpus" in fields:
        fields["gpus"] = (fields["gpus"],)
    choices = Choices(**fields, field_name=str)
    choices.check()
    if policy.endswith(".json"):
        policy = str(folder / policy)
    return BatchEntry(folder / instance if instance.endswith(".toml") else instance, policy, choices)


def load_entry_instance(instance: Path | str) -> Instance:
    """The instance of a study. **Raises:** `InputError` as `load_instance`, or for an unknown name."""
    from .._instance_file import load_instance
    from .._presets import bundled_folder

    if isinstance(instance, Path):
        return load_instance(instance)
    known = {entry.name.removesuffix(".toml"): entry for entry in bundled_folder("instances").iterdir()}
    if instance not in known:
        near = difflib.get_close_matches(instance, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known))}"
        raise InputError(f"instance: no file that ends in .toml, and no name that comes with jaxq; {hint}")
    with as_file(known[instance]) as path:
        return load_instance(path)
