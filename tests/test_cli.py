"""The command line: what it prints, what it writes, what it refuses, and how it ends."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from jaxq import _memory, load_instance, load_result, solve_plan
from jaxq._cli import environment
from jaxq._output import staged_folder

pytestmark = pytest.mark.usefixtures("workplace")

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "experiments" / "instances" / "a100_qwen8b_two_class.toml"
COMMANDS = (
    "run",
    "report",
    "simulate",
    "sweep",
    "batch",
    "size",
    "experiment",
    "tune",
    "plan",
    "calibrate",
    "presets",
    "policies",
    "info",
    "benchmark",
)
SMALL = ("--gpus", "3", "--replications", "4", "--horizon", "60", "--warmup", "20")

GOOD = """
[hardware]
alpha = 0.0174
beta = 6.2e-5
solo_iteration_time = 0.022
batch_size = 16
chunk_size = 256

[pricing]
scheme = "bundled"
prefill = 0.1
decode = 0.2

[[classes]]
name = "long"
prompt_tokens = 300.0
output_tokens = 1000.0
arrival_rate = 0.5
patience_rate = 0.1

[[classes]]
name = "short"
prompt_tokens = 3000.0
output_tokens = 400.0
arrival_rate = 0.5
patience_rate = 0.1
"""

MEASURED = "num_tokens,iteration_time_s,gpu\n" + "".join(
    f"{tokens},{0.02 + 6e-5 * max(0, tokens - 100):.6f},{gpu}\n"
    for gpu in ("a", "b")
    for tokens in (10, 20, 40, 80, 160, 320, 640, 1280)
)


def files_below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def assert_refused(outcome, *expected):
    """Exit code 2, one line on stderr that holds `expected`, nothing on stdout."""
    code, out, err = outcome
    assert (code, out) == (2, "")
    assert err.startswith("jaxq: ") and err.count("\n") == 1 and err.endswith("\n"), err
    assert "Traceback" not in err
    for text in expected:
        assert text in err, err


# Help and catalogues.


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches_with_examples(jaxq, command):
    code, out, err = jaxq(command, "--help")
    assert (code, err) == (0, "")
    assert "Examples:" in out and f"jaxq {command}" in out and "--json" in out


def test_help_lists_every_command(jaxq):
    code, out, _ = jaxq("--help")
    assert code == 0
    assert all(re.search(rf"^\W*{command}\b", out, re.MULTILINE) for command in COMMANDS)


def test_policies_lists_what_can_be_run(jaxq):
    code, out, _ = jaxq("policies", "--json")
    names = [row["name"] for row in json.loads(out)["policies"]]
    assert code == 0 and len(names) == 8 and "price_and_pack" in names
    assert all(name in jaxq("policies")[1] for name in names)


def test_presets_say_what_they_leave_out(jaxq):
    code, out, _ = jaxq("presets", "a100-40gb/qwen-8b", "--json")
    (preset,) = json.loads(out)["presets"]
    assert code == 0 and preset["alpha"]["estimate"] == 0.0174 and preset["leaves_out"]
    assert len(json.loads(jaxq("presets", "--json")[1])["presets"]) > 40
    shown = jaxq("presets", "vidur-h100")[1]
    assert "Attention over the KV cache" in shown and "a100" not in shown
    assert_refused(jaxq("presets", "a100-40gb/qwen8b"), "a100-40gb/qwen-8b")


# Plan.


def test_plan_json_has_the_agreed_keys(jaxq):
    code, out, err = jaxq("plan", REFERENCE, "--json")
    plan = json.loads(out)
    assert (code, err) == (0, "")
    agreed = "revenue scheme x y_mixed y_solo q_prefill q_decode bid_prices shadow_prices unique"
    assert set(agreed.split()) <= set(plan)
    assert plan["revenue"] == pytest.approx(297.716190, rel=1e-8)
    np.testing.assert_allclose(plan["x"], [0.018261, 0.194953], atol=1e-6)
    np.testing.assert_allclose(plan["bid_prices"], [0, 264.454], atol=1e-3)
    separate = json.loads(jaxq("plan", REFERENCE, "--scheme", "separate", "--json")[1])
    assert separate["revenue"] == pytest.approx(298.597983, rel=1e-8) and separate["scheme"] == "separate"


def test_plan_for_a_person_names_the_classes_and_the_optimum(jaxq):
    code, out, _ = jaxq("plan", REFERENCE)
    assert code == 0
    assert "297.716190" in out and "decode-heavy" in out and "mixed_decode_slots" in out


def test_plan_shows_service_levels(jaxq, workplace):
    levels = "\n[sli]\nprefill_fairness = 0.1\ntime_per_output_token_penalty = 100.0\n"
    (workplace / "levels.toml").write_text(GOOD + levels)
    code, out, _ = jaxq("plan", "levels.toml", "--json")
    plan = json.loads(out)
    fairness, time_per_token = (
        plan["service_levels"][name] for name in ("prefill_fairness", "time_per_output_token")
    )
    assert code == 0 and fairness["limit"] == 0.1 and fairness["value"] == pytest.approx(0.1)
    assert fairness["shadow_price"] == pytest.approx(plan["shadow_prices"]["prefill_fairness"][0])
    assert time_per_token["limit"] is None and time_per_token["penalty"] == 100
    assert plan["objective"] == pytest.approx(plan["plan_revenue"] - 100 * time_per_token["value"])
    shown = jaxq("plan", "levels.toml")[1]
    assert "prefill_fairness" in shown and "the plan earns 231.459325" in shown
    unset = json.loads(jaxq("plan", REFERENCE, "--json")[1])["service_levels"]
    assert all(level["limit"] is None and level["value"] > 0 for level in unset.values())


def test_a_service_level_that_cannot_be_met_is_refused(jaxq, workplace):
    (workplace / "levels.toml").write_text(GOOD + "\n[sli]\ntime_per_output_token = 0.02\n")
    assert_refused(jaxq("plan", "levels.toml"), "sli.time_per_output_token", "expected at least 0.022")


# Calibrate.


def test_calibrate_finds_the_law_of_each_group(jaxq, workplace):
    (workplace / "measured.csv").write_text(MEASURED)
    code, out, _ = jaxq("calibrate", "measured.csv", "--out", "fits", "--json")
    fitted = json.loads(out)
    assert code == 0 and [group["group"] for group in fitted["groups"]] == [{"gpu": "a"}, {"gpu": "b"}]
    for group in fitted["groups"]:
        assert group["base"]["estimate"] == pytest.approx(0.02, rel=1e-3)
        assert group["slope"]["estimate"] == pytest.approx(6e-5, rel=1e-3)
        assert group["knee"]["estimate"] == pytest.approx(100, rel=1e-2)
    assert files_below(workplace / "fits") == [
        "calibration.json", "gpu-a.png", "gpu-a.svg", "gpu-b.png", "gpu-b.svg",
    ]  # fmt: skip
    assert json.loads((workplace / "fits" / "calibration.json").read_text()) == fitted
    assert "gpu=a" in jaxq("calibrate", "measured.csv", "--bootstrap", "100")[1]


def test_calibrate_refuses_what_it_cannot_use(jaxq, workplace):
    (workplace / "flat.csv").write_text("num_tokens,iteration_time_s\n" + "10,0.1\n20,0.1\n" * 9)
    assert_refused(jaxq("calibrate", "flat.csv", "--out", "fits"), "flat.csv", "at least 6 distinct sizes")
    assert_refused(jaxq("calibrate", "missing.csv"), "missing.csv", "no such file")
    (workplace / "columns.csv").write_text("tokens,iteration_time_s\n10,0.1\n")
    assert_refused(jaxq("calibrate", "columns.csv"), "columns.csv", "num_tokens", "'tokens'")
    assert files_below(workplace) == ["columns.csv", "flat.csv"]


# Simulate.


def test_simulate_json_and_files_agree_with_the_counts(jaxq, workplace):
    arguments = ("--policy", "gate_and_route,sarathi", *SMALL, "--seed", "5", "--out", "runs", "--json")
    code, out, err = jaxq("simulate", REFERENCE, *arguments)
    summary = json.loads(out)
    assert code == 0 and "gate_and_route, n = 3" in err and "sarathi, n = 3" in err
    assert [(record["policy"], record["gpus"]) for record in summary["records"]] == [
        ("gate_and_route", 3), ("sarathi", 3),
    ]  # fmt: skip
    kept = sorted(entry.name for entry in (workplace / "runs").iterdir())
    assert kept == ["gate_and_route_n3", "sarathi_n3", "simulate.json"]
    assert json.loads((workplace / "runs" / "simulate.json").read_text()) == summary
    values = np.array([0.1 * 300 + 0.2 * 1000, 0.1 * 3000 + 0.2 * 400])
    earned = {}
    for record in summary["records"]:
        data = load_result(workplace / "runs" / f"{record['policy']}_n3").to_xarray()
        measured = data.window_end > 20 + 1e-6
        completed = data.window_completions[measured.values].sum("window").values
        earned[record["policy"]] = values @ completed / (3 * 40.0)
        mean, error = earned[record["policy"]].mean(), earned[record["policy"]].std(ddof=1) / 2
        assert record["revenue_bundled"]["mean"] == pytest.approx(mean)
        low, high = record["revenue_bundled"]["ci95"]
        # 3.182446 is the 97.5 % quantile of Student's t with 3 degrees of freedom.
        assert (low, high) == pytest.approx((mean - 3.182446 * error, mean + 3.182446 * error), rel=1e-6)
        assert record["gap"]["mean"] == pytest.approx(1 - mean / 297.7161903, rel=1e-6)
    (comparison,) = summary["comparisons"]
    difference = comparison["differences"]["sarathi"]["revenue_bundled"]["mean"]
    assert difference == pytest.approx((earned["sarathi"] - earned["gate_and_route"]).mean())
    result = load_result(workplace / "runs" / "sarathi_n3")
    assert result.seed == 5 and result.replications == 4


def test_simulate_repeats_itself_with_the_same_seed(jaxq):
    def revenue(seed):
        out = jaxq("simulate", REFERENCE, *SMALL, "--seed", seed, "--json")[1]
        return json.loads(out)["records"][0]["revenue_bundled"]["mean"]

    assert revenue(1) == revenue(1) != revenue(2)


def test_simulate_for_a_person_shows_intervals_and_the_bound(jaxq):
    code, out, _ = jaxq("simulate", REFERENCE, *SMALL)
    assert code == 0
    assert "gate_and_route" in out and "±" in out and "297.7162" in out


OWN_POLICY = """
from jaxq import SimulationError, policies

def mine(instance):
    return policies.gate_and_route(instance)

def fails(instance):
    raise SimulationError("replication 3: no pool has room")

def crashes(instance):
    raise ZeroDivisionError("first line\\nsecond line")

def interrupted(instance):
    raise KeyboardInterrupt
"""


@pytest.fixture
def own_policies(workplace):
    """A module in the present folder, imported anew by each test."""
    (workplace / "own_policies.py").write_text(OWN_POLICY)
    before = list(sys.path)
    sys.modules.pop("own_policies", None)
    yield "own_policies"
    sys.path[:] = before
    sys.modules.pop("own_policies", None)


def test_simulate_runs_a_policy_of_the_users_own(jaxq, own_policies):
    arguments = ("--policy", f"{own_policies}:mine", *SMALL, "--json")
    code, out, _ = jaxq("simulate", REFERENCE, *arguments)
    assert code == 0 and json.loads(out)["records"][0]["policy"] == "own_policies:mine"


def test_a_failure_is_one_line_and_exit_code_1(jaxq, own_policies):
    code, out, err = jaxq("simulate", REFERENCE, "--policy", f"{own_policies}:fails")
    assert (code, out, err) == (1, "", "jaxq: replication 3: no pool has room\n")


def test_an_unexpected_failure_is_one_line_unless_debugging(jaxq, own_policies, monkeypatch):
    arguments = ("simulate", REFERENCE, "--policy", f"{own_policies}:crashes")
    code, out, err = jaxq(*arguments)
    assert (code, out) == (1, "")
    assert err == "jaxq: ZeroDivisionError: first line second line; JAXQ_DEBUG=1 shows where\n"
    monkeypatch.setenv("JAXQ_DEBUG", "1")
    code, _, err = jaxq(*arguments)
    assert code == 1 and "Traceback" in err and "in crashes" in err


def test_an_interruption_says_how_to_go_on(jaxq, own_policies):
    code, out, err = jaxq("simulate", REFERENCE, "--policy", f"{own_policies}:interrupted")
    assert (code, out) == (130, "")
    assert err.count("\n") == 1 and "interrupted" in err and "same command" in err


# Bad input.

TIMES = "alpha = 0.0174\nbeta = 6.2e-5\nsolo_iteration_time = 0.022"
BAD_FILES = {
    "a negative number": ("arrival_rate = 0.5", "arrival_rate = -0.5", "classes.0.arrival_rate", "positive"),
    "not a number": ("alpha = 0.0174", "alpha = nan", "hardware.alpha", "finite"),
    "an infinite number": ("_tokens = 400.0", "_tokens = inf", "classes.1.output_tokens", "finite"),
    "a wrong type": ("beta = 6.2e-5", 'beta = "fast"', "hardware.beta", "expected a number"),
    "a fractional batch": ("batch_size = 16", "batch_size = 16.5", "hardware.batch_size", "whole number"),
    "an empty batch": ("batch_size = 16", "batch_size = 0", "hardware.batch_size", "from 2 to 256"),
    "an unknown key": ("decode = 0.2", "decod = 0.2", "pricing.decod", "did you mean 'decode'"),
    "no classes": (GOOD[GOOD.index("[[classes]]") :], "", "classes", "at least one"),
    "two of a name": ('name = "short"', 'name = "long"', "classes.1.name", "its own name"),
    "broken TOML": ("[pricing]", "[pricing", "not valid TOML", "line"),
    "an unknown scheme": ('"bundled"', '"bundle"', "pricing.scheme", "bundled, separate"),
    "an unknown preset": (TIMES, 'preset = "a100-40gb/qwen"', "hardware.preset", "a100-40gb/qwen-8b"),
}  # fmt: skip


@pytest.mark.parametrize("command", ["plan", "simulate", "run", "info"])
@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_instance_is_refused_by_name(jaxq, workplace, case, command):
    old, new, *expected = BAD_FILES[case]
    assert old in GOOD
    (workplace / "bad.toml").write_text(GOOD.replace(old, new, 1))
    out = ("--out", "out") if command in ("simulate", "run") else ()
    assert_refused(jaxq(command, "bad.toml", *out), "bad.toml", *expected)
    assert files_below(workplace) == ["bad.toml"]


@pytest.mark.parametrize("command", ["plan", "simulate", "run", "info"])
def test_a_missing_file_is_refused(jaxq, workplace, command):
    assert_refused(jaxq(command, "missing.toml"), "missing.toml", "no such file")
    assert files_below(workplace) == []


BAD_OPTIONS = {
    "an unknown policy": (("--policy", "gate_and_rout"), "'gate_and_rout'", "'gate_and_route'"),
    "no policy": (("--policy", ","), "--policy"),
    "a module that is not there": (("--policy", "no_such_module:P"), "no_such_module"),
    "an attribute that is not there": (("--policy", "math:nothing"), "math", "nothing"),
    "no GPUs": (("--gpus", "0"), "--gpus", "at least 1", "'0'"),
    "a list with a hole": (("--gpus", "20,,50"), "--gpus"),
    "a fraction of a GPU": (("--gpus", "1.5"), "--gpus", "'1.5'"),
    "no replications": (("--replications", "0"), "--replications", "at least 1"),
    "words for replications": (("--replications", "many"), "--replications", "integer"),
    "a warm-up to the horizon": (("--horizon", "100", "--warmup", "100"), "--warmup", "100 s"),
    "a negative warm-up": (("--warmup", "-1"), "--warmup", "-1"),
    "an endless horizon": (("--horizon", "inf"), "--horizon", "finite"),
    "a horizon that is no number": (("--horizon", "nan"), "--horizon", "finite"),
    "an unknown stepper": (("--stepper", "euler"), "--stepper", "exact or leap"),
    "a step for the exact chain": (("--dt", "0.1"), "--dt", "leap"),
    "a step of nothing": (("--stepper", "leap", "--dt", "0"), "--dt", "above 0"),
    "a step that is too long": (("--stepper", "leap", "--dt", "10"), "dt", "at most"),
    "a negative seed": (("--seed", "-1"), "--seed"),
    "a precision above 1": (("--precision", "2"), "--precision"),
    "a time limit without a precision": (("--time-limit", "10"), "--time-limit", "--precision"),
    "an unknown engine": (("--engine", "big"), "--engine", "cluster, pooled, fluid"),
    "a policy without a partition": (("--engine", "pooled", "--policy", "sarathi"), "sarathi", "a partition"),
    "an unknown option": (("--gpu", "3"), "--gpu", "jaxq simulate --help"),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_a_bad_option_is_refused_by_name(jaxq, workplace, case):
    options, *expected = BAD_OPTIONS[case]
    assert_refused(jaxq("simulate", REFERENCE, *options, "--out", "out", "--json"), *expected)
    assert files_below(workplace) == []


def test_usage_errors_are_one_line(jaxq):
    assert_refused(jaxq("plan"), "FILE", "jaxq plan --help")
    assert_refused(jaxq("simulat"), "simulat", "jaxq --help")


def test_a_plan_that_does_not_exist_is_refused(jaxq, workplace):
    text = GOOD.replace("arrival_rate = 0.5", "arrival_rate = 5.0").replace(
        "patience_rate = 0.1", "patience_rate = 0"
    )
    (workplace / "full.toml").write_text(text)
    for command in ("plan", "run"):
        assert_refused(jaxq(command, "full.toml"), "patience_rate = 0", "'short'", "lower arrival_rate")
    assert files_below(workplace) == ["full.toml"]


@pytest.mark.parametrize("command", ["run", "simulate"])
def test_an_output_that_cannot_be_written_is_refused_before_any_work(jaxq, workplace, monkeypatch, command):
    def never(*_, **__):
        raise AssertionError("work was done")

    monkeypatch.setattr("jaxq._engine.cluster.ClusterEngine.run", never)
    (workplace / "file").write_text("mine")
    arguments = (command, *([REFERENCE] if command == "simulate" else []))
    for out in ("file", "file/below", "/proc/jaxq"):
        assert_refused(jaxq(*arguments, "--out", out), "--out", out)
    assert files_below(workplace) == ["file"] and (workplace / "file").read_text() == "mine"


def test_run_leaves_a_folder_of_other_files_alone(jaxq, workplace):
    (workplace / "precious").mkdir()
    (workplace / "precious" / "thesis.tex").write_text("mine")
    assert_refused(jaxq("run", "--out", "precious"), "--out", "precious", "other files")
    assert_refused(jaxq("run", "--out", "."), "--out", "other files")
    assert files_below(workplace) == ["precious", "precious/thesis.tex"]


def test_too_little_memory_names_the_most_that_fits(jaxq, workplace, monkeypatch):
    monkeypatch.setattr(_memory, "host_memory", lambda: 40 * 2**20)
    arguments = ("simulate", REFERENCE, "--gpus", "3", "--horizon", "60", "--warmup", "20", "--out", "out")
    outcome = jaxq(*arguments, "--replications", "1000000")
    assert_refused(outcome, "--replications", "1000000", "40 MiB is free", "at most")
    most = int(re.search(r"at most (\d+) fit", outcome[2]).group(1))
    assert 1 <= most < 1000000
    run = monkeypatch.setattr
    run("jaxq._engine.cluster.ClusterEngine.run", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    assert jaxq(*arguments, "--replications", most)[0] == 130  # accepted: it got as far as running
    assert_refused(jaxq("simulate", REFERENCE, "--replications", 2 * most, *SMALL[:2], *SMALL[4:]), "at most")
    monkeypatch.setattr(_memory, "host_memory", lambda: 2**10)
    assert_refused(jaxq("simulate", REFERENCE, *SMALL), "not even one fits")


def test_the_pooled_engine_simulates_a_million_gpus(jaxq):
    options = ("--engine", "pooled", "--gpus", "1000000", "--horizon", "2", "--warmup", "1")
    code, out, _ = jaxq("simulate", REFERENCE, *options, "--replications", "8", "--json")
    (record,) = json.loads(out)["records"]
    assert code == 0 and record["gpus"] == 1_000_000 and record["engine"].startswith("pooled engine, leap")


# Info.


def test_info_says_what_a_simulation_needs(jaxq):
    def needs(*options):
        code, out, _ = jaxq("info", "--replications", "64", *options, "--json")
        assert code == 0
        return json.loads(out)

    facts = needs("--gpus", "50,5000", "--policy", "sarathi")
    assert {"jaxq", "jax", "python"} <= set(facts["versions"]) and facts["devices"]
    small, large = facts["needs"]
    assert (small["gpus"], large["gpus"]) == (50, 5000) and small["fits"]
    assert large["device_bytes"] > small["device_bytes"] > 0
    assert "needs" not in needs()
    assert "GPU states" in jaxq("info", REFERENCE)[1]


def test_the_cache_is_where_the_user_wants_it(tmp_path, monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert environment.cache_folder() == tmp_path / "xdg" / "jaxq" / "jax"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert environment.cache_folder() == tmp_path / "home" / ".cache" / "jaxq" / "jax"
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "chosen"))
    assert environment.cache_folder() == tmp_path / "chosen"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "file" / "below"))
    assert environment.cache_folder() is None


# Output folders.


def test_a_staged_folder_appears_whole_or_not_at_all(workplace):
    out = workplace / "a" / "b"
    with pytest.raises(KeyboardInterrupt), staged_folder(out, "mark") as folder:
        (folder / "half").write_text("")
        raise KeyboardInterrupt
    assert files_below(workplace) == []
    for text in ("first", "second"):
        with staged_folder(out, "mark") as folder:
            (folder / "mark").write_text(text)
            (folder / text).write_text("")
            assert not (out / "second").exists()
        assert files_below(out) == sorted(["mark", text])
    with pytest.raises(ZeroDivisionError), staged_folder(out, "mark") as folder:
        (folder / "mark").write_text("third")
        raise ZeroDivisionError
    assert files_below(workplace) == ["a", "a/b", "a/b/mark", "a/b/second"]
    assert (out / "mark").read_text() == "second"


# Whole processes.


def start(arguments, cwd, **environment_changes):
    command = [sys.executable, "-m", "jaxq.cli", *arguments]
    environment_ = {**os.environ, **environment_changes}
    return subprocess.Popen(command, cwd=cwd, env=environment_, text=True, stdout=-1, stderr=-1)


def test_refused_input_ends_a_process_with_2_and_one_line(workplace):
    process = start(["simulate", "missing.toml"], workplace)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert err == "jaxq: missing.toml: no such file; expected the path of a TOML file\n"


@pytest.mark.parametrize("signal_", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_an_interrupted_run_leaves_only_what_it_goes_on_from(workplace, signal_):
    process = start(["run", "--quick", "--out", "report"], workplace)
    try:
        for _ in range(600):
            if any(path.startswith(".report-") for path in files_below(workplace)):
                break
            time.sleep(0.1)
        else:
            pytest.fail("the run never started to work")
        time.sleep(1.0)
        process.send_signal(signal_)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, out) == (130, "")
    assert "jaxq: interrupted" in err and "Traceback" not in err
    assert {path.split("/")[0] for path in files_below(workplace)} <= {"report.part"}
    assert not [path for path in files_below(workplace) if path.endswith(".part") and path != "report.part"]


def test_the_instance_in_the_tests_is_the_reference():
    """The bad instances differ from a good one in one thing each."""
    Path("good.toml").write_text(GOOD)
    assert solve_plan(load_instance("good.toml")).revenue == pytest.approx(297.716190, rel=1e-8)
