"""float64 on the device for a part of a program."""

from __future__ import annotations

import contextlib
from typing import Any

import jax


def double_precision() -> contextlib.AbstractContextManager[Any]:
    """float64 within, and the caller's setting again after."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    from jax import experimental  # before JAX 0.8

    return experimental.enable_x64(True)  # pyright: ignore[reportAttributeAccessIssue]
