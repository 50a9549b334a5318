"""The bias of `Leap` against `Exact`: all policies, four instances, two sizes; writes `docs/leap_bias.md`.

Run it as `python -m benchmarks.leap_bias`. Both steppers simulate the same replications (same key), after a
warm-up. The difference in bundled revenue is estimated with control variates: for every kind of event and
class, the number of events less the integral of their rate has mean zero in both steppers, exactly, and
explains most of the noise of the revenue.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxq._cli.environment import configure_jax

from .instances import ROOT, studied_instance

if TYPE_CHECKING:
    from jaxq import Instance
    from jaxq._engine.record import Record

INSTANCES = ("reference", "overload", "azure_pair", "dolly_eight")
WARMUP = 100.0
WINDOW = 50.0
EXTRA = (
    ("reference", "gate_and_route", 500),
    ("reference", "gate_immediate", 500),
    ("overload", "gate_immediate", 50),
    ("overload", "gate_fcfs", 50),
    ("azure_pair", "sarathi", 50),
)
"""Cases that are measured at half and twice the default step as well."""


ROWS_PER_CONTROL = 10
"""Windows of replications for each coefficient of a control variate: fewer would fit the noise itself."""


@dataclass(frozen=True)
class Effort:
    """Replications and horizon (s) of a case."""

    replications: int
    horizon: float


EFFORTS = {
    50: Effort(replications=256, horizon=600.0),
    500: Effort(replications=64, horizon=300.0),
}
SHORT_EFFORTS = {
    50: Effort(replications=128, horizon=300.0),
    500: Effort(replications=16, horizon=250.0),
}
"""Of `dolly_eight`, whose short prompts need steps of a millisecond."""


@dataclass(frozen=True)
class Bias:
    """Bias of revenue in % of R*, `half_width` of its 95 % interval, and of the plain paired difference."""

    instance: str
    policy: str
    n_gpus: int
    dt: float
    bias: float
    half_width: float
    plain: float
    plain_half_width: float


def controlled_revenue(instance: Instance, record: Record) -> tuple[np.ndarray, np.ndarray]:
    """Bundled revenue per GPU and second of each replication: as counted, and with control variates.

    The coefficients come from a regression over all windows of all replications, so that few numbers are
    fitted to many.
    """
    spans = record.measured_durations[:, None, None] * record.n_gpus

    def rate(name: str) -> np.ndarray:
        return record.measured(name) / spans

    def column(values: Any) -> np.ndarray:
        return np.asarray(values, np.float64)[None, :, None]

    patience = column(instance.workload.patience_rate)
    decoded = column(instance.mu_mixed) * rate("decodes_mixed") + column(instance.mu_solo) * rate(
        "decodes_solo"
    )
    surplus = (
        rate("arrivals") - column(instance.workload.arrival_rate),
        rate("prefills_completed") - column(instance.mu_prefill) * rate("prefills"),
        rate("completions") - decoded,
        rate("abandoned_prefill") - patience * rate("prefill_queue"),
        rate("abandoned_decode") - patience * rate("decode_queue"),
    )
    value = column(instance.request_value)
    revenue = (value * rate("completions")).sum(axis=1)
    controls = np.concatenate(surplus, axis=1)
    if revenue.size < ROWS_PER_CONTROL * controls.shape[1]:
        # Too few windows to fit a number for every class: one for each kind of event, classes by value.
        controls = np.stack([(value * kind).sum(axis=1) for kind in surplus], axis=1)
    rows = np.moveaxis(controls, 1, 2).reshape(-1, controls.shape[1])
    flat = revenue.reshape(-1)
    weights = np.linalg.lstsq(rows - rows.mean(axis=0), flat - flat.mean(), rcond=None)[0]
    controlled = revenue - np.einsum("wkr,k->wr", controls, weights)
    return revenue.mean(axis=0), controlled.mean(axis=0)


class Case:
    """One policy on one instance at one size; the exact run is made once and kept."""

    def __init__(self, name: str, policy: str, n_gpus: int, scale: float):
        from jaxq._plan import solve_plan
        from jaxq._policy.load import load_policy

        self.name, self.policy_name, self.n_gpus = name, policy, n_gpus
        self.instance = studied_instance(name)
        self.policy = load_policy(policy, self.instance)
        self.optimum = solve_plan(self.instance, "bundled").revenue
        effort = (SHORT_EFFORTS if name == "dolly_eight" else EFFORTS)[n_gpus]
        self.replications = max(8, round(effort.replications * scale))
        self.horizon = effort.horizon
        self.exact: tuple[np.ndarray, np.ndarray] | None = None

    def revenue(self, stepper: Any) -> tuple[np.ndarray, np.ndarray]:
        """Revenue of each replication, as counted and with control variates."""
        import jax

        from jaxq._engine.cluster import ClusterEngine

        record = ClusterEngine(stepper).run(
            self.instance,
            self.policy,
            n_gpus=self.n_gpus,
            horizon=self.horizon,
            warmup=WARMUP,
            key=jax.random.key(2),
            replications=self.replications,
            n_windows=round((self.horizon - WARMUP) / WINDOW),
        )
        return controlled_revenue(self.instance, record)

    def bias(self, factor: float = 1.0) -> Bias:
        """The bias at `factor` times the default step."""
        from jaxq._engine.cluster import ClusterEngine
        from jaxq._engine.steppers import Exact, Leap

        if self.exact is None:
            self.exact = self.revenue(Exact())
        dt = factor * (ClusterEngine(Leap()).step(self.instance, self.policy) or 0.0)
        plain, controlled = (
            100 * (leap - exact) / self.optimum
            for leap, exact in zip(self.revenue(Leap(dt)), self.exact, strict=True)
        )
        found = Bias(
            self.name,
            self.policy_name,
            self.n_gpus,
            dt,
            *_mean_and_half_width(controlled),
            *_mean_and_half_width(plain),
        )
        title = f"{found.instance}, n = {found.n_gpus}, {found.policy}, dt = {dt:.4g} s"
        print(f"{title}: {_cell(found)} %", file=sys.stderr, flush=True)
        return found


def _mean_and_half_width(values: np.ndarray) -> tuple[float, float]:
    from scipy.stats import t

    quantile = t.ppf(0.975, len(values) - 1)
    return float(values.mean()), float(quantile * values.std(ddof=1) / np.sqrt(len(values)))


def measure(
    names: Sequence[str], sizes: Sequence[int], policies: Sequence[str], scale: float
) -> tuple[list, list]:
    """The biases at the default step, and those at half and twice of it."""
    table, extra = [], []
    for name in names:
        for n_gpus in sizes:
            for policy in policies:
                case = Case(name, policy, n_gpus, scale)
                table.append(case.bias())
                if (name, policy, n_gpus) in EXTRA:
                    extra.append((case.bias(0.5), table[-1], case.bias(2.0)))
    return table, extra


def _cell(found: Bias) -> str:
    return f"{found.bias:+.2f} ± {found.half_width:.2f}"


def report(table: Sequence[Bias], extra: Sequence[Sequence[Bias]], where: str, command: str) -> str:
    """The page `docs/leap_bias.md`."""
    from jaxq._engine.cluster import EVENTS_PER_STEP, EVENTS_PER_STEP_BUFFERED

    columns = list(dict.fromkeys((found.instance, found.n_gpus) for found in table))
    cells = {(found.policy, found.instance, found.n_gpus): _cell(found) for found in table}
    steps = {found.instance: f"{found.dt:.3g} s" for found in table if found.policy != "gate_fcfs"}
    worst = max(table, key=lambda found: abs(found.bias))
    lines = [
        "# The bias of `Leap`",
        "",
        "Bundled revenue with `Leap` at its default step less that with `Exact`, in % of R*, with 95 % "
        "intervals.",
        f"The default step is {EVENTS_PER_STEP:g} over the largest total event rate of a GPU ("
        + ", ".join(f"{step} on `{name}`" for name, step in steps.items())
        + f"), {EVENTS_PER_STEP_BUFFERED:g} over it with buffers and no partition (`gate_fcfs`).",
        "",
        f"Largest: {_cell(worst)} % ({worst.policy} on `{worst.instance}`, n = {worst.n_gpus}). The limit "
        "that the default step is chosen for is 0.2 %.",
        "",
        "| policy | " + " | ".join(f"`{name}`, {n}" for name, n in columns) + " |",
        "|---|" + "---|" * len(columns),
    ]
    for policy in dict.fromkeys(found.policy for found in table):
        lines.append(f"| `{policy}` | " + " | ".join(cells[policy, name, n] for name, n in columns) + " |")
    if extra:
        lines += [
            "",
            "At half and twice the default step:",
            "",
            "| case | dt/2 | dt | 2 dt |",
            "|---|---|---|---|",
        ]
        for half, whole, double in extra:
            title = f"`{whole.policy}`, `{whole.instance}`, n = {whole.n_gpus}"
            lines.append(f"| {title} | {_cell(half)} | {_cell(whole)} | {_cell(double)} |")
    plain = float(np.median([found.plain_half_width for found in table]))
    narrow = float(np.median([found.half_width for found in table]))
    lines += [
        "",
        f"Warm-up {WARMUP:g} s. Both steppers run the same replications with the same keys; control "
        "variates (events less the integral of their rate, mean zero in both) then reduce the noise: median "
        f"half-width {narrow:.3f} % against {plain:.3f} % of the plain paired difference.",
        "",
        f"Command: {command}. Machine: {where}.",
        "",
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write the page when nothing was left out."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.leap_bias", description="The bias of Leap.")
    parser.add_argument("--instances", default=",".join(INSTANCES), help="which, by name")
    parser.add_argument("--gpus", default="50,500", help="which sizes")
    parser.add_argument("--policies", default="", help="which; all when left out")
    parser.add_argument("--effort", type=float, default=1.0, help="replications, as a factor")
    parser.add_argument(
        "--out", type=Path, default=None, help="where to write; default docs/leap_bias.md if complete"
    )
    chosen = parser.parse_args(arguments)
    configure_jax()
    from jaxq._policy.presets import PRESETS

    from .machine import machine, machine_line

    where = machine_line(machine())
    begin = time.monotonic()
    names, sizes = chosen.instances.split(","), [int(n) for n in chosen.gpus.split(",")]
    policies = chosen.policies.split(",") if chosen.policies else list(PRESETS)
    table, extra = measure(names, sizes, policies, chosen.effort)
    effort = "" if chosen.effort == 1 else f" --effort {chosen.effort:g}"
    command = f"`python -m benchmarks.leap_bias{effort}`, {(time.monotonic() - begin) / 60:.0f} minutes"
    text = report(table, extra, where, command)
    complete = (names, sizes, policies) == (list(INSTANCES), [50, 500], list(PRESETS))
    out = chosen.out or (ROOT / "docs" / "leap_bias.md" if complete else None)
    if out is None:
        print(text)
    else:
        out.write_text(text)


if __name__ == "__main__":
    main()
