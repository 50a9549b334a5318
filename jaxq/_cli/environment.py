"""What must be settled before JAX starts: one CPU device a core, and a lasting compilation cache."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from .._summary import usable_cores


def configure_jax(cores: int | None = None) -> None:
    """Give JAX one CPU device for each of so many cores (None: all that are usable) and switch its persistent
    compilation cache on.

    Call it before anything runs on a device. A choice that the user made by an environment variable of JAX
    stays (`JAX_NUM_CPU_DEVICES`, `XLA_FLAGS`, `JAX_COMPILATION_CACHE_DIR`); so does what a running JAX has
    already fixed.
    """
    import jax

    forced = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if not forced and "JAX_NUM_CPU_DEVICES" not in os.environ:
        # A JAX that has already started keeps its devices: then it refuses the change.
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", usable_cores() if cores is None else cores)
    folder = cache_folder()
    if folder is not None:
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def cache_folder() -> Path | None:
    """Where compiled programs are kept; None where no such folder can be made.

    `JAX_COMPILATION_CACHE_DIR` if set, else `jaxq/jax` in the user's folder of caches: `XDG_CACHE_HOME` if
    set to an absolute path (its specification has others ignored), else `~/.cache`.
    """
    chosen = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    try:
        if chosen:
            folder = Path(chosen)
        else:
            base = os.environ.get("XDG_CACHE_HOME", "")
            folder = (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "jaxq" / "jax"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return None
    return folder if os.access(folder, os.W_OK) else None
