"""Pareto frontiers: what each service level costs in revenue, by the linear program and as it is simulated.

For every indicator: the most that a plan earns under a limit on it, over all limits that bind; and the policy
of [Lin26] under some of these plans, with the indicator and the revenue that it reaches, beside policies that
know no limits.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from jaxq import Instance, PlanError, ServiceLevels, solve_plan
from jaxq._experiment_rows import (
    CLAIMS,
    MEASURED,
    draw_points,
    estimate_variables,
    indicators,
    measured,
    result_row,
    scaled,
    with_interval,
)
from jaxq._figures import WIDTH
from jaxq._plan import SAME_VALUE
from jaxq._policy.presets import plain_plan
from jaxq._policy.shipped import compared_policies
from jaxq._progress import ProgressBars
from jaxq._service_level.levels import INDICATORS
from jaxq._service_level.token_time import TokenTime
from jaxq.policies import PRESETS

TITLE = "Pareto frontiers: revenue against fairness and time per token, planned and simulated"

PAPER = "figure 8"

POLICY = "sli_gate_and_route"
"""The policy that keeps service levels."""

OTHERS = ("price_and_pack",)
"""Policies that know none; a tuned policy is added where one ships for the instance."""

TEXTS = {
    "prefill_fairness": ("Prefill fairness", "largest difference between classes' prefills per GPU", 1.0),
    "decode_fairness": ("Decode fairness", "largest difference between classes' solo decodes per GPU", 1.0),
    "time_per_output_token": (
        "Time per output token",
        "mean time per output token over all slots, ms",
        1000.0,
    ),
}
"""Of each indicator: a title, what an axis says, and the axis' unit in that of `INDICATORS`."""

TIMES = ("time_per_token_slot", "time_per_token_emitted")
"""Other means of the time per output token: over occupied slots, and over emitted tokens."""

NO_SPREAD = 1e-9
"""An indicator of the plain plan below this cannot be limited further."""


@dataclass(frozen=True)
class Effort:
    """How much is computed.

    - `limits`: of each indicator's frontier, evenly spread.
    - `fractions`: where limits are simulated, between the tightest (0) and the one that no longer binds (1).
    - `n_gpus`, `replications`, `horizon`, `warmup`: of each simulation; times in s.
    """

    limits: int
    fractions: tuple[float, ...]
    n_gpus: int
    replications: int
    horizon: float
    warmup: float


FULL = Effort(81, (0.2, 0.4, 0.6, 0.8, 1.0), n_gpus=500, replications=64, horizon=600.0, warmup=200.0)

QUICK = Effort(31, (0.3, 0.65, 1.0), n_gpus=200, replications=32, horizon=300.0, warmup=150.0)


def shown(instance: Instance) -> list[str]:
    """The indicators that a limit can bind: with one class there is no fairness."""
    attained = plain_plan(instance).indicators
    return [name for name in INDICATORS if float(attained[name]) > NO_SPREAD]


def piece_count(instance: Instance, quick: bool) -> int:
    """How many simulations there are, for the progress."""
    limited = len(shown(instance)) * len((QUICK if quick else FULL).fractions)
    return limited + len(compared_policies(instance, OTHERS))


def run(instance: Instance, *, quick: bool, seed: int, kept: Path, bars: ProgressBars) -> dict[str, Any]:
    """The study's summary; replications are kept in `kept` as they finish."""
    effort = QUICK if quick else FULL
    settings = {
        "n_gpus": effort.n_gpus,
        "horizon": effort.horizon,
        "warmup": effort.warmup,
        "replications": effort.replications,
        "key": seed,
    }
    plain, names = plain_plan(instance), shown(instance)
    for name in INDICATORS:
        if name not in names:
            bars.note(f"pareto: {name} is left out: the plan of this instance cannot be limited by it")
    frontiers, rows = {}, []
    for name in names:
        frontier = frontiers[name] = _frontier(instance, name, limits(instance, name, effort.limits))
        for k, limit in enumerate(_simulated_limits(frontier, effort.fractions, float(plain.revenue))):
            plan = solve_plan(instance, "bundled", service_levels=ServiceLevels(**{name: limit}))
            policy = PRESETS[POLICY](instance, plan)
            label = f"{POLICY}, {name.replace('_', ' ')} <= {limit:.4g}"
            result = measured(bars, label, instance, policy, out=kept / f"{name}_{k}", **settings)
            rows.append(
                {
                    **result_row(result, (*MEASURED, *TIMES)),
                    "indicator": name,
                    "limit": limit,
                    "plan_revenue": float(plan.plan_revenue),
                    "gap_to_plan": result.gap_to_plan(plan).to_dict(),
                    "attained": indicators(result)[name],
                }
            )
    others = []
    for other, policy in compared_policies(instance, OTHERS).items():
        result = measured(bars, other, instance, policy, out=kept / other, **settings)
        attained = {name: level for name, level in indicators(result).items() if name in names}
        others.append({**result_row(result, (*MEASURED, *TIMES)), "attained": attained})
    return {
        "effort": asdict(effort),
        "best": float(plain.revenue),
        "frontiers": frontiers,
        "rows": rows,
        "others": others,
    }


def limits(instance: Instance, name: str, count: int) -> np.ndarray:
    """Evenly spread limits on an indicator, from the tightest conceivable to one that does not bind."""
    attained = float(plain_plan(instance).indicators[name])
    time = TokenTime(instance)
    tightest = min(time.at(0.0), time.at(1.0)) if name == "time_per_output_token" else 0.0
    return np.linspace(tightest, attained, count)


def _frontier(instance: Instance, name: str, tried: np.ndarray) -> dict[str, list[float]]:
    """The best plan under each limit that can be met: its revenue, and what a unit of the limit is worth."""
    kept: dict[str, list[float]] = {"limit": [], "revenue": [], "shadow_price": []}
    for limit in tried:
        try:
            plan = solve_plan(instance, "bundled", service_levels=ServiceLevels(**{name: limit}))
        except PlanError:
            continue  # tighter than any plan can be
        kept["limit"].append(float(limit))
        kept["revenue"].append(float(plan.plan_revenue))
        kept["shadow_price"].append(float(plan.shadow_prices[name][0]))
    return kept


def _simulated_limits(
    frontier: dict[str, list[float]], fractions: tuple[float, ...], best: float
) -> list[float]:
    """Limits at fractions of the way from the tightest to the first that does not bind."""
    free = next(
        limit
        for limit, revenue in zip(frontier["limit"], frontier["revenue"], strict=True)
        if revenue >= best * (1 - SAME_VALUE)
    )
    tightest = frontier["limit"][0]
    return [tightest + fraction * (free - tightest) for fraction in fractions]


def table(summary: dict[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """For each simulated limit: the indicator and the revenue, planned and reached."""
    head = ("policy", "indicator", "limit", "simulated", "over the limit, %", "plan's revenue",
            "simulated revenue", "below the plan, %", "ms per token, occupied", "emitted",
            "[Lin26] claims")  # fmt: skip
    rows = []
    for row in summary["rows"]:
        factor = TEXTS[row["indicator"]][2]
        rows.append(
            (
                row["policy"],
                _name(row["indicator"]),
                f"{factor * row['limit']:.4f}",
                with_interval(scaled(row["attained"], factor), 4),
                with_interval(_excess(row)),
                f"{row['plan_revenue']:.2f}",
                with_interval(row["revenue_bundled"]),
                with_interval(scaled(row["gap_to_plan"], 100.0)),
                *_times(row),
                CLAIMS[POLICY, "bundled"],
            )
        )
    best = f"{summary['best']:.2f}"
    for other in summary["others"]:
        revenue = with_interval(other["revenue_bundled"])
        gap = with_interval(scaled(other["gap_bundled"], 100.0))
        for name, attained in other["attained"].items():
            reached = with_interval(scaled(attained, TEXTS[name][2]), 4)
            about = (other["policy"], _name(name), "none", reached, "", best, revenue, gap)
            rows.append((*about, *_times(other), ""))
    return head, rows


def _name(indicator: str) -> str:
    """An indicator with its unit in tables."""
    return (
        "time per output token, ms" if indicator == "time_per_output_token" else indicator.replace("_", " ")
    )


def _times(row: dict[str, Any]) -> list[str]:
    """`TIMES` in ms."""
    return [with_interval(scaled(row[name], 1000.0), 3) for name in TIMES]


def _excess(row: dict[str, Any]) -> dict[str, Any]:
    """By how much the simulated indicator is over its limit, % of the limit."""
    over = scaled(row["attained"], 100.0 / row["limit"])
    return {"mean": over["mean"] - 100.0, "ci95": [end - 100.0 for end in over["ci95"]]}


def answer(summary: dict[str, Any]) -> str:
    """What the SLI-aware policy earns of its plans' revenue, and how far it is over their limits."""
    rows = sorted(summary["rows"], key=lambda row: row["gap_to_plan"]["mean"])
    least, most = (with_interval(scaled(row["gap_to_plan"], 100.0)) for row in (rows[0], rows[-1]))
    over = []
    for name in summary["frontiers"]:
        excesses = [_excess(row) for row in rows if row["indicator"] == name]
        worst = max(excesses, key=lambda excess: excess["mean"])
        over.append(f"{with_interval(worst)} % ({name.replace('_', ' ')})")
    return (
        f"At n = {summary['effort']['n_gpus']}, {POLICY} earns between {least} and {most} % less than its "
        f"plans, and is over their limits by at most {', '.join(over)} (95 % intervals)."
    )


def datasets(summary: dict[str, Any]) -> dict[str, xr.Dataset]:
    """The frontiers, and the simulations, a row a point; units of an indicator by point."""
    frontiers, rows, others = summary["frontiers"], summary["rows"], summary["others"]
    money = {"units": "money/s per GPU"}
    names = [name for name, frontier in frontiers.items() for _ in frontier["limit"]]

    def joined(key: str) -> list[float]:
        return [value for frontier in frontiers.values() for value in frontier[key]]

    return {
        "frontiers": xr.Dataset(
            {
                "indicator": ("point", names),
                "indicator_units": ("point", [INDICATORS[name] for name in names]),
                "limit": ("point", joined("limit"), {"units": "in indicator_units"}),
                "revenue": ("point", joined("revenue"), money),
                "shadow_price": ("point", joined("shadow_price"), {"units": "revenue per indicator_units"}),
            }
        ),
        "simulated": xr.Dataset(
            {
                "indicator": ("point", [row["indicator"] for row in rows]),
                "indicator_units": ("point", [INDICATORS[row["indicator"]] for row in rows]),
                "limit": ("point", [row["limit"] for row in rows], {"units": "in indicator_units"}),
                "plan_revenue": ("point", [row["plan_revenue"] for row in rows], money),
                **estimate_variables(
                    "attained",
                    ["point"],
                    [row["attained"] for row in rows],
                    "in indicator_units",
                    "the indicator as simulated",
                ),
                **estimate_variables("revenue_bundled", ["point"], [row["revenue_bundled"] for row in rows]),
            }
        ),
        "others": xr.Dataset(
            {
                **estimate_variables(
                    "attained",
                    ["policy", "indicator"],
                    [list(other["attained"].values()) for other in others],
                    "in indicator_units",
                    "the indicator as simulated",
                ),
                **estimate_variables(
                    "revenue_bundled", ["policy"], [other["revenue_bundled"] for other in others]
                ),
            },
            {
                "policy": [other["policy"] for other in others],
                "indicator": list(frontiers),
                "indicator_units": ("indicator", [INDICATORS[name] for name in frontiers]),
            },
        ),
    }


def draw(summary: dict[str, Any], looks: list[tuple[str, str]]) -> dict[str, Figure]:
    """A figure for each indicator."""
    return {name: _draw(summary, looks, name) for name in summary["frontiers"]}


def _draw(summary: dict[str, Any], looks: list[tuple[str, str]], name: str) -> Figure:
    figure = Figure(figsize=(WIDTH, 3.9), layout="constrained")
    axes = figure.subplots()
    title, label, factor = TEXTS[name]
    frontier = summary["frontiers"][name]
    rows = [row for row in summary["rows"] if row["indicator"] == name]
    axes.plot([factor * limit for limit in frontier["limit"]], frontier["revenue"], color="black",
              linewidth=1.2, label="best plan under the limit")  # fmt: skip
    (colour, marker), *others = looks
    for row in rows:
        reached = factor * row["attained"]["mean"], row["revenue_bundled"]["mean"]
        axes.plot(
            *zip((factor * row["limit"], row["plan_revenue"]), reached, strict=True),
            color="0.6",
            linewidth=0.8,
        )
    planned = [factor * row["limit"] for row in rows], [row["plan_revenue"] for row in rows]
    axes.plot(*planned, color=colour, marker=marker, markerfacecolor="white", markersize=4.5,
              linestyle="none", label="its simulated plans")  # fmt: skip
    n_gpus = summary["effort"]["n_gpus"]
    draw_points(
        axes,
        [scaled(row["attained"], factor) for row in rows],
        [row["revenue_bundled"] for row in rows],
        color=colour,
        marker=marker,
        linestyle="none",
        label=f"{POLICY}, n = {n_gpus}",
    )
    if name == "time_per_output_token":
        draw_points(
            axes,
            [scaled(row[TIMES[0]], factor) for row in rows],
            [row["revenue_bundled"] for row in rows],
            color=colour,
            marker="_",
            linestyle="none",
            label="the same, over occupied slots",
        )
    for other, (look, shape) in zip(summary["others"], others, strict=False):
        draw_points(
            axes,
            [scaled(other["attained"][name], factor)],
            [other["revenue_bundled"]],
            color=look,
            marker=shape,
            linestyle="none",
            label=f"{other['policy']}, n = {n_gpus}",
        )
    axes.set_xlabel(label)
    axes.set_ylabel("bundled revenue per GPU and second")
    axes.set_title(f"{title} (95 % intervals)")
    figure.legend(loc="outside lower center", ncols=2)
    return figure
