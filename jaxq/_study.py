"""A study: the arguments of one simulation, checked, to be run later or elsewhere."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import KW_ONLY, dataclass
from typing import Any

import jax

from ._instance import Instance
from ._policy.base import Policy
from ._result import Result
from ._run_setting import Budget, RunSetting
from ._simulate import Engine, Progress, Seconds, Whole, default_engine, simulate


@dataclass(frozen=True, eq=False)
class Study:
    """The arguments of one call of `simulate`, checked but not run; `run_studies` runs many.

    No device is taken before it is run, wherever that is.

    **Arguments:** those of `simulate`, but for `progress` and `out`.

    **Raises:** `InputError` as `simulate`, but for what hangs on the policy and the engine together.
    """

    instance: Instance
    policy: Policy
    _: KW_ONLY
    n_gpus: Whole | None = None
    horizon: Seconds
    warmup: Seconds
    replications: Whole | None = None
    key: Whole | jax.Array | None = None
    first: Whole = 0
    engine: Engine | None = None
    precision: Any = None
    max_replications: Whole | None = None
    time_limit: Seconds | None = None

    def __post_init__(self):
        chance = (self.n_gpus, self.horizon, self.warmup, self.replications, self.key, self.first)
        engine = default_engine() if self.engine is None else self.engine
        setting = RunSetting.of(engine, *chance, self.precision)
        Budget.of(setting.replications, self.precision, self.max_replications, self.time_limit)

    def run(self, *, progress: Progress | None = None, out: str | os.PathLike[str] | None = None) -> Result:
        """`simulate` with these arguments. **Raises:** as it does."""
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return simulate(**given, progress=progress, out=out)
