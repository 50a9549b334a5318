"""What a command simulates: records of a stochastic engine, or of the limit of many GPUs."""

from __future__ import annotations

import abc
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._errors import InputError
from .._summary import size_name

if TYPE_CHECKING:
    from .._engine.replicated import AbstractReplicatedEngine
    from .._fluid.engine import FluidEngine
    from .._instance import Instance
    from .._policy.base import Policy
    from .._progress import ProgressBars
    from .._result import Result
    from .._simulate import Engine


class AbstractRun(abc.ABC):
    """What all records of a command share."""

    engine: Engine
    instance: Instance
    horizon: float
    warmup: float
    sizes: Sequence[int | None]
    seed: int | None

    @abc.abstractmethod
    def check(self, policies: Sequence[Policy], kept: bool) -> None:
        """Refuse what cannot be simulated, before any work; `kept`: replications go to a folder."""

    @abc.abstractmethod
    def options(self, n_gpus: int | None) -> dict[str, Any]:
        """Arguments of `simulate` that this kind of run has alone."""

    def simulate(
        self, policy: Policy, label: str, n_gpus: int | None, bars: ProgressBars, out: Path | None
    ) -> Result:
        """One record, with its progress and, on stderr, what makes its intervals doubtful, and what was found
        in its folder."""
        from .._simulate import StatisticsWarning, simulate

        label = f"{label}, n = {size_name(n_gpus)}"
        if out is not None and (kept := kept_replications(out)):
            bars.note(f"{label}: goes on from {kept} kept replications")
        report = bars.start(label)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            warnings.simplefilter("ignore", StatisticsWarning)
            result = simulate(
                self.instance,
                policy,
                horizon=self.horizon,
                warmup=self.warmup,
                engine=self.engine,
                progress=report,
                out=out,
                **self.options(n_gpus),
            )
        for line in dict.fromkeys(str(warning.message) for warning in caught):
            bars.note(f"jaxq: warning: {line}")
        gap = result.gap()
        bars.finish(
            f"{label}: gap {100 * gap.mean:.2f} ± {100 * gap.half_width:.2f} %, {result.seconds:.1f} s"
        )
        for line in result.cautions():
            bars.note(f"jaxq: warning: {label}: {line}")
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

    def check(self, policies: Sequence[Policy], kept: bool) -> None:
        """Refuse a step that is too long, and what does not fit the free memory, before any work."""
        from .._memory import check_memory

        given = {"horizon": self.horizon, "warmup": self.warmup, "kept": kept}
        for policy in policies:
            for n_gpus in self.sizes:
                self.engine.describe(self.instance, policy, n_gpus)
                check_memory(self.engine, self.instance, policy, n_gpus, self.replications, **given)

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

    def check(self, policies: Sequence[Policy], kept: bool) -> None:
        for policy in policies:
            self.engine.check(self.instance, policy)

    def options(self, n_gpus: int | None) -> dict[str, Any]:
        return {}


def kept_replications(folder: Path) -> int:
    """Replications that the folder of a record holds; 0 when it is none, or its description is damaged."""
    from .._store.kept_run import summarise_run

    try:
        return summarise_run(folder).kept if folder.is_dir() else 0
    except InputError:
        return 0
