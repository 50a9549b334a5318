"""The policies on a family of random instances: how far each is from the optimum, and who is ahead of whom.

Hardware and workload are drawn as in [Lin26] figure 7. All instances, policies and replications run as one
call, in one compiled program for each kind of policy.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from jaxq import Case, Instance, IterationTime, Pricing, Result, Workload, compare, simulate_cases
from jaxq._figures import WIDTH
from jaxq._policy.presets import plain_plan
from jaxq._progress import ProgressBars
from jaxq.policies import PRESETS

TITLE = "A family of random instances: distributions of the gap, wins and losses"

PAPER = "figure 7"

BASELINE = "gate_and_route"
"""The policy of [Lin26] with which the others are compared."""

RANGES = {
    "alpha": (0.015, 0.02),
    "beta": (1e-5, 1e-3),
    "gamma": (10.0, 50.0),
    "prompt_tokens": (200.0, 3000.0),
    "output_tokens": (200.0, 3000.0),
    "arrival_rate": (0.25, 0.5),
}
"""From where each number is drawn, uniformly: alpha in s ([Lin26] prints 0.15 as its lower end), beta in
s/token, gamma in 1/s, lengths in tokens, arrivals in 1/s per GPU."""

CLASSES, BATCH, CHUNK, PATIENCE_RATE = 2, 16, 256, 0.1

PRICES = (0.1, 0.2)
"""Of a prompt and of an output token."""


@dataclass(frozen=True)
class Effort:
    """How much is simulated: `instances` on `n_gpus` each, `replications` of `horizon` s, of which `warmup`
    are discarded."""

    instances: int
    n_gpus: int
    replications: int
    horizon: float
    warmup: float
    policies: tuple[str, ...] = tuple(PRESETS)


FULL = Effort(instances=200, n_gpus=500, replications=8, horizon=300.0, warmup=150.0)

QUICK = Effort(instances=24, n_gpus=100, replications=4, horizon=200.0, warmup=100.0)


def drawn_instance(number: int, seed: int) -> Instance:
    """The instance of that number in the family of a seed."""
    rng = np.random.default_rng([seed, number])

    def draw(name: str, count: int | None = None) -> Any:
        return rng.uniform(*RANGES[name], size=count)

    time = IterationTime(alpha=draw("alpha"), beta=draw("beta"), solo=1.0 / draw("gamma"))
    workload = Workload(
        prompt_tokens=draw("prompt_tokens", CLASSES),
        output_tokens=draw("output_tokens", CLASSES),
        arrival_rate=draw("arrival_rate", CLASSES),
        patience_rate=np.full(CLASSES, PATIENCE_RATE),
    )
    return Instance(workload, time, Pricing(*PRICES), BATCH, CHUNK, name=f"family-{number}")


def piece_count(instance: Instance, quick: bool) -> int:
    """One call for all."""
    return 1


def run(instance: Instance, *, quick: bool, seed: int, kept: Path, bars: ProgressBars) -> dict[str, Any]:
    """The study's summary; `instance` plays no part."""
    effort = QUICK if quick else FULL
    family = [drawn_instance(k, seed) for k in range(effort.instances)]
    places = [(k, name) for name in effort.policies for k in range(effort.instances)]
    cases = [Case(family[k], PRESETS[name](family[k]), effort.n_gpus) for k, name in places]
    label = f"{effort.instances} instances, {len(effort.policies)} policies, n = {effort.n_gpus}"
    with bars.warnings_as_notes():
        found = simulate_cases(
            cases,
            horizon=effort.horizon,
            warmup=effort.warmup,
            replications=effort.replications,
            key=seed,
            progress=bars.start(label),
            out=kept,
        )
    bars.finish(label)
    results = dict(zip(places, found, strict=True))
    return {
        "effort": asdict(effort),
        "ranges": RANGES,
        "rows": [_row(k, family[k], results, effort) for k in range(effort.instances)],
    }


def _row(
    k: int, instance: Instance, results: dict[tuple[int, str], Result], effort: Effort
) -> dict[str, Any]:
    """One instance: its numbers, each policy's gap, and who is ahead of the baseline beyond the interval."""
    own = {name: results[k, name] for name in effort.policies}
    compared = compare(list(own.values()), baseline=BASELINE)
    ahead = {}
    for name in effort.policies:
        if name != BASELINE:
            low, high = (float(end) for end in compared.gap_differences[name].difference.ci95)
            ahead[name] = 1 if high < 0 else -1 if low > 0 else 0
    workload, time = instance.workload, instance.iteration_time
    return {
        "alpha": float(time.alpha),
        "beta": float(time.beta),
        "gamma": float(1.0 / time.solo),
        "prompt_tokens": workload.prompt_tokens.tolist(),
        "output_tokens": workload.output_tokens.tolist(),
        "arrival_rate": workload.arrival_rate.tolist(),
        # Those of price_and_pack; where all are 0, they tell it nothing.
        "bid_prices": plain_plan(instance, require_no_decode_queue=True).bid_prices.tolist(),
        "optimum": float(next(iter(own.values())).bound()),
        "gaps": {name: result.gap().to_dict() for name, result in own.items()},
        "ahead": ahead,
    }


def _gaps(summary: dict[str, Any], policy: str) -> np.ndarray:
    """The gaps of a policy over the family, %."""
    return np.asarray([100 * row["gaps"][policy]["mean"] for row in summary["rows"]])


def _counts(summary: dict[str, Any], policy: str) -> dict[int, int]:
    """On how many instances a policy is ahead of the baseline (1), behind (-1), or neither (0)."""
    signs = [row["ahead"].get(policy, 0) for row in summary["rows"]]
    return {sign: signs.count(sign) for sign in (1, 0, -1)}


def answer(summary: dict[str, Any]) -> str:
    """Which policy has the smallest median gap, and against whom it wins."""
    names, count = summary["effort"]["policies"], len(summary["rows"])
    best = min(names, key=lambda name: float(np.median(_gaps(summary, name))))
    median, low, high = np.quantile(_gaps(summary, best), [0.5, 0.1, 0.9])
    text = (
        f"Over {count} instances at n = {summary['effort']['n_gpus']}, {best} has the smallest median gap, "
        f"{median:.2f} % (80 % of the instances: {low:.2f} to {high:.2f} %)"
    )
    if best != BASELINE:
        counts = _counts(summary, best)
        text += (
            f"; it is ahead of {BASELINE} on {counts[1]} instances beyond the paired 95 % interval and "
            f"behind on {counts[-1]}"
        )
    return text + "."


def table(summary: dict[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """For each policy the distribution of its gap, and its wins and losses against the baseline."""
    head = ("policy", "median gap, %", "10 %", "90 %", "largest", "ahead", "neither", "behind")
    rows = []
    for name in summary["effort"]["policies"]:
        gaps, counts = _gaps(summary, name), _counts(summary, name)
        shown = [f"{value:.2f}" for value in (*np.quantile(gaps, [0.5, 0.1, 0.9]), gaps.max())]
        against = [""] * 3 if name == BASELINE else [str(counts[sign]) for sign in (1, 0, -1)]
        rows.append((name, *shown, *against))
    return head, rows


def datasets(summary: dict[str, Any]) -> dict[str, xr.Dataset]:
    """The numbers of every instance, and the gap of every policy with its 95 % interval."""
    rows, names = summary["rows"], summary["effort"]["policies"]
    units = {"alpha": "s", "beta": "s/token", "gamma": "1/s", "optimum": "money per GPU and second"}
    data: dict[str, Any] = {
        name: ("instance", [row[name] for row in rows], {"units": unit}) for name, unit in units.items()
    }
    by_class = {"prompt_tokens": "tokens", "output_tokens": "tokens", "arrival_rate": "1/s per GPU",
                "bid_prices": "money"}  # fmt: skip
    data |= {
        name: (("instance", "class"), [row[name] for row in rows], {"units": unit})
        for name, unit in by_class.items()
    }
    gaps = [[row["gaps"][name] for name in names] for row in rows]
    ends = {
        "gap": [[gap["mean"] for gap in row] for row in gaps],
        "gap_low": [[gap["ci95"][0] for gap in row] for row in gaps],
        "gap_high": [[gap["ci95"][1] for gap in row] for row in gaps],
    }
    data |= {name: (("instance", "policy"), values, {"units": "1"}) for name, values in ends.items()}
    return {"family": xr.Dataset(data, {"policy": list(names)})}


def draw(summary: dict[str, Any], looks: list[tuple[str, str]]) -> dict[str, Figure]:
    """The distribution functions of the gaps, and wins and losses against the baseline."""
    names, count = summary["effort"]["policies"], len(summary["rows"])
    gaps = Figure(figsize=(WIDTH, 4.4), layout="constrained")
    axes = gaps.subplots()
    shares = (np.arange(count) + 1) / count
    for name, (colour, marker) in zip(names, looks, strict=False):
        axes.plot(
            np.sort(_gaps(summary, name)),
            shares,
            color=colour,
            marker=marker,
            markevery=max(1, count // 8),
            markersize=4,
            linewidth=1.2,
            label=name,
        )
    axes.set_xscale("symlog", linthresh=1.0)
    axes.set_xlabel("gap to the best possible, %")
    axes.set_ylabel("share of the instances with at most this gap")
    gaps.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    others = [name for name in names if name != BASELINE]
    wins = Figure(figsize=(WIDTH, 0.9 + 0.42 * len(others)), layout="constrained")
    axes = wins.subplots()
    colours = {1: looks[0][0], 0: "0.85", -1: looks[1][0]}
    words = {1: f"ahead of {BASELINE}", 0: "neither", -1: "behind"}
    left = np.zeros(len(others))
    for sign in (1, 0, -1):
        values = np.asarray([_counts(summary, name)[sign] for name in others])
        axes.barh(others, values, left=left, color=colours[sign], label=words[sign])
        left += values
    axes.invert_yaxis()
    axes.set_xlabel("instances, by the paired 95 % interval")
    wins.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return {"gaps": gaps, "wins": wins}
