"""The score-function (likelihood-ratio) gradient: slopes from the policy's own random decisions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import equinox as eqx
import numpy as np
from jaxtyping import Float64

from .._engine.record import COUNTS, INTEGRALS, Record
from .._engine.steppers import Exact
from .._errors import InputError
from .._policy.base import Policy
from .._time_scale import slowest_time
from .base import AbstractGradient, Experiment, GradientEstimate
from .by_chance import with_differences
from .flow_balance import expected_counts, imbalances

WINDOWS_PER_CREDIT = 8
"""Windows of time in a credit window: within one, rewards count though they came before the decision."""

OverTime = Float64[np.ndarray, "windows *rest"]


class ScoreFunction(AbstractGradient):
    """Likelihood ratios of the random decisions of one policy, run as it is, nowhere else.

    Every decision whose chances the policy states (`AbstractRandomGate`, `AbstractRandomRouter`) has a score,
    d/dtheta log(chance of the choice). The slope is the mean product of what the cluster earns and the sum
    of the scores of the `credit` seconds before. Its bias is what decisions earn later than that; apart
    from it, it is the derivative of the policy's long-run value, with no step. What takes the noise down:
    counts of events enter as integrals of their rates, combinations of flows that are 0 in the long run
    ([Lin26] eq. 15-20) are added to the earnings so that they vary least, and the mean of the other
    replications is subtracted.

    It runs with `Exact`, whatever the experiment's stepper. An objective that is a function of a `Result`
    should be a smooth function of averages: it is linearised in the windows of time.

    Parameters that do not act through such decisions (the share of the mixed group, or those of a gate that
    does not draw) get central finite differences, one at a time, in runs with the experiment's own engine.

    **Arguments:**

    - `credit`: s; None: the longest mean time of a stage of a request. Error grows with it, bias falls.
    - `replications`: of each run.
    - `step`: of the finite differences, in units of `parameter_scales`.

    **Raises:** `InputError` for a credit or a step that is not positive, or fewer than 2 replications; when
    estimating, for a policy that has no parameters of random decisions.
    """

    credit: float | None = eqx.field(static=True, default=None)
    replications: int = eqx.field(static=True, default=64)
    step: float = eqx.field(static=True, default=1.0)

    def __check_init__(self):
        if self.credit is not None and not (np.isfinite(self.credit) and self.credit > 0):
            raise InputError(f"credit: expected a positive number of seconds, got {self.credit:g}")
        if not (np.isfinite(self.step) and self.step > 0):
            raise InputError(f"step: expected a positive number, got {self.step:g}")
        if self.replications < 2:
            raise InputError(f"replications: expected at least 2, got {self.replications}")

    def replications_used(self) -> int:
        return self.replications

    def estimate(self, experiment: Experiment, policy: Policy, first: int = 0) -> GradientEstimate:
        credit = slowest_time(experiment.instance) if self.credit is None else self.credit
        record = self._run(experiment, policy, credit, first)
        value = float(experiment.worth(experiment.result(policy, record, first)).mean())
        slopes = with_differences(
            experiment, policy, score_slopes(experiment, policy, record, credit), self.step, first
        )
        error = slopes.std(axis=1, ddof=1) / np.sqrt(self.replications)
        return GradientEstimate(value, slopes.mean(axis=1), error)

    def _run(self, experiment: Experiment, policy: Policy, credit: float, first: int) -> Record:
        measured = experiment.horizon - experiment.warmup
        return replace(experiment.engine, stepper=Exact()).run(
            experiment.instance,
            policy,
            n_gpus=experiment.n_gpus,
            horizon=experiment.horizon,
            warmup=experiment.warmup,
            key=experiment.key,
            replications=self.replications,
            first=first,
            n_windows=max(2, math.ceil(WINDOWS_PER_CREDIT * measured / credit)),
            scores=True,
        )


def score_slopes(
    experiment: Experiment, policy: Policy, record: Record, credit: float
) -> Float64[np.ndarray, "parameters replications"]:
    """The slope that each replication of a record with scores gives, per unit of each scored parameter."""
    assert record.scores is not None
    scores = _trailing(record.scores, record.durations, credit)[record.warmup_windows :]
    earned = _around_others(_earnings(experiment, policy, record))
    balance = _around_others(imbalances(experiment.instance, record))
    # What is subtracted is 0 in the long run whatever the policy, so its slope is 0 too.
    target, regressors = (
        _trailing(rows, record.measured_durations, credit) for rows in (earned, balance.swapaxes(1, 2))
    )
    weights = np.linalg.lstsq(regressors.reshape(target.size, -1), target.ravel(), rcond=None)[0]
    earned = earned - np.einsum("wkr,k->wr", balance, weights)
    return np.einsum("wr,wpr->pr", earned, scores) / len(earned)


def _earnings(experiment: Experiment, policy: Policy, record: Record) -> OverTime:
    """What each window after the warm-up adds to the objective, which is their mean to first order."""
    flows = replace(expected_counts(experiment.instance, record), scores=None)
    if isinstance(experiment.objective, str):
        return experiment.result(policy, flows).series(f"revenue_{experiment.objective}")
    # Jackknife pseudo-values: what the objective of all windows owes to each.
    count = len(flows.measured_durations)
    whole = experiment.worth(experiment.result(policy, flows))
    without = [experiment.worth(experiment.result(policy, rest)) for rest in _all_but_one(flows)]
    return count * whole - (count - 1) * np.stack(without)


def _all_but_one(record: Record) -> Iterator[Record]:
    """For each window after the warm-up, the record of all the others together, as one window."""
    names = ("durations", *COUNTS, *INTEGRALS, "events")
    measured = {name: getattr(record, name)[record.warmup_windows :] for name in names}
    totals = {name: values.sum(axis=0) for name, values in measured.items()}
    for window in range(len(record.measured_durations)):
        rest = {name: (totals[name] - measured[name][window])[None] for name in names}
        yield replace(record, warmup_windows=0, **rest)


def _trailing(values: OverTime, durations: Float64[np.ndarray, " windows"], credit: float) -> OverTime:
    """For each window, the sum over it and those before it that start at most `credit` before its end."""
    ends = np.cumsum(durations)
    first = np.searchsorted(ends - durations, ends - credit * (1 + 1e-9))
    upto = np.concatenate([np.zeros_like(values[:1]), np.cumsum(values, axis=0)])
    return upto[1:] - upto[first]


def _around_others(values: OverTime) -> OverTime:
    """Each value less the mean of the other replications'."""
    count = values.shape[-1]
    return (values - values.mean(axis=-1, keepdims=True)) * (count / (count - 1))
