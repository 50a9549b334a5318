"""How much memory a simulation needs, how much there is, and how many replications fit."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._errors import InputError

if TYPE_CHECKING:
    from ._engine.replicated import AbstractReplicatedEngine
    from ._instance import Instance
    from ._policy.base import Policy

HEADROOM = 0.9
"""Part of the free memory that a run may plan for."""

BLOCK_SHARE = 0.25
"""Part of the free memory of devices and host that one block of replications may take; devices hold its state
twice, at most."""

BLOCK_UNKNOWN = 2**30
"""Bytes that its state may take on a device that does not say how much memory it has."""

COPIES = 2
"""A record is there twice while its blocks are joined."""

EXTRA_AVERAGES = 8
"""Averages of a replication that are not by class."""

_CGROUP = Path("/sys/fs/cgroup")
_UNLIMITED = 2**60


@dataclass(frozen=True)
class Need:
    """Bytes that a simulation needs on its devices together, and on the host for its record."""

    device: int
    host: int

    def fits(self, free: Free) -> bool:
        """Whether both are there; a CPU device lives on the host's memory."""
        if free.device is None:
            return free.host is None or self.device + self.host <= HEADROOM * free.host
        return self.device <= HEADROOM * free.device and (
            free.host is None or self.host <= HEADROOM * free.host
        )


@dataclass(frozen=True)
class Free:
    """Free bytes: on the devices together (None: they are CPUs), and on the host (None: not known).

    Replications are spread evenly: every device counts for as much as the one with the least.
    """

    device: int | None
    host: int | None


def free_memory() -> Free:
    """What is free now."""
    import jax

    devices = jax.local_devices()
    if devices[0].platform == "cpu":
        return Free(None, host_memory())
    stats: list[dict[str, Any]] = [device.memory_stats() or {} for device in devices]
    if not all("bytes_limit" in stat for stat in stats):
        return Free(_UNLIMITED, host_memory())
    return Free(
        len(stats) * min(int(stat["bytes_limit"]) - int(stat.get("bytes_in_use", 0)) for stat in stats),
        host_memory(),
    )


def block_limit(devices: int, state: int, n_classes: int) -> int:
    """Replications that each of so many devices may take at a time.

    Their state takes a share of the memory that is free there, and their record of that of the host; rounded
    down to a power of two, so that a little less memory does not mean another program.

    **Arguments:** `state`: bytes of state of one replication.
    """
    from ._engine.windows import WINDOWS

    free, limits = free_memory(), []
    record = COPIES * 8 * 2 * WINDOWS * _rows(n_classes)
    if free.host is not None:
        limits.append(BLOCK_SHARE * free.host / devices / (record + (state if free.device is None else 0)))
    if free.device is not None:
        known = free.device < _UNLIMITED
        limits.append((BLOCK_SHARE * free.device / devices if known else BLOCK_UNKNOWN) / state)
    most = max(1, int(min(limits, default=BLOCK_UNKNOWN / state)))
    return 2 ** (most.bit_length() - 1)


def _rows(n_classes: int) -> int:
    """Numbers that a record keeps of a replication and a window."""
    from ._engine.record import COUNTS, INTEGRALS

    return n_classes * len(COUNTS + INTEGRALS) + 1


def host_memory() -> int | None:
    """Bytes that this process may still take on the host: of the machine, or of its control group if less."""
    limits = []
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                limits.append(1024 * int(line.split()[1]))
    with contextlib.suppress(OSError, ValueError):
        most = int((_CGROUP / "memory.max").read_text())  # "max" is no number: no limit
        limits.append(max(0, most - int((_CGROUP / "memory.current").read_text())))
    if not limits:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(limits, default=None)


def memory_need(
    engine: AbstractReplicatedEngine,
    instance: Instance,
    policy: Policy,
    n_gpus: int,
    replications: int,
    *,
    horizon: float,
    warmup: float,
    kept: bool = False,
) -> Need:
    """What a run of so many replications needs; `kept`: in a folder, and only averages stay in memory."""
    from ._engine.windows import WINDOWS
    from ._result import WATCHED

    windows = WINDOWS + math.ceil(WINDOWS * warmup / (horizon - warmup))
    rows = _rows(instance.n_classes)
    numbers = windows * rows * replications
    if kept:
        block = engine.block_size(instance, policy, n_gpus, replications)
        watched = 3 * windows * min(WATCHED, replications)
        numbers = windows * rows * min(block, replications) + (rows + EXTRA_AVERAGES) * replications + watched
    return Need(device=engine.memory(instance, policy, n_gpus, replications), host=COPIES * 8 * numbers)


def check_memory(
    engine: AbstractReplicatedEngine,
    instance: Instance,
    policy: Policy,
    n_gpus: int,
    replications: int,
    *,
    horizon: float,
    warmup: float,
    kept: bool = False,
    field_name: Callable[[str], str] = "--{}".format,
) -> None:
    """Refuse a run that does not fit the free memory; `kept`: see `memory_need`.

    **Arguments:** `field_name`: what the message calls a field.

    **Raises:** `InputError` with the largest number of replications that fits.
    """
    free = free_memory()

    def need(count: int) -> Need:
        return memory_need(engine, instance, policy, n_gpus, count, horizon=horizon, warmup=warmup, kept=kept)

    if need(replications).fits(free):
        return
    most = largest_that_fits(lambda count: need(count).fits(free), replications)
    needed = need(replications)
    there = free.host if free.device is None else free.device
    advice = f"at most {most} fit" if most else f"not even one fits: lower {field_name('gpus')}"
    raise InputError(
        f"{field_name('replications')}: {replications} replications of {n_gpus} GPUs need "
        f"{in_words(needed.device + (needed.host if free.device is None else 0))} of memory, and "
        f"{in_words(there or 0)} is free; {advice}"
    )


def largest_that_fits(fits: Callable[[int], bool], too_many: int) -> int:
    """The largest number below `too_many` that fits, by bisection; 0 when none does."""
    low, high = 0, too_many
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def in_words(size: int | float) -> str:
    """Bytes as `1.5 GiB`."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.3g} GiB"
