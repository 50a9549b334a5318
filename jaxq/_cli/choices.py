"""How clusters are to be simulated, as options of a command or fields of a file say."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .._errors import InputError
from .engines import ENGINES, make_engine, make_fluid_engine
from .options import FieldName, check_number, check_seed, option_name
from .simulated import AbstractRun, FluidRun, ReplicatedRun

if TYPE_CHECKING:
    from .._instance import Instance

GPUS, REPLICATIONS, SEED = 50, 64, 0
"""What is taken when they are left out."""

CHANCE = ("gpus", "replications", "seed", "stepper", "dt", "block", "precision", "time_limit")
"""What the fluid limit has no use for."""


@dataclass(frozen=True)
class Choices:
    """What was given of horizon, engine and so on, each as in `jaxq simulate --help`; None where left out.

    - `field_name`: what messages call a field.
    """

    horizon: float = 1500.0
    warmup: float = 300.0
    engine: str = ENGINES[0]
    level: str | None = None
    gpus: tuple[int, ...] | None = None
    replications: int | None = None
    seed: int | None = None
    stepper: str | None = None
    dt: float | None = None
    block: int | None = None
    precision: float | None = None
    time_limit: float | None = None
    field_name: FieldName = option_name

    def check(self) -> None:
        """Refuse what is wrong whatever the instance, before JAX starts."""
        say = self.field_name
        check_seed(SEED if self.seed is None else self.seed, say)
        check_times(self.horizon, self.warmup, endless=self.engine == "fluid", field_name=say)
        self._check_precision()
        if self.engine not in ENGINES:
            raise InputError(f"{say('engine')}: expected {', '.join(ENGINES)}; got {self.engine!r}")
        if self.level is not None and self.engine != "fluid":
            raise InputError(f"{say('level')}: expected only with {say('engine')} fluid")

    def run(self, instance: Instance) -> AbstractRun:
        """What they choose, on an instance. **Raises:** `InputError` as `make_engine`."""
        say = self.field_name
        if self.engine == "fluid":
            chance = {name: getattr(self, name) for name in CHANCE}
            engine = make_fluid_engine(self.level, chance, say)
            return FluidRun(engine, instance, self.horizon, self.warmup)
        return ReplicatedRun(
            make_engine(self.engine, self.stepper, self.dt, self.block, say),
            instance,
            self.horizon,
            self.warmup,
            sizes=(GPUS,) if self.gpus is None else self.gpus,
            replications=REPLICATIONS if self.replications is None else self.replications,
            seed=SEED if self.seed is None else self.seed,
            precision=self.precision,
            time_limit=self.time_limit,
            field_name=say,
        )

    def _check_precision(self) -> None:
        """Refuse a precision out of range, and a time limit that has no meaning."""
        precision, limit = self.field_name("precision"), self.field_name("time_limit")
        check_number(self.precision, precision, above=True)
        check_number(self.time_limit, limit, above=True)
        if self.precision is not None and self.precision >= 1:
            raise InputError(
                f"{precision}: expected a part of the revenue below 1, as in 0.001; got {self.precision:g}"
            )
        if self.precision is None and self.time_limit is not None:
            raise InputError(f"{limit}: expected only with {precision}; a run without it has a fixed length")


def check_times(
    horizon: float,
    warmup: float,
    endless: bool = False,
    field_name: Callable[[str], str] = option_name,
) -> None:
    """Refuse a horizon or a warm-up that leaves nothing to measure; `endless`: a horizon may be infinite."""
    if not (endless and horizon == math.inf):
        check_number(horizon, field_name("horizon"), above=True)
    check_number(warmup, field_name("warmup"))
    if warmup >= horizon:
        raise InputError(
            f"{field_name('warmup')}: expected less than {field_name('horizon')} ({horizon:g} s), got "
            f"{warmup:g}"
        )
