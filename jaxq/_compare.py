"""Policies against a baseline, replication by replication under common random numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ._errors import InputError
from ._result import QUANTITIES, RATIOS, Result
from ._statistics import Estimate, PairedDifference, paired_difference

MEASURES = ("revenue_bundled", "revenue_separate", "completion_rate")
"""Compared unless told otherwise; any average of `QUANTITIES` can be."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """How far each policy is ahead of a baseline.

    - `baseline`: its label.
    - `differences`: label -> quantity -> policy less baseline, over the replications (or batches) that both
      have, with the correlation that common random numbers reached.
    - `gap_differences`: label -> gap of the policy less gap of the baseline, in the instance's scheme:
      negative for a policy that earns more.
    """

    baseline: str
    differences: dict[str, dict[str, PairedDifference]]
    gap_differences: dict[str, PairedDifference]

    def to_dict(self) -> dict[str, Any]:
        """For JSON: `baseline`, and one entry a label with each quantity's difference and `gap`."""
        return {
            "baseline": self.baseline,
            "differences": {
                label: {name: paired.to_dict() for name, paired in row.items()}
                | {"gap": self.gap_differences[label].to_dict()}
                for label, row in self.differences.items()
            },
        }


def compare(
    results: Sequence[Result] | Mapping[str, Result],
    baseline: str | None = None,
    measures: Sequence[str] = MEASURES,
) -> Comparison:
    """Paired differences of several policies from a baseline.

    Replications with the same number share their arrivals when the key is the same. If one result has more
    replications than another (runs to a precision), they are paired over those that both have.

    **Arguments:**

    - `results`: on the same instance, n_gpus, horizon, warm-up, key and first replication; labelled by their
      policies' names, or by the mapping's keys.
    - `baseline`: the label of the one that the others are compared with; the first when None.
    - `measures`: which averages of `QUANTITIES` to compare.

    **Raises:** `InputError` for fewer than two results, a label twice, an unknown baseline or measure, or
    results that are not comparable, naming what differs.
    """
    labelled = _labelled(results)
    baseline = next(iter(labelled)) if baseline is None else baseline
    if baseline not in labelled:
        raise InputError(f"baseline: expected one of {', '.join(labelled)}, got {baseline!r}")
    unknown = [name for name in measures if name not in QUANTITIES or name in RATIOS]
    if unknown:
        known = [name for name in QUANTITIES if name not in RATIOS]
        raise InputError(f"measures: expected some of {', '.join(known)}, got {unknown[0]!r}")
    reference = labelled[baseline]
    differences, gaps = {}, {}
    for label, result in labelled.items():
        if label != baseline:
            _check_comparable(reference, result, label)
            differences[label] = {name: _difference(result, reference, name) for name in measures}
            gaps[label] = _gap_difference(result, reference)
    return Comparison(baseline, differences, gaps)


def _labelled(results: Sequence[Result] | Mapping[str, Result]) -> dict[str, Result]:
    if isinstance(results, Mapping):
        labelled = dict(results)
    else:
        labelled = {result.policy_name: result for result in results}
        if len(labelled) < len(results):
            raise InputError(
                "results: two have the same policy name; expected a mapping from labels to results"
            )
    if len(labelled) < 2:
        raise InputError(f"results: expected at least two to compare, got {len(labelled)}")
    return labelled


def _check_comparable(reference: Result, result: Result, label: str) -> None:
    """Refuse results whose replications are not pairs."""
    facts = {
        "instance": lambda r: r.instance.fingerprint(),
        "n_gpus": lambda r: r.n_gpus,
        "horizon": lambda r: r.horizon,
        "warmup": lambda r: r.warmup,
        "key": lambda r: r.key,
        "first": lambda r: r.first,
    }
    for name, fact in facts.items():
        expected, got = fact(reference), fact(result)
        if expected != got:
            raise InputError(f"results: {label!r} has {name} {got}; expected {expected} like the baseline")


def _pairs(result: Result, reference: Result, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Averages of the replications that both have; batches of time when both have a single one."""
    if result.replications == reference.replications == 1:
        return result.samples(name), reference.samples(name)
    count = min(result.replications, reference.replications)
    return result.per_replication(name)[:count], reference.per_replication(name)[:count]


def _difference(result: Result, reference: Result, name: str) -> PairedDifference:
    if result.record.is_fluid:
        exact = Estimate.exact(np.asarray(result.estimate(name).mean - reference.estimate(name).mean))
        return PairedDifference(exact, np.full_like(exact.mean, np.nan))
    return paired_difference(*_pairs(result, reference, name))


def _gap_difference(result: Result, reference: Result) -> PairedDifference:
    """Of the gaps: the revenues' difference over -R*."""
    paired = _difference(result, reference, f"revenue_{reference.instance.pricing.scheme}")
    return PairedDifference(paired.difference.affine(-1 / reference.bound()), paired.correlation)
