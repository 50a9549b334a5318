"""Tuned policies that ship with jaxq, each for one instance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib import resources

from .._instance import Instance
from .._presets import bundled_folder
from .base import Policy
from .load import load_policy
from .policy_file import SUFFIX, read_policy_file
from .presets import PRESETS

TUNED = "tuned"
"""The name of a tuned policy among the presets."""


def shipped_policy(instance: Instance) -> Policy | None:
    """The tuned policy that ships for an instance; None where there is none."""
    for entry in sorted(bundled_folder("policies").iterdir(), key=lambda entry: entry.name):
        if entry.name.endswith(SUFFIX):
            with resources.as_file(entry) as path:
                if read_policy_file(path).instance["fingerprint"] == instance.fingerprint():
                    return load_policy(str(path), instance)
    return None


def compared_policies(instance: Instance, names: Sequence[str]) -> dict[str, Policy]:
    """Presets by name, and as the last `TUNED`, if a tuned policy ships for the instance."""
    made = {name: PRESETS[name](instance) for name in names}
    tuned = shipped_policy(instance)
    return made if tuned is None else made | {TUNED: replace(tuned, name=TUNED)}
