"""Tuned policies that ship with jaxq, each for one instance."""

from __future__ import annotations

from importlib import resources

from .._instance import Instance
from .._presets import bundled_folder
from .base import Policy
from .load import load_policy
from .policy_file import SUFFIX, read_policy_file


def shipped_policy(instance: Instance) -> Policy | None:
    """The tuned policy that ships for an instance; None where there is none."""
    for entry in sorted(bundled_folder("policies").iterdir(), key=lambda entry: entry.name):
        if entry.name.endswith(SUFFIX):
            with resources.as_file(entry) as path:
                if read_policy_file(path).instance["fingerprint"] == instance.fingerprint():
                    return load_policy(str(path), instance)
    return None
