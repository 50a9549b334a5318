"""The feedback family: published policies are points of it, and its parameters go to a vector and back.

Seeds are fixed; with new ones a test would fail by chance about once in a million (5 standard errors).
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxq import InputError, policies, solve_plan
from jaxq._engine.base import device_policy
from jaxq._engine.cluster import ClusterEngine
from jaxq._engine.steppers import Leap
from jaxq._policy.feedback import STARTS, feedback
from jaxq._policy.parameters import (
    SHARE_SCALE,
    parameter_names,
    parameter_scales,
    parameters,
    with_parameters,
)

from . import oracles
from .simulations import averages, run, standard_error
from .test_policies import observe

LIMIT = 5.0


def reference():
    return oracles.reference_cluster().instance()


QUICK_STARTS = ("gate_and_route",)


@pytest.mark.parametrize(
    "start",
    [start if start in QUICK_STARTS else pytest.param(start, marks=pytest.mark.slow) for start in STARTS],
)
def test_published_policies_are_points_of_the_family(start):
    """Five occupancies and two revenues at 10 GPUs, against the published policy run by itself."""
    instance = reference()
    arguments = dict(horizon=300.0, warmup=100.0, replications=64, stepper=Leap())
    published = averages(run(instance, start, 10, key=1, **arguments), instance)
    point = averages(
        run(instance, feedback(instance, start=start, sharpness=100.0), 10, **arguments), instance
    )
    for name in ("x", "y_mixed", "y_solo", "q_prefill", "q_decode", "revenue_bundled", "revenue_separate"):
        error = np.hypot(standard_error(published[name]), standard_error(point[name]))
        off = np.abs(published[name].mean(axis=0) - point[name].mean(axis=0))
        assert (off <= LIMIT * error).all(), (name, off / error)


@pytest.mark.parametrize("start", ["gate_and_route", "sli_gate_and_route", "sarathi", "price_and_pack"])
@pytest.mark.parametrize("partition", [False, True])
def test_structure_is_a_choice_of_its_own(start, partition):
    """Groups and the order of decisions are changed alone, and the name says so."""
    instance = reference()
    plain = feedback(instance, start=start)
    made = feedback(instance, start=start, partition=partition, route_first=not plain.route_first)
    assert (made.partition is not None) == partition and made.route_first != plain.route_first
    changed = (plain.partition is not None) != partition
    assert ("partition" in made.name) == changed and made.name.endswith(
        "gate first)" if plain.route_first else "route first)"
    )
    assert made.recipe is not None and dict(made.recipe.arguments)["start"] == start


@pytest.mark.parametrize(
    ("start", "partition"),
    [("gate_and_route", False), pytest.param("sarathi", True, marks=pytest.mark.slow)],
)
def test_a_changed_structure_runs(start, partition):
    made = feedback(reference(), start=start, partition=partition)
    record = run(reference(), made, 10, horizon=30.0, warmup=5.0, replications=8, stepper=Leap())
    assert not record.imbalance.any() and record.completions.sum() > 0


def test_first_come_first_served_is_the_gate_that_weighs_queues_once():
    """The chance of a class is its share of those that wait, exactly: here 30 of 100."""
    gate = device_policy(feedback(reference(), start="sarathi", sharpness=100.0)).gate
    for uniform, expected in ((0.29, 0), (0.31, 1)):
        seen = observe([30, 70])
        scores = gate.scores(seen, jnp.full(seen.prefills.shape[1:], uniform))
        assert np.isfinite(np.asarray(scores)).reshape(2, -1)[expected].all()
        assert not np.isfinite(np.asarray(scores)).reshape(2, -1)[1 - expected].any()


@pytest.mark.parametrize("uniform", [0.1, 0.9])
def test_a_gate_that_would_rather_not_starts_nothing(uniform):
    made = feedback(reference(), start="sarathi")
    values = parameters(made)
    for k, name in enumerate(parameter_names(made)):
        if name.startswith("gate.start["):
            values[k] = -50.0
    gate = device_policy(with_parameters(made, values)).gate
    seen = observe([30, 70])
    assert not np.isfinite(np.asarray(gate.scores(seen, jnp.full(seen.prefills.shape[1:], uniform)))).any()


def with_named(policy, given):
    values = dict(zip(parameter_names(policy), parameters(policy), strict=True)) | given
    return device_policy(with_parameters(policy, np.asarray(list(values.values()))))


def test_waiting_has_log_odds_of_its_own_that_grow_with_the_prefill_queue():
    """30 + 70 requests wait for prefill on 100 GPUs: one per GPU, against the plan's."""
    made = feedback(reference(), start="price_and_pack")
    seen = observe([30, 70], n_gpus=100, available=[5, 5, 1, 1])
    request = jnp.asarray([1])

    def log_odds(policy):
        weights = policy.router.weights(seen, request)
        return float(jnp.log(weights[-1, 0] / weights[0, 0]))

    plain = log_odds(device_policy(made))
    given = {"router.wait_prefill_queue": 3.0, "router.wait[1]": 0.5, "router.wait[0]": 9.0}
    planned = float(solve_plan(reference()).q_prefill.sum())
    expected = 0.5 + 3.0 * (1.0 - planned) / (1.0 + planned)
    assert log_odds(with_named(made, given)) - plain == pytest.approx(expected, abs=1e-4)


def test_the_gate_may_start_less_when_many_decode():
    made = feedback(reference())
    seen = eqx.tree_at(lambda o: o.decodes_solo, observe([30, 70]), jnp.asarray([[40], [60]]))
    changed = with_named(made, {"gate.start_decodes": 2.0})
    change = changed.gate.start_log_odds(seen) - device_policy(made).gate.start_log_odds(seen)
    plan = solve_plan(reference())
    planned = float(plan.y_mixed.sum() + plan.y_solo.sum())
    np.testing.assert_allclose(change, 2.0 * (10.0 / planned - 1.0), rtol=1e-4)


@pytest.mark.parametrize("start", STARTS)
def test_parameters_go_to_a_vector_and_back(start):
    made = feedback(reference(), start=start)
    values, names = parameters(made), parameter_names(made)
    count = 21 + (made.partition is not None) - 5 * (start == "sli_gate_and_route")
    assert len(values) == len(names) == len(set(names)) == count
    assert not any("plan" in name.split(".") for name in names)
    moved = with_parameters(made, values + 0.125)
    np.testing.assert_allclose(parameters(moved), values + 0.125)
    assert jax.tree.structure(moved) == jax.tree.structure(made)
    np.testing.assert_array_equal(moved.gate.plan.prefills, made.gate.plan.prefills)
    scales = dict(zip(names, parameter_scales(made), strict=True))
    assert scales.pop("partition.mixed_share", SHARE_SCALE) == SHARE_SCALE
    assert set(scales.values()) == {1.0}


def test_the_share_of_the_mixed_group_stays_a_share():
    made = feedback(reference())
    values = parameters(made)
    for share, kept in ((-0.5, 0.0), (1.5, 1.0)):
        values[parameter_names(made).index("partition.mixed_share")] = share
        assert float(with_parameters(made, values).partition.mixed_share) == kept


def test_published_policies_have_parameters_too():
    """Every floating-point array: the plan's x and q_p and the share of the mixed group."""
    names = parameter_names(policies.gate_and_route(reference()))
    assert [name.partition("[")[0] for name in names] == [
        *["gate.prefills"] * 2,
        *["gate.prefill_queue"] * 2,
        "partition.mixed_share",
    ]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda p: feedback(reference(), start="first_in_first_out"),
            "^start: expected one of gate_and_route, ",
        ),
        (lambda p: feedback(reference(), sharpness=0.0), "^sharpness: expected a positive number, got 0$"),
        (lambda p: with_parameters(p, np.zeros(3)), r"^parameters: expected 22 numbers, got shape \(3,\)$"),
        (
            lambda p: with_parameters(p, np.where(np.arange(22) == 2, np.nan, 0.0)),
            "^parameters: expected finite numbers, gate.bid_price is not$",
        ),
    ],
)
def test_what_is_no_point_of_the_family_is_refused_in_one_line(call, message):
    with pytest.raises(InputError, match=message) as caught:
        call(feedback(reference()))
    assert "\n" not in str(caught.value)


def test_points_of_the_family_run_together():
    """One program, whatever the parameters."""
    instance = reference()
    made = feedback(instance)
    pair = [made, with_parameters(made, parameters(made) + 0.3)]
    records = ClusterEngine(Leap()).run_together(
        instance, pair, n_gpus=10, horizon=20.0, warmup=5.0, replications=8, key=jax.random.key(0)
    )
    assert not any(record.imbalance.any() for record in records)
    assert not np.array_equal(records[0].completions, records[1].completions)
