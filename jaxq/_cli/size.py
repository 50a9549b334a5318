"""`jaxq size`: the smallest number of GPUs that serves a load."""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .._errors import InputError
from .choices import check_times
from .environment import configure_jax
from .options import (
    InstanceFile,
    Json,
    Seed,
    check_seed,
    command_line,
    given,
    print_json,
    read_instance,
    whole_numbers,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from .._instance import Instance
    from .._progress import ProgressBars
    from .._sizing import Sizing, Tested
    from .._sizing_target import AbstractTarget

UNREACHED = 1
"""Exit code when no size up to the largest one was shown to suffice."""

KEPT = "kept"

Load = Annotated[
    str,
    typer.Option(
        metavar="RATE[,RATE...]",
        help="Requests per second of each class, in all: in the file's order, as in 25,100, or by name, as "
        "in chat=25,code=100.",
    ),
]
Target = Annotated[
    str,
    typer.Option(
        metavar="revenue=S|abandonment=S",
        help="What must hold in the long run: at least this share of the offered value is earned, or at "
        "most this share of the requests abandons.",
    ),
]
EachClass = Annotated[
    bool, typer.Option("--each-class", help="With abandonment: the limit holds for each class on its own.")
]
PolicyName = Annotated[
    str, typer.Option("--policy", metavar="NAME", help="See `jaxq policies`; or my_module:MyPolicy.")
]
Confidence = Annotated[float, typer.Option(help="Probability with which the answer holds, at least.")]
MaxGpus = Annotated[
    int | None,
    typer.Option(help="Largest size to try.", show_default="four times the lower bound, and 16 more"),
]
Replications = Annotated[int, typer.Option(help="Replications of the first look at a size; then doubled.")]
MaxReplications = Annotated[int, typer.Option(help="Replications of a size, at most.")]
Horizon = Annotated[float, typer.Option(help="Simulated seconds, from an empty cluster.")]
Warmup = Annotated[float, typer.Option(help="Seconds of them that are discarded.")]
OutFolder = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Folder for report.html, size.json, the figure, and replications as they finish; the same "
        "command goes on from what it holds.",
    ),
]


def size(
    file: InstanceFile,
    load: Load,
    target: Target,
    each_class: EachClass = False,
    policy: PolicyName = "price_and_pack",
    confidence: Confidence = 0.95,
    max_gpus: MaxGpus = None,
    replications: Replications = 64,
    max_replications: MaxReplications = 1024,
    horizon: Horizon = 600.0,
    warmup: Warmup = 200.0,
    seed: Seed = 0,
    out: OutFolder = None,
    json: Json = False,
) -> None:
    """Find the smallest number of GPUs that serves a load, with stated confidence.

    Starts at the number below which no policy can reach the target (by the linear program), and simulates
    sizes from there on until it knows which is the smallest that suffices. The file's arrival rates are not
    used. Takes for granted that more GPUs never do worse. Exit code 1 when no size up to --max-gpus was shown
    to suffice.

    \b
    Examples:
      jaxq size cluster.toml --load 25,25 --target revenue=0.98
      jaxq size cluster.toml --load chat=25,code=100 --target abandonment=0.02 --each-class
      jaxq size cluster.toml --load 25,25 --target revenue=0.98 --policy sarathi --out sizes/sarathi
    """
    check_seed(seed)
    check_times(horizon, warmup)
    if not 0 < confidence < 1:
        raise InputError(f"--confidence: expected a number above 0 and below 1, got {confidence:g}")
    for number, option in ((replications, "--replications"), (max_gpus, "--max-gpus")):
        whole_numbers(str(1 if number is None else number), option)
    instance = read_instance(file)
    configure_jax()
    from .._sizing import checked_load

    started = time.perf_counter()
    asked = {"load": checked_load(instance, _rates(load), "--load"), "target": _target(target, each_class)}
    run = {"confidence": confidence, "max_gpus": max_gpus, "replications": replications,
           "max_replications": max_replications, "horizon": horizon, "warmup": warmup}  # fmt: skip
    found = _sized(instance, policy, out, key=seed, **asked, **run)
    summary = {**found.to_dict(), "seed": seed, "horizon": horizon, "warmup": warmup}
    report = None
    if out is not None:
        named = {f"--{name.replace('_', '-')}": value for name, value in run.items()}
        options = {"--load": load, "--target": target, "--each-class": each_class, "--policy": policy}
        words = given({**options, **named})
        command = command_line(["size"], file, False, *words, seed=seed, out=out)
        summary, report = _kept(summary, instance, command, started, out)
    if json:
        print_json(summary)
    else:
        _print(found, summary, report)
    if found.most is None:
        raise typer.Exit(UNREACHED)


def _sized(instance: Instance, policy: str, out: Path | None, **arguments: Any) -> Sizing:
    """The sizing, with the progress of each size."""
    from .._output import writable_folder
    from .._progress import progress_bars
    from .._simulate import StatisticsWarning
    from .._sizing import size_cluster

    if out is not None:
        writable_folder(out)
    with progress_bars(1) as bars, warnings.catch_warnings():
        warnings.simplefilter("ignore", StatisticsWarning)
        watch = _Watch(bars)
        kept = None if out is None else out / KEPT
        found = size_cluster(
            instance, policy, **arguments, out=kept, progress=watch.progress, report=watch.report
        )
        for line in found.cautions:
            bars.note(f"jaxq: warning: {line}")
    return found


def _kept(
    summary: dict[str, Any], instance: Instance, command: str, started: float, folder: Path
) -> tuple[dict[str, Any], Path]:
    """The summary with what it takes to repeat it, written with its report; and where that is."""
    from .._sizing_report import SIZE_FILE, write_sizing_report
    from .._stored_summary import write_finished
    from .._summary import run_facts

    summary = summary | run_facts(instance, command, summary["seed"], started)
    return summary, write_finished(summary, instance, folder / SIZE_FILE, write_sizing_report)


def _rates(text: str) -> dict[str, float] | list[float]:
    """The rates in a text like `25,100` or `chat=25,code=100`. **Raises:** `InputError`."""
    wanted = "expected rates as in 25,100, or all by name as in chat=25,code=100"
    named, plain = {}, []
    for part in text.split(","):
        name, equals, rate = part.rpartition("=")
        try:
            number = float(rate)
        except ValueError:
            raise InputError(f"--load: {wanted}; got {part.strip()!r}") from None
        name = name.strip()
        if name in named:
            raise InputError(f"--load: {wanted}; got {name!r} twice")
        if equals:
            named[name] = number
        else:
            plain.append(number)
    if named and plain:
        raise InputError(f"--load: {wanted}; got some of each in {text!r}")
    return named or plain


def _target(text: str, each_class: bool) -> AbstractTarget:
    """The target in a text like `revenue=0.98`. **Raises:** `InputError`."""
    from .._sizing_target import AbandonmentTarget, RevenueTarget

    name, _, number = text.partition("=")
    name = name.strip()
    try:
        share = float(number)
    except ValueError:
        share = None
    if share is None or name not in (RevenueTarget.name, AbandonmentTarget.name):
        raise InputError(
            f"--target: expected revenue=SHARE or abandonment=SHARE, as in revenue=0.98; got {text!r}"
        )
    if each_class and name != AbandonmentTarget.name:
        raise InputError("--each-class: expected only with --target abandonment=SHARE")
    try:
        return RevenueTarget(share) if name == RevenueTarget.name else AbandonmentTarget(share, each_class)
    except InputError as error:
        raise InputError(f"--target: {error}") from None


class _Watch:
    """Shows each size as a piece of work, with what every look at it says."""

    def __init__(self, bars: ProgressBars):
        self.bars = bars
        self.n_gpus: int | None = None
        self.show: Callable[[int, int], None] = lambda done, total: None

    def progress(self, n_gpus: int, done: int, total: int) -> None:
        if n_gpus != self.n_gpus:
            self.n_gpus, self.show = n_gpus, self.bars.start(f"{n_gpus} GPUs")
        self.show(done, total)

    def report(self, tested: Tested) -> None:
        from .._sizing_report import percent

        share = percent(tested.estimate.to_dict())
        self.bars.note(
            f"{tested.n_gpus} GPUs, {tested.replications} replications: {share} %, {tested.verdict}"
        )


def _print(found: Sizing, summary: dict[str, Any], report: Path | None) -> None:
    """The answer, a table of the sizes that were tested, and where the report is."""
    from .._sizing_report import tested_table
    from .tables import print_table, print_text

    print_text(found.answer)
    title = "Sizes that were tested, 95 % intervals"
    print_table(*tested_table(summary), texts=("verdict",), title=title)
    if found.target.at_least and found.most is not None:
        chosen = next(t for t in found.tested if t.n_gpus == found.most).share_of_best
        print_text(
            f"With {found.most} GPUs: {100 * chosen.mean:.2f} ± {100 * chosen.half_width:.2f} % of the most "
            "that any policy can earn."
        )
    print_text(f"{found.engine_description}.")
    if report is not None:
        print_text(f"Report: {report}")
