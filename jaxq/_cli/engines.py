"""Options that choose an engine, and the engine that they name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .._errors import InputError
from .options import FieldName, check_number, option_name

if TYPE_CHECKING:
    from .._engine.replicated import AbstractReplicatedEngine
    from .._fluid.engine import FluidEngine

ENGINES = ("cluster", "pooled", "fluid")

STEPPERS = ("exact", "leap")

LEVELS = ("configuration", "pooled")

EngineName = Annotated[
    str,
    typer.Option(
        "--engine",
        metavar="cluster|pooled|fluid",
        help="cluster: every GPU, every policy. pooled: counts by class and group, for policies with a "
        "partition and up to a million GPUs. fluid: the limit of infinitely many GPUs, without chance.",
    ),
]

ReplicatedEngineName = Annotated[
    str, typer.Option("--engine", metavar="cluster|pooled", help="The engine: see `jaxq simulate --help`.")
]

Stepper = Annotated[
    str | None,
    typer.Option(
        metavar="exact|leap",
        help="exact: the exact law of the engine. leap: time steps, quicker when n is large.",
        show_default="exact with cluster, leap with pooled",
    ),
]

Level = Annotated[
    str | None,
    typer.Option(
        metavar="configuration|pooled",
        help="With --engine fluid: the share of GPUs in each configuration, right for every policy; or "
        "counts by class and group, the fluid model of the paper, for policies with a partition.",
        show_default="configuration",
    ),
]


Block = Annotated[
    int | None,
    typer.Option(
        help="Replications at a time on each device, and with --out between two files; no result depends "
        "on it.",
        show_default="chosen from the free memory",
    ),
]


def make_engine(
    engine: str,
    stepper: str | None,
    dt: float | None,
    block: int | None = None,
    field_name: FieldName = option_name,
) -> AbstractReplicatedEngine:
    """The stochastic engine that the options name.

    **Raises:** `InputError` for an unknown engine or stepper, or a `dt` without meaning.
    """
    if engine not in ENGINES[:2]:
        raise InputError(f"{field_name('engine')}: expected cluster or pooled, got {engine!r}")
    if stepper is None:
        stepper = "exact" if engine == "cluster" else "leap"
    if stepper not in STEPPERS:
        raise InputError(f"{field_name('stepper')}: expected exact or leap, got {stepper!r}")
    check_number(dt, field_name("dt"), above=True)
    if stepper == "exact" and dt is not None:
        raise InputError(
            f"{field_name('dt')}: expected only with {field_name('stepper')} leap; the exact chain has no "
            "time step"
        )
    from .._engine.cluster import ClusterEngine
    from .._engine.steppers import Exact, Leap
    from .._pooled.engine import PooledEngine

    kind = ClusterEngine if engine == "cluster" else PooledEngine
    return kind(stepper=Exact() if stepper == "exact" else Leap(dt), block=block)


def make_fluid_engine(
    level: str | None, chance: Mapping[str, Any], field_name: FieldName = option_name
) -> FluidEngine:
    """The fluid engine at a level.

    **Arguments:** `chance`: fields that speak of chance or of time steps; all must be None.

    **Raises:** `InputError` for an unknown level, and for fields without meaning.
    """
    level = LEVELS[0] if level is None else level
    if level not in LEVELS:
        raise InputError(f"{field_name('level')}: expected configuration or pooled, got {level!r}")
    given = [name for name, value in chance.items() if value is not None]
    if given:
        raise InputError(
            f"{field_name(given[0])}: expected only with {field_name('engine')} cluster or pooled; the fluid "
            "limit has none"
        )
    from .._fluid.engine import FluidEngine

    return FluidEngine(level=level)
