"""The TOML form: the committed instances, round trips, and one line for every mistake."""

import os
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxq import InputError, Instance, IterationTime, Pricing, Workload
from jaxq._instance_file import instance_to_toml, load_instance, save_instance

INSTANCES = Path(__file__).parents[1] / "experiments" / "instances"

REFERENCE = """
[hardware]
alpha = 0.0174                # s
beta = 6.2e-5                 # s/token
solo_iteration_time = 0.022   # s
batch_size = 16
chunk_size = 256

[pricing]
scheme = "bundled"
prefill = 0.1                 # per prompt token
decode = 0.2                  # per output token

[[classes]]
name = "decode-heavy"
prompt_tokens = 300.0
output_tokens = 1000.0
arrival_rate = 0.5            # per GPU and second
patience_rate = 0.1           # 1/s

[[classes]]
name = "prefill-heavy"
prompt_tokens = 3000
output_tokens = 400
arrival_rate = 0.5
patience_rate = 0.1
"""


def write(tmp_path, text):
    path = tmp_path / "instance.toml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(path):
    with pytest.raises(InputError) as caught:
        load_instance(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


def test_the_documented_form_loads(tmp_path):
    instance = load_instance(write(tmp_path, REFERENCE))
    assert instance.name == "instance"
    assert instance.workload.names == ("decode-heavy", "prefill-heavy")
    np.testing.assert_array_equal(instance.workload.prompt_tokens, [300.0, 3000.0])
    np.testing.assert_array_equal(instance.workload.output_tokens, [1000.0, 400.0])
    np.testing.assert_array_equal(instance.workload.arrival_rate, [0.5, 0.5])
    np.testing.assert_array_equal(instance.workload.patience_rate, [0.1, 0.1])
    time = instance.iteration_time
    assert (float(time.alpha), float(time.beta), float(time.solo)) == (0.0174, 6.2e-5, 0.022)
    assert (float(instance.batch_size), float(instance.chunk_size)) == (16, 256)
    assert instance.pricing.scheme == "bundled"
    assert (float(instance.pricing.prefill), float(instance.pricing.decode)) == (0.1, 0.2)


def test_optional_keys(tmp_path):
    text = 'name = "mine"\n' + REFERENCE.replace('scheme = "bundled"\n', "").replace(
        'name = "prefill-heavy"\n', ""
    )
    instance = load_instance(write(tmp_path, text))
    assert instance.name == "mine"
    assert instance.pricing.scheme == "bundled"
    assert instance.workload.names == ("decode-heavy", "class-1")


DOLLY = ((61, 123, 992, 89, 69, 1139, 45, 1177), (331, 142, 182, 915, 572, 273, 293, 436))
DOLLY_RATES = (0.6404, 0.7754, 0.6309, 0.2538, 0.7939, 0.5307, 1.3574, 0.4175)
TWO = ((300, 3000), (1000, 400))
QWEN_8B, QWEN_4B = (0.0174, 6.2e-5, 0.022), (0.0152, 3.6e-5, 1 / 52.63)


@pytest.mark.parametrize(
    "name, times, batch_size, chunk_size, lengths, rates",
    [
        ("a100_qwen8b_two_class", QWEN_8B, 16, 256, TWO, (0.5, 0.5)),
        ("a100_qwen4b_two_class", QWEN_4B, 16, 256, TWO, (0.5, 0.5)),
        ("overload", QWEN_8B, 16, 256, TWO, (0.75, 0.75)),
        ("azure_pair", QWEN_4B, 16, 256, ((2047.8, 1154.7), (27.9, 211.1)), (1.0, 4.0)),
        ("dolly_eight", QWEN_4B, 32, 512, DOLLY, DOLLY_RATES),
        ("h100_llama70b", (0.00803, 5.3e-5, 0.01518), 64, 512, TWO, (3.0, 3.0)),
    ],
)
def test_committed_instances_hold_the_published_numbers(name, times, batch_size, chunk_size, lengths, rates):
    instance = load_instance(INSTANCES / f"{name}.toml")
    time, workload = instance.iteration_time, instance.workload
    assert instance.name == name
    assert (float(time.alpha), float(time.beta), float(time.solo)) == times
    assert (float(instance.batch_size), float(instance.chunk_size)) == (batch_size, chunk_size)
    np.testing.assert_array_equal(workload.prompt_tokens, lengths[0])
    np.testing.assert_array_equal(workload.output_tokens, lengths[1])
    np.testing.assert_array_equal(workload.arrival_rate, rates)
    np.testing.assert_array_equal(workload.patience_rate, np.full(len(rates), 0.1))
    assert (float(instance.pricing.prefill), float(instance.pricing.decode)) == (0.1, 0.2)


def test_every_committed_instance_is_checked():
    assert len(list(INSTANCES.glob("*.toml"))) == 6


@pytest.fixture
def presets(monkeypatch):
    """Stand-ins for the calibrated presets, valid from 64 to 4096 tokens, and from 64 tokens on."""
    ranges = {"a100-40gb/qwen-8b": (64.0, 4096.0), "endless": (64.0, np.inf)}

    def load_preset(name):
        if name not in ranges:
            raise InputError(f"unknown preset {name!r}; did you mean 'a100-40gb/qwen-8b'?")
        return types.SimpleNamespace(iteration_time=IterationTime(*QWEN_8B), chunk_range=ranges[name])

    monkeypatch.setattr("jaxq._presets.load_preset", load_preset)


TIMES = """alpha = 0.0174                # s
beta = 6.2e-5                 # s/token
solo_iteration_time = 0.022   # s
"""


def test_a_preset_stands_for_the_three_times(tmp_path):
    text = REFERENCE.replace(TIMES, 'preset = "a100-40gb/qwen-8b"\n')
    assert (
        load_instance(write(tmp_path, text)).fingerprint()
        == load_instance(write(tmp_path, REFERENCE)).fingerprint()
    )


@pytest.mark.parametrize(
    "times, chunk_size, field, expected",
    [
        ('preset = "a100-40gb/qwen-8c"\n', 256, "hardware.preset", "did you mean 'a100-40gb/qwen-8b'?"),
        ("preset = 8\n", 256, "hardware.preset", "text in quotes"),
        ('preset = "a100-40gb/qwen-8b"\nbeta = 1e-5\n', 256, "hardware.beta", "either preset or"),
        ('preset = "a100-40gb/qwen-8b"\n', 32, "hardware.chunk_size", "from 64 to 4096 tokens"),
        ('preset = "a100-40gb/qwen-8b"\n', 8192, "hardware.chunk_size", "from 64 to 4096 tokens"),
        ('preset = "endless"\n', 32, "hardware.chunk_size", "at least 64 tokens"),
        ("", 256, "hardware", "or preset"),
    ],
)
def test_bad_presets(tmp_path, presets, times, chunk_size, field, expected):
    text = REFERENCE.replace(TIMES, times).replace("chunk_size = 256", f"chunk_size = {chunk_size}")
    message = refusal(write(tmp_path, text))
    assert message.startswith(f"{field}: ")
    assert expected in message


@pytest.mark.parametrize(
    "old, new, field, expected",
    [
        ("batch_size = 16", "batch_size = 0", "hardware.batch_size", "whole number from 2 to 256"),
        ("batch_size = 16", "batch_size = 16.5", "hardware.batch_size", "whole number"),
        ("batch_size = 16", 'batch_size = "16"', "hardware.batch_size", "a number, got '16'"),
        ("batch_size = 16", "batch_size = true", "hardware.batch_size", "a number, got true"),
        ("batch_size = 16", "batch_size = nan", "hardware.batch_size", "whole number"),
        ("batch_size = 16", "batch_size = 1979-05-27", "hardware.batch_size", "a number"),
        ("batch_size = 16", "batchsize = 16", "hardware.batchsize", "did you mean 'batch_size'?"),
        ("batch_size = 16", "", "hardware.batch_size", "missing"),
        (
            "batch_size = 16",
            "batch_size = 16\nwatts = 300",
            "hardware.watts",
            "expected one of preset, alpha",
        ),
        ("alpha = 0.0174", "alpha = inf", "hardware.alpha", "finite"),
        ("alpha = 0.0174", f"alpha = 1{'0' * 400}", "hardware.alpha", "finite"),
        ("alpha = 0.0174", "", "hardware.alpha", "missing"),
        ("beta = 6.2e-5", "beta = -6.2e-5", "hardware.beta", "at least 0"),
        ("= 0.022", "= 0", "hardware.solo_iteration_time", "positive"),
        ("chunk_size = 256", "chunk_size = -256", "hardware.chunk_size", "at least 1"),
        ('"bundled"', '"both"', "pricing.scheme", "bundled, separate"),
        ('"bundled"', "1", "pricing.scheme", "text in quotes"),
        ("prefill = 0.1", "prefill = -0.1", "pricing.prefill", "at least 0"),
        ("decode = 0.2", "decode = {}", "pricing.decode", "a number, got a table"),
        ("decode = 0.2", "decoding = 0.2", "pricing.decoding", "did you mean 'decode'?"),
        ("[pricing]", "[prices]", "prices", "unknown table; did you mean 'pricing'?"),
        ("[pricing]", "[zzz]", "zzz", "unknown table; expected one of name, hardware, pricing, classes"),
        ("[pricing]", '["a\\nb"]', '"a\\nb"', "unknown table"),
        ("[hardware]", "verbose = 1\n[hardware]", "verbose", "unknown key"),
        ("[hardware]", "[[hardware]]", "hardware", "a table [hardware]"),
        ("[hardware]", "name = 3\n[hardware]", "name", "text in quotes"),
        ("arrival_rate = 0.5\n", "arrival_rate = -0.5\n", "classes.1.arrival_rate", "positive"),
        ("arrival_rate = 0.5\n", "arrival_rate = nan\n", "classes.1.arrival_rate", "positive finite"),
        ("arrival_rate = 0.5\n", "arrival_rate = false\n", "classes.1.arrival_rate", "a number, got false"),
        ("arrival_rate = 0.5\n", "arrival_rate = [0.5]\n", "classes.1.arrival_rate", "a number, got [0.5]"),
        ("arrival_rate = 0.5\n", "", "classes.1.arrival_rate", "missing"),
        (
            "arrival_rate = 0.5\n",
            "arival_rate = 0.5\n",
            "classes.1.arival_rate",
            "did you mean 'arrival_rate'?",
        ),
        ("prompt_tokens = 3000", "prompt_tokens = 0", "classes.1.prompt_tokens", "positive"),
        ("patience_rate = 0.1\n", "patience_rate = -1\n", "classes.1.patience_rate", "at least 0"),
        ('"prefill-heavy"', '"decode-heavy"', "classes.1.name", "its own name"),
        ('"prefill-heavy"', '""', "classes.1.name", "not empty"),
        ('"prefill-heavy"', "7", "classes.1.name", "text in quotes"),
        ("batch_size = 16", "batch_size = 16 17", "not valid TOML", "line 6"),
        ("[pricing]", "[pricing", "not valid TOML", "line 9"),
        ("decode = 0.2", "decode = 0.2\ndecode = 0.3", "not valid TOML", "line"),
    ],
)
def test_every_mistake_is_named_in_one_line(tmp_path, old, new, field, expected):
    assert old in REFERENCE
    message = refusal(write(tmp_path, REFERENCE.replace(old, new)))
    assert message.startswith(f"{field}: ")
    assert expected in message


def test_no_classes_and_classes_that_are_no_tables(tmp_path):
    head = REFERENCE[: REFERENCE.index("[[classes]]")]
    assert "at least one" in refusal(write(tmp_path, head))
    assert "at least one" in refusal(write(tmp_path, "classes = []\n" + head))
    assert "[[classes]]" in refusal(write(tmp_path, "classes = [1]\n" + head))
    assert "[[classes]]" in refusal(write(tmp_path, head + "[classes]\nprompt_tokens = 1\n"))
    assert "hardware: missing" in refusal(write(tmp_path, ""))


def test_files_that_cannot_be_read(tmp_path):
    assert "no such file" in refusal(tmp_path / "absent.toml")
    assert "directory" in refusal(tmp_path)
    latin = tmp_path / "latin.toml"
    latin.write_bytes(b'name = "\xe9"\n')
    assert "not UTF-8 at byte 8" in refusal(latin)
    zero = tmp_path / "zero.toml"
    zero.write_bytes(b"\x00")
    assert "not valid TOML" in refusal(zero)
    deep = write(tmp_path, "a = " + "[" * 100_000)
    assert "not valid TOML" in refusal(deep)
    assert "cannot be read" in refusal(tmp_path / "a\0b")


positive = st.floats(1e-3, 1e4)
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)


@st.composite
def instances(draw):
    n = draw(st.integers(1, 9))
    column = st.lists(positive, min_size=n, max_size=n)
    patience = st.lists(st.one_of(st.just(0.0), positive), min_size=n, max_size=n)
    return Instance(
        Workload(
            draw(column),
            draw(column),
            draw(column),
            draw(patience),
            names=draw(st.lists(texts, min_size=n, max_size=n, unique=True)),
        ),
        IterationTime(draw(st.floats(0.0, 1.0)), draw(st.floats(1e-9, 1.0)), draw(positive)),
        Pricing(draw(positive), draw(st.floats(0.0, 10.0)), draw(st.sampled_from(["bundled", "separate"]))),
        batch_size=draw(st.integers(2, 256)),
        chunk_size=draw(st.integers(1, 4096)),
        name=draw(texts),
    )


@given(instances())
def test_what_is_saved_loads_equal(tmp_path_factory, instance):
    path = tmp_path_factory.mktemp("round") / "saved.toml"
    save_instance(instance, path)
    loaded = load_instance(path)
    assert jax.tree.structure(loaded) == jax.tree.structure(instance)
    assert all(map(np.array_equal, jax.tree.leaves(loaded), jax.tree.leaves(instance)))
    assert loaded.fingerprint() == instance.fingerprint()
    assert instance_to_toml(loaded) == instance_to_toml(instance)
    assert os.listdir(path.parent) == ["saved.toml"]


def test_saving_where_nothing_can_be_written_leaves_nothing(tmp_path):
    instance = load_instance(write(tmp_path, REFERENCE))
    for path in (
        tmp_path / "no" / "such" / "folder.toml",
        tmp_path / "instance.toml" / "below.toml",
        tmp_path,
    ):
        with pytest.raises(InputError, match="cannot be written") as caught:
            save_instance(instance, path)
        assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == ["instance.toml"]
