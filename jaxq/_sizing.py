"""The third verb: the smallest cluster that serves a load as well as is asked, with stated confidence."""

from __future__ import annotations

import functools
import itertools
import math
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from ._engine.cluster import ClusterEngine
from ._engine.steppers import Exact, Leap
from ._errors import InputError
from ._instance import Instance
from ._policy.base import Policy
from ._policy.load import load_policy
from ._run_setting import checked_times, checked_whole
from ._simulate import Engine, Seconds, StatisticsWarning, Whole, simulate
from ._sizing_target import AbstractTarget, Samples
from ._statistics import Average, Estimate, student_quantile
from ._summary import plain
from ._workload import class_vector

EXACT_UP_TO = 1_500
"""GPUs of the least possible cluster up to which the exact chain is simulated, and above it `Leap`."""

FINENESS = 5.0
"""What the step that `Leap` would choose is divided by: sizes are closer to each other than policies."""

MOST_TIMES = 4
"""How many times the lower bound a search goes to, when `max_gpus` is not given."""

FEWEST_REPLICATIONS = 8
"""Replications before an interval is trusted."""

FEWEST_LOSSES = 400.0
"""Requests that a cluster at the limit would lose, in all replications together, before a size is decided:
with few losses their average is far from normal, and often nothing but 0."""

FALSE_ALARM = 1e-3
"""How often a larger cluster is said to do worse, if none does."""

CURVE_POINTS = 60
"""Sizes at which the best possible share is told, for the figure."""

Verdict = Literal["suffices", "too few", "undecided"]

Load = Any
"""Rates in the order of the classes, or a mapping from names; anything else is refused by name."""

Factory = Callable[[Instance], Policy]


@dataclass(frozen=True, eq=False)
class Tested:
    """A number of GPUs that was simulated.

    - `n_gpus`, `replications`: what was simulated.
    - `verdict`: `"suffices"`, `"too few"` or `"undecided"`.
    - `estimate`: the measured share; one number a class where each class has the limit.
    - `bounds`: (low, high), one-sided limits of the share, each of which is wrong with probability `level` at
      most; the verdict is made of them.
    - `best`: the share that no policy exceeds with so many GPUs, by the planning LP (or stays below, for what
      is lost).
    - `cautions`: what makes the interval doubtful.
    """

    n_gpus: int
    replications: int
    verdict: Verdict
    estimate: Estimate
    bounds: tuple[Average, Average]
    level: float
    best: float
    cautions: tuple[str, ...] = ()

    @property
    def share_of_best(self) -> Estimate:
        """The measured share over the best possible one."""
        return self.estimate.affine(1 / self.best)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "gpus": self.n_gpus,
            "verdict": self.verdict,
            "replications": self.replications,
            "share": self.estimate.to_dict(),
            "bounds": plain(self.bounds),
            "level": self.level,
            "best_possible": self.best,
            "cautions": list(self.cautions),
        }


@dataclass(frozen=True, eq=False)
class Sizing:
    """What `size_cluster` found.

    - `lower_bound`: with fewer GPUs no policy reaches the target, by the planning LP.
    - `fewest`, `most`: the smallest sufficient number of GPUs is between them, at the stated confidence;
      `most` is None when no number that was tested suffices.
    - `tested`: every size that was simulated, by n.
    - `best_possible`: (n, share) pairs: what no policy exceeds, by the planning LP.
    - `cautions`: what makes the answer doubtful, one line each.
    - `policy_name`, `load` (1/s of each class, in all), `target`, `confidence`: what was asked;
      `max_gpus`: the largest size that might have been tested.
    """

    instance: Instance
    policy_name: str
    load: np.ndarray
    target: AbstractTarget
    confidence: float
    max_gpus: int
    lower_bound: int
    fewest: int
    most: int | None
    tested: tuple[Tested, ...]
    best_possible: tuple[tuple[int, float], ...]
    engine_description: str
    cautions: tuple[str, ...]

    @property
    def n_gpus(self) -> int | None:
        """The smallest sufficient number of GPUs; None when it was not decided."""
        return self.most if self.most == self.fewest else None

    @property
    def answer(self) -> str:
        """What was found, in a sentence."""
        served = f"serve the load with {self.target.text} under {self.policy_name}"
        sure = f"(confidence {100 * self.confidence:g} %)"
        bound = f"no policy can with fewer than {self.lower_bound}, by the linear program"
        if self.most is None:
            if self.fewest > self.max_gpus:
                return f"{self.max_gpus} GPUs, the most that were tried, do not {served} {sure}; {bound}."
            return (
                f"At least {self.fewest} GPUs are needed to {served} {sure}, and no number up to "
                f"{self.max_gpus} was shown to suffice; {bound}."
            )
        if self.n_gpus is None:
            return f"Between {self.fewest} and {self.most} GPUs are needed to {served} {sure}; {bound}."
        if self.n_gpus == self.lower_bound:
            return f"{self.n_gpus} GPUs {served} {sure}; {bound}."
        return f"{self.n_gpus} GPUs {served}, and {self.n_gpus - 1} do not {sure}; {bound}."

    def to_dict(self) -> dict[str, Any]:
        """For JSON; shares are parts of 1, `load` is in requests per second of each of `classes`."""
        return {
            "answer": self.answer,
            "gpus": self.n_gpus,
            "between": [self.fewest, self.most],
            "lower_bound": self.lower_bound,
            "max_gpus": self.max_gpus,
            "confidence": self.confidence,
            "target": {
                "quantity": self.target.name,
                "at_least": self.target.at_least,
                "share": self.target.share,
                "measure": self.target.measure,
                "text": self.target.text,
            },
            "policy": self.policy_name,
            "scheme": self.instance.pricing.scheme,
            "classes": list(self.instance.workload.names),
            "load": self.load.tolist(),
            "tested": [self._row(tested) for tested in self.tested],
            "best_possible": [{"gpus": n, "share": best} for n, best in self.best_possible],
            "engine": self.engine_description,
            "cautions": list(self.cautions),
        }

    def _row(self, tested: Tested) -> dict[str, Any]:
        """A size for JSON; with what a lower limit lets one say of the best possible."""
        of_best = {"share_of_best": tested.share_of_best.to_dict()} if self.target.at_least else {}
        return tested.to_dict() | of_best


def size_cluster(
    instance: Instance,
    policy: str | Factory,
    *,
    load: Load,
    target: AbstractTarget,
    confidence: float = 0.95,
    max_gpus: Whole | None = None,
    horizon: Seconds = 600.0,
    warmup: Seconds = 200.0,
    replications: Whole = 64,
    max_replications: Whole = 1024,
    key: Whole | jax.Array = 0,
    engine: Engine | None = None,
    out: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int, int], None] | None = None,
    report: Callable[[Tested], None] | None = None,
) -> Sizing:
    """The smallest number of GPUs that serves a total load as well as a target asks, by simulation.

    n GPUs see load / n requests per second and GPU, so the instance, its plan and a policy made of them are
    new at every n. The search starts at the planning LP's lower bound, goes up in growing steps and then
    bisects. At each n replications are doubled until a one-sided bound of Student's t over replications
    decides on which side of the target the share is, or `max_replications` are done. All sizes see the same
    arrivals (common random numbers).

    **It takes for granted that more GPUs never do worse** under the policy. Then a wrong answer begins with a
    wrong verdict on one of the sizes that a search without errors visits, which do not hang on chance (a size
    that is left undecided only sends the search to where no verdict can be wrong in that way). So the looks
    at the d-th size of the search each take (1 - confidence) / (d (d + 1) looks) of the probability of error
    (union bound), and all that is said holds together with probability `confidence` at least: as far as
    averages over time of a replication are normal, and with `Leap` but for its bias. Sizes that were tested
    are compared with each other, and a larger one that did worse is told in a `StatisticsWarning`.

    **Arguments:**

    - `instance`: classes, hardware and prices; its arrival rates are not used.
    - `policy`: what `load_policy` takes (`"price_and_pack"`, `"my_module:MyPolicy"`), or a function of an
      instance that returns a policy.
    - `load`: requests per second of each class, **in all**, in the order of the classes or by name.
    - `target`: `RevenueTarget` or `AbandonmentTarget`.
    - `confidence`: above 0 and below 1.
    - `max_gpus`: the largest size that is tried; four times the lower bound and 16 more when None.
    - `horizon`, `warmup`, `key`: as for `simulate`.
    - `replications`, `max_replications`: of the first look at a size, and at most.
    - `engine`: None: `ClusterEngine` with `Exact` up to a lower bound of 1,500 GPUs, `Leap` with a fifth of
      its default step above.
    - `out`: a folder in which replications are kept as they finish, a folder a size; the same call goes on
      from there.
    - `progress`: called with (GPUs, done, total) during a look; `report`: called after each look.

    **Raises:** `InputError`, naming the argument and what would be right; `PlanError` where the policy has no
    plan.
    """
    if not 0 < confidence < 1:
        raise InputError(f"confidence: expected a number above 0 and below 1, got {confidence:g}")
    offered = Offered(instance, checked_load(instance, load))
    counts = _counts(replications, max_replications)
    horizon, warmup = checked_times(horizon, warmup, endless=False)
    least = _least_replications(target, offered.load, horizon - warmup, counts[-1])
    lower_bound = least_gpus(offered, target)
    tree = SizeTree(lower_bound, _largest(max_gpus, lower_bound))
    made = _Factory(policy)
    engine = _engine(engine, offered.at(lower_bound), made, lower_bound)
    run = {"horizon": horizon, "warmup": warmup, "key": key, "engine": engine}
    trial = _Trial(offered, made, target, counts, least, confidence, run, out, progress, report)
    found = _searched(trial, tree)
    for line in found.cautions:
        warnings.warn(line, StatisticsWarning, stacklevel=2)
    return found


def _searched(trial: _Trial, tree: SizeTree) -> Sizing:
    """Both borders of what was decided, and all that was tested on the way."""
    refuted, _ = tree.border(lambda n, depth: trial.test(n, depth).verdict == "too few")
    _, enough = tree.border(lambda n, depth: trial.test(n, depth).verdict != "suffices")
    tested = tuple(trial.tested[n] for n in sorted(trial.tested))
    offered, smallest = trial.offered, trial.offered.at(tree.first)
    policy = trial.made(smallest)
    return Sizing(
        instance=offered.instance,
        policy_name=policy.name,
        load=offered.load,
        target=trial.target,
        confidence=trial.confidence,
        max_gpus=tree.most,
        lower_bound=tree.first,
        fewest=refuted + 1,
        most=enough,
        tested=tested,
        best_possible=_curve(offered, trial.target, tree.first, tested[-1].n_gpus),
        engine_description=trial.run["engine"].describe(smallest, policy, tree.first),
        cautions=tuple(trial.cautions()),
    )


@dataclass(frozen=True, eq=False)
class Offered:
    """A total load: what arrives in all, whatever the number of GPUs.

    - `instance`: everything but arrivals.
    - `load`: requests per second of each class.
    """

    instance: Instance
    load: np.ndarray

    def at(self, n_gpus: int) -> Instance:
        """The instance of so many GPUs."""
        workload = replace(self.instance.workload, arrival_rate=self.load / n_gpus)
        return replace(self.instance, workload=workload)


def checked_load(instance: Instance, load: Load, field: str = "load") -> np.ndarray:
    """Rates of each class, from numbers in their order or by name.

    **Raises:** `InputError`, naming `field`.
    """
    names = instance.workload.names
    wanted = f"{len(names)} rates in requests per second ({', '.join(names)})"
    if isinstance(load, Mapping):
        unknown = [name for name in load if name not in names]
        if unknown:
            raise InputError(f"{field}: no class {unknown[0]!r}; expected {wanted}")
        missing = [name for name in names if name not in load]
        if missing:
            raise InputError(f"{field}: nothing for class {missing[0]!r}; expected {wanted}")
        load = [load[name] for name in names]
    rates = class_vector(load, field)
    if rates.shape != (len(names),):
        raise InputError(f"{field}: expected {wanted}, got {rates.size}")
    for name, rate in zip(names, rates, strict=True):
        if not (np.isfinite(rate) and rate > 0):
            raise InputError(f"{field}: expected a positive finite rate of class {name!r}, got {rate:g}")
    return rates


def least_gpus(offered: Offered, target: AbstractTarget) -> int:
    """The smallest number of GPUs at which the planning LP leaves the target possible.

    What the LP allows grows with n, since n GPUs can do whatever fewer can.
    """
    high = 1
    while not target.within_reach(offered.at(high)):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if target.within_reach(offered.at(middle)) else (middle, high)
    return high


@dataclass(frozen=True)
class SizeTree:
    """Sizes from `first` to `most` as a search tree: growing steps, and bisection between them.

    The first step is the square root of `first`, the scale of what a cluster needs beyond its load; the
    others double.

    The depth of a size does not hang on what is asked of it.
    """

    first: int
    most: int

    @property
    def steps(self) -> list[int]:
        """The sizes of the growing steps."""
        sizes, step = [self.first], max(1, math.isqrt(self.first))
        while sizes[-1] < self.most:
            sizes.append(min(self.most, sizes[-1] + step))
            step *= 2
        return sizes

    def border(self, below: Callable[[int, int], bool]) -> tuple[int, int | None]:
        """The largest size that is `below` and the smallest that is not, neighbours; `first` - 1 where none
        is below, None where all are.

        `below` is called with a size and its depth, from 1 on.
        """
        low, depth = self.first - 1, 0
        for high in self.steps:
            depth += 1
            if not below(high, depth):
                break
            low = high
        else:
            return low, None
        while high - low > 1:
            depth, middle = depth + 1, (low + high) // 2
            low, high = (middle, high) if below(middle, depth) else (low, middle)
        return low, high


@dataclass(frozen=True)
class _Factory:
    """Makes the policy of an instance."""

    policy: str | Factory

    def __call__(self, instance: Instance) -> Policy:
        if isinstance(self.policy, str):
            return load_policy(self.policy, instance)
        made = self.policy(instance)
        if not isinstance(made, Policy):
            raise InputError(
                f"policy: expected a name, or a function of an instance that returns a jaxq.policies.Policy; "
                f"got one that returned {type(made).__name__}"
            )
        return made


@dataclass(eq=False)
class _Trial:
    """Tests sizes by simulation, each once.

    - `counts`: replications of each look; `least`: those without which no size is decided.
    - `run`: arguments of `simulate` that all sizes share.
    - `tested`, `values`: by size, the last look, and what was measured of each replication.
    """

    offered: Offered
    made: _Factory
    target: AbstractTarget
    counts: tuple[int, ...]
    least: int
    confidence: float
    run: dict[str, Any]
    out: str | os.PathLike[str] | None
    progress: Callable[[int, int, int], None] | None
    report: Callable[[Tested], None] | None
    tested: dict[int, Tested] = field(default_factory=dict)
    values: dict[int, Samples] = field(default_factory=dict)

    def test(self, n_gpus: int, depth: int) -> Tested:
        """The last look at a size that stands at a depth of the search."""
        if n_gpus not in self.tested:
            level = (1 - self.confidence) / (depth * (depth + 1) * len(self.counts))
            instance = self.offered.at(n_gpus)
            policy, best = self.made(instance), self.target.best(instance)
            for count in self.counts:
                cautions = self._simulate(instance, policy, n_gpus, count)
                verdict, estimate, bounds = judged(self.target, self.values[n_gpus], level)
                verdict = "undecided" if count < self.least else verdict
                found = Tested(n_gpus, count, verdict, estimate, bounds, level, best, cautions)
                self.tested[n_gpus] = found
                if self.report is not None:
                    self.report(found)
                if verdict != "undecided":
                    break
        return self.tested[n_gpus]

    def _simulate(self, instance: Instance, policy: Policy, n_gpus: int, count: int) -> tuple[str, ...]:
        """Bring `values` to so many replications; what makes the new ones doubtful."""
        before = None if self.out is not None else self.values.get(n_gpus)
        done = 0 if before is None else len(before)
        progress = None if self.progress is None else functools.partial(self.progress, n_gpus)
        folder = None if self.out is None else Path(self.out) / f"n{n_gpus}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", StatisticsWarning)
            result = simulate(
                instance,
                policy,
                n_gpus=n_gpus,
                replications=count - done,
                first=done,
                progress=progress,
                out=folder,
                **self.run,
            )
        new = self.target.samples(result)
        self.values[n_gpus] = new if before is None else np.concatenate([before, new])
        return tuple(result.cautions())

    def cautions(self) -> list[str]:
        """What makes intervals doubtful, and sizes that did worse than smaller ones."""
        sizes = sorted(self.tested)
        doubtful = [f"n = {n}: {line}" for n in sizes for line in self.tested[n].cautions]
        pairs = list(itertools.pairwise(sizes))
        sign = 1.0 if self.target.at_least else -1.0
        for fewer, more in pairs:
            both = min(len(self.values[fewer]), len(self.values[more]))
            gain = Estimate.from_samples(sign * (self.values[more][:both] - self.values[fewer][:both]))
            most = gain.mean + _one_sided(gain, FALSE_ALARM / (len(pairs) * gain.mean.size))
            if (most < 0).any():
                doubtful.append(
                    f"n = {more} did worse than n = {fewer} (by {-100 * float(gain.mean.min()):.2g} % of the "
                    "load): the answer takes for granted that more GPUs do no worse"
                )
        return doubtful


def judged(
    target: AbstractTarget, values: Samples, level: float
) -> tuple[Verdict, Estimate, tuple[Average, Average]]:
    """What samples of the measured share say, each of the two possible errors having probability `level` at
    most; with the estimate and its one-sided bounds.

    Where each class has the limit, all must keep it, and one that does not is enough: the error of the latter
    is shared among them.
    """
    estimate = Estimate.from_samples(values)
    width = _one_sided(estimate, level / estimate.mean.size)
    low, high = np.asarray(estimate.mean - width), np.asarray(estimate.mean + width)
    keeps, breaks = low >= target.share, high < target.share
    if not target.at_least:
        keeps, breaks = high <= target.share, low > target.share
    verdict = "suffices" if keeps.all() else "too few" if breaks.any() else "undecided"
    return verdict, estimate, (low, high)


def _one_sided(estimate: Estimate, level: float) -> Average:
    """How far a mean is above (or below) the truth with probability `level` at most."""
    return np.asarray(student_quantile(estimate.count - 1, 1 - 2 * level) * estimate.standard_error)


def _counts(replications: Any, max_replications: Any) -> tuple[int, ...]:
    """Replications of each look: doubled, and at last `max_replications`."""
    first = checked_whole("replications", replications, FEWEST_REPLICATIONS)
    most = checked_whole("max_replications", max_replications, first)
    doubled = itertools.takewhile(lambda count: count < most, (first << k for k in itertools.count()))
    return (*doubled, most)


def _least_replications(target: AbstractTarget, load: np.ndarray, seconds: float, most: int) -> int:
    """Replications without which so few requests would be lost that no size is decided.

    **Raises:** `InputError` when it is more than `most`.
    """
    least = math.ceil(FEWEST_LOSSES / (target.lost_rate(load) * seconds))
    if least > most:
        raise InputError(
            f"max_replications: expected at least {least}, got {most}: with so few requests lost no size "
            "can be decided; or raise horizon"
        )
    return least


def _largest(max_gpus: Any, lower_bound: int) -> int:
    """The largest size that is tried. **Raises:** `InputError` when it is below the lower bound."""
    if max_gpus is None:
        return MOST_TIMES * lower_bound + 16
    largest = checked_whole("max_gpus", max_gpus, 1)
    if largest < lower_bound:
        raise InputError(
            f"max_gpus: expected at least {lower_bound}, since no policy reaches the target with fewer; got "
            f"{largest}"
        )
    return largest


def _engine(engine: Engine | None, instance: Instance, made: _Factory, n_gpus: int) -> Engine:
    """An engine with chance: when none is given the exact chain, or short time steps for large clusters."""
    if engine is not None:
        if engine.is_fluid:
            raise InputError("engine: expected one with chance; the limit of many GPUs has no size")
        return engine
    exact = ClusterEngine(Exact())
    if n_gpus <= EXACT_UP_TO:
        return exact
    step = Leap().step_of(instance, exact.events_per_step(made(instance)))
    return ClusterEngine(Leap(step / FINENESS))


def _curve(offered: Offered, target: AbstractTarget, first: int, last: int) -> tuple[tuple[int, float], ...]:
    """The best possible share from somewhat below the lower bound to the largest size."""
    start = max(1, first - max(1, (last - first) // 4))
    sizes = sorted({round(n) for n in np.linspace(start, last, CURVE_POINTS)})
    return tuple((n, target.best(offered.at(n))) for n in sizes)
