"""Two CPU devices for every test, and one folder of compiled programs for all of pytest's workers."""

from __future__ import annotations

import os
from pathlib import Path

# The workers of pytest-xdist share the cores: no library may start threads of its own.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import jax


def cache_folder() -> Path:
    """Where compiled programs are kept from one session to the next; the user's own cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "jaxq" / "tests"


def pytest_configure(config) -> None:
    """Before any test touches a device: the number of devices can be set only once."""
    jax.config.update("jax_num_cpu_devices", 2)
    jax.config.update("jax_compilation_cache_dir", str(cache_folder()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
