"""`jaxq batch`: the studies of a file, here or over a cluster."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .._errors import InputError
from .._summary import size_name, write_json
from .batch_file import BatchEntry, load_entry_instance, read_batch
from .environment import configure_jax
from .options import Json, print_json
from .simulate import interval_cells
from .simulated import tell_kept, tell_result

if TYPE_CHECKING:
    from .._batch import Outcome
    from .._progress import ProgressBars
    from .._result import Result
    from .._simulate import Progress
    from .._study import Study

SUMMARY_FILE = "batch.json"

File = Annotated[Path, typer.Argument(metavar="FILE", help="Studies, a TOML file.", show_default=False)]
OutFolder = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Folder that keeps replications as they finish, one folder a study, and batch.json at the end. "
        "The same command goes on from what it holds. With --cluster all workers must see it.",
        show_default="jaxq-batch/NAME of FILE",
    ),
]
Cluster = Annotated[
    str | None,
    typer.Option(
        metavar="ray",
        help="One task a study: on the Ray cluster of RAY_ADDRESS, else on one started on this machine.",
        show_default="here, one study after another",
    ),
]
Gpus = Annotated[
    int | None,
    typer.Option(help="GPUs that Ray gives each study.", show_default="1 where the cluster has any"),
]
Cpus = Annotated[int, typer.Option(help="CPU cores that Ray gives each study.")]


def batch(
    file: File,
    out: OutFolder = None,
    cluster: Cluster = None,
    gpus_per_study: Gpus = None,
    cpus_per_study: Cpus = 1,
    json: Json = False,
) -> None:
    """Simulate the studies of a file: a policy on a cluster each, here or over a Ray cluster.

    A table \\[studies.NAME] of FILE has instance (a file, or the name of one that comes with jaxq), policy,
    gpus, horizon, warmup, replications, seed, engine, stepper and so on, as `jaxq simulate --help` has them;
    \\[defaults] holds what they share. A study that fails stops no other. The same command goes on after an
    interruption, and results do not hang on where they were made.

    \b
    Examples:
      jaxq batch sizes.toml
      RAY_ADDRESS=auto jaxq batch sizes.toml --out /shared/sizes --cluster ray --json > sizes.json
    """
    entries = read_batch(file)
    if cluster is not None:
        import jax

        # The studies are simulated elsewhere, and may need the GPUs of this machine.
        jax.config.update("jax_platforms", "cpu")
    configure_jax()
    from .._batch import MAX_RETRIES, outcomes, results_of
    from .._output import writable_folder
    from .._progress import progress_bars

    here = cluster is None
    studies = {name: _study(f"{file}: studies.{name}", entry, here) for name, entry in entries.items()}
    folder = out if out is not None else Path("jaxq-batch") / file.stem
    writable_folder(folder)
    given = {"gpus": gpus_per_study, "cpus": cpus_per_study, "max_retries": MAX_RETRIES}
    ended: dict[str, Outcome] = {}
    with progress_bars(len(studies)) as bars:
        shown = _Shown(bars)
        for name in studies:
            tell_kept(bars, name, folder / name)
        with outcomes(studies, folder, cluster=cluster, progress=shown.report, **given) as found:
            for name, outcome in found:
                shown.end(name, outcome)
                ended[name] = outcome
    results = results_of({name: ended[name] for name in studies}, folder)
    records = {name: {**result.to_dict(), "policy": entries[name].policy} for name, result in results.items()}
    summary = {"studies": records, "out": str(folder), "cluster": cluster}
    write_json(summary, folder / SUMMARY_FILE)
    if json:
        print_json(summary)
    else:
        _print(results)


def _study(where: str, entry: BatchEntry, here: bool) -> Study:
    """A study, checked.

    **Arguments:** `where`: what messages begin with; `here`: whether it is simulated on this machine.
    """
    from .._policy.load import load_policy

    try:
        instance = load_entry_instance(entry.instance)
        policy = load_policy(entry.policy, instance)
        run = entry.choices.run(instance)
        run.check([policy], kept=True, here=here)
        return run.study(policy, *run.sizes)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


class _Shown:
    """The progress of studies that may run at the same time."""

    def __init__(self, bars: ProgressBars):
        self._bars = bars
        self._done: dict[str, float] = {}
        self._report: Progress | None = None

    def report(self, name: str, done: int, total: int) -> None:
        """So much of a study is done."""
        if self._report is None or name not in self._done:
            self._done[name] = 0.0
            running = len(self._done)
            self._report = self._bars.start(name if running == 1 else f"{running} studies")
        self._done[name] = done / total
        self._report(round(1000 * sum(self._done.values())), 1000 * len(self._done))

    def end(self, name: str, outcome: Outcome) -> None:
        """A study has ended."""
        self._done.pop(name, None)
        self._report = None
        if outcome.result is None:
            self._bars.finish(f"{name}: failed: {outcome.failure}")
        else:
            tell_result(self._bars, name, outcome.result, outcome.cautions)


def _print(results: Mapping[str, Result]) -> None:
    """A table for a person."""
    from .tables import print_table

    rows = [
        (
            name,
            result.policy_name,
            size_name(result.n_gpus),
            result.instance.pricing.scheme,
            *interval_cells(result),
            f"{result.bound():.2f}",
            str(result.replications),
        )
        for name, result in results.items()
    ]
    print_table(
        ("study", "policy", "GPUs", "scheme", "revenue", "gap, %", "best possible", "replications"),
        rows,
        texts=("policy", "scheme"),
        title="Revenue per GPU and second, and its gap to the best possible, with 95 % intervals",
    )
