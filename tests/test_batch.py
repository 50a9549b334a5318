"""A batch of studies: the bits of single runs, whatever happens to one of them, and wherever they are run."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import jax
import pytest

from jaxq import ClusterEngine, InputError, SimulationError, StatisticsWarning, Study, policies, run_studies
from jaxq._store.run_store import LOCK_FILE

from . import oracles
from .conftest import cache_folder
from .test_simulate import POLICY, FakeEngine
from .test_simulate import instance as made_up
from .test_store import blocks, same, small_run

ROOT = Path(__file__).parents[1]
BUT_FOR_DEVICES = ("seconds", "engine")
"""The line on the engine says how many devices there were."""


class SteppedEngine(FakeEngine):
    """Made-up completions, four replications to a file, and an accident at one of them."""

    def __init__(self, accident: BaseException | None = None, at: int = 0, **given):
        super().__init__(**given)
        self.accident, self.at = accident, at

    def __repr__(self):
        return "SteppedEngine()"

    def block_size(self, instance, policy, n_gpus, replications):
        return 4

    def run(self, *arguments, first=0, **given):
        if self.accident is not None and first >= self.at:
            raise self.accident
        return super().run(*arguments, first=first, **given)


class DyingEngine(SteppedEngine):
    """Takes its process down with it."""

    def run(self, *arguments, **given):
        os.kill(os.getpid(), signal.SIGKILL)


def stepped(engine: SteppedEngine | None = None, **changes) -> Study:
    """A study of twelve replications, in three files."""
    given = {"n_gpus": 2, "horizon": 500.0, "warmup": 100.0, "replications": 12} | changes
    return Study(made_up(), POLICY, engine=SteppedEngine() if engine is None else engine, **given)


def small(**changes) -> Study:
    """The study of `small_run`, six files of 16 replications on two devices."""
    instance = oracles.tiny_cluster().instance()
    given = {"n_gpus": 2, "horizon": 60.0, "warmup": 30.0, "key": 7, "replications": 96} | changes
    policy = given.pop("policy", policies.gate_and_route)
    return Study(instance, policy(instance), engine=ClusterEngine(block=8), **given)


# Here.


def test_studies_have_the_bits_of_single_runs(tmp_path):
    given = {"replications": 32, "horizon": 40.0}
    found = run_studies({"b": small(key=8, **given), "a": small(**given)}, tmp_path / "runs")
    assert list(found) == ["b", "a"] and sorted(os.listdir(tmp_path / "runs")) == ["a", "b"]
    assert same(found["a"], small_run(**given)) and same(found["b"], small_run(key=8, **given))


def test_an_interrupted_batch_goes_on_from_what_is_kept(tmp_path):
    whole = run_studies({"a": stepped(), "b": stepped(key=1)}, tmp_path / "whole")
    broken = SteppedEngine(KeyboardInterrupt(), at=8)
    with pytest.raises(KeyboardInterrupt):
        run_studies({"a": stepped(), "b": stepped(broken, key=1), "c": stepped()}, tmp_path / "runs")
    assert sorted(os.listdir(tmp_path / "runs")) == ["a", "b"]
    engines = {"a": SteppedEngine(), "b": SteppedEngine()}
    again = {"a": stepped(engines["a"]), "b": stepped(engines["b"], key=1)}
    found = run_studies(again, tmp_path / "runs")
    assert [call["first"] for call in engines["b"].calls] == [8] and not engines["a"].calls
    assert all(same(found[name], whole[name]) for name in whole)


def test_studies_that_fail_are_named_and_the_others_are_finished(tmp_path):
    studies = {
        "broken": stepped(SteppedEngine(ZeroDivisionError("by zero"), at=4)),
        "refused": stepped(SteppedEngine(InputError("dt: too long"))),
        "fine": stepped(),
    }
    with pytest.raises(SimulationError) as failure:
        run_studies(studies, tmp_path / "runs")
    told = "2 of 3 studies failed: broken: ZeroDivisionError: by zero; refused: dt: too long; the other 1"
    assert str(failure.value).startswith(told)
    assert "in run" in failure.value.__notes__[0]  # where, for whoever looks into it
    assert len(blocks(tmp_path / "runs" / "fine")) == 3 and len(blocks(tmp_path / "runs" / "broken")) == 1
    with pytest.raises(InputError, match="^1 of 1 studies failed: refused: dt: too long$"):
        run_studies({"refused": studies["refused"]}, tmp_path / "runs")


def test_warnings_and_progress_carry_the_name(tmp_path):
    seen = []
    with pytest.warns(StatisticsWarning, match="^drifts: warm-up too short"):
        run_studies(
            {"drifts": stepped(SteppedEngine(drift=20.0)), "still": stepped()},
            tmp_path / "runs",
            progress=lambda *told: seen.append(told),
        )
    assert [(name, done / total) for name, done, total in seen if name == "drifts"][-1] == ("drifts", 1.0)
    assert {name for name, _, _ in seen} == {"drifts", "still"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run_studies({"still": stepped()}, tmp_path / "runs")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"cluster": "slurm"}, "cluster: expected None or 'ray', got 'slurm'"),
        ({"studies": {}}, "studies: expected at least one"),
        ({"studies": {"../a": None}}, "studies: expected names of letters, .* got '../a'"),
        ({"studies": {"batch.json": None}}, "studies: .* got 'batch.json'"),
        ({"studies": {".a": None}}, "studies: .* got '.a'"),
        ({"cpus_per_study": 0}, "cpus_per_study: expected a whole number of at least 1, got 0"),
        ({"gpus_per_study": 0.5}, "gpus_per_study: expected a whole number of at least 0, got 0.5"),
        ({"max_retries": -1}, "max_retries: expected a whole number of at least 0, got -1"),
        ({"out": "/proc/jaxq"}, "out: /proc/jaxq cannot be written"),
    ],
)
def test_bad_arguments_are_refused_before_any_work(tmp_path, changes, named):
    engine = SteppedEngine()
    given = {"studies": {"a": stepped(engine)}, "out": tmp_path / "runs"} | changes
    if None in given["studies"].values():
        given["studies"] = dict.fromkeys(given["studies"], stepped(engine))
    with pytest.raises(InputError, match=named):
        run_studies(given.pop("studies"), given.pop("out"), **given)
    assert not engine.calls and not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"n_gpus": 0}, "n_gpus: expected a whole number of at least 1"),
        ({"horizon": 50.0}, "warmup: expected 0 s or more and less than horizon"),
        ({"key": -1}, "key: expected a whole number from 0"),
        ({"time_limit": 3.0}, "time_limit: expected only together with precision"),
    ],
)
def test_a_study_is_checked_when_it_is_made(changes, named):
    with pytest.raises(InputError, match=named):
        stepped(**changes)


def test_making_a_study_takes_no_device():
    """A process that only hands studies out may stand beside workers that need its GPUs."""
    program = (
        "from tests.test_batch import small; from jaxq import Study; import pickle;"
        "study = pickle.loads(pickle.dumps(small()));"
        "assert study.n_gpus == 2 and study.key == 7"
    )
    environment = os.environ | {"JAX_PLATFORMS": "no_such_platform", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, cwd=ROOT, timeout=120)


def test_a_cluster_needs_ray(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r'^cluster: Ray is not installed; pip install "jaxq\[ray\]"$'):
        run_studies({"a": stepped()}, tmp_path / "runs", cluster="ray")


# The command.

BATCH = """
[defaults]
instance = "a100_qwen8b_two_class"
policy = "sarathi"
horizon = 60
warmup = 20
replications = 4
gpus = 3
seed = 5

[studies.first]

[studies.second]
seed = 6
"""


def test_the_command_simulates_what_the_file_says(jaxq, workplace):
    (workplace / "sizes.toml").write_text(BATCH)
    code, out, err = jaxq("batch", "sizes.toml", "--json")
    assert code == 0, err
    assert "[1/2] first: gap" in err and "[2/2] second: gap" in err
    told = json.loads(out)
    assert json.loads((workplace / "jaxq-batch" / "sizes" / "batch.json").read_text()) == told
    reference = ROOT / "experiments" / "instances" / "a100_qwen8b_two_class.toml"
    options = ("--gpus", "3", "--replications", "4", "--horizon", "60", "--warmup", "20", "--seed", "6")
    _, out, _ = jaxq("simulate", reference, *options, "--policy", "sarathi", "--json")
    (record,) = json.loads(out)["records"]
    assert told["studies"]["second"] | {"seconds": 0} == record | {"seconds": 0}
    assert told["studies"]["first"]["seed"] == 5
    code, out, err = jaxq("batch", "sizes.toml")
    assert code == 0 and "second: goes on from 4 kept replications" in err
    assert "sarathi" in out and "best possible" in out


def test_the_command_names_the_study_that_fails(jaxq, workplace):
    (workplace / "sizes.toml").write_text(BATCH)
    (workplace / "out" / "first").mkdir(parents=True)
    (workplace / "out" / "first" / "thesis.tex").write_text("mine")
    code, out, err = jaxq("batch", "sizes.toml", "--out", "out", "--json")
    assert (code, out) == (2, "")
    last = err.splitlines()[-1]
    assert last.startswith("jaxq: 1 of 2 studies failed: first: ") and "holds something else" in last
    assert blocks(workplace / "out" / "second")


BAD_FILES = {
    "no studies": ("[studies.first]", "[study.first]", "study: unknown table; did you mean 'studies'?"),
    "an unknown field": ("seed = 6", "sede = 6", "studies.second: sede: unknown key; did you mean 'seed'?"),
    "a default of another kind": ("horizon = 60", "horizon = '60'", "defaults: horizon: expected a number"),
    "a fraction of a GPU": ("gpus = 3", "gpus = 1.5", "defaults: gpus: expected a whole number"),
    "a seed out of range": ("seed = 6", "seed = 4294967296", "studies.second: seed: expected a whole number"),
    "a warm-up to the horizon": (
        "seed = 6", "warmup = 60", "studies.second: warmup: expected less than horizon (60 s), got 60",
    ),
    "a step for the exact chain": (
        "seed = 6", "dt = 0.1", "studies.second: dt: expected only with stepper leap;",
    ),
    "an unknown engine": ("seed = 6", "engine = 'big'", "studies.second: engine: expected cluster, pooled"),
    "a policy without a partition": ("seed = 6", "engine = 'pooled'", "studies.second: policy 'sarathi'"),
    "an unknown policy": ("'sarathi'", "'sarati'", "studies.first: policy: unknown name 'sarati'"),
    "an unknown instance": (
        "seed = 6", "instance = 'overlaod'", "studies.second: instance: ", "did you mean 'overload'?",
    ),
    "a missing instance": ("seed = 6", "instance = 'no.toml'", "studies.second: no.toml: no such file"),
    "a name that is a path": ("studies.second", "studies.'a/b'", "studies: expected names", "'a/b'"),
    "no TOML": ("seed = 6", "seed =", "not valid TOML"),
    "too many replications": (
        "seed = 6", "replications = 1000000000000", "studies.second: replications: ", "at most",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_refused_by_study_and_field(jaxq, workplace, case):
    old, new, *expected = BAD_FILES[case]
    text = BATCH.replace('"', "'")
    assert old in text
    (workplace / "sizes.toml").write_text(text.replace(old, new, 1))
    code, out, err = jaxq("batch", "sizes.toml")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert err.startswith("jaxq: sizes.toml: ") and all(part in err for part in expected), err
    assert [entry.name for entry in workplace.iterdir()] == ["sizes.toml"]


def test_a_default_that_an_engine_has_no_use_for_is_left_out(jaxq, workplace):
    text = BATCH.replace("[studies.first]", "[studies.limit]\nengine = 'fluid'\nlevel = 'pooled'")
    (workplace / "sizes.toml").write_text(text)
    from jaxq._cli.batch_file import read_batch

    limit = read_batch(workplace / "sizes.toml")["limit"].choices
    assert (limit.gpus, limit.seed, limit.replications, limit.horizon) == (None, None, None, 60.0)
    (workplace / "sizes.toml").write_text(text.replace("level = 'pooled'", "dt = 0.1"))
    code, _, err = jaxq("batch", "sizes.toml")
    assert code == 2 and "studies.limit: dt: expected only with engine cluster or pooled" in err


# Over a cluster.

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason='Ray is not installed: pip install "jaxq[ray]"'
)


@pytest.fixture(scope="module")
def cluster():
    """A Ray cluster of two workers on this machine; that it has a GPU is made up."""
    import ray

    settings = {
        "PYTHONPATH": str(ROOT),
        "JAX_COMPILATION_CACHE_DIR": str(cache_folder()),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        ray.init("local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()


def writer(folder: Path) -> int | None:
    """The process that holds the lock of a run, other than this one."""
    lock = str(folder / LOCK_FILE)
    for process in Path("/proc").iterdir():
        if process.name.isdecimal() and int(process.name) != os.getpid():
            try:
                if any(os.readlink(entry) == lock for entry in (process / "fd").iterdir()):
                    return int(process.name)
            except OSError:
                continue  # it has ended, or is another user's
    return None


def kill_writer(folder: Path, files: int, killed: dict) -> None:
    """Kill the process that writes a run once it has kept so many files; says which, and what was kept."""
    until = time.monotonic() + 300
    while time.monotonic() < until:
        if folder.is_dir() and len(blocks(folder)) >= files and (process := writer(folder)) is not None:
            os.kill(process, signal.SIGKILL)
            killed["process"] = process
            killed["kept"] = {block.name: block.stat().st_mtime_ns for block in blocks(folder)}
            return
        time.sleep(0.01)


@needs_ray
@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="finds the process to kill in /proc")
def test_a_study_whose_worker_is_killed_goes_on_to_the_same_bits(tmp_path, cluster):
    studies = {name: small(key=key, horizon=2000.0) for key, name in enumerate(("first", "killed", "last"))}
    killed = {}
    killer = threading.Thread(target=kill_writer, args=(tmp_path / "runs" / "killed", 3, killed))
    killer.start()
    seen = []
    found = run_studies(
        studies,
        tmp_path / "runs",
        cluster="ray",
        gpus_per_study=0,
        progress=lambda *told: seen.append(told),
    )
    killer.join()
    # Files of eight replications on the one device of a worker: it was in the middle of its study.
    assert 3 <= len(killed["kept"]) < 12 and not Path(f"/proc/{killed['process']}").exists()
    after = {block.name: block.stat().st_mtime_ns for block in blocks(tmp_path / "runs" / "killed")}
    assert len(after) == 12 and after.items() >= killed["kept"].items()
    assert {("first", 96, 96), ("killed", 96, 96), ("last", 96, 96)} <= set(seen)
    here = run_studies(studies, tmp_path / "here")
    assert len(jax.devices()) == 2 and "1 cpu device" in found["killed"].engine_description
    assert all(same(found[name], here[name], BUT_FOR_DEVICES) for name in studies)


@needs_ray
@pytest.mark.slow
def test_on_a_cluster_too_a_failure_is_named_and_the_others_are_finished(tmp_path, cluster):
    studies = {
        "dies": stepped(DyingEngine()),
        "broken": stepped(SteppedEngine(ZeroDivisionError("by zero"), at=4)),
        "drifts": stepped(SteppedEngine(drift=20.0)),
    }
    with (
        pytest.raises(SimulationError, match="^2 of 3 studies failed: dies: .*broken: ZeroDiv.*by zero"),
        pytest.warns(StatisticsWarning, match="^drifts: warm-up too short"),
    ):
        run_studies(studies, tmp_path / "runs", cluster="ray", gpus_per_study=0, max_retries=1)
    assert len(blocks(tmp_path / "runs" / "drifts")) == 3


@needs_ray
@pytest.mark.slow
def test_a_gpu_that_jax_does_not_see_is_refused(tmp_path, cluster):
    if jax.default_backend() != "cpu":
        pytest.skip("this machine has a GPU")
    with pytest.raises(InputError, match="failed: a: gpus_per_study: Ray gave a worker a GPU, and JAX"):
        run_studies({"a": stepped()}, tmp_path / "runs", cluster="ray")
