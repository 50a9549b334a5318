"""How far tuned policies are from the optimum, row by row as in `docs/tuning.md`.

Run it as `python -m benchmarks.tuning_gaps [--rows GROUP,GROUP]`. Each row is a `jaxq tune` with default
settings but for those it names, seed 0; what is in the output folder already is read, not tuned again.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxq._cli.environment import configure_jax

from .instances import FILES, studied_instance

if TYPE_CHECKING:
    from jaxq import Instance, Result

UNPUBLISHED = "price_and_pack"


@dataclass(frozen=True)
class Row:
    """One tuning: `start` None for the default starts; `penalty`: money per GPU and second taken for each
    second of the mean time per output token."""

    instance: str
    gpus: int
    scheme: str = "bundled"
    start: str | None = None
    family: str = "feedback"
    penalty: float | None = None

    @property
    def label(self) -> str:
        """A name for its folder."""
        words = [self.family, self.instance, f"n{self.gpus}", self.scheme, self.start or ""]
        words += [f"penalty{self.penalty:g}"] if self.penalty else []
        return "-".join(word for word in words if word)


GROUPS = {
    "start": [Row(name, 50, start="gate_and_route") for name in FILES],
    "default": [Row(name, n) for name in FILES for n in (30, 200)],
    "small": [Row(name, n) for name in ("reference", "overload") for n in (5, 10)],
    "separate": [Row(name, n, "separate") for name in ("reference", "overload") for n in (50, 200)],
    "penalised": [Row("reference", 50, penalty=penalty) for penalty in (1839.0, 80_000.0, 93_000.0)],
    "neural": [Row("reference", 50, family="neural")],
}


TRANSFERS = (("reference", 20), ("reference", 200), ("reference", 500), ("overload", 50), ("azure_pair", 50))
"""Where the neural policy is used as it is."""


def penalised(penalty: float) -> Callable[[Result], Any]:
    """Bundled revenue less a price on the mean time per output token ([Lin26] eq. 47, 48)."""

    def objective(result: Result) -> Any:
        return result.per_replication("revenue_bundled") - penalty * result.per_replication(
            "time_per_token_slot"
        )

    return objective


def plan_value(instance: Instance, penalty: float) -> float:
    """What the plan is worth under the penalty."""
    import jaxq

    levels = jaxq.ServiceLevels(time_per_output_token_penalty=penalty)
    return float(jaxq.solve_plan(instance, service_levels=levels).objective)


def tuned(row: Row, folder: Path) -> dict[str, Any]:
    """The summary of a row, from its folder when it is there."""
    from jaxq import _tuning_job as job
    from jaxq._progress import progress_bars

    out = folder / row.label
    if (out / job.SUMMARY).exists():
        return json.loads((out / job.SUMMARY).read_text())
    out.mkdir(parents=True, exist_ok=True)
    instance = studied_instance(row.instance)
    names = job.FULL.starts if row.start is None else (row.start,)
    starts = job.starting_points(instance, row.family, names, partition=row.start is not None)
    objective, bound = row.scheme, None
    if row.penalty is not None:
        objective, bound = penalised(row.penalty), plan_value(instance, row.penalty)
    with progress_bars(1) as bars:
        done = job.run_tuning_job(
            instance, starts, job.FULL, bars, out, n_gpus=row.gpus, objective=objective, bound=bound
        )
    return done.summary


def transferred(row: Row, folder: Path, name: str, n_gpus: int) -> dict[str, Any]:
    """The policy of a row at another size or on another instance, in the form of a summary."""
    import time

    from jaxq import _tuning_job as job
    from jaxq._plan import upper_bound
    from jaxq._statistics import Estimate, paired_difference
    from jaxq._tune import _experiments, _final_replications
    from jaxq.policies import PRESETS, load_policy

    began = time.perf_counter()
    instance = studied_instance(name)
    final = _experiments(instance, n_gpus, row.scheme, None, 0)[2]
    count, bound = _final_replications(final), upper_bound(instance, row.scheme)
    mine = final.value(load_policy(str(folder / row.label / job.POLICY), instance), count)
    values = {preset: final.value(PRESETS[preset](instance), count) for preset in PRESETS}

    def gap(of: Any) -> dict[str, Any]:
        return Estimate.from_samples(of).affine(-1 / bound, 1.0).to_dict()

    rows = {
        preset: {
            "policy": preset,
            "gap": gap(value),
            "tuned_less_policy": paired_difference(mine, value).to_dict(),
        }
        for preset, value in values.items()
    }
    best = max(
        (preset for preset in values if preset != UNPUBLISHED), key=lambda preset: values[preset].mean()
    )
    return {
        "bound": bound,
        "gap": gap(mine),
        "presets": list(rows.values()),
        "best_published": rows[best],
        UNPUBLISHED: rows[UNPUBLISHED],
        "seconds": time.perf_counter() - began,
    }


def line(row: Row, found: dict[str, Any]) -> str:
    """The row, in Markdown: gaps and differences in % of the bound, with 95 % intervals."""
    share = 100 / abs(found["bound"])

    def gap(of: dict[str, Any]) -> str:
        low, high = of["ci95"]
        return f"{100 * of['mean']:.3f} ± {50 * (high - low):.3f}"

    def ahead(name: str) -> str:
        (preset,) = [preset for preset in found["presets"] if preset["policy"] == name]
        mean, (low, high) = preset["tuned_less_policy"]["mean"], preset["tuned_less_policy"]["ci95"]
        return f"{share * mean:+.3f} [{share * low:+.3f}, {share * high:+.3f}]"

    best = found["best_published"]
    cells = [
        f"`{row.instance}`",
        str(row.gpus),
        gap(found["gap"]),
        f"{gap(best['gap'])} (`{best['policy']}`)",
    ]
    cells += [ahead(best["policy"]), gap(found[UNPUBLISHED]["gap"]), ahead(UNPUBLISHED)]
    cells.append(f"{found['seconds']:.0f}")
    return f"| {' | '.join(cells)} |"


HEAD = ("instance", "n", "tuned", "best published", "tuned less it", "`price_and_pack`", "tuned less it", "s")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables of some groups of rows."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tuning_gaps", description=__doc__)
    parser.add_argument("--rows", default=",".join(GROUPS), help=f"groups, of {', '.join(GROUPS)}")
    parser.add_argument("--out", type=Path, default=Path("runs/tuning"), help="folder for what is tuned")
    options = parser.parse_args(arguments)
    configure_jax()
    for group in options.rows.split(","):
        print(f"\n{group}\n\n| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}")
        for row in GROUPS[group]:
            print(line(row, tuned(row, options.out)), flush=True)
            print(f"{row.label} done", file=sys.stderr)
            for name, n_gpus in TRANSFERS if row.family == "neural" else ():
                other = replace(row, instance=name, gpus=n_gpus)
                print(line(other, transferred(row, options.out, name, n_gpus)), flush=True)


if __name__ == "__main__":
    main()
