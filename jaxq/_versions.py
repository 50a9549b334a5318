"""The versions that results depend on."""

from __future__ import annotations

import functools
import platform
from importlib import metadata

PACKAGES = ("jaxq", "jax", "jaxlib", "equinox", "numpy", "scipy")


def versions() -> dict[str, str]:
    """Python's and each package's version."""
    return dict(_versions())


@functools.cache
def _versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in PACKAGES}
