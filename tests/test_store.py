"""Runs that survive: whatever happens to process, disk or files, the bits are those of one run."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxq import (
    ClusterEngine,
    InputError,
    Result,
    SimulationError,
    StoreWarning,
    _memory,
    _result,
    load_result,
    policies,
    simulate,
)
from jaxq._store import kept_run as kept_run_module
from jaxq._store.block_file import BlockFile
from jaxq._store.kept_run import summarise_run
from jaxq._store.run_store import LOCK_FILE, RUN_FILE, RunStore

from . import oracles
from .processes import join, lines_of, started_together
from .simulations import digest
from .test_simulate import FakeEngine

REPLICATIONS, CHUNK = 96, 16


def small_run(out: Path | str | None = None, replications: int = REPLICATIONS, **changes) -> Result:
    """A run of some seconds, in files of 16 replications."""
    instance = oracles.tiny_cluster().instance()
    given = {
        "n_gpus": 2,
        "horizon": 60.0,
        "warmup": 30.0,
        "key": 7,
        "engine": ClusterEngine(block=8),
    } | changes
    policy = given.pop("policy", policies.gate_and_route)
    return simulate(instance, policy(instance), replications=replications, out=out, **given)


def same(a: Result, b: Result, but: tuple[str, ...] = ("seconds",)) -> bool:
    """Whether two results agree in every bit, but for the time that they took."""
    x, y = (result.to_dict() | dict.fromkeys(but) for result in (a, b))
    records = [jax.tree.leaves(result.record.load()) for result in (a, b)]
    return x == y and all(np.array_equal(u, v) for u, v in zip(*records, strict=True))


@pytest.fixture(scope="module")
def whole() -> Result:
    """The uninterrupted run, in memory."""
    return small_run()


@pytest.fixture
def kept(tmp_path) -> Path:
    """A complete run in a folder."""
    small_run(tmp_path / "run")
    return tmp_path / "run"


def blocks(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if BlockFile.named(path))


# Going on.


def test_a_run_goes_on_to_the_same_bits_and_may_be_extended(tmp_path, whole):
    small_run(tmp_path / "run", replications=20)
    assert [block.stat().st_size > 0 for block in blocks(tmp_path / "run")] == [True, True]
    assert same(small_run(tmp_path / "run", engine=ClusterEngine(block=16)), whole)
    assert same(small_run(tmp_path / "run", replications=20), small_run(replications=20))
    assert same(load_result(tmp_path / "run"), whole)


def test_a_complete_run_is_not_simulated_again(kept, monkeypatch):
    monkeypatch.setattr(ClusterEngine, "run", lambda *arguments, **given: pytest.fail("simulated again"))
    assert small_run(kept).replications == REPLICATIONS


def test_a_run_to_a_precision_stops_where_it_would_have(tmp_path):
    given = {"replications": 16, "precision": 0.02, "max_replications": 400}
    whole = small_run(**given)
    assert whole.replications > 32 and whole.stopped_because == "precision"
    small_run(tmp_path / "run", replications=32)
    assert same(small_run(tmp_path / "run", **given), whole)


# Several processes.


def test_two_processes_keep_one_run_and_give_the_bits_of_one(tmp_path, whole):
    """As on two hosts that see the folder: they go on from what one process has kept, and refuse as one."""
    small_run(tmp_path / "run", replications=20)
    running = started_together("tests.test_store", 1, 2, str(tmp_path / "run"), str(REPLICATIONS))
    expected = [[digest(whole.record)], ["refused:", "was", "made", "with", "horizon"]]
    assert [[words[:5] for words in lines] for lines in lines_of(running, "found")] == [expected] * 2
    assert same(load_result(tmp_path / "run"), whole, but=("seconds", "engine"))


@pytest.mark.slow
def test_processes_that_are_killed_leave_a_run_that_one_ends(tmp_path):
    """Killed when some files are there, of a run that is long enough not to have ended by then."""
    wanted, folder = 100 * CHUNK, tmp_path / "run"
    running = started_together("tests.test_store", 1, 2, str(folder), str(wanted))
    until = time.monotonic() + 120
    while time.monotonic() < until and len(blocks(folder) if folder.is_dir() else []) < 3:
        time.sleep(0.005)
    for process in running:
        process.kill()
        process.communicate()
    assert 3 <= len(blocks(folder)) < wanted // CHUNK
    assert same(small_run(folder, wanted), small_run(replications=wanted))


def keep_together(folder: str, replications: str) -> None:
    """Print what a process finds that shares a run, and what it is told about one with another horizon."""
    print("found", digest(small_run(folder, int(replications)).record.load()))
    try:
        small_run(folder, int(replications), horizon=70.0)
    except InputError as error:
        print("found refused:", str(error).partition(": ")[2])


# Processes that end in the middle.


def command(folder: Path) -> list[str]:
    """What simulates `small_run` into a folder, with 16 replications to a file."""
    words = ["simulate", "tiny.toml", "--policy", "gate_and_route", "--gpus", "2", "--block", "8"]
    words += ["--horizon", "60", "--warmup", "30", "--seed", "7"]
    return [*words, "--replications", str(REPLICATIONS), "--out", str(folder)]


def start(folder: Path, *options: str) -> subprocess.Popen:
    """A process that simulates into a folder."""
    return subprocess.Popen(
        [sys.executable, "-m", "jaxq.cli", *command(folder), *options],
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "2"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def tiny_file() -> None:
    from jaxq import save_instance

    save_instance(oracles.tiny_cluster().instance(), "tiny.toml")


def check_kills(folder: Path, moments: int, seed: int) -> None:
    """Kill a process `moments` times, each at a random moment of its work; then let one finish."""
    rng = np.random.default_rng(seed)
    run = folder / "gate_and_route_n2"
    for _ in range(moments):
        process = start(folder)
        wanted = len(blocks(run)) + int(rng.integers(0, 3)) if run.is_dir() else int(rng.integers(0, 3))
        until = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < until:
            if run.is_dir() and (run / LOCK_FILE).exists() and len(blocks(run)) >= wanted:
                break
            time.sleep(0.005)
        time.sleep(float(rng.random()) * 0.05)
        process.kill()
        process.communicate()
    out, err = start(folder, "--json").communicate(timeout=120)
    record = json.loads(out)["records"][0]
    whole = small_run(horizon=60.0, warmup=30.0)
    for name in ("revenue_bundled", "gap", "waiting_time_prefill", "events"):
        assert record[name] == json.loads(json.dumps(whole.to_dict()[name])), err
    assert not [path for path in run.iterdir() if path.name.endswith(".part")]


def test_killed_at_three_moments(workplace):
    tiny_file()
    check_kills(workplace / "runs", moments=3, seed=51)


@pytest.mark.slow
def test_killed_at_twenty_moments(workplace):
    tiny_file()
    for seed in range(52, 57):
        check_kills(workplace / f"runs{seed}", moments=4, seed=seed)


@pytest.mark.parametrize("signal_", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_an_interrupted_run_ends_cleanly_and_says_how_to_go_on(workplace, signal_):
    tiny_file()
    run = workplace / "runs" / "gate_and_route_n2"
    process = start(workplace / "runs", "--horizon", "6000")
    until = time.monotonic() + 60
    while not (run.is_dir() and blocks(run)) and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(signal_)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert err.splitlines()[-1].endswith("to go on, give the same command again")
    assert not [path for path in run.iterdir() if path.name.endswith(".part")]
    assert 0 < summarise_run(run).kept < REPLICATIONS


# The disk and the files.


def test_a_full_disk_is_said_and_nothing_is_lost(tmp_path, whole, monkeypatch):
    calls, sync = [], os.fsync

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 3:  # run.json, a block, and the next
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    small_run(tmp_path / "run", replications=CHUNK)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SimulationError, match=r"No space left on device.*goes on from 32 kept replications"):
        small_run(tmp_path / "run")
    assert len(blocks(tmp_path / "run")) == 2
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.endswith(".part")]
    assert same(small_run(tmp_path / "run"), whole)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    contents = bytearray(path.read_bytes())
    contents[len(contents) // 3] ^= 1
    path.write_bytes(bytes(contents))


def clear(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize(
    "damage", [flip, *(pytest.param(further, marks=pytest.mark.slow) for further in (truncate, clear))]
)
def test_every_damaged_file_is_named_set_aside_and_computed_again(kept, whole, damage):
    """Each file of the folder once."""
    files = [path for path in sorted(kept.iterdir()) if path.name != LOCK_FILE]
    assert len(files) == 1 + REPLICATIONS // CHUNK
    for path in files:
        damage(path)
        with pytest.warns(StoreWarning, match=path.name):
            again = small_run(kept)
        assert same(again, whole)
        assert path.with_name(f"{path.name}.damaged").exists()
        if path.name != RUN_FILE:
            assert all(BlockFile.named(block).read() for block in blocks(kept))


def test_a_damaged_file_is_never_read_as_a_result(kept):
    flip(blocks(kept)[2])
    with pytest.raises(InputError, match=rf"{blocks(kept)[2].name}: damaged"):
        print(load_result(kept).revenue)


def test_a_folder_without_its_description_is_still_checked(kept, whole):
    (kept / RUN_FILE).unlink()
    with pytest.warns(StoreWarning, match="of another run"):
        small_run(kept, key=8)
    assert same(small_run(kept, key=8), small_run(key=8))


# Two processes, other arguments.


def test_a_second_process_is_refused(kept):
    with RunStore.opened(kept, json.loads((kept / RUN_FILE).read_text())["arguments"], {}):
        with pytest.raises(InputError, match="another process is writing to it"):
            small_run(kept)
    assert small_run(kept).replications == REPLICATIONS


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"key": 8}, "key threefry2x32:00000000:00000007"),
        ({"n_gpus": 3}, "n_gpus 2, and this call has 3"),
        ({"horizon": 61.0}, "horizon 60.0, and this call has 61.0"),
        ({"policy": policies.sarathi}, "policy gate_and_route, and this call has sarathi"),
        ({"engine": ClusterEngine(generator="threefry")}, "engine ClusterEngine"),
    ],
)
def test_a_folder_of_other_arguments_is_refused(kept, changes, named):
    before = {path.name: path.read_bytes() for path in kept.iterdir()}
    with pytest.raises(InputError, match=f"was made with {named}"):
        small_run(kept, **changes)
    assert before == {path.name: path.read_bytes() for path in kept.iterdir()}


def test_a_folder_of_another_version_is_refused(kept, monkeypatch):
    later = kept_run_module.versions() | {"jaxq": "99.0"}
    monkeypatch.setattr(kept_run_module, "versions", lambda: later)
    with pytest.raises(InputError, match=r"was made with versions .*99\.0"):
        small_run(kept)


def test_policies_with_other_numbers_are_other_policies(kept):
    def other(instance):
        made = policies.gate_and_route(instance)
        return jax.tree.map(lambda number: number * (1 + 1e-12), made)

    with pytest.raises(InputError, match="was made with numbers of the policy"):
        small_run(kept, policy=other)


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match="holds something else than a run of jaxq"):
        small_run(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot be written"):
        small_run(tmp_path / "file")


# Memory.


def test_a_long_run_is_never_in_memory_at_once(tmp_path, monkeypatch):
    """Writing and summing up 30 files takes less than a third of what they hold."""
    monkeypatch.setattr(_result, "WATCHED", 128)

    class Chunked(FakeEngine):
        def block_size(self, *arguments):
            return 64

    given = {"n_gpus": 5, "horizon": 500.0, "warmup": 100.0, "replications": 30 * 64, "key": 0}
    instance = oracles.reference_cluster().instance()
    policy = policies.sarathi(instance)
    tracemalloc.start()
    try:
        found = simulate(instance, policy, engine=Chunked(), out=tmp_path / "run", **given)
        found.to_dict()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(found.record.load()))
    assert peak < held / 3
    whole = simulate(instance, policy, engine=FakeEngine(), **given)
    assert same(found, whole)


def test_a_kept_run_needs_less_memory():
    instance = oracles.reference_cluster().instance()
    policy = policies.sarathi(instance)
    given = {"n_gpus": 50, "replications": 100_000, "horizon": 1500.0, "warmup": 300.0}
    needs = [
        _memory.memory_need(ClusterEngine(), instance, policy, **given, kept=kept) for kept in (False, True)
    ]
    assert needs[1].device == needs[0].device
    assert needs[1].host < needs[0].host / 20


@pytest.mark.parametrize(
    ("little_first", "sizes"),
    [(True, [16, 16, 8, 56]), pytest.param(False, [40, 16, 16, 16, 8], marks=pytest.mark.slow)],
)
def test_free_memory_chooses_blocks_and_never_bits(tmp_path, whole, monkeypatch, little_first, sizes):
    """A run that is begun with little memory and goes on with plenty, or the other way round."""
    memories = (2**17, _memory.host_memory())
    for free, replications in zip(
        memories if little_first else memories[::-1], (40, REPLICATIONS), strict=True
    ):
        monkeypatch.setattr(_memory, "host_memory", lambda free=free: free)
        found = small_run(tmp_path / "run", replications=replications, engine=ClusterEngine())
    assert same(found, whole)
    named = map(BlockFile.named, blocks(tmp_path / "run"))
    assert [block.end - block.first for block in named] == sizes


def test_progress_is_that_of_all_replications(tmp_path):
    seen = []
    small_run(tmp_path / "run", replications=32)
    small_run(tmp_path / "run", progress=lambda done, total: seen.append(done / total))
    assert seen == sorted(seen) and seen[-1] == 1.0
    assert seen[0] > 32 / REPLICATIONS


# The commands that list and summarise.


def test_ls_and_show(jaxq, kept):
    code, out, _ = jaxq("ls", kept.parent, "--json")
    (row,) = json.loads(out)["runs"]
    assert code == 0 and row["policy"] == "gate_and_route" and row["gpus"] == 2
    assert row["kept"] == row["asked"] == REPLICATIONS and row["complete"]
    code, out, _ = jaxq("show", kept, "--json")
    (record,) = json.loads(out)["records"]
    assert record["revenue_bundled"] == json.loads(json.dumps(load_result(kept).revenue_bundled.to_dict()))
    code, out, _ = jaxq("show", kept)
    assert code == 0 and "96 replications" in out and "running prefills, X: class-0" in out
    assert "gate_and_route" in jaxq("ls", kept.parent)[1]
    flip(kept / RUN_FILE)
    assert "damaged" in jaxq("ls", kept.parent)[1]
    with contextlib.chdir(kept.parent):
        (kept.parent / "empty").mkdir()
        code, _, err = jaxq("ls", "empty")
        assert (code, err) == (
            2,
            "jaxq: empty: holds no run; expected a folder that --out of a command wrote\n",
        )
    assert jaxq("show", kept / "nowhere")[0] == 2


if __name__ == "__main__":
    join(*map(int, sys.argv[1:5]))
    keep_together(*sys.argv[5:])
