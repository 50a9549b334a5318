"""Processes that share a run (`jax.distributed`), as hosts do: here all on one machine."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax

from .conftest import cache_folder


def started_together(module: str, devices: int, processes: int, *arguments: str) -> list[subprocess.Popen]:
    """Processes that run a module; its arguments are those of `join`, then `arguments`."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    return [
        subprocess.Popen(
            [sys.executable, "-m", module, *map(str, (devices, processes, number, port)), *arguments],
            cwd=Path(__file__).parents[1],
            env=os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache_folder())},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(processes)
    ]


def lines_of(running: list[subprocess.Popen], first_word: str) -> list[list[list[str]]]:
    """For each process the lines on its stdout that begin with a word, without it, word by word."""
    answers = [process.communicate(timeout=240) for process in running]
    assert [process.returncode for process in running] == [0] * len(running), answers
    return [
        [line.split()[1:] for line in out.splitlines() if line.startswith(first_word + " ")]
        for out, _ in answers
    ]


def join(devices: int, processes: int, number: int, port: int) -> None:
    """Make this process one of several."""
    jax.config.update("jax_num_cpu_devices", devices)
    if processes > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"localhost:{port}", processes, number)
        assert len(jax.devices()) == devices * processes
