"""How many replications run at a time: what the free memory says, with devices that are made up."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import pytest

from jaxq import ClusterEngine, Leap, PooledEngine, _memory, policies

from . import oracles

GIB = 2**30


@dataclass(frozen=True)
class FakeDevice:
    """What jaxq asks of a device."""

    platform: str
    limit: int | None = None
    in_use: int = 0

    def memory_stats(self):
        if self.platform == "cpu":
            return None
        return {} if self.limit is None else {"bytes_limit": self.limit, "bytes_in_use": self.in_use}


def gpu(limit: float | None, in_use: float = 0.0) -> FakeDevice:
    return FakeDevice("gpu", None if limit is None else int(limit * GIB), int(in_use * GIB))


CPU = FakeDevice("cpu")


@pytest.fixture
def machine(monkeypatch):
    """Sets the devices, and the free memory of the host."""

    def set_to(*devices, host=1000 * GIB):
        monkeypatch.setattr(jax, "local_devices", lambda: list(devices))
        monkeypatch.setattr(_memory, "host_memory", lambda: host)

    return set_to


KIB, RECORD = 2**10, 2 * 80 * 21 * 8
"""Bytes of a record of two classes: 21 numbers in each of 80 windows, twice while blocks are joined."""


@pytest.mark.parametrize(
    ("devices", "host", "limit"),
    [
        ([gpu(59, 0.1)], 1000, 14.7 * GIB / KIB),
        ([gpu(59, 0.1), gpu(59, 40)], 1000, 4.75 * GIB / KIB),  # the second has least
        ([gpu(16)], 1000, 4 * GIB / KIB),
        ([gpu(16)] * 2, 8, GIB / RECORD),
        ([gpu(None)], 1000, GIB / KIB),  # it does not say
        ([gpu(16, 16)], None, 1),
        ([CPU, CPU], 12, 1.5 * GIB / (RECORD + KIB)),
        ([CPU, CPU], None, GIB / KIB),
    ],
)
def test_a_block_takes_at_most_a_quarter_of_what_is_free(machine, devices, host, limit):
    """Rounded down to a power of two, with 1 KiB of state a replication."""
    machine(*devices, host=None if host is None else host * GIB)
    found = _memory.block_limit(len(devices), KIB, 2)
    assert found & (found - 1) == 0 and limit / 2 < found <= limit


@pytest.mark.parametrize("engine", [ClusterEngine(), ClusterEngine(stepper=Leap()), PooledEngine()])
def test_blocks_follow_the_devices(machine, engine):
    """In parts of equal size, and of a multiple of 8 on each device; on a CPU, what its caches hold, or
    less."""
    instance = oracles.reference_cluster().instance()
    policy, n_gpus, many = policies.gate_and_route(instance), 500, 10**11
    state = engine.state_bytes(instance, policy, n_gpus)

    def block(*devices, host=1000 * GIB, replications=many):
        machine(*devices, host=host)
        return engine.block_size(instance, policy, n_gpus, replications)

    for devices in ([gpu(59)], [gpu(16)] * 4):
        found, count = block(*devices), len(devices)
        limit = _memory.block_limit(count, state, 2)
        assert found % (8 * count) == 0 and 0.99 * limit < found / count <= limit + 8
        assert block(*devices, replications=1000) == 1000 + -1000 % (8 * count)
    usual = block(CPU, CPU)
    assert usual / 2 <= min(512, engine.block_bytes / state + 8)
    assert block(CPU, CPU, host=4 * 2 * 1024 * (RECORD + state)) == usual
    assert block(CPU, CPU, host=4 * 2 * 16 * (RECORD + state)) == 32
    assert block(CPU, CPU, host=1) == 16  # never fewer than fill the vector loops


def test_a_line_says_what_was_chosen(machine):
    instance = oracles.reference_cluster().instance()
    chosen = [policies.gate_and_route(instance), policies.sarathi(instance)]
    engine = ClusterEngine()
    machine(CPU, CPU)
    sizes = [engine.state_bytes(instance, policy, 50) for policy in chosen]
    line = engine.describe_blocks(instance, chosen, 50, 1000)
    block = engine.block_size(instance, chosen[sizes.index(max(sizes))], 50, 1000)
    assert line.startswith(f"{-(-1000 // block)} block")
    assert f" of {block} replications on 2 CPU devices, " in line and line.endswith("iB of state on each")
    machine(gpu(80))
    assert engine.describe_blocks(instance, chosen, 50, 64) == (
        f"1 block of 64 replications on 1 GPU device, {_memory.in_words(64 * max(sizes))} of state on each"
    )
