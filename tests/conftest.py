"""Two CPU devices for every test, and one folder of compiled programs for all of pytest's workers."""

from __future__ import annotations

import os
from pathlib import Path

# The workers of pytest-xdist share the cores: no library may start threads of its own.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import jax
import pytest


def cache_folder() -> Path:
    """Where compiled programs are kept from one session to the next; the user's own cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "jaxq" / "tests"


def pytest_configure(config) -> None:
    """Before any test touches a device: the number of devices can be set only once."""
    jax.config.update("jax_num_cpu_devices", 2)
    jax.config.update("jax_compilation_cache_dir", str(cache_folder()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """All tests of a file in one worker, which traces and prepares what they share once."""
    from xdist.scheduler import LoadFileScheduling

    return LoadFileScheduling(config, log)


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """An empty folder to work in, and a compilation cache that is not the user's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return work


@pytest.fixture
def jaxq(capsys):
    """Runs a command in this process; returns its exit code, stdout and stderr."""

    from jaxq.cli import run_command  # not before the run-time checks of types are on

    def call(*arguments):
        code = run_command([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call
