"""What a command simulates: records of a stochastic engine, or of the limit of many GPUs."""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._errors import InputError
from .._summary import size_name
from .options import FieldName, option_name

if TYPE_CHECKING:
    from .._engine.replicated import AbstractReplicatedEngine
    from .._fluid.engine import FluidEngine
    from .._instance import Instance
    from .._policy.base import Policy
    from .._progress import ProgressBars
    from .._result import Result
    from .._simulate import Engine
    from .._study import Study


class AbstractRun(abc.ABC):
    """What all records of a command share."""

    engine: Engine
    instance: Instance
    horizon: float
    warmup: float
    sizes: Sequence[int | None]
    seed: int | None

    @abc.abstractmethod
    def check(self, policies: Sequence[Policy], kept: bool, here: bool = True) -> None:
        """Refuse what cannot be simulated, before any work; `kept`: replications go to a folder; `here`: the
        memory is that of this machine."""

    @abc.abstractmethod
    def block_lines(self, policies: Sequence[Policy]) -> list[str]:
        """A line for each number of GPUs about how many replications run at a time."""

    @abc.abstractmethod
    def options(self, n_gpus: int | None) -> dict[str, Any]:
        """Arguments of `simulate` that this kind of run has alone."""

    def study(self, policy: Policy, n_gpus: int | None) -> Study:
        """One record, to be simulated."""
        from .._study import Study

        given = {"horizon": self.horizon, "warmup": self.warmup, "engine": self.engine}
        return Study(self.instance, policy, **given, **self.options(n_gpus))

    def simulate(
        self, policy: Policy, label: str, n_gpus: int | None, bars: ProgressBars, out: Path | None
    ) -> Result:
        """One record, with its progress and, on stderr, what makes its intervals doubtful, and what was found
        in its folder."""
        from .._simulate import StatisticsWarning

        label = f"{label}, n = {size_name(n_gpus)}"
        if out is not None:
            tell_kept(bars, label, out)
        report = bars.start(label)
        # A result says itself what a `StatisticsWarning` does.
        with bars.warnings_as_notes(unless=StatisticsWarning):
            result = self.study(policy, n_gpus).run(progress=report, out=out)
        tell_result(bars, label, result)
        return result


@dataclass(frozen=True)
class ReplicatedRun(AbstractRun):
    """Records of a stochastic engine."""

    engine: AbstractReplicatedEngine
    instance: Instance
    horizon: float
    warmup: float
    sizes: Sequence[int]
    replications: int
    seed: int
    precision: float | None = None
    time_limit: float | None = None
    field_name: FieldName = option_name

    def check(self, policies: Sequence[Policy], kept: bool, here: bool = True) -> None:
        """Refuse a step that is too long, and what does not fit the free memory, before any work."""
        from .._memory import check_memory

        given: dict[str, Any] = {"horizon": self.horizon, "warmup": self.warmup, "kept": kept}
        for policy in policies:
            for n_gpus in self.sizes:
                self.engine.describe(self.instance, policy, n_gpus)
                if here:
                    need = (self.engine, self.instance, policy, n_gpus, self.replications)
                    check_memory(*need, **given, field_name=self.field_name)

    def block_lines(self, policies: Sequence[Policy]) -> list[str]:
        return [
            f"n = {n}: {self.engine.describe_blocks(self.instance, policies, n, self.replications)}"
            for n in self.sizes
        ]

    def options(self, n_gpus: int | None) -> dict[str, Any]:
        return {
            "n_gpus": n_gpus,
            "replications": self.replications,
            "key": self.seed,
            "precision": self.precision,
            "time_limit": self.time_limit,
        }


@dataclass(frozen=True)
class FluidRun(AbstractRun):
    """Records of the limit of many GPUs."""

    engine: FluidEngine
    instance: Instance
    horizon: float
    warmup: float
    sizes: Sequence[None] = (None,)
    seed: None = None

    def check(self, policies: Sequence[Policy], kept: bool, here: bool = True) -> None:
        for policy in policies:
            self.engine.check(self.instance, policy)

    def block_lines(self, policies: Sequence[Policy]) -> list[str]:
        return []

    def options(self, n_gpus: int | None) -> dict[str, Any]:
        return {}


def tell_kept(bars: ProgressBars, label: str, folder: Path) -> None:
    """Say how many replications the folder of a record holds, if it is one and holds any."""
    from .._store.kept_run import summarise_run

    with contextlib.suppress(InputError):  # damaged: the run will say so
        if folder.is_dir() and (kept := summarise_run(folder).kept):
            bars.note(f"{label}: goes on from {kept} kept replications")


def tell_result(
    bars: ProgressBars, label: str, result: Result, caught: Sequence[tuple[type[Warning], str]] = ()
) -> None:
    """Say what a record found, and what makes its intervals doubtful; `caught`: warnings on the way."""
    from .._simulate import StatisticsWarning

    # A result says itself what a `StatisticsWarning` does.
    told = [text for category, text in caught if not issubclass(category, StatisticsWarning)]
    for line in dict.fromkeys(told):
        bars.note(f"jaxq: warning: {line}")
    gap = result.gap()
    bars.finish(f"{label}: gap {100 * gap.mean:.2f} ± {100 * gap.half_width:.2f} %, {result.seconds:.1f} s")
    for line in result.cautions():
        bars.note(f"jaxq: warning: {label}: {line}")
