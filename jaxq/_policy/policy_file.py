"""Policies kept in a file: one JSON object with the parameters by name, how the policy was made, and for
which instance."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .._errors import InputError
from .._instance import Instance
from .._output import write_file, writing
from .._summary import plain
from .._versions import versions
from .base import Policy
from .parameters import parameter_names, parameters
from .recipe import Recipe

SUFFIX = ".json"
FORMAT = "jaxq policy 1"
_FIELDS = ("format", "name", "recipe", "parameters", "instance", "training", "versions", "checksum")


@dataclass(frozen=True)
class PolicyFile:
    """What a policy file holds.

    - `recipe`: how the policy is made before it gets its `parameters` (values by name).
    - `instance`: name and fingerprint of the instance that it is for.
    - `training`, `versions`: how it was tuned, and with what.
    """

    name: str
    recipe: Recipe
    parameters: dict[str, float]
    instance: dict[str, str]
    training: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)


def save_policy(
    policy: Policy,
    path: str | os.PathLike[str],
    instance: Instance,
    training: dict[str, Any] | None = None,
) -> None:
    """Write a policy to a `.json` file that `load_policy` and `--policy FILE` accept; whole or not at all.

    **Arguments:** `instance`: what the policy is for; `training`: how it was tuned, as JSON holds it.

    **Raises:** `InputError` for another suffix, a folder that cannot be written, or a policy without a
    recipe (one that neither `feedback`, `neural` nor `load_policy("my_module:MyPolicy", ...)` made);
    `SimulationError` when the disk is full.
    """
    target = Path(path)
    if target.suffix != SUFFIX:
        raise InputError(f"path: expected a name that ends in {SUFFIX}, got {str(path)!r}")
    if policy.recipe is None:
        raise InputError(
            f"policy {policy.name!r}: cannot be kept in a file, because nothing says how to make it again; "
            'make it with policies.feedback(instance), or load_policy("my_module:MyPolicy", instance)'
        )
    content = {
        "format": FORMAT,
        "name": policy.name,
        "recipe": {"factory": policy.recipe.factory, "arguments": dict(policy.recipe.arguments)},
        "parameters": dict(zip(parameter_names(policy), parameters(policy).tolist(), strict=True)),
        "instance": {"name": instance.name, "fingerprint": instance.fingerprint()},
        "training": plain(training or {}),
        "versions": versions(),
    }
    content["checksum"] = _checksum(content)
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        write_file(target, (json.dumps(content, indent=2) + "\n").encode())


def read_policy_file(path: str | os.PathLike[str]) -> PolicyFile:
    """The content of a policy file.

    **Raises:** `InputError` that names the file, for one that is missing, is no policy file, or was changed
    after it was written.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"policy: {path}: cannot be read ({error.strerror})") from None
    except (UnicodeDecodeError, ValueError) as error:
        raise InputError(f"policy: {path}: not a policy file ({_first_line(error)})") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT or set(content) != set(_FIELDS):
        raise InputError(f"policy: {path}: not a policy file of this version of jaxq ({FORMAT!r})")
    if content["checksum"] != _checksum(content):
        raise InputError(
            f"policy: {path}: was changed after it was written (its checksum does not match); tune again, "
            "or save the changed policy from Python"
        )
    recipe = content["recipe"]
    return PolicyFile(
        name=content["name"],
        recipe=Recipe.of(recipe["factory"], **recipe["arguments"]),
        parameters=content["parameters"],
        instance=content["instance"],
        training=content["training"],
        versions=content["versions"],
    )


def check_instance(file: PolicyFile, path: str | os.PathLike[str], instance: Instance) -> None:
    """Refuse a file that was made for another instance.

    **Raises:** `InputError` that names both.
    """
    if file.instance["fingerprint"] != instance.fingerprint():
        was, now = file.instance["fingerprint"][:12], instance.fingerprint()[:12]
        raise InputError(
            f"policy: {path}: was tuned for another instance ({file.instance['name']!r}, fingerprint {was}; "
            f"this is {instance.name!r}, {now}); tune it for this one: jaxq tune"
        )


def parameter_values(file: PolicyFile, path: str | os.PathLike[str], policy: Policy) -> np.ndarray:
    """The file's parameters in the order of a policy made by its recipe.

    **Raises:** `InputError` when the names are not those of the policy.
    """
    names = parameter_names(policy)
    if tuple(file.parameters) != names:
        odd = next(iter(sorted(set(names) ^ set(file.parameters))), "their order")
        raise InputError(
            f"policy: {path}: its parameters are not those of {file.recipe.factory} ({odd} differs)"
        )
    return np.asarray([file.parameters[name] for name in names], np.float64)


def _checksum(content: dict[str, Any]) -> str:
    rest = {name: value for name, value in content.items() if name != "checksum"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
