"""The instances that benchmarks run on, by the names that their tables use."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxq import Instance

ROOT = Path(__file__).parents[1]
"""Of the repository."""

FILES = {
    "reference": "a100_qwen8b_two_class",
    "overload": "overload",
    "azure_pair": "azure_pair",
    "dolly_eight": "dolly_eight",
    "h100_llama70b": "h100_llama70b",
}


def studied_instance(name: str) -> Instance:
    """One of `FILES`."""
    from jaxq import load_instance

    return load_instance(ROOT / "experiments" / "instances" / f"{FILES[name]}.toml")
