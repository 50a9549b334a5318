"""The tuning job, `jaxq tune`: starts, the tuned policy, and how far it is ahead of the published ones."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ._ascent import Check
from ._compile_ahead import compiling_ahead
from ._errors import InputError
from ._gradient.base import AbstractGradient, Objective
from ._instance import Instance
from ._plan import upper_bound
from ._policy import feedback, neural
from ._policy.base import Policy
from ._policy.load import load_policy
from ._policy.presets import PRESETS
from ._progress import ProgressBars
from ._search import Search
from ._statistics import Estimate, paired_difference
from ._summary import environment_dict, instance_dict, write_json
from ._tune import Tuned, tune

FAMILIES = ("feedback", "neural")

UNPUBLISHED = "price_and_pack"
"""The preset that is not in [Lin26]; it is reported beside the best published one."""

CHECKPOINT, POLICY, SUMMARY = "checkpoint.npz", "policy.json", "tune.json"


@dataclass(frozen=True)
class TuningEffort:
    """How much is tried: see `tune`; None: as `tune` chooses."""

    starts: tuple[str, ...]
    steps: int | None = None
    search: Search | None = None


FULL = TuningEffort(tuple(name for name in PRESETS if name != "sli_gate_and_route"))
"""Without a partition, `sli_gate_and_route` is `gate_and_route`."""

QUICK = TuningEffort(("price_and_pack",), steps=16, search=Search(final_replications=128, scale=0.2))


def starting_points(
    instance: Instance, family: str, names: Sequence[str], partition: bool = True
) -> list[Policy]:
    """The policies from which tuning starts: points of a family, in each structure worth trying; a user's own
    (`my_module:MyPolicy`) and policy files as they are.

    `partition`: whether a start that has a partition is tried with it too, and not only without.

    **Raises:** `InputError` for an unknown family or start, or one that tuning cannot change.
    """
    if family not in FAMILIES:
        raise InputError(f"--policy: expected {' or '.join(FAMILIES)}, got {family!r}")
    starts = []
    for name in names:
        if name not in PRESETS:
            starts.append(load_policy(name, instance))
        elif family == "neural":
            starts.append(neural.neural(instance, start=name, sharpness=feedback.TUNING_SHARPNESS))
        else:
            starts += feedback.starting_points(instance, name, partition)
    return starts


@dataclass(frozen=True)
class TuningJob:
    """What the tuning job found; `summary` is all of it, for JSON."""

    tuned: Tuned
    summary: dict[str, Any]


def run_tuning_job(
    instance: Instance,
    starts: Sequence[Policy],
    effort: TuningEffort,
    bars: ProgressBars,
    folder: Path,
    *,
    n_gpus: int,
    objective: str | Objective,
    bound: float | None = None,
    gradient: AbstractGradient | str | None = None,
    seed: int = 0,
) -> TuningJob:
    """Tune, value the presets on the same replications, and write `POLICY` and `SUMMARY` to a folder.

    An interrupted job goes on from `CHECKPOINT` in the folder, to the same result; a damaged one is set
    aside, and the job goes on from the one before it.

    **Arguments:** as for `tune`; `bound`: what gaps are measured against; needed where the objective is a
    function, else the optimum of its linear program.

    **Raises:** as `tune`.
    """
    started = time.perf_counter()
    if bound is None:
        if not isinstance(objective, str):
            raise InputError("bound: expected a number, since the objective is a function")
        bound = upper_bound(instance, objective)
    with bars.warnings_as_notes():
        tuned = tune(
            instance,
            starts,
            n_gpus=n_gpus,
            objective=objective,
            gradient=gradient,
            steps=effort.steps,
            search=effort.search,
            key=seed,
            checkpoint=folder / CHECKPOINT,
            progress=_Reporter(bars, bound),
        )
    for note in tuned.notes:
        bars.note(f"jaxq: warning: {note}")
    tuned.save(folder / POLICY)
    summary = _summary(tuned, _preset_values(tuned, bars), starts, bound, folder)
    summary["seconds"] = time.perf_counter() - started
    write_json(summary, folder / SUMMARY)
    return TuningJob(tuned, summary)


class _Reporter:
    """Shows each climb as a piece of work, with the gap at every check."""

    def __init__(self, bars: ProgressBars, bound: float):
        self.bars, self.bound = bars, bound
        self.label, self.report = "", lambda done, total: None

    def __call__(self, label: str, step: int, steps: int, check: Check | None) -> None:
        if label != self.label:
            self.label, self.report = label, self.bars.start(label)
        self.report(step, steps)
        if check is not None:
            gap, half_width = _gap(check.value, self.bound), check.half_width / abs(self.bound)
            self.bars.note(f"{label}, step {step}: gap {100 * gap:.2f} ± {100 * half_width:.2f} %")


def _preset_values(tuned: Tuned, bars: ProgressBars) -> dict[str, np.ndarray]:
    """Each preset on the replications of the tuned policy's final figure."""
    final, count = tuned.final, len(tuned.final_values)
    report = bars.start("presets")
    made = {name: PRESETS[name](final.instance) for name in PRESETS}
    values = {}
    jobs = {
        name: partial(final.engine.compile, final.instance, policy, final.n_gpus, count)
        for name, policy in made.items()
    }
    with compiling_ahead(jobs) as compiled:
        for k, (name, policy) in enumerate(made.items()):
            compiled[name].result()
            values[name] = final.value(policy, count)
            report(k + 1, len(made))
    return values


def _summary(
    tuned: Tuned, presets: dict[str, np.ndarray], starts: Sequence[Policy], bound: float, folder: Path
) -> dict[str, Any]:
    """Everything that is reported."""

    def gap(estimate: Estimate) -> dict[str, Any]:
        return estimate.affine(-1 / abs(bound), np.sign(bound)).to_dict()

    published = [name for name in presets if name != UNPUBLISHED]
    best = max(published, key=lambda name: presets[name].mean())

    def row(name: str) -> dict[str, Any]:
        ahead = paired_difference(tuned.final_values, presets[name])
        return {
            "policy": name,
            "gap": gap(Estimate.from_samples(presets[name])),
            "tuned_less_policy": ahead.to_dict(),
        }

    histories = [
        {"start": start.name, "checks": [_check_dict(check, bound) for check in checks]}
        for start, checks in zip(starts, tuned.history, strict=True)
    ]
    return {
        "instance": instance_dict(tuned.final.instance),
        "scheme": tuned.training["objective"],
        "gpus": tuned.training["gpus"],
        "valued_gpus": tuned.final.n_gpus,
        "training_gpus": tuned.training["training_gpus"],
        "policy_file": str(folder / POLICY),
        "start": tuned.start.name,
        "bound": bound,
        "value": tuned.value.to_dict(),
        "gap": gap(tuned.value),
        "gain": tuned.gain.to_dict(),
        "best_published": row(best),
        UNPUBLISHED: row(UNPUBLISHED),
        "presets": [row(name) for name in presets],
        "replications": len(tuned.final_values),
        "history": histories,
        "notes": list(tuned.notes),
        "environment": environment_dict(),
    }


def _check_dict(check: Check, bound: float) -> dict[str, Any]:
    return asdict(check) | {"gap": _gap(check.value, bound)}


def _gap(value: float, bound: float) -> float:
    """How far a value is below the bound, in units of the bound's size."""
    return (bound - value) / abs(bound)
