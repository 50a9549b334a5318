"""What policies keep of service levels: against a record worked out by hand, and intervals and the truth."""

import json
from dataclasses import replace

import numpy as np
import pytest

from jaxq import OccupancyLimit, ServiceLevels, solve_plan
from jaxq._cli.simulate import print_results
from jaxq._plan import Plan
from jaxq._statistics import Estimate, spread_estimate

from .test_result import BY_HAND, instance, random_record, record, result

LEVELS = ServiceLevels(
    prefill_fairness=0.2,
    decode_fairness_penalty=1.0,
    limits=[OccupancyLimit("queues", {"prefill_queue": {"short": 1.0, 1: 2.0}, "decode_queue": -1.0}, 5.0)],
)


def promised(**changes):
    """By hand, from `BY_HAND`: a replication with the averages of `test_result.FIRST`, and one with twice
    those."""
    return result(BY_HAND, instance=replace(instance(), service_levels=LEVELS), **changes)


def test_levels_by_hand():
    """x = (0.3, 0.2), y_m = (0.5, 0.5), y_s = (1, 0.5), q_p = (0.4, 0.1), q_d = (0.15, 0), and twice that."""
    plan = Plan([0.1, 0.3], [1.0, 0.0], [2.0, 1.0], [1.0, 2.0], [0.5, 0.0], service_levels=LEVELS)
    found = promised().service_levels(plan)
    expected = {
        # planned, limit, mean and standard error of the two replications
        "prefill_fairness": (0.2, 0.2, 0.15, 0.05),
        "decode_fairness": (1.0, None, 0.75, 0.25),
        "queues": (4.5, 5.0, 1.5 * 0.45, 0.225),
    }
    for name, (planned, limit, mean, error) in expected.items():
        level = found[name]
        assert level.planned == pytest.approx(planned) and level.limit == limit
        assert float(level.measured.mean) == pytest.approx(mean)
        assert float(level.measured.standard_error) == pytest.approx(error)
    # B = 4, tau = 0.04, 1/gamma = 0.02, and X = 0.4 in the plan, 0.75 measured.
    times = {
        "time_per_output_token": ((0.04 * 3 * 0.4 + 0.02 * 4 * 0.6) / 3.6, (0.04 * 2.25 + 0.02) / 3.25),
        "time_per_token_slot": ((0.04 + 0.06) / 4, (0.04 * 1.0 + 0.02 * 1.5) / 2.5),
        "time_per_token_emitted": (4 / (1 / 0.04 + 3 / 0.02), 2.5 / (1.0 / 0.04 + 1.5 / 0.02)),
    }
    for name, (planned, mean) in times.items():
        assert found[name].planned == pytest.approx(planned) and found[name].limit is None
        assert float(found[name].measured.mean) == pytest.approx(mean)
    assert set(found) == set(expected) | set(times)
    units = [level.unit for level in found.values()]
    assert units == ["prefills per GPU", "decodes per GPU", "s", "s", "s", ""]


def test_the_two_times_of_decodes_are_those_of_the_result():
    found = result(random_record(3), instance=instance())
    for name in ("time_per_token_slot", "time_per_token_emitted"):
        measured, estimate = found.service_levels()[name].measured, found.estimate(name)
        assert float(measured.mean) == float(estimate.mean)
        assert float(measured.standard_error) == float(estimate.standard_error)


def test_without_a_plan_it_is_the_instances_own():
    found = promised()
    plan = solve_plan(found.instance)
    assert found.service_levels()["queues"].planned == pytest.approx(float(plan.indicators["queues"]))
    assert float(found.gap_to_plan().mean) == float(found.gap_to_plan(plan).mean)
    # R* has no service levels in it; the plan earns less.
    fast = replace(instance(), service_levels=ServiceLevels(time_per_output_token=0.0205))
    limited = result(BY_HAND, instance=fast)
    assert float(limited.gap().mean) == float(result(BY_HAND).gap().mean)
    assert float(limited.gap_to_plan().mean) < float(limited.gap().mean) - 0.01


def test_json_has_levels_where_the_instance_has():
    found, plan = promised(), solve_plan(promised().instance)
    kept = json.loads(json.dumps(found.to_dict(plan)))
    assert kept == json.loads(json.dumps(found.to_dict()))
    assert kept["gap_to_plan"]["mean"] == pytest.approx(float(found.gap_to_plan(plan).mean))
    queues = kept["service_levels"]["queues"]
    assert queues["planned"] == pytest.approx(float(plan.indicators["queues"])) and queues["limit"] == 5.0
    assert queues["measured"]["mean"] == pytest.approx(0.675) and len(queues["measured"]["ci95"]) == 2
    plain = result(BY_HAND).to_dict()
    assert plain["service_levels"] is None and plain["gap_to_plan"] is None


def test_the_spread_of_two_columns_is_their_difference():
    samples = np.random.default_rng(1).normal([3.0, 1.0], 1.0, (12, 2))
    spread, difference = spread_estimate(samples), Estimate.from_samples(samples[:, 0] - samples[:, 1])
    assert float(spread.mean) == pytest.approx(float(difference.mean), rel=1e-12)
    assert float(spread.half_width) == pytest.approx(float(difference.half_width), rel=1e-12)
    assert float(spread_estimate(samples[:, :1]).mean) == 0


@pytest.mark.parametrize("means", [(0, 0, 0, 0), (3, 1, 0, 0)], ids=str)
def test_the_interval_of_a_spread_holds_the_truth(means):
    """Of 500 intervals of at least 95 %, fewer than 90.2 % hold it with probability below 1e-5."""
    rng = np.random.default_rng(2)
    held = 0
    for _ in range(500):
        estimate = spread_estimate(rng.normal(means, (1.0, 2.0, 1.0, 0.5), (10, 4)))
        low, high = estimate.ci95
        held += low <= max(means) - min(means) <= high
    assert held >= 0.902 * 500


def test_a_person_sees_what_was_kept(capsys):
    found = promised(policy_name="mine")
    print_results([found, result(BY_HAND)])
    shown = capsys.readouterr().out.split("Service levels: planned and measured")[1]
    lines = [line.split() for line in shown.splitlines() if line.strip().startswith("mine")]
    assert len(lines) == 7 and "sarathi" not in shown
    planned = float(solve_plan(found.instance).indicators["queues"])
    queues = next(line for line in lines if line[2] == "queues")
    assert float(queues[4]) == pytest.approx(planned, rel=1e-5) and float(queues[5]) == pytest.approx(0.675)
    print_results([result(BY_HAND)])
    assert "Service levels" not in capsys.readouterr().out


def test_the_fluid_limit_has_no_error():
    fluid = record(replications=1, n_gpus=None, prefills=np.full((3, 2, 1), 2.0) * [[[1], [3]]])
    found = result(fluid).service_levels()
    assert float(found["prefill_fairness"].measured.mean) == pytest.approx(0.4)
    assert all(float(level.measured.half_width) == 0 for level in found.values())
