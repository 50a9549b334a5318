"""Tuning: it climbs to what is known to be best, keeps the best it met, and repeats itself bit for bit."""

from __future__ import annotations

import dataclasses
import json
import shutil
import warnings

import equinox as eqx
import numpy as np
import optax
import pytest

from jaxq import InputError, Search, StoreWarning, _checkpoint, _tune, policies
from jaxq._checkpoint import Checkpoint
from jaxq._engine.cluster import ClusterEngine
from jaxq._engine.steppers import Exact
from jaxq._gradient.base import AbstractGradient, GradientEstimate
from jaxq._gradient.finite_difference import FiniteDifference
from jaxq._tune import slowest_time, tune
from jaxq._versions import versions

from . import oracles
from .test_gradient import GPUS, ThinnedLoss

QUICK = dict(
    n_gpus=GPUS,
    engine=ClusterEngine(Exact()),
    optimizer=optax.adam(1.0, b2=0.99),
    steps=6,
    search=Search(check_every=2, validation_replications=64, final_replications=256, sharper=()),
)


def searching(**changes):
    """`QUICK`'s search with changes."""
    return dataclasses.replace(QUICK["search"], **changes)


@pytest.fixture(scope="module")
def tuned():
    """Erlang's loss system that lets half of its arrivals in: letting all in earns the most."""
    system = ThinnedLoss(0.0)
    gradient = FiniteDifference(directions=16, replications=8)
    return system, tune(system.instance, system.policy, gradient=gradient, **QUICK)


def test_it_climbs_towards_what_is_known_to_be_best(tuned):
    """Six steps of about 1 in the log-odds, from 0: at least 2; more servers are worth something too."""
    system, found = tuned
    log_odds = policies.parameters(found.policy)[system.index]
    assert 2.0 < log_odds <= 7.0
    assert found.gain.ci95[0] > 0
    servers = found.policy.mixed_gpus(GPUS)
    expected = [system.revenue(0.0), system.revenue(log_odds, servers)]
    assert servers >= system.servers and expected[1] > 1.4 * expected[0]
    for estimate, revenue in zip((found.start_value, found.value), expected, strict=True):
        assert abs(estimate.mean - revenue) < 5 * estimate.standard_error
    assert [check.step for check in found.history[0]] == [0, 2, 4, 6]


def test_the_same_key_gives_the_same_bits(tuned):
    system, found = tuned
    again = tune(
        system.instance, system.policy, gradient=FiniteDifference(directions=16, replications=8), **QUICK
    )
    np.testing.assert_array_equal(policies.parameters(again.policy), policies.parameters(found.policy))
    assert again.history == found.history and again.value.mean == found.value.mean


def along_starts(policy):
    """1 for the log-odds of a start, 0 for every other parameter."""
    return np.asarray([float(name.startswith("gate.start[")) for name in policies.parameter_names(policy)])


class Adverse(AbstractGradient):
    """Says the opposite of the truth, or nothing at all."""

    slope: float = eqx.field(static=True)

    def estimate(self, experiment, policy, first=0):
        slopes = self.slope * along_starts(policy)
        return GradientEstimate(0.0, slopes, np.zeros(len(slopes)))

    def replications_used(self):
        return 1


@pytest.mark.parametrize("slope", [-1.0, np.nan])
def test_it_keeps_the_best_policy_that_it_met(slope):
    """Going downhill, or nowhere, the start stays the best."""
    system = ThinnedLoss(2.0)
    given = QUICK | {"gradient": Adverse(slope), "optimizer": optax.sgd(0.5)}
    found = tune(system.instance, system.policy, **given)
    np.testing.assert_array_equal(policies.parameters(found.policy), policies.parameters(system.policy))
    assert found.gain.mean == 0
    reason = "the gradient was not finite" if np.isnan(slope) else "the value fell to"
    assert len(found.notes) == (6 if np.isnan(slope) else 1)
    assert all(reason in note for note in found.notes)


def test_the_best_of_several_starts_is_kept():
    poor, good = ThinnedLoss(-3.0), ThinnedLoss(2.0)
    found = tune(poor.instance, [poor.policy, good.policy], gradient=Adverse(0.0), **QUICK)
    np.testing.assert_array_equal(policies.parameters(found.start), policies.parameters(good.policy))
    assert len(found.history) == 2


def test_choices_are_made_sharper_where_that_earns_more():
    """Every start is worth having here: the best factor is the largest."""
    system = ThinnedLoss(1.0)
    given = QUICK | {"gradient": Adverse(0.0), "steps": 1, "search": searching(sharper=(0.5, 4.0))}
    found = tune(system.instance, system.policy, **given)
    assert policies.parameters(found.policy)[system.index] == 4.0 and found.training["sharpened"] == 4.0


class Interrupted(Exception):
    """Stands for a killed process."""


def interrupted_at(step):
    def progress(label, done, steps, check):
        if done == step:
            raise Interrupted

    return progress


@pytest.mark.parametrize(
    "step", [pytest.param(0, marks=pytest.mark.slow), 3, pytest.param(4, marks=pytest.mark.slow)]
)
def test_an_interrupted_tuning_goes_on_to_the_same_bits(tuned, tmp_path, step):
    """Wherever it is interrupted, from the last check on."""
    system, whole = tuned
    path = tmp_path / "checkpoint.npz"
    arguments = QUICK | dict(gradient=FiniteDifference(directions=16, replications=8), checkpoint=path)
    with pytest.raises(Interrupted):
        tune(system.instance, system.policy, **arguments, progress=interrupted_at(step))
    seen = []
    found = tune(
        system.instance, system.policy, **arguments, progress=lambda label, done, *rest: seen.append(done)
    )
    assert seen == list(range(step // 2 * 2 + 1, 7))
    np.testing.assert_array_equal(policies.parameters(found.policy), policies.parameters(whole.policy))
    assert found.history == whole.history and found.value.mean == whole.value.mean


def cheap(tmp_path, **changes):
    """A tuning that costs nothing but its checks."""
    system = ThinnedLoss(2.0)
    arguments = QUICK | dict(gradient=Adverse(0.0), steps=2, checkpoint=tmp_path / "checkpoint.npz")
    return tune(system.instance, system.policy, **(arguments | changes))


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def clear(path):
    path.write_bytes(b"")


UPHILL = {"gradient": Adverse(1.0), "steps": 6}


@pytest.fixture(scope="module")
def climbed(tmp_path_factory):
    """Six steps that cost nothing, and where they stood after the fifth: checkpoints of steps 4 and 2."""
    folder = tmp_path_factory.mktemp("checkpoints")
    with pytest.raises(Interrupted):
        cheap(folder, **UPHILL, progress=interrupted_at(5))
    return cheap(folder, **UPHILL, checkpoint=None), folder


@pytest.mark.parametrize("damage", [cut, flip, clear])
@pytest.mark.parametrize(("damaged", "goes_on"), [(1, 3), (2, 1)])
def test_damaged_checkpoints_are_named_set_aside_and_computed_again(
    climbed, tmp_path, damage, damaged, goes_on
):
    """The last checkpoint, or both: it goes on from the one before, or from the start."""
    whole, folder = climbed
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    files = [tmp_path / "checkpoint.npz", tmp_path / "checkpoint.npz.previous"][:damaged]
    for path in files:
        damage(path)
    before, seen = [path.read_bytes() for path in files], []
    with pytest.warns(StoreWarning) as caught:
        found = cheap(tmp_path, **UPHILL, progress=lambda label, done, *rest: seen.append(done))
    said = [str(warning.message) for warning in caught]
    for path, line in zip(files, said, strict=True):
        assert line.startswith(f"{path}: damaged (") and "\n" not in line
        assert line.endswith(f"; set aside as {path.name}.damaged and computed again")
    assert [path.with_name(f"{path.name}.damaged").read_bytes() for path in files] == before
    assert [step for step in seen if step] == list(range(goes_on, 7))
    np.testing.assert_array_equal(policies.parameters(found.policy), policies.parameters(whole.policy))
    assert not np.array_equal(policies.parameters(found.policy), policies.parameters(found.start))
    assert found.history == whole.history and found.value.mean == whole.value.mean


def test_whatever_byte_of_a_checkpoint_is_wrong_it_is_not_used(climbed, tmp_path):
    """Or it is one that no number hangs on."""
    path = climbed[1] / "checkpoint.npz"
    checkpoint = Checkpoint(tmp_path / "copy", json.loads(np.load(path)["told"].tobytes())["arguments"])
    contents = path.read_bytes()
    checkpoint.path.write_bytes(contents)
    intact, noticed = checkpoint._read(checkpoint.path), 0
    assert intact is not None
    for place in range(0, len(contents), 97):
        checkpoint.path.write_bytes(
            contents[:place] + bytes([contents[place] ^ 0x41]) + contents[place + 1 :]
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", StoreWarning)
            found = checkpoint._read(checkpoint.path)
        noticed += found is None
        if found is not None:
            assert found[0] == intact[0]
            assert all(np.array_equal(found[1][name], array) for name, array in intact[1].items())
    assert noticed > 0.8 * len(contents) / 97


def test_a_checkpoint_of_another_version_is_refused(climbed, tmp_path, monkeypatch):
    shutil.copytree(climbed[1], tmp_path, dirs_exist_ok=True)
    before = (tmp_path / "checkpoint.npz").read_bytes()
    monkeypatch.setattr(_checkpoint, "FORMAT", "jaxq tuning 3")
    with pytest.raises(InputError, match=r"checkpoint\.npz: was written by another version of jaxq"):
        cheap(tmp_path, **UPHILL)
    monkeypatch.undo()
    monkeypatch.setattr(_tune, "versions", lambda: versions() | {"jaxq": "99.0"})
    with pytest.raises(InputError, match=r"is of another tuning \(versions was .*, is .*99\.0"):
        cheap(tmp_path, **UPHILL)
    assert (tmp_path / "checkpoint.npz").read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"steps": 3}, "steps was 2, is 3"),
        ({"key": 1}, "seed was 0, is 1"),
        ({"search": searching(patience=5)}, "search was .*, is "),
        ({"gradient": Adverse(1.0)}, "gradient was .*, is "),
        ({"optimizer": optax.adam(0.5)}, "optimizer was .*, is "),
    ],
)
def test_a_checkpoint_of_another_tuning_is_refused(tmp_path, changes, what):
    cheap(tmp_path)
    with pytest.raises(InputError, match=f"is of another tuning \\({what}"):
        cheap(tmp_path, **changes)


def test_of_many_starts_the_best_go_on():
    """Two of three after two steps; who stays behind has no later checks."""
    systems = [ThinnedLoss(log_odds) for log_odds in (-3.0, 2.0, 1.0)]
    found = tune(
        systems[0].instance,
        [system.policy for system in systems],
        gradient=Adverse(0.0),
        **(QUICK | dict(steps=4, search=searching(trial_steps=2, finalists=2))),
    )
    assert [[check.step for check in checks] for checks in found.history] == [[0, 2], [0, 2, 4], [0, 2, 4]]


class Explosive(AbstractGradient):
    """Points uphill first, then far away."""

    def estimate(self, experiment, policy, first=0):
        slopes = (1.0 if first < 2 else -100.0) * along_starts(policy)
        return GradientEstimate(0.0, slopes, np.zeros(len(slopes)))

    def replications_used(self):
        return 1


def test_a_diverging_climb_returns_to_the_best():
    system = ThinnedLoss(0.0)
    given = QUICK | {"gradient": Explosive(), "optimizer": optax.sgd(0.5)}
    found = tune(system.instance, system.policy, **given)
    assert any(
        "the value fell to" in note and note.endswith("back to the best so far") for note in found.notes
    )
    assert found.value.mean > 1.2 * system.revenue(0.0)


def test_the_slowest_time_is_that_of_a_decode_beside_a_prefill():
    cluster = oracles.reference_cluster()
    assert slowest_time(cluster.instance()) == pytest.approx(1 / cluster.mu_mixed.min())


@pytest.mark.parametrize(
    ("starts", "changes", "message"),
    [
        ([], {}, "^starts: expected at least one policy$"),
        ("sarathi", {}, "^starts: 'sarathi' has no parameters"),
        ("gate_and_route", {"steps": 0}, "^steps: expected a whole number of at least 1, got 0$"),
        (
            "gate_and_route",
            {"objective": "profit"},
            "^objective: expected 'bundled', 'separate' or a function",
        ),
    ],
)
def test_what_cannot_be_tuned_is_refused_in_one_line(starts, changes, message):
    instance = oracles.reference_cluster().instance()
    policy = policies.load_policy(starts, instance) if isinstance(starts, str) else starts
    with pytest.raises(InputError, match=message) as caught:
        tune(instance, policy, **(QUICK | changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"finalists": 0}, "^finalists: expected a whole number of at least 1, got 0$"),
        ({"trial_steps": 0}, "^trial_steps: expected a whole number of at least 1, got 0$"),
        ({"patience": -1}, "^patience: expected a whole number of at least 1, got -1$"),
        ({"sharper": (2.0, 0.0)}, "^sharper: expected positive numbers, got 0$"),
        ({"sharper": (float("nan"),)}, "^sharper: expected positive numbers, got nan$"),
    ],
)
def test_a_search_that_is_none_is_refused_in_one_line(changes, message):
    with pytest.raises(InputError, match=message):
        Search(**changes)
