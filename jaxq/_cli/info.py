"""`jaxq info`: what runs here, and what a simulation would need."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from .._summary import environment_dict
from .choices import check_times
from .engines import ReplicatedEngineName, Stepper, make_engine
from .environment import cache_folder, configure_jax
from .options import (
    Json,
    OptionalInstanceFile,
    check_number,
    policy_references,
    print_json,
    read_instance,
    whole_numbers,
)

if TYPE_CHECKING:
    from .._engine.replicated import AbstractReplicatedEngine


def info(
    file: OptionalInstanceFile = None,
    policy: Annotated[
        str, typer.Option(metavar="NAME[,NAME...]", help="Policies, or all.")
    ] = "gate_and_route",
    gpus: Annotated[
        str | None, typer.Option(metavar="N[,N...]", help="Numbers of GPUs.", show_default=False)
    ] = None,
    replications: Annotated[int, typer.Option(help="Replications.")] = 64,
    horizon: Annotated[float, typer.Option(help="Simulated seconds.")] = 1500.0,
    warmup: Annotated[float, typer.Option(help="Seconds of them that are discarded.")] = 300.0,
    engine: ReplicatedEngineName = "cluster",
    stepper: Stepper = None,
    dt: Annotated[float | None, typer.Option(help="Step of leap, s.", show_default="chosen")] = None,
    json: Json = False,
) -> None:
    """Versions, devices and free memory; with --gpus also the memory that a simulation needs.

    \b
    Examples:
      jaxq info
      jaxq info cluster.toml --gpus 20000 --replications 256 --policy sarathi --stepper leap
    """
    sizes = () if gpus is None else whole_numbers(gpus, "--gpus")
    whole_numbers(str(replications), "--replications")
    check_number(dt, "--dt", above=True)
    check_times(horizon, warmup)
    references = policy_references(policy)
    configure_jax()
    facts = _facts()
    if sizes or file is not None:
        made = make_engine(engine, stepper, dt)
        facts["needs"] = _needs(file, made, references, sizes or (50,), replications, horizon, warmup)
    if json:
        print_json(facts)
    else:
        _print(facts)


def _facts() -> dict[str, Any]:
    """The environment, free memory (bytes) and the folder of compiled programs."""
    from .._memory import free_memory

    free, folder = free_memory(), cache_folder()
    return environment_dict() | {
        "free_device_memory": free.device,
        "free_host_memory": free.host,
        "compilation_cache": None if folder is None else str(folder),
    }


def _needs(
    file: Any,
    engine: AbstractReplicatedEngine,
    references: tuple[str, ...],
    sizes: tuple[int, ...],
    replications: int,
    horizon: float,
    warmup: float,
) -> list[dict[str, Any]]:
    """What each policy needs at each number of GPUs."""
    from .._memory import free_memory, memory_need
    from .._policy.load import load_policy

    instance, free = read_instance(file), free_memory()
    rows = []
    for reference in references:
        found = load_policy(reference, instance)
        for n_gpus in sizes:
            need = memory_need(engine, instance, found, n_gpus, replications, horizon=horizon, warmup=warmup)
            rows.append(
                {
                    "policy": reference,
                    "gpus": n_gpus,
                    "replications": replications,
                    "device_bytes": need.device,
                    "host_bytes": need.host,
                    "fits": need.fits(free),
                    "engine": engine.describe(instance, found, n_gpus),
                }
            )
    return rows


def _print(facts: dict[str, Any]) -> None:
    """The facts for a person."""
    from collections import Counter

    from .._memory import in_words

    kinds = Counter(f"{device['platform']} ({device['kind']})" for device in facts["devices"])
    typer.echo("versions  " + ", ".join(f"{name} {version}" for name, version in facts["versions"].items()))
    typer.echo(f"machine   {facts['machine']}, {facts['cores']} usable cores")
    typer.echo("devices   " + ", ".join(f"{count} x {kind}" for kind, count in kinds.items()))
    for name, label in (("free_device_memory", "on the devices"), ("free_host_memory", "on the host")):
        if facts[name] is not None:
            typer.echo(f"memory    {in_words(facts[name])} free {label}")
    typer.echo(f"cache     {facts['compilation_cache'] or 'none: no writable folder'}")
    for need in facts.get("needs", []):
        verdict = "fits" if need["fits"] else "does not fit"
        typer.echo(
            f"needs     {need['policy']}, {need['gpus']} GPUs x {need['replications']}: "
            f"{in_words(need['device_bytes'])} on devices, {in_words(need['host_bytes'])} on the host: "
            f"{verdict}"
        )
        typer.echo(f"          {need['engine']}")
