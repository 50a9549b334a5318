"""`jaxq tune`: what it prints and writes, that its policies can be simulated, and what it refuses."""

from __future__ import annotations

import json
import signal
import time

import pytest

from jaxq import _tune, _tuning_job

from .test_cli import REFERENCE, SMALL, assert_refused, files_below, start

pytestmark = pytest.mark.usefixtures("workplace")

TUNE = ("tune", REFERENCE, "--quick", "--gpus", "2", "--start", "price_and_pack", "--steps", "1")


@pytest.fixture
def few_presets(monkeypatch):
    """Two policies to compare with instead of eight, which all compile; and few replications."""
    monkeypatch.setattr(_tune, "TRAINING_GPU_RUNS", 64)
    monkeypatch.setattr(_tune, "VALIDATION_GPU_RUNS", 64)
    presets = {name: _tuning_job.PRESETS[name] for name in ("sarathi", "price_and_pack")}
    monkeypatch.setattr(_tuning_job, "PRESETS", presets)


def test_tune_writes_a_policy_that_simulate_accepts(jaxq, workplace, few_presets):
    code, out, err = jaxq(*TUNE, "--json")
    assert code == 0, err
    summary = json.loads(out)
    folder = workplace / "jaxq-tuned" / "a100_qwen8b_two_class-n2"
    assert files_below(folder) == ["checkpoint.npz", "checkpoint.npz.previous", "policy.json", "tune.json"]
    assert json.loads((folder / "tune.json").read_text()) == summary
    assert (workplace / summary["policy_file"]).samefile(folder / "policy.json")
    assert summary["scheme"] == "bundled" and summary["gpus"] == 2
    assert summary["instance"]["fingerprint"].startswith("a786a7ebbbb4")
    low, high = summary["gap"]["ci95"]
    assert low < summary["gap"]["mean"] < high
    assert summary["best_published"]["policy"] == "sarathi"
    assert [check["step"] for check in summary["history"][0]["checks"]] == [0, 1]
    assert "step 1: gap" in err

    code, out, err = jaxq("simulate", REFERENCE, "--policy", summary["policy_file"], *SMALL, "--json")
    assert code == 0 and json.loads(out)["records"][0]["policy"] == summary["policy_file"]

    code, out, err = jaxq(*TUNE, "--json")
    again = json.loads(out)
    assert code == 0 and "step 1: gap" not in err  # the checkpoint had it all
    assert again["gap"] == summary["gap"]

    (folder / "checkpoint.npz").write_bytes(b"")
    code, out, err = jaxq(*TUNE, "--json")
    assert code == 0 and json.loads(out)["gap"] == summary["gap"]
    assert "jaxq: warning: " in err and "set aside as checkpoint.npz.damaged and computed again" in err
    assert "step 1: gap" in err  # the checkpoint before had the first check only

    assert_refused(jaxq(*TUNE, "--seed", "3"), "checkpoint.npz", "seed was 0, is 3")
    file = folder / "policy.json"
    file.write_text(file.read_text().replace('"gate.bid_price": ', '"gate.bid_price": 1'))
    assert_refused(jaxq("simulate", REFERENCE, "--policy", file, *SMALL), "policy.json", "was changed")


BAD_OPTIONS = {
    "two sizes": (("--gpus", "20,50"), "--gpus", "one number"),
    "an unknown family": (("--policy", "linear"), "--policy", "feedback or neural"),
    "an unknown gradient": (("--gradient", "magic"), "--gradient", "finite-difference"),
    "an unknown objective": (("--objective", "profit"), "--objective", "bundled or separate"),
    "an unknown start": (("--start", "gate_and_rout"), "'gate_and_rout'", "'gate_and_route'"),
    "a start that is no policy": (("--start", "builtins:id"), "builtins:id"),
    "no steps": (("--steps", "0"), "--steps", "at least 1"),
    "a negative seed": (("--seed", "-1"), "--seed"),
    "a file that is not there": (("--start", "no.json"), "no.json", "cannot be read"),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_a_bad_option_is_refused_by_name(jaxq, workplace, case):
    options, *expected = BAD_OPTIONS[case]
    assert_refused(jaxq("tune", REFERENCE, *options, "--json"), *expected)
    assert files_below(workplace) == []


@pytest.mark.slow
def test_a_killed_tuning_goes_on_to_the_same_policy(workplace):
    """SIGKILL after the first checkpoint; the second call ends with what an uninterrupted one finds."""
    arguments = ["tune", str(REFERENCE), "--quick", "--gpus", "2", "--start", "gate_and_route"]
    process = start([*arguments, "--out", "killed"], workplace)
    for _ in range(1200):
        if (workplace / "killed" / "checkpoint.npz").exists():
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    parameters = []
    for folder in ("killed", "whole"):
        process = start([*arguments, "--out", folder], workplace)
        process.communicate(timeout=600)
        assert process.returncode == 0
        parameters.append(json.loads((workplace / folder / "policy.json").read_text())["parameters"])
    assert parameters[0] == parameters[1]
