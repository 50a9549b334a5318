"""What a measurement was made on: processor, cores, versions, load."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jaxq._cli.environment import usable_cores


def machine() -> dict[str, Any]:
    """The processor, usable cores, devices, versions, and the load average of the last minute."""
    import jax

    return {
        "processor": _processor(),
        "cores": usable_cores(),
        "devices": [str(device) for device in jax.devices()],
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("jaxq", "jax", "jaxlib", "numpy")},
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def machine_line(found: dict[str, Any]) -> str:
    """`machine()` in one line."""
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    load = "" if found["load_average"] is None else f"; load average at the start {found['load_average']:.1f}"
    return (
        f"{found['processor']}, {found['cores']} cores, {len(found['devices'])} JAX devices; "
        f"Python {found['python']}, {versions}{load}"
    )


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
