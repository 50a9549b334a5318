"""What is told of a policy, against rules that are known."""

from __future__ import annotations

import numpy as np
import pytest

from jaxq import policies, solve_plan
from jaxq._portrait import portrait

from . import oracles

GPUS = 50


def portrait_of(name):
    instance = oracles.reference_cluster().instance()
    return portrait(policies.PRESETS[name](instance), instance, solve_plan(instance), GPUS)


def test_a_fixed_priority_starts_its_class_wherever_it_waits():
    """price_and_pack prefers the class with the larger bid price, and never starts nothing."""
    told = portrait_of("price_and_pack")
    instance = oracles.reference_cluster().instance()
    first = int(np.argmax(solve_plan(instance, require_no_decode_queue=True).bid_prices))
    starts, shown = np.asarray(told["starts"]), told["shown"]
    waits = np.meshgrid(*told["queues"])[shown.index(first)] > 0
    np.testing.assert_array_equal(starts[first], waits.astype(float))
    both = np.minimum(*np.meshgrid(*told["queues"])) > 0
    assert (starts[-1][both] == 0).all() and set(told["idle"]["starts_none"]) == {0.0}


def test_packing_goes_beside_prefills_and_immediate_execution_stays():
    packed, stays = portrait_of("price_and_pack"), portrait_of("sarathi")
    assert packed["routes"] == [[1.0, 0.0], [1.0, 0.0]]
    assert packed["pools"][0] == policies.Pool.WITH_PREFILL.value
    assert stays["routes"] == [[1.0], [1.0]] and stays["pools"] == [policies.Pool.OWN.value]


def test_first_come_first_served_draws_in_proportion_to_the_queues():
    told = portrait_of("sarathi")
    first, second = np.meshgrid(*told["queues"])
    total = np.maximum(first + second, 1)
    for i, queue in zip(told["shown"], (first, second), strict=True):
        np.testing.assert_allclose(np.asarray(told["starts"])[i], queue / total, atol=1 / 128)


@pytest.mark.parametrize("name", sorted(policies.PRESETS))
def test_chances_add_up(name):
    told = portrait_of(name)
    np.testing.assert_allclose(np.sum(told["starts"], axis=0), 1.0)
    np.testing.assert_allclose(np.sum(told["routes"], axis=1), 1.0)
    assert np.sum(told["at_plan"]) == pytest.approx(1.0)
