"""Presets: what is committed against the raw data, the publication and an independent fit; look-up."""

import dataclasses
import importlib.util
import json
import math
import tomllib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from jaxq import InputError
from jaxq import _presets as presets_module
from jaxq._presets import bundled_folder, list_presets, load_preset

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="needs the raw measurements in ../shared/data")


def test_every_campaign_is_there():
    counts = Counter(preset.name.split("/")[0] for preset in list_presets())
    assert counts == {
        "a100-40gb": 2,
        "vidur-a100": 18,
        "vidur-h100": 15,
        "vidur-a40": 15,
        "splitwise-a100-80gb": 4,
        "splitwise-h100-80gb": 4,
        "splitwise-h100-80gb-pcap": 4,
    }


@pytest.mark.parametrize("preset", list_presets(), ids=lambda preset: preset.name)
def test_a_preset_is_whole_and_positive_where_it_holds(preset):
    assert load_preset(preset.name) is preset
    low, high = preset.chunk_range
    assert 1 <= low < high
    for chunk in np.geomspace(low, min(high, 1e6), 20):
        assert preset.iteration_time.mixed(chunk) > 0
    assert preset.iteration_time.solo > 0
    for text in (preset.source, preset.licence, preset.leaves_out, preset.model, preset.gpu):
        assert text
    assert json.loads(json.dumps(preset.to_dict(), allow_nan=False))["name"] == preset.name
    with pytest.raises(dataclasses.FrozenInstanceError):
        preset.name = "another"


@pytest.mark.parametrize("preset", list_presets(), ids=lambda preset: preset.name)
def test_the_kind_of_fit_says_which_numbers_there_are(preset):
    law = (preset.base, preset.slope, preset.knee)
    if preset.fit == "law":
        base, slope, knee = law
        assert preset.beta == slope
        assert preset.alpha.value == pytest.approx(
            base.value - slope.value * knee.value, abs=1e-4 * base.value
        )
        assert preset.chunk_range[0] == math.ceil(knee.value)
    else:
        assert law == (None, None, None)
    fitted = preset.fit != "published"
    assert (preset.r2 is not None) == fitted
    assert (preset.max_relative_error is not None) == fitted
    assert (preset.measurements is not None) == fitted
    for estimate in (preset.alpha, preset.beta, preset.solo):
        assert (estimate.ci95 is not None) == fitted
        if fitted:
            assert estimate.ci95[0] <= estimate.value <= estimate.ci95[1]


def test_published_numbers():
    large, small = load_preset("a100-40gb/qwen-8b"), load_preset("a100-40gb/qwen-4b")
    assert (large.alpha.value, large.beta.value, large.solo.value) == (0.0174, 6.2e-5, 0.022)
    assert (small.alpha.value, small.beta.value) == (0.0152, 3.6e-5)
    assert 1 / small.solo.value == pytest.approx(52.63)
    assert large.to_dict()["chunk_range"] == [1.0, None]


def test_the_h100_instance_has_the_numbers_of_its_preset():
    """`h100_llama70b` was given as alpha = 0.00803 s, beta = 5.3e-5 s/token and tau_solo = 0.01518 s."""
    time = load_preset("vidur-h100/llama-2-70b-tp4").iteration_time
    assert float(time.alpha) == pytest.approx(0.00803, rel=1e-3)
    assert float(time.beta) == pytest.approx(5.3e-5, rel=1e-3)
    assert float(time.solo) == pytest.approx(0.01518, rel=1e-3)


def test_a_power_capped_card_is_a_preset_of_its_own():
    """The source scales its prompt times by 1.3 and leaves its decode times."""
    for preset in list_presets():
        if not preset.name.startswith("splitwise-h100-80gb-pcap/"):
            continue
        uncapped = load_preset(preset.name.replace("-pcap", ""))
        assert preset.alpha.value == pytest.approx(1.3 * uncapped.alpha.value, rel=1e-4)
        assert preset.beta.value == pytest.approx(1.3 * uncapped.beta.value, rel=1e-4)
        assert preset.solo == uncapped.solo
        assert "1.3 times" in preset.notes


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("a100-40gb/qwen-9b", "a100-40gb/qwen-8b"),
        ("vidur-h100/Llama-2-70B-tp4", "vidur-h100/llama-2-70b-tp4"),
        ("zzz", "`jaxq presets` lists all 62"),
        ("", "`jaxq presets` lists all 62"),
    ],
)
def test_an_unknown_name_gets_the_nearest(name, nearest):
    with pytest.raises(InputError) as refusal:
        load_preset(name)
    assert str(refusal.value).startswith(f"unknown preset {name!r}; ")
    assert nearest in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_files_are_found_in_a_checkout_and_in_a_wheel(monkeypatch, tmp_path):
    assert (bundled_folder("calibration") / "lin26_qwen.toml").is_file()
    packaged = tmp_path / "_data" / "calibration"
    packaged.mkdir(parents=True)
    monkeypatch.setattr(presets_module.resources, "files", lambda package: tmp_path)
    assert bundled_folder("calibration") == packaged


@pytest.fixture(scope="module")
def rebuilt():
    spec = importlib.util.spec_from_file_location("build", ROOT / "calibration_data" / "build.py")
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    return build.build(DATA)


@needs_data
@pytest.mark.parametrize("name", ["lin26_qwen.toml", "splitwise.toml", "vidur_linear_layers.toml"])
def test_the_raw_data_give_the_committed_numbers(name, rebuilt):
    """To a relative 1e-3, since another processor may round differently; intervals too."""
    fresh, committed = (
        tomllib.loads(rebuilt[name]),
        tomllib.loads((ROOT / "calibration_data" / name).read_text()),
    )
    assert fresh["campaign"] == committed["campaign"]
    for one, other in zip(fresh["presets"], committed["presets"], strict=True):
        assert one.keys() == other.keys()
        for key, value in one.items():
            expected = value if isinstance(value, str) else pytest.approx(value, rel=1e-3)
            assert other[key] == expected, (one["name"], key)


@needs_data
def test_the_laws_are_least_squares_by_another_solver():
    """Each committed law against numpy's polynomial and mean on either side of its own knee."""
    raw = np.genfromtxt(
        DATA / "linear_layer_iteration_time.csv", delimiter=",", names=True, dtype=None, encoding=None
    )
    for preset in list_presets():
        if not preset.name.startswith("vidur-"):
            continue
        rows = raw[
            (raw["gpu"] == preset.gpu)
            & (raw["model"] == preset.model)
            & (raw["tensor_parallel"] == preset.tensor_parallel)
        ]
        tokens, times = rows["num_tokens"], rows["iteration_time_s"]
        assert len(rows) == preset.measurements == 32
        fitted = preset.base.value + preset.slope.value * np.maximum(0.0, tokens - preset.knee.value)
        assert np.max(np.abs(fitted / times - 1)) == pytest.approx(preset.max_relative_error, rel=1e-3)
        above = tokens > preset.knee.value
        if preset.knee.value in tokens:
            continue
        slope, intercept = np.polyfit(tokens[above], times[above], 1, w=1 / times[above])
        flat = np.average(times[~above], weights=1 / times[~above] ** 2)
        assert slope == pytest.approx(preset.beta.value, rel=1e-4), preset.name
        assert intercept == pytest.approx(preset.alpha.value, abs=1e-4 * flat), preset.name
        assert flat == pytest.approx(preset.solo.value, rel=1e-4), preset.name


@needs_data
def test_solo_iterations_are_the_mean_decode_iteration_at_batch_16():
    raw = np.genfromtxt(
        DATA / "splitwise_perf_model.csv", delimiter=",", names=True, dtype=None, encoding=None
    )
    for preset in list_presets():
        if preset.name.startswith("splitwise-"):
            rows = raw[
                (raw["hardware"] == preset.gpu)
                & (raw["model"] == preset.model)
                & (raw["tensor_parallel"] == preset.tensor_parallel)
                & (raw["batch_size"] == 16)
            ]
            assert len(rows) == 5
            assert preset.solo.value == pytest.approx(rows["token_time"].mean() / 1000, rel=1e-4)
