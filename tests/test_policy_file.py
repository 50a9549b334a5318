"""Policies in files: the same bits back, and whatever is damaged, foreign or unknown is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from jaxq import InputError, load_instance, policies
from jaxq._gradient.base import Experiment
from jaxq._policy.shipped import TUNED, compared_policies, shipped_policy
from jaxq.policies import feedback, load_policy, neural, parameter_names, parameters, with_parameters

from . import oracles

REFUSED = "policy.json"


def reference(**changes):
    return oracles.reference_cluster(**changes).instance()


def tilted_policy(instance):
    """A user's own policy with parameters: the occupancy gate of `gate_and_route`."""
    return policies.gate_and_route(instance)


def moved(policy):
    """Other parameters, with digits that a short decimal does not hold."""
    return with_parameters(policy, parameters(policy) * (1 + 1 / 3) + 0.01)


@pytest.mark.parametrize(
    "make",
    [
        feedback,
        lambda instance: feedback(instance, start="sarathi", partition=True, sharpness=2.5),
        lambda instance: neural(instance, start="gate_immediate", hidden=3),
        lambda instance: load_policy("tests.test_policy_file:tilted_policy", instance),
    ],
)
def test_a_policy_comes_back_as_it_was(tmp_path, make):
    instance, path = reference(), tmp_path / "deep" / REFUSED
    policy = moved(make(instance))
    policies.save_policy(policy, path, instance, {"steps": 3})
    again = load_policy(str(path), instance)
    np.testing.assert_array_equal(parameters(again), parameters(policy))
    assert parameter_names(again) == parameter_names(policy)
    assert again.name == policy.name and again.recipe == policy.recipe
    assert (again.partition is None) == (policy.partition is None)
    assert again.route_first == policy.route_first
    assert json.loads(path.read_text())["training"] == {"steps": 3}
    assert [entry.name for entry in path.parent.iterdir()] == [REFUSED]


def test_a_neural_policy_serves_instances_with_other_classes(tmp_path):
    path = tmp_path / REFUSED
    policy = moved(neural(reference()))
    policies.save_policy(policy, path, reference())
    other = oracles.tiny_cluster().instance()
    again = load_policy(str(path), other)
    np.testing.assert_array_equal(parameters(again), parameters(policy))
    assert again.gate.table.prefills.shape == (other.n_classes,)


def change(path, edit):
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def rename(content):
    content["parameters"] = {f"other.{name}": value for name, value in content["parameters"].items()}


DAMAGE = {
    "cut short": (lambda path: path.write_text(path.read_text()[:100]), "not a policy file"),
    "not text": (lambda path: path.write_bytes(b"\xff\xfe\x00"), "not a policy file"),
    "another format": (lambda path: change(path, lambda c: c.update(format="x")), "not a policy file of"),
    "a list": (lambda path: path.write_text("[1, 2]"), "not a policy file of"),
    "a parameter": (
        lambda path: change(path, lambda c: c["parameters"].update({"gate.bid_price": 9.0})),
        "was changed after it was written",
    ),
    "names": (lambda path: change(path, rename), "was changed after it was written"),
    "fingerprint": (
        lambda path: change(path, lambda c: c["instance"].update(fingerprint="0" * 64)),
        "was changed after it was written",
    ),
    "gone": (lambda path: path.unlink(), "cannot be read"),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_file_is_named_and_refused(tmp_path, how):
    path = tmp_path / REFUSED
    policies.save_policy(feedback(reference()), path, reference())
    damage, message = DAMAGE[how]
    damage(path)
    with pytest.raises(InputError, match=message) as caught:
        load_policy(str(path), reference())
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_for_another_instance_is_refused(tmp_path):
    path = tmp_path / REFUSED
    policies.save_policy(feedback(reference()), path, reference())
    with pytest.raises(InputError, match="was tuned for another instance .*jaxq tune$"):
        load_policy(str(path), oracles.tiny_cluster().instance())


def test_the_policy_that_ships_for_an_instance_earns_more_than_the_published_ones():
    """At 20 GPUs, where it was not tuned; paired, five standard errors."""
    file = Path(__file__).parents[1] / "experiments" / "instances" / "a100_qwen8b_two_class.toml"
    instance = load_instance(file)
    tuned = shipped_policy(instance)
    assert tuned is not None and tuned.name.startswith("tuned ")
    experiment = Experiment(instance, 20, 150.0, 50.0)
    gain = experiment.value(tuned, 32) - experiment.value(policies.gate_immediate(instance), 32)
    assert gain.mean() > 5 * gain.std(ddof=1) / np.sqrt(32)
    other = reference(arrival_rate=np.array([0.5, 0.6]))
    assert shipped_policy(other) is None
    assert list(compared_policies(other, ["sarathi"])) == ["sarathi"]
    beside = compared_policies(instance, ["sarathi"])
    assert [policy.name for policy in beside.values()] == list(beside) == ["sarathi", TUNED]


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("policy.txt", feedback, "^path: expected a name that ends in .json, got"),
        (REFUSED, policies.sarathi, "^policy 'sarathi': cannot be kept in a file, because"),
        ("file/policy.json", feedback, "cannot be written"),
    ],
)
def test_what_cannot_be_kept_is_refused_in_one_line(tmp_path, name, make, message):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=message) as caught:
        policies.save_policy(make(reference()), tmp_path / name, reference())
    assert "\n" not in str(caught.value)
