"""The race among starts, on a known value: a parabola in the log-odds of a start, whose top is at 4."""

from __future__ import annotations

import numpy as np
import optax
import pytest

from jaxq import Search, policies
from jaxq._ascent import Ascent
from jaxq._race import Race, sharpened

from .test_gradient import ThinnedLoss
from .test_tune import Adverse

SYSTEM = ThinnedLoss(0.0)


class Parabola(Ascent):
    """Values policies without running them, in two replications."""

    def valued(self, policies_):
        found = np.array([policies.parameters(policy)[SYSTEM.index] for policy in policies_])
        return np.repeat(-((found - 4.0) ** 2)[:, None], 2, axis=1)


def race(log_odds, **search):
    """Of starts with these log-odds, none of which moves: the pick, and the steps that each climb took."""
    experiment = SYSTEM.experiment()
    sized = Search(patience=10, **search).sized(4, 8, 8)
    ascent = Parabola(experiment, experiment, Adverse(0.0), optax.sgd(0.0), sized)
    climbs = [ascent.begin(ThinnedLoss(value).policy, str(value)) for value in log_odds]
    pick = Race(ascent, 4).run(climbs, lambda climb: None)
    return pick, [climb.step for climb in climbs]


def test_starts_are_ranked_by_what_they_are_worth_with_sharper_choices_too():
    """As they are 3 is the best of them, sharper 2; then 3 as it is, and 1.4 sharper."""
    pick, steps = race([1.4, 2.0, 3.0], sharper=(2.0,), entrants=1)
    assert steps == [0, 4, 0]
    assert (pick.start, pick.factor, pick.value) == (1, 2.0, 0.0)


def test_the_best_entrant_goes_on():
    _, steps = race([1.4, 2.0, 3.0], sharper=(), entrants=2, trial_steps=2)
    assert steps == [0, 2, 4]


@pytest.mark.parametrize(
    ("start", "sharper", "factor"),
    [(1.0, (4.0, 2.0), 4.0), (1.0, (2.0, 4.0), 4.0), (3.0, (2.0, 4.0), 1.0), (1.0, (), 1.0)],
)
def test_the_winner_gets_the_best_factor_if_any_is_worth_it(start, sharper, factor):
    pick, _ = race([start], sharper=sharper)
    assert pick.factor == factor
    assert policies.parameters(pick.policy)[SYSTEM.index] == start * factor


def test_the_share_of_the_mixed_group_is_not_made_sharper():
    made = SYSTEM.policy
    before, after = policies.parameters(made), policies.parameters(sharpened(made, 8.0))
    share = np.array([name == "partition.mixed_share" for name in policies.parameter_names(made)])
    assert share.sum() == 1
    np.testing.assert_array_equal(after, np.where(share, before, 8.0 * before))
