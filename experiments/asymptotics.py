"""Large n: how fast each policy approaches its limit, and whether that limit is the best possible.

Gaps at n from 10 to 1,000,000 (every GPU while that is affordable, counts by group beyond, both where they
overlap) and in the fluid limit; gap(n) = gap(inf) + c n^(-a) fitted, with gap(inf) from the fluid limit and
free; and sample paths on the fluid and on the diffusion scale.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from jaxq import ClusterEngine, Exact, FluidEngine, Instance, Leap, PooledEngine, Result, solve_plan
from jaxq._experiment_rows import CLAIMS, draw_points, estimate_variables, measured, result_row, scaled
from jaxq._figures import WIDTH
from jaxq._policy.shipped import compared_policies
from jaxq._power_law import fit_power_law
from jaxq._pricing import SCHEMES
from jaxq._progress import ProgressBars
from jaxq._summary import size_name
from jaxq.policies import PRESETS, Policy

TITLE = "Large n: the road to the limit, and its rate"

PAPER = ""

QUANTITIES = ("abandonment_rate_prefill", "abandonment_rate_decode", "slot_utilisation")
"""What is kept of a simulation beside its gaps: where the losses are."""

CAPTIONS = {
    "gaps": "How far each policy stays below the best possible revenue, by the number of GPUs. Full symbols: "
    "every GPU is simulated; open ones: counts by group; bars on the right: the limit.",
    "paths": "One run's prefill queue of the first class in time, by the number of GPUs: per GPU, and as its "
    "distance from the plan over the square root of n.",
}

PATH_POLICY = "gate_and_route"
"""Whose sample paths are shown."""

LIMIT_PATHS = 256
"""Paths of the diffusion limit, from which its mean and its band are taken."""

AT_THE_OPTIMUM = 1e-4
"""A gap in the fluid limit below which it counts as none."""


@dataclass(frozen=True)
class Effort:
    """How much is simulated.

    - `policies`: presets; `tuned`: whether a tuned policy is added, where one ships for the instance.
    - `cluster`, `pooled`: (GPUs, replications) of each engine; `paths`: GPUs of the sample paths.
    - `path_replications`: replications from which their mean and deviation are taken; one is drawn.
    - `horizon`, `warmup`: simulated seconds, and how many of them are discarded.
    - `fineness`: what the cluster engine's own step is divided by above `exact_below` GPUs.
    - `fit_from`: the smallest n that enters a fit.
    """

    policies: tuple[str, ...]
    cluster: tuple[tuple[int, int], ...]
    pooled: tuple[tuple[int, int], ...]
    paths: tuple[int, ...]
    horizon: float
    warmup: float
    exact_below: int = 1_500
    fineness: float = 3.0
    fit_from: int = 30
    path_replications: int = 16
    tuned: bool = True

    def compared(self, instance: Instance) -> dict[str, Policy]:
        """The policies by name."""
        made = compared_policies(instance, self.policies)
        return made if self.tuned else {name: made[name] for name in self.policies}


FULL = Effort(
    tuple(PRESETS),
    cluster=((10, 1024), (30, 512), (100, 256), (300, 128), (1_000, 64), (3_000, 16)),
    pooled=((1_000, 256), (10_000, 128), (100_000, 64), (1_000_000, 32)),
    paths=(100, 10_000, 1_000_000),
    horizon=600.0,
    warmup=200.0,
)

QUICK = Effort(
    ("gate_and_route", "prioritize_and_route", "sarathi", "price_and_pack"),
    cluster=((10, 128), (30, 64), (100, 32), (300, 16), (500, 8)),
    pooled=((500, 16), (10_000, 16), (100_000, 16), (1_000_000, 16)),
    paths=(100, 10_000, 1_000_000),
    horizon=250.0,
    warmup=125.0,
    tuned=False,
)


@dataclass(frozen=True)
class Point:
    """One simulation."""

    policy: str
    engine: str
    n_gpus: int | None
    replications: int

    @property
    def label(self) -> str:
        """What the progress says."""
        return f"{self.policy}, {self.engine}, n = {size_name(self.n_gpus)}"


def points(policies: Mapping[str, Policy], effort: Effort) -> list[Point]:
    """Every simulation of the study, in its order."""
    found = []
    for name, policy in policies.items():
        found += [Point(name, "cluster", *size) for size in effort.cluster]
        if policy.partition is not None:
            found += [Point(name, "pooled", *size) for size in effort.pooled]
        found.append(Point(name, "fluid", None, 1))
    return found


def run(instance: Instance, *, quick: bool, seed: int, kept: Path, bars: ProgressBars) -> dict[str, Any]:
    """The study's summary; replications are kept in `kept` as they finish."""
    effort = QUICK if quick else FULL
    policies, rows = effort.compared(instance), []
    for point in points(policies, effort):
        result = _simulated(instance, policies[point.policy], point, effort, quick, seed, kept, bars)
        rows.append({**result_row(result, QUANTITIES), "engine": point.engine})
    return {
        "effort": asdict(effort),
        "gaps": rows,
        "fits": list(_fits(rows, effort)),
        "paths": _paths(instance, effort, seed),
        "fluctuations": list(_fluctuations(instance, policies)),
    }


def piece_count(instance: Instance, quick: bool) -> int:
    """How many simulations there are, for the progress."""
    effort = QUICK if quick else FULL
    return len(points(effort.compared(instance), effort))


def _simulated(
    instance: Instance,
    policy: Policy,
    point: Point,
    effort: Effort,
    quick: bool,
    seed: int,
    kept: Path,
    bars: ProgressBars,
) -> Result:
    out = kept / f"{point.policy}_{point.engine}_n{size_name(point.n_gpus)}"
    if point.n_gpus is None:
        # By groups where that is the limit too: quicker by far.
        level = "pooled" if quick and policy.partition is not None else "configuration"
        chosen: dict[str, Any] = {"engine": FluidEngine(level=level), "horizon": math.inf, "warmup": 0.0}
    else:
        chosen = {
            "n_gpus": point.n_gpus,
            "horizon": effort.horizon,
            "warmup": effort.warmup,
            "replications": point.replications,
            "key": seed,
            "engine": _engine(instance, policy, point, effort),
        }
    return measured(bars, point.label, instance, policy, out=out, **chosen)


def _engine(instance: Instance, policy: Policy, point: Point, effort: Effort) -> Any:
    if point.engine == "pooled":
        return PooledEngine()
    step = ClusterEngine(Leap()).step(instance, policy)
    if point.n_gpus is None or point.n_gpus < effort.exact_below or step is None:
        return ClusterEngine(Exact())
    return ClusterEngine(Leap(step / effort.fineness))


def _by_policy(rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The rows of each policy, in their order."""
    names = dict.fromkeys(row["policy"] for row in rows)
    return [[row for row in rows if row["policy"] == name] for name in names]


def _fits(rows: list[dict[str, Any]], effort: Effort) -> Iterator[dict[str, Any]]:
    """For each policy and scheme: its limit, the rate at which it is approached, and whether that is R*."""
    for own in _by_policy(rows):
        name = own[0]["policy"]
        (limit,) = [row for row in own if row["engine"] == "fluid"]
        largest = max(row["gpus"] for row in own if row["engine"] == "cluster")
        used = [
            row
            for row in own
            if (row["engine"] == "cluster" and row["gpus"] >= effort.fit_from)
            or (row["engine"] == "pooled" and row["gpus"] > largest)
        ]
        for scheme in SCHEMES:
            gaps = [row[f"gap_{scheme}"] for row in used]
            data = (
                np.array([float(row["gpus"]) for row in used]),
                np.array([gap["mean"] for gap in gaps]),
                np.array([gap["standard_error"] for gap in gaps]),
            )
            at_infinity = limit[f"gap_{scheme}"]["mean"]
            fixed, free = fit_power_law(*data, limit=at_infinity), fit_power_law(*data)
            yield {
                "policy": name,
                "scheme": scheme,
                "limit": at_infinity,
                "converges_to_the_optimum": bool(at_infinity < AT_THE_OPTIMUM),
                "fixed": None if fixed is None else fixed.to_dict(),
                "free": None if free is None else free.to_dict(),
                "claim": CLAIMS.get((name, scheme), "none"),
            }


def _paths(instance: Instance, effort: Effort, seed: int) -> list[dict[str, Any]]:
    """Queues at several sizes and in the limit, by window of time: one replication, and over all of them the
    mean and the standard deviation of the diffusion-scaled queue after the warm-up."""
    policy = PRESETS[PATH_POLICY](instance)
    q_prefill, key = solve_plan(instance, "bundled").q_prefill[:, None], jax.random.key(seed)
    times: dict[str, Any] = {"horizon": effort.horizon, "warmup": 0.0, "n_windows": 100}
    found = []
    for n_gpus in effort.paths:
        engine = ClusterEngine(Exact()) if n_gpus < effort.exact_below else PooledEngine()
        record = engine.run(
            instance,
            policy,
            n_gpus=n_gpus,
            key=key,
            replications=effort.path_replications,
            **times,
        )
        queue = record.prefill_queue / record.durations[:, None, None]
        scaled = (queue - n_gpus * q_prefill) / math.sqrt(n_gpus)
        found.append(_path(n_gpus, record.durations, queue[..., 0] / n_gpus, scaled, effort.warmup))
    engine = FluidEngine(level="pooled")
    record = engine.run(instance, policy, **times)
    queue = record.prefill_queue[..., 0] / record.durations[:, None]
    limit = engine.prefill_limit(instance, policy).queues(key, record.durations, LIMIT_PATHS)
    return [*found, _path(None, record.durations, queue, limit, effort.warmup)]


def _path(
    n_gpus: int | None, durations: np.ndarray, queue: np.ndarray, scaled: np.ndarray, warmup: float
) -> dict[str, Any]:
    """What is kept of the paths at one size, windows first: one on the fluid scale, all on the other."""
    time = np.cumsum(durations) - durations / 2
    late = scaled[time > warmup]
    return {
        "gpus": n_gpus,
        "time": time.tolist(),
        "fluid_scaled": queue.T.tolist(),
        "diffusion_scaled": scaled[..., 0].T.tolist(),
        "diffusion_mean": late.mean(axis=(0, 2)).tolist(),
        "diffusion_deviation": late.std(axis=(0, 2)).tolist(),
        "diffusion_band": np.quantile(late, [0.025, 0.975], axis=(0, 2)).T.tolist(),
    }


def _fluctuations(instance: Instance, policies: Mapping[str, Policy]) -> Iterator[dict[str, Any]]:
    """For each policy with a partition: whether its numbers fluctuate as a Gaussian process on the scale of
    the square root of n, and with what standard deviation by stage and class."""
    for name, policy in policies.items():
        if policy.partition is not None:
            found = FluidEngine(level="pooled").fluctuations(instance, policy)
            deviation = {stage: sd.tolist() for stage, sd in found.standard_deviation().items()}
            yield {
                "policy": name,
                "gaussian": found.is_gaussian,
                "asymmetry": found.asymmetry,
                "standard_deviation": deviation if found.is_gaussian else None,
            }


def table(summary: dict[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """For each policy and scheme: the limit, the rate, and what the paper claims."""
    head = ("policy", "scheme", "gap at infinity, %", "converges to R*", "rate a", "rate a, limit free",
            "limit, free, %", "[Lin26] claims")  # fmt: skip
    rows = []
    for fit in summary["fits"]:
        fixed, free = fit["fixed"], fit["free"]
        rows.append(
            (
                fit["policy"],
                fit["scheme"],
                f"{100 * fit['limit']:.4f}",
                "yes" if fit["converges_to_the_optimum"] else "no",
                "" if fixed is None else _with_width(fixed["rate"]),
                "" if free is None else _with_width(free["rate"]),
                "" if free is None else _with_width(free["limit"], 100.0),
                fit["claim"],
            )
        )
    return head, rows


def _with_width(number: dict[str, float], factor: float = 1.0) -> str:
    return f"{factor * number['value']:.2f} ± {factor * number['half_width']:.2f}"


def answer(summary: dict[str, Any]) -> str:
    """Which policies reach the optimum in the limit, and how fast."""
    reached = [fit for fit in summary["fits"] if fit["converges_to_the_optimum"]]
    if not reached:
        return "No policy earns R* in the limit of many GPUs."
    rates = [
        f"{fit['policy']} ({fit['scheme']} charging"
        + ("" if fit["fixed"] is None else f", as n^-a with a = {_with_width(fit['fixed']['rate'])}")
        + ")"
        for fit in reached
    ]
    return f"In the limit of many GPUs these earn R*: {'; '.join(rates)} (95 % intervals)."


def datasets(summary: dict[str, Any]) -> dict[str, xr.Dataset]:
    """The gaps by simulation, and the sample paths of the first class's prefill queue by size and time."""
    rows = summary["gaps"]
    columns: dict[str, Any] = {
        "policy": ("simulation", [row["policy"] for row in rows]),
        "engine": ("simulation", [row["engine"] for row in rows]),
        "gpus": ("simulation", [math.inf if row["gpus"] is None else row["gpus"] for row in rows]),
    }
    for scheme in SCHEMES:
        name = f"gap_{scheme}"
        columns |= estimate_variables(name, ["simulation"], [row[name] for row in rows], "1", "1 - R / R*")
    paths = summary["paths"]
    scales = {"fluid_scaled": "requests per GPU", "diffusion_scaled": "requests per square root of n"}
    drawn: dict[str, Any] = {
        scale: (("gpus", "class", "time"), [path[scale] for path in paths], {"units": unit})
        for scale, unit in scales.items()
    }
    for name in ("diffusion_mean", "diffusion_deviation"):
        units = {"units": scales["diffusion_scaled"], "long_name": "after the warm-up, over replications"}
        drawn[name] = (("gpus", "class"), [path[name] for path in paths], units)
    coordinates = {
        "gpus": [math.inf if path["gpus"] is None else path["gpus"] for path in paths],
        "class": [request["name"] for request in summary["instance"]["classes"]],
        "time": ("time", paths[0]["time"], {"units": "s"}),
    }
    return {"gaps": xr.Dataset(columns), "paths": xr.Dataset(drawn, coordinates)}


def draw(summary: dict[str, Any], looks: list[tuple[str, str]]) -> dict[str, Figure]:
    """Gaps against n under both schemes, and sample paths on both scales."""
    return {"gaps": _gaps_figure(summary, looks), "paths": _paths_figure(summary, looks)}


def _gaps_figure(summary: dict[str, Any], looks: list[tuple[str, str]]) -> Figure:
    figure = Figure(figsize=(WIDTH, 7.2), layout="constrained")
    panels = figure.subplots(2, 1)
    for scheme, place in zip(SCHEMES, panels, strict=True):
        for own, (colour, marker) in zip(_by_policy(summary["gaps"]), looks, strict=False):
            _draw_gaps(place, own, scheme, colour, marker)
        place.set_xscale("log")
        place.set_yscale("symlog", linthresh=1e-2)
        place.set_ylim(bottom=-1e-2)
        place.xaxis.set_major_formatter(EngFormatter(sep=""))
        place.yaxis.set_major_formatter("{x:g}")
        place.set_xlabel("GPUs in the cluster, n (right: infinity)")
        place.set_ylabel("below R*, %")
        place.set_title(f"Gap, {scheme} (95 % intervals)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def _paths_figure(summary: dict[str, Any], looks: list[tuple[str, str]]) -> Figure:
    figure = Figure(figsize=(WIDTH, 7.2), layout="constrained")
    fluid, diffusion = figure.subplots(2, 1)
    for path, (colour, _) in zip(summary["paths"], looks, strict=False):
        at_infinity = path["gpus"] is None
        style = {"color": "black" if at_infinity else colour, "linewidth": 1.1}
        label = "limit" if at_infinity else f"n = {path['gpus']:,}"
        fluid.plot(path["time"], path["fluid_scaled"][0], label=label, **style)
        late = np.array(path["time"]) > summary["effort"]["warmup"]
        time, queue = np.array(path["time"])[late], np.array(path["diffusion_scaled"][0])[late]
        diffusion.plot(time, queue, label=f"{label}, a path" if at_infinity else label, **style)
        if at_infinity:
            band = {"color": "black", "alpha": 0.12, "linewidth": 0}
            diffusion.fill_between(time, *path["diffusion_band"][0], label="limit, 95 %", **band)
            mean = path["diffusion_mean"][0]
            diffusion.axhline(mean, color="black", linestyle=":", label="limit, mean")
    fluid.set_ylabel("Q_p / n, requests per GPU")
    fluid.set_title(f"{PATH_POLICY}, first class, fluid scale")
    diffusion.set_ylabel("(Q_p - n q_p*) / sqrt(n)")
    diffusion.set_title("the same, diffusion scale")
    diffusion.set_xlabel("time, s")
    figure.legend(*diffusion.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def _draw_gaps(axes: Any, rows: list[dict[str, Any]], scheme: str, colour: str, marker: str) -> None:
    """One policy: full symbols for the cluster engine, open ones for the pooled, a bar for the limit."""
    for engine, filled in (("cluster", True), ("pooled", False)):
        own = [row for row in rows if row["engine"] == engine]
        gaps = [row[f"gap_{scheme}"] for row in own]
        if not own:
            continue
        draw_points(
            axes,
            [row["gpus"] for row in own],
            [scaled(gap, 100.0) for gap in gaps],
            color=colour,
            marker=marker,
            markerfacecolor=colour if filled else "white",
            label=own[0]["policy"] if filled else None,
        )
    (limit,) = [row for row in rows if row["engine"] == "fluid"]
    axes.plot([3e6], [100 * limit[f"gap_{scheme}"]["mean"]], marker="_", markersize=12, color=colour)
