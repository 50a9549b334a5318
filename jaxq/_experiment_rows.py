"""What the studies of `experiments` share: one simulation of several, and how its numbers are shown."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from matplotlib.axes import Axes

from ._figures import STAGES, interval_bars
from ._instance import Instance
from ._policy.base import Policy
from ._pricing import SCHEMES
from ._progress import ProgressBars
from ._result import QUANTITIES, Result
from ._service_level.levels import INDICATORS
from ._simulate import StatisticsWarning, simulate
from ._statistics import Estimate
from ._sweep import sweep

CLAIMS = {
    ("gate_and_route", "bundled"): "asymptotically optimal (section 4.1)",
    ("prioritize_and_route", "separate"): "asymptotically optimal (section 4.2)",
    ("sli_gate_and_route", "bundled"): "asymptotically optimal under its SLIs (section 5)",
}
"""What [Lin26] claims of a policy under a scheme."""

MONEY = "money/s per GPU"
"""The unit of revenue."""

STAGE_NAMES = tuple(name for name, _, _ in STAGES)
"""Those of `QUANTITIES` that count requests by class."""

MEASURED = ("revenue_bundled", "revenue_separate", *STAGE_NAMES)
"""Those that a row tells when nothing else is asked for."""


def measured(bars: ProgressBars, label: str, instance: Instance, policy: Policy, **arguments: Any) -> Result:
    """One simulation of several: `simulate` with these arguments, as a piece of the progress.

    What is doubtful about its intervals stands in `Result.cautions`; every other warning is told beside the
    progress.
    """
    report = bars.start(label)
    with bars.warnings_as_notes(unless=StatisticsWarning):
        result = simulate(instance, policy, progress=report, **arguments)
    gap = result.gap()
    bars.finish(f"{label}: gap {100 * gap.mean:.3f} ± {100 * gap.half_width:.3f} %, {result.seconds:.1f} s")
    return result


class SweepEffort(Protocol):
    """How much a sweep simulates, with the names of `simulate`."""

    @property
    def n_gpus(self) -> int: ...
    @property
    def replications(self) -> int: ...
    @property
    def horizon(self) -> float: ...
    @property
    def warmup(self) -> float: ...


def swept(
    bars: ProgressBars,
    label: str,
    instance: Instance,
    points: Mapping[str, Sequence[float]] | Sequence[dict[str, float]],
    policies: Sequence[str],
    effort: Any,
    seed: int,
    kept: Path,
) -> dict[str, Any]:
    """Policies over variations of an instance, as a piece of the progress.

    **Arguments:** `effort`: a `SweepEffort`; `kept`: a folder of its own.

    **Returns:** for a summary: the bound of each point, and by policy the revenue and the gap of each.
    """
    count: SweepEffort = effort
    with bars.warnings_as_notes():
        found = sweep(
            instance,
            points,
            policies,
            [count.n_gpus],
            horizon=count.horizon,
            warmup=count.warmup,
            replications=count.replications,
            key=seed,
            progress=bars.start(label),
            out=kept,
        )
    bars.finish(f"{label}: {len(found.points)} points, {len(policies)} policies")
    results = {
        policy: [found.results[k, policy, count.n_gpus] for k in range(len(found.points))]
        for policy in policies
    }
    return {
        "bound": [float(result.bound()) for result in results[policies[0]]],
        "revenue": {name: [result.revenue.to_dict() for result in row] for name, row in results.items()},
        "gap": {name: [result.gap().to_dict() for result in row] for name, row in results.items()},
    }


@dataclass(frozen=True)
class SizesEffort:
    """How much a study by size simulates.

    - `sizes`: clusters as (GPUs, replications), smallest first.
    - `horizon`, `warmup`: simulated seconds, and how many of them are discarded.
    """

    sizes: tuple[tuple[int, int], ...]
    horizon: float
    warmup: float

    def measure(
        self, bars: ProgressBars, instance: Instance, policy: Policy, seed: int, kept: Path
    ) -> Iterator[Result]:
        """A policy at each size, kept in a folder of `kept`; paired by replication with others of the same
        seed."""
        for n_gpus, replications in self.sizes:
            yield measured(
                bars,
                f"{policy.name}, n = {n_gpus}",
                instance,
                policy,
                n_gpus=n_gpus,
                horizon=self.horizon,
                warmup=self.warmup,
                replications=replications,
                key=seed,
                out=kept / f"{policy.name}_n{n_gpus}",
            )


def result_row(result: Result, quantities: Sequence[str] = MEASURED) -> dict[str, Any]:
    """What a summary keeps of a simulation: its gaps, some of `QUANTITIES`, and `totals` over classes."""
    averages = [name for name in quantities if name in STAGE_NAMES]
    return {
        "policy": result.policy_name,
        "gpus": result.n_gpus,
        "replications": result.replications,
        **{f"gap_{scheme}": result.gap(scheme=scheme).to_dict() for scheme in SCHEMES},
        **{name: result.estimate(name).to_dict() for name in quantities},
        "totals": {name: total(result, name).to_dict() for name in averages},
        "cautions": result.cautions(),
        "engine_description": result.engine_description,
        "seconds": result.seconds,
    }


def sizes_of(summary: Mapping[str, Any]) -> list[int]:
    """The numbers of GPUs of a study by size, smallest first."""
    return [size for size, _ in summary["effort"]["sizes"]]


def rows_of(summary: Mapping[str, Any], policy: str) -> list[dict[str, Any]]:
    """Its rows of a policy, by size."""
    return [row for row in summary["rows"] if row["policy"] == policy]


def total(result: Result, name: str) -> Estimate:
    """The sum over classes of one of `STAGE_NAMES`."""
    return Estimate.from_samples(result.samples(name).sum(axis=-1))


def indicators(result: Result) -> dict[str, Any]:
    """Each service level indicator as it was simulated, for a summary: see `Result.service_levels`."""
    levels = result.service_levels()
    return {name: levels[name].measured.to_dict() for name in INDICATORS}


def scaled(estimate: Mapping[str, Any], factor: float) -> dict[str, Any]:
    """An estimate of a summary in another unit: mean and 95 % interval times a positive factor."""
    return {
        "mean": _each(estimate["mean"], lambda value: factor * value),
        "ci95": [_each(end, lambda value: factor * value) for end in estimate["ci95"]],
    }


def with_interval(estimate: Mapping[str, Any], digits: int = 2) -> str:
    """An estimate of a summary as mean ± half the width of its 95 % interval."""
    low, high = estimate["ci95"]
    return f"{estimate['mean']:.{digits}f} ± {(high - low) / 2:.{digits}f}"


def estimate_variables(
    name: str, dimensions: Sequence[str], estimates: Any, units: str = "", about: str = ""
) -> dict[str, Any]:
    """Estimates of a summary as variables of a data set: `name`, and the ends of its 95 % interval.

    **Arguments:** `estimates`: in lists within lists, one level a dimension; the last dimension may be that
    within each estimate. `units`, `about`: those of `QUANTITIES` when left out.
    """
    known = QUANTITIES.get(name)
    attributes = {
        "units": known.unit if known is not None and not units else units,
        "long_name": known.description if known is not None and not about else about,
    }
    ends: dict[str, Callable[[Any], Any]] = {
        name: lambda estimate: estimate["mean"],
        f"{name}_low": lambda estimate: estimate["ci95"][0],
        f"{name}_high": lambda estimate: estimate["ci95"][1],
    }
    return {
        end: (tuple(dimensions), np.asarray(_each(estimates, pick), np.float64), attributes)
        for end, pick in ends.items()
    }


def _each(nested: Any, pick: Callable[[Any], Any]) -> Any:
    """`pick` of every item in lists within lists."""
    return [_each(item, pick) for item in nested] if isinstance(nested, list) else pick(nested)


def draw_points(axes: Axes, across: Sequence[Any], up: Sequence[Any], **style: Any) -> None:
    """Points whose coordinates are numbers or estimates of a summary, which have their 95 % intervals."""
    (x, x_bars), (y, y_bars) = _with_bars(across), _with_bars(up)
    looks: dict[str, Any] = {"markersize": 4.5, "linewidth": 1.1, "capsize": 2.5} | style
    axes.errorbar(x, y, xerr=x_bars, yerr=y_bars, **looks)


def _with_bars(values: Sequence[Any]) -> tuple[list[float], np.ndarray | None]:
    """Means and error bars; none for numbers."""
    if values and isinstance(values[0], Mapping):
        return [value["mean"] for value in values], interval_bars(values)
    return [float(value) for value in values], None
