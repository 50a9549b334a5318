"""What a simulation found: revenues, occupancies, rates and waiting times, each with its interval."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float64

from ._engine.record import Record
from ._errors import InputError
from ._instance import Instance
from ._plan import Plan, solve_plan, upper_bound
from ._pricing import SCHEMES
from ._service_level.measured import MeasuredLevel, measured_levels
from ._service_level.token_time import emission, slot_time
from ._statistics import (
    BatchMeans,
    Estimate,
    WarmupCheck,
    batch_means,
    ratio_estimate,
    warmup_check,
)
from ._store.stored_record import StoredRecord
from ._versions import versions as current_versions

if TYPE_CHECKING:
    import xarray

BATCHES = 20
"""Batches that one long replication is cut into."""

FEWEST_BATCHES = 8
FEWEST_WINDOWS = 8
FEWEST_WINDOWS_ALONE = 32
"""Windows after the warm-up that its check needs: with several replications, and with one."""

WATCHED = 4096
"""Replications that the check of the warm-up looks at, from the first on: enough, and few enough to keep."""

FALSE_ALARM = 1e-3
"""How often a warm-up that was long enough is called too short, at most."""


class Quantity(NamedTuple):
    """A reported quantity: what it is, its unit, and whether there is one number a class."""

    description: str
    unit: str
    per_class: bool


QUANTITIES: dict[str, Quantity] = {
    "revenue_bundled": Quantity("bundled revenue (eq. 22)", "money/s per GPU", False),
    "revenue_separate": Quantity("separate revenue (eq. 23)", "money/s per GPU", False),
    "prefills": Quantity("running prefills, X", "1 per GPU", True),
    "decodes_mixed": Quantity("decodes beside a prefill, Y_m", "1 per GPU", True),
    "decodes_solo": Quantity("decodes without a prefill beside them, Y_s", "1 per GPU", True),
    "prefill_queue": Quantity("requests waiting for prefill, Q_p", "1 per GPU", True),
    "decode_queue": Quantity("requests waiting for a decode slot, Q_d", "1 per GPU", True),
    "arrival_rate": Quantity("arrivals", "1/s per GPU", True),
    "abandonment_rate_prefill": Quantity("abandonments before prefill", "1/s per GPU", True),
    "prefill_rate": Quantity("completed prefills", "1/s per GPU", True),
    "abandonment_rate_decode": Quantity("abandonments after prefill", "1/s per GPU", True),
    "completion_rate": Quantity("completed requests", "1/s per GPU", True),
    "slot_utilisation": Quantity("share of the batch slots in use", "1", False),
    "prefill_utilisation": Quantity("share of the GPUs that run a prefill", "1", False),
    "time_per_token_slot": Quantity("mean time per token over occupied slots (eq. 47)", "s", False),
    "time_per_token_emitted": Quantity("mean time per token over emitted tokens", "s", False),
    "waiting_time_prefill": Quantity("mean wait for prefill, of all that arrive", "s", True),
    "waiting_time_decode": Quantity("mean wait for a decode slot, of all that prefilled", "s", True),
}
"""Everything a `Result` reports with an interval, by the name of its property."""

RATIOS = (
    "time_per_token_slot",
    "time_per_token_emitted",
    "waiting_time_prefill",
    "waiting_time_decode",
)
"""Those of `QUANTITIES` that are ratios of two averages; the others are averages over time."""

STILL = 1e-3
"""Relative change of the revenue after the warm-up above which a path in the fluid limit still moves."""

_SOURCES = {
    "prefills": "prefills",
    "decodes_mixed": "decodes_mixed",
    "decodes_solo": "decodes_solo",
    "prefill_queue": "prefill_queue",
    "decode_queue": "decode_queue",
    "arrival_rate": "arrivals",
    "abandonment_rate_prefill": "abandoned_prefill",
    "prefill_rate": "prefills_completed",
    "abandonment_rate_decode": "abandoned_decode",
    "completion_rate": "completions",
}
"""Quantities that are one array of the record over n and time."""

Averages = Float64[np.ndarray, "samples *classes"]


class _Kept(NamedTuple):
    """What is needed of every replication of a record.

    - `averages`: by name of those of `QUANTITIES` that are averages, one row a replication.
    - `watched`: the series of `Result.warmup_checks`, by window and (of the first `WATCHED`) replication.
    - `events`: of all replications together.
    """

    averages: dict[str, Averages]
    watched: dict[str, Float64[np.ndarray, "windows replications"]]
    events: float


@dataclass(frozen=True, eq=False)
class Result:
    """What `simulate` found, for one policy on one cluster.

    Every reported quantity is a property that gives an `Estimate` of its long-run value from the windows
    after the warm-up: over replications, or over batches of time when there is a single replication. Counts
    and occupancies are **per GPU**; those of requests have one number a class. `QUANTITIES` lists them with
    units.

    - `instance`, `policy_name`: what was simulated.
    - `record`: events and time integrals, by window, class and replication; in memory, or in the files of a
      run that was kept, of which one at a time is read.
    - `horizon`, `warmup`: simulated seconds from the empty start, and how many of them were discarded; a
      horizon of infinity stands for the steady state of the fluid limit.
    - `key`: the random key, as its generator's name and its words in hexadecimal; empty in the fluid limit.
    - `first`: number of the first replication; the others follow.
    - `engine_description`: one line on how it was simulated.
    - `seconds`: wall-clock time that it took, compilation included.
    - `stopped_because`: `"replications"` (all that were asked for are done), `"precision"`,
      `"max_replications"` or `"time_limit"`; `"interrupted"` when it was read from a folder that holds fewer
      replications than were asked for.
    - `versions`: of jaxq and what its numbers depend on.
    """

    instance: Instance
    policy_name: str
    record: Record | StoredRecord
    horizon: float
    warmup: float
    key: str
    engine_description: str
    seconds: float
    first: int = 0
    stopped_because: str = "replications"
    versions: dict[str, str] = field(default_factory=current_versions)

    # What was run.

    @property
    def n_gpus(self) -> int | None:
        """GPUs in the cluster, n; None in the fluid limit."""
        return self.record.n_gpus

    @property
    def replications(self) -> int:
        """Independent replications."""
        return self.record.replications

    @property
    def dt(self) -> float | None:
        """Time step, s; None for the exact chain."""
        return self.record.dt

    @property
    def seed(self) -> int | None:
        """The whole number that gives the same key, as `simulate(..., key=seed)`; None if there is none."""
        words = self.key.split(":")
        return int(words[2], 16) if words[:2] == ["threefry2x32", "00000000"] and len(words) == 3 else None

    # Revenue.

    @property
    def revenue(self) -> Estimate:
        """The revenue of the instance's own scheme, money per GPU and second."""
        return self.estimate(f"revenue_{self.instance.pricing.scheme}")

    @property
    def revenue_bundled(self) -> Estimate:
        """Bundled revenue, money per GPU and second: a completed request pays w_i ([Lin26] eq. 22)."""
        return self.estimate("revenue_bundled")

    @property
    def revenue_separate(self) -> Estimate:
        """Separate revenue, money per GPU and second: a finished prefill pays, and so does a finished decode
        ([Lin26] eq. 23)."""
        return self.estimate("revenue_separate")

    def bound(self, scheme: str | None = None) -> float:
        """R*, the most that any policy can earn in the long run, money per GPU and second: see `upper_bound`.

        With every patience_rate positive it is `solve_plan(instance, scheme).revenue`. Solved once a scheme.

        **Arguments:** `scheme`: `"bundled"` or `"separate"`; the instance's own when None.

        **Raises:** `InputError` for an unknown scheme.
        """
        scheme = self._checked_scheme(scheme)
        if scheme not in self._bounds:
            self._bounds[scheme] = upper_bound(self.instance, scheme)
        return self._bounds[scheme]

    def gap(self, plan: Plan | None = None, scheme: str | None = None) -> Estimate:
        """How far the revenue stays below the best possible, 1 - R/R*, both of the same scheme.

        Never negative beyond statistical error, short of what a warm-up leaves in the system (of the order of
        the work in the system over n T).

        **Arguments:**

        - `plan`: gives R* (`plan.revenue`) and the scheme; computed when None.
        - `scheme`: `"bundled"` or `"separate"`; the plan's, else the instance's own, when None.

        **Raises:** `InputError` when the plan is of another scheme, or has no revenue.
        """
        if plan is None:
            scheme = self._checked_scheme(scheme)
            return self.estimate(f"revenue_{scheme}").affine(-1 / self.bound(scheme), 1.0)
        return self._gap_to(plan, float(plan.revenue), scheme)

    def gap_to_plan(self, plan: Plan | None = None) -> Estimate:
        """1 - R / `plan.plan_revenue` in the plan's scheme; negative where a policy beats a constrained plan.

        **Arguments:** `plan`: the instance's own, under its service levels, when None.

        **Raises:** `InputError` when the plan has no revenue; `PlanError` when there is no plan.
        """
        plan = self._plan if plan is None else plan
        return self._gap_to(plan, float(plan.plan_revenue), plan.scheme)

    def service_levels(self, plan: Plan | None = None) -> dict[str, MeasuredLevel]:
        """The service levels of a plan and what the policy keeps of them, by name.

        - `"prefill_fairness"`, `"decode_fairness"`: the largest difference between two classes' long-run
          averages, max (x_i - x_j) and max (y_s,i - y_s,j). Small differences are overestimated, which the
          intervals allow for.
        - `"time_per_output_token"`: eq. 47 over all slots, as the plan limits it, at the measured share of
          GPUs that run a prefill; `"time_per_token_slot"` and `"time_per_token_emitted"`: the properties of
          those names, over the decodes that there are.
        - every further limit, by its name.

        **Arguments:** `plan`: whose levels; the instance's own, of its scheme, when None. A policy may follow
        another one: `sli_gate_and_route` follows the bundled plan under the instance's service levels.

        **Raises:** `PlanError` when there is no plan.
        """
        plan = self._plan if plan is None else plan
        found = measured_levels(self.instance, plan, self._samples)
        if not self.record.is_fluid:
            return found
        return {
            name: replace(level, measured=Estimate.exact(level.measured.mean))
            for name, level in found.items()
        }

    # Occupancies, per GPU, one number a class.

    @property
    def prefills(self) -> Estimate:
        """Running prefills of each class per GPU, X_i / n."""
        return self.estimate("prefills")

    @property
    def decodes_mixed(self) -> Estimate:
        """Decodes of each class on GPUs that run a prefill, per GPU, Y_m,i / n."""
        return self.estimate("decodes_mixed")

    @property
    def decodes_solo(self) -> Estimate:
        """Decodes of each class on GPUs that run no prefill, per GPU, Y_s,i / n."""
        return self.estimate("decodes_solo")

    @property
    def prefill_queue(self) -> Estimate:
        """Requests of each class that wait for prefill, per GPU, Q_p,i / n."""
        return self.estimate("prefill_queue")

    @property
    def decode_queue(self) -> Estimate:
        """Requests of each class that wait for a decode slot, per GPU, Q_d,i / n."""
        return self.estimate("decode_queue")

    # Flows, per GPU and second, one number a class.

    @property
    def arrival_rate(self) -> Estimate:
        """Arrivals of each class, 1/s per GPU."""
        return self.estimate("arrival_rate")

    @property
    def abandonment_rate_prefill(self) -> Estimate:
        """Requests of each class that abandon before their prefill, 1/s per GPU."""
        return self.estimate("abandonment_rate_prefill")

    @property
    def prefill_rate(self) -> Estimate:
        """Prefills of each class that complete, 1/s per GPU."""
        return self.estimate("prefill_rate")

    @property
    def abandonment_rate_decode(self) -> Estimate:
        """Requests of each class that abandon between prefill and decode, 1/s per GPU."""
        return self.estimate("abandonment_rate_decode")

    @property
    def completion_rate(self) -> Estimate:
        """Requests of each class that complete, 1/s per GPU."""
        return self.estimate("completion_rate")

    # Utilisation and times.

    @property
    def slot_utilisation(self) -> Estimate:
        """Share of the nB batch slots that a prefill or a decode occupies."""
        return self.estimate("slot_utilisation")

    @property
    def prefill_utilisation(self) -> Estimate:
        """Share of the GPUs that run a prefill."""
        return self.estimate("prefill_utilisation")

    @property
    def time_per_token_slot(self) -> Estimate:
        """Mean time per output token over occupied decode slots, s ([Lin26] eq. 47 at measured occupancies).

        (tau Y_m + tau_solo Y_s) / (Y_m + Y_s).
        """
        return self.estimate("time_per_token_slot")

    @property
    def time_per_token_emitted(self) -> Estimate:
        """Time that an emitted token takes on average, s: (Y_m + Y_s) / (Y_m / tau + gamma Y_s)."""
        return self.estimate("time_per_token_emitted")

    @property
    def waiting_time_prefill(self) -> Estimate:
        """Mean wait for prefill of all that arrive, those included that start at once or abandon, s.

        By Little's law: the mean queue over the flow into it; NaN for a class without arrivals.
        """
        return self.estimate("waiting_time_prefill")

    @property
    def waiting_time_decode(self) -> Estimate:
        """Mean wait for a decode slot of all that complete a prefill, s, by Little's law; NaN without any."""
        return self.estimate("waiting_time_decode")

    # Averages and what is made of them.

    def estimate(self, name: str) -> Estimate:
        """The estimate of one of `QUANTITIES`; the property of that name.

        **Raises:** `InputError` for an unknown name.
        """
        if name not in QUANTITIES:
            raise InputError(f"name: expected one of {', '.join(QUANTITIES)}, got {name!r}")
        if name not in self._estimates:
            if self.record.is_fluid:
                self._estimates[name] = Estimate.exact(np.asarray(self.per_replication(name)[0]))
            elif name in RATIOS:
                self._estimates[name] = ratio_estimate(*self._ratio(name, self._samples))
            else:
                self._estimates[name] = Estimate.from_samples(self._samples(name))
        return self._estimates[name]

    def samples(self, name: str) -> Averages:
        """What an average's interval is made of: one row a replication, or a batch of a single replication.

        A single replication with fewer than 8 windows is one sample.

        **Returns:** shape `(samples,)` or `(samples, classes)`, in the unit of `QUANTITIES`.

        **Raises:** `InputError` for a ratio or an unknown name.
        """
        return self._samples(self._checked_average(name))

    def per_replication(self, name: str) -> Averages:
        """Time averages after the warm-up, one row a replication; a ratio is that of its averages.

        **Returns:** shape `(replications,)` or `(replications, classes)`, in the unit of `QUANTITIES`; NaN
        for a ratio with nothing below.

        **Raises:** `InputError` for an unknown name.
        """
        if name not in QUANTITIES:
            raise InputError(f"name: expected one of {', '.join(QUANTITIES)}, got {name!r}")
        if name not in RATIOS:
            return self._average(name)
        top, bottom = self._ratio(name, self._average)
        return top / np.where(bottom == 0, np.nan, bottom)

    def series(self, name: str) -> Float64[np.ndarray, "windows replications *classes"]:
        """Averages over each window after the warm-up, in the unit of `QUANTITIES`.

        **Raises:** `InputError` for a ratio or an unknown name.
        """
        name, seconds = self._checked_average(name), self.record.measured_durations
        parts = [self._totals(name, part) for part in self.record.parts()]
        return np.concatenate([totals / _column(seconds, totals.ndim) for totals in parts], axis=1)

    def _checked_average(self, name: str) -> str:
        averages = [known for known in QUANTITIES if known not in RATIOS]
        if name not in averages:
            raise InputError(f"name: expected one of {', '.join(averages)}, got {name!r}")
        return name

    def _totals(self, name: str, record: Record) -> Float64[np.ndarray, "windows replications *classes"]:
        """Integral over each window after the warm-up of an average, per GPU, in a part of the record."""
        totals = functools.partial(self._totals, record=record)
        if name in _SOURCES:
            return np.moveaxis(record.measured(_SOURCES[name]), 1, 2) / (self.n_gpus or 1)
        prefills = _over_classes(totals("prefills"))
        if name == "prefill_utilisation":
            return prefills
        if name == "slot_utilisation":
            decodes = totals("decodes_mixed") + totals("decodes_solo")
            return (prefills + _over_classes(decodes)) / float(self.instance.batch_size)
        completions = totals("completion_rate")
        if name == "revenue_bundled":
            return _over_classes(completions, self.instance.request_value)
        paid = _over_classes(totals("prefill_rate"), self.instance.prefill_value)
        return paid + _over_classes(completions, self.instance.decode_value)

    def _average(self, name: str) -> Averages:
        return self._kept.averages[name]

    @functools.cached_property
    def _kept(self) -> _Kept:
        """What is needed of every replication, collected in one pass over the record."""
        seconds = self.record.measured_durations
        averages = {name: [] for name in QUANTITIES if name not in RATIOS}
        watched = {name: [] for name in ("revenue", "in service", "waiting")}
        events, seen = 0.0, 0
        for part in self.record.parts():
            for name, found in averages.items():
                found.append(_in_order(self._totals(name, part)) / seconds.sum())
            for name, series in self._watched(part).items() if seen < WATCHED else ():
                watched[name].append(series[:, : WATCHED - seen])
            seen += part.replications
            events += float(part.events.sum())
        return _Kept(
            {name: np.concatenate(found) for name, found in averages.items()},
            {name: np.concatenate(found, axis=1) for name, found in watched.items()},
            events,
        )

    def _watched(self, part: Record) -> dict[str, Float64[np.ndarray, "windows replications"]]:
        """The series of `warmup_checks` in a part of the record."""

        def series(name: str) -> np.ndarray:
            totals = self._totals(name, part)
            return totals / _column(part.measured_durations, totals.ndim)

        return {
            "revenue": series(f"revenue_{self.instance.pricing.scheme}"),
            "in service": series("slot_utilisation"),
            "waiting": _over_classes(series("prefill_queue") + series("decode_queue")),
        }

    def _samples(self, name: str) -> Averages:
        windows = len(self.record.measured_durations)
        if self.replications > 1 or windows < FEWEST_BATCHES:
            return self._average(name)
        count = min(BATCHES, windows)
        length = windows // count
        start = windows - count * length
        totals = self._totals(name, self.record.load())[start:, 0]
        sums = totals.reshape(count, length, *totals.shape[1:]).sum(axis=1)
        seconds = self.record.measured_durations[start:].reshape(count, length).sum(axis=1)
        return sums / _column(seconds, sums.ndim)

    def _ratio(self, name: str, average: Any) -> tuple[Averages, Averages]:
        """Numerator and denominator of one of `RATIOS`, from the averages that `average` gives by name."""
        if name == "waiting_time_prefill":
            return average("prefill_queue"), average("arrival_rate")
        if name == "waiting_time_decode":
            return average("decode_queue"), average("prefill_rate")
        mixed, solo = _over_classes(average("decodes_mixed")), _over_classes(average("decodes_solo"))
        time = slot_time if name == "time_per_token_slot" else emission
        return time(self.instance, mixed, solo)

    def _checked_scheme(self, scheme: str | None) -> str:
        scheme = self.instance.pricing.scheme if scheme is None else scheme
        if scheme not in SCHEMES:
            raise InputError(f"scheme: expected one of {', '.join(SCHEMES)}, got {scheme!r}")
        return scheme

    def _gap_to(self, plan: Plan, revenue: float, scheme: str | None) -> Estimate:
        if scheme not in (None, plan.scheme):
            raise InputError(f"scheme: expected {plan.scheme!r}, the plan's, or a plan for {scheme!r}")
        if not (np.isfinite(revenue) and revenue > 0):
            raise InputError(f"plan.revenue: expected that of a plan made by solve_plan, got {revenue:g}")
        return self.estimate(f"revenue_{plan.scheme}").affine(-1 / revenue, 1.0)

    @functools.cached_property
    def _plan(self) -> Plan:
        return solve_plan(self.instance)

    @functools.cached_property
    def _bounds(self) -> dict[str, float]:
        return {}

    @functools.cached_property
    def _estimates(self) -> dict[str, Estimate]:
        return {}

    # Whether the run was long enough.

    @functools.cached_property
    def warmup_checks(self) -> dict[str, WarmupCheck]:
        """Whether the warm-up was too short, by each of three series over the windows after it.

        `"revenue"` (of the instance's scheme), `"in service"` (prefills and decodes) and `"waiting"` (both
        queues); a start that differs counts from a bias of 0.1 %, and of 1 % for those that wait. Each series
        takes a third of the false-alarm rate of 1e-3; the first 4,096 replications are enough. Empty with too
        few windows (8, or 32 for a single replication), and in the fluid limit, where nothing varies by
        chance.
        """
        fewest = FEWEST_WINDOWS if self.replications > 1 else FEWEST_WINDOWS_ALONE
        if self.record.is_fluid or len(self.record.measured_durations) < fewest:
            return {}
        watched = self._kept.watched
        return {
            name: warmup_check(series.T, FALSE_ALARM / len(watched), 1e-2 if name == "waiting" else 1e-3)
            for name, series in watched.items()
        }

    @property
    def warmup_check(self) -> WarmupCheck | None:
        """The most telling of `warmup_checks`; its `too_short` says whether any of them is. None with too few
        windows to tell."""
        name = self._telling_series()
        return None if name is None else self.warmup_checks[name]

    def _telling_series(self) -> str | None:
        checks = self.warmup_checks
        return min(checks, key=lambda name: (not checks[name].too_short, checks[name].p_value), default=None)

    @property
    def batches(self) -> BatchMeans | None:
        """The revenue's batch means and whether batches are correlated; None with several replications, few
        windows or in the fluid limit."""
        windows = len(self.record.measured_durations)
        if self.record.is_fluid or self.replications > 1 or windows < FEWEST_BATCHES:
            return None
        series = self.series(f"revenue_{self.instance.pricing.scheme}")[:, 0]
        return batch_means(series, min(BATCHES, windows))

    def cautions(self) -> list[str]:
        """What makes the intervals doubtful, one line each; empty when nothing was found."""
        lines = []
        check, batches = self.warmup_check, self.batches
        if check is not None and check.too_short:
            shift = f"the start shifts the mean by {check.bias:.3g}, p = {check.p_value:.1g}"
            wanted = f"use a warm-up above {self.warmup:g} s"
            lines.append(f"warm-up too short by the series '{self._telling_series()}' ({shift}); {wanted}")
        if batches is not None and batches.correlated:
            lines.append(
                "batches of the single replication are correlated, so that intervals are too narrow; "
                "use a longer horizon or several replications"
            )
        if self.record.is_fluid:
            revenue = self.series(f"revenue_{self.instance.pricing.scheme}")[:, 0]
            moved = abs(revenue[-1] - revenue[0])
            if moved > STILL * abs(revenue[-1]):
                lines.append(
                    f"the path still moves: the revenue changes by {moved:.3g} from the first to the last "
                    f"window; use a warm-up above {self.warmup:g} s, or a horizon of inf (the steady state)"
                )
        return lines

    # Records.

    def to_dict(self, plan: Plan | None = None) -> dict[str, Any]:
        """For JSON: what was run, every estimate, the gap of each scheme, and the checks.

        `gap` is that of the instance's scheme; lists run over `classes`. Where the instance has service
        levels, `service_levels` and `gap_to_plan` say how far the policy keeps to `plan` (the instance's own
        when None); else they are None.
        """
        check = self.warmup_check
        levels = self.instance.service_levels
        promised = levels is not None and levels.any
        return {
            "policy": self.policy_name,
            "gpus": self.n_gpus,
            "scheme": self.instance.pricing.scheme,
            "classes": list(self.instance.workload.names),
            "horizon": self.horizon,
            "warmup": self.warmup,
            "replications": self.replications,
            "first_replication": self.first,
            "seed": self.seed,
            "key": self.key,
            "engine": self.engine_description,
            "dt": self.dt,
            "stopped_because": self.stopped_because,
            "seconds": self.seconds,
            "events": self._kept.events,
            "gap": self.gap().to_dict(),
            **{f"gap_{scheme}": self.gap(scheme=scheme).to_dict() for scheme in SCHEMES},
            "bound": {scheme: self.bound(scheme) for scheme in SCHEMES},
            "gap_to_plan": self.gap_to_plan(plan).to_dict() if promised else None,
            "service_levels": {name: level.to_dict() for name, level in self.service_levels(plan).items()}
            if promised
            else None,
            **{name: self.estimate(name).to_dict() for name in QUANTITIES},
            "warmup_check": None
            if check is None
            else {
                "too_short": check.too_short,
                "series": self._telling_series(),
                "p_value": check.p_value,
                "bias": check.bias,
            },
            "cautions": self.cautions(),
            "versions": dict(self.versions),
        }

    def to_xarray(self) -> xarray.Dataset:
        """Everything as one labelled data set.

        For each of `QUANTITIES` its value in each replication (`revenue_bundled`, ...) and its estimate
        (`revenue_bundled_estimate`, over `statistic`: mean, standard_error, ci_low, ci_high); the record by
        window (`window_arrivals`, ...) and what was left at the end (`final_prefills`, ...). Dimensions are
        `replication`, `request_class` (by name), `window` and `statistic`; units stand in `attrs`.
        """
        from ._result_file import to_dataset

        return to_dataset(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to a netCDF file that `load_result` reads back to the same numbers.

        The file appears whole or not at all.

        **Raises:** `InputError` when the path cannot be written.
        """
        from ._result_file import save_result

        save_result(self, path)


def _over_classes(values: np.ndarray, weights: Any = None) -> np.ndarray:
    """Sum over the last axis in a fixed order, so that its bits do not depend on the other axes."""
    columns = [values[..., i] for i in range(values.shape[-1])]
    weighted = columns if weights is None else [w * c for w, c in zip(weights, columns, strict=True)]
    return functools.reduce(np.add, weighted)


def _in_order(values: np.ndarray) -> np.ndarray:
    """Sum over axis 0, one after another: numpy's own order depends on the shape."""
    return functools.reduce(np.add, values)


def _column(values: np.ndarray, axes: int) -> np.ndarray:
    """`values` along axis 0 of arrays with so many axes."""
    return values.reshape(-1, *(1,) * (axes - 1))
