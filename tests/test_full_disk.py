"""A disk that takes no more, by the operating system's own limit on a file's size: one line that names the
path and what to do, exit code 1, and the same command goes on to the same bits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxq import load_result
from jaxq._store.kept_run import summarise_run

from .test_store import blocks, command, same, small_run, tiny_file

SIMULATE = "from jaxq.cli import main; main()"

RUN = """
from jaxq import _main_job as job
from jaxq.cli import main

sizes = (job.Size(2, 16),)
job.QUICK = job.Effort("tiny", sizes, 60.0, 30.0, path_size=0, path_horizon=20.0, path_windows=10)
job.DEFAULT_POLICIES = ("sarathi", "gate_and_route")
main()
"""
"""`jaxq run --quick` with two policies on two GPUs."""

TUNE = """
from jaxq import _tune, _tuning_job
from jaxq.cli import main

_tune.TRAINING_GPU_RUNS = _tune.VALIDATION_GPU_RUNS = 64
_tuning_job.PRESETS = {name: _tuning_job.PRESETS[name] for name in ("gate_and_route", "price_and_pack")}
main()
"""
"""`jaxq tune` with few replications, compared with two policies."""

LIMIT = """
import resource, signal

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0}))
"""
"""Writing fails with EFBIG beyond so many bytes, as it does with ENOSPC on a full disk."""

FULL_AFTER_A_CHECKPOINT = """
import resource
from jaxq._checkpoint import Checkpoint

save = Checkpoint.save

def save_and_fill(self, climbs):
    save(self, climbs)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))

Checkpoint.save = save_and_fill
"""


def call(program: str, arguments: list[str], largest: int | None = None) -> tuple[int, str, str]:
    """A command in a process of its own that may write files of at most so many bytes."""

    limit = "" if largest is None else LIMIT.format(largest)
    done = subprocess.run(
        [sys.executable, "-c", limit + program, *arguments],
        # Compiled programs are files too.
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "2", "JAX_ENABLE_COMPILATION_CACHE": "false"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    return done.returncode, done.stdout, done.stderr


def assert_full(outcome: tuple[int, str, str], *expected: str) -> None:
    code, out, err = outcome
    assert (code, out) == (1, ""), err
    last = err.splitlines()[-1]
    assert last.startswith("jaxq: ") and "Traceback" not in err
    # A netCDF file that does not fit has a reason of its own.
    assert "(File too large)" in last or "(NetCDF: HDF error)" in last, err
    for text in ("make room, and the same c", *expected):
        assert text in last, err


@pytest.mark.slow
def test_simulate_goes_on_from_what_is_kept(jaxq, workplace):
    tiny_file()
    folder = Path("runs") / "gate_and_route_n2"
    small_run(folder, replications=32)
    before = {path.name: path.read_bytes() for path in blocks(folder)}
    assert_full(call(SIMULATE, command(Path("runs")), 4096), str(folder), "goes on from 32 kept replications")
    assert {path.name: path.read_bytes() for path in blocks(folder)} == before
    assert not [path for path in folder.iterdir() if path.name.endswith(".part")]
    code, out, err = jaxq(*command(Path("runs")), "--json")
    assert code == 0, err
    assert same(load_result(folder), small_run())


@pytest.mark.slow
def test_simulate_whose_summary_cannot_be_written(workplace):
    """All replications are kept; the summary is larger than the limit."""
    tiny_file()
    small_run(Path("runs") / "gate_and_route_n2")
    assert_full(call(SIMULATE, command(Path("runs")), 4096), "runs/simulate.json")
    code, out, err = call(SIMULATE, [*command(Path("runs")), "--json"])
    assert code == 0 and json.loads(out) == json.loads(Path("runs/simulate.json").read_text())


def run_output(folder: Path) -> tuple[str, list]:
    """What a run of the main job found."""
    records = json.loads((folder / "run.json").read_text())["records"]
    return (folder / "results.csv").read_text(), [record | {"seconds": None} for record in records]


@pytest.mark.slow
def test_run_goes_on_from_what_is_kept(workplace):
    """First a file of replications is too large, then the report."""
    tiny_file()
    arguments = ["run", "tiny.toml", "--quick", "--out"]
    assert_full(call(RUN, [*arguments, "report"], 4096), "report.part/sarathi_n2", "from 0 kept replications")
    kept = Path("report.part")
    assert summarise_run(kept / "sarathi_n2").kept == 0
    assert_full(
        call(RUN, [*arguments, "report"], 2**16), "report: the report", "the replications in", str(kept)
    )
    assert [summarise_run(kept / f"{name}_n2").kept for name in ("sarathi", "gate_and_route")] == [16, 16]
    assert not Path("report").exists()
    for folder in ("report", "whole"):
        code, _, err = call(RUN, [*arguments, folder])
        assert code == 0, err
    assert run_output(Path("report")) == run_output(Path("whole"))
    assert not kept.exists()


@pytest.mark.slow
def test_tune_goes_on_from_the_last_check(workplace):
    tiny_file()
    arguments = ["tune", "tiny.toml", "--gpus", "2", "--start", "gate_and_route", "--quick", "--steps", "4"]
    assert_full(
        call(FULL_AFTER_A_CHECKPOINT + TUNE, [*arguments, "--out", "tuned"]),
        "tuned/checkpoint.npz: cannot be written",
        "goes on from the last check",
    )
    assert [path.name for path in Path("tuned").iterdir()] == ["checkpoint.npz"]
    for folder in ("tuned", "whole"):
        code, _, err = call(TUNE, [*arguments, "--out", folder])
        assert code == 0, err
    found = [json.loads((Path(folder) / "policy.json").read_text()) for folder in ("tuned", "whole")]
    assert found[0]["parameters"] == found[1]["parameters"]
