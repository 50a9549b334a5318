"""The reference policies in SimPy, as a careful user of SimPy would write them: a general-purpose yardstick.

Every GPU is a process that sleeps until its next completion, an exponential time at its present total rate;
whoever changes what runs on a GPU interrupts it, and it draws afresh, which the memoryless law allows. Every
class has an arrival process. A waiting request takes its patience with it, as a timeout that removes it if it
still waits.
"""

from __future__ import annotations

import random
import time
from collections.abc import Generator
from typing import NamedTuple

import simpy

from benchmarks.native import InstanceNumbers, PlanNumbers, partition_size
from jaxq._errors import InputError

POLICIES = ("gate_and_route", "gate_immediate")
"""The policies that this program knows."""

TIE = 1e-6
"""Relative difference up to which two classes are equally far from their planned occupancies."""


class SimpyRun(NamedTuple):
    """One replication.

    `revenue_bundled`, `revenue_separate`: after the warm-up, money per GPU and second. `events`: arrivals,
    abandonments, completions of prefills and of decodes, of the whole run. `wall_time`: of the whole run, s.
    """

    revenue_bundled: float
    revenue_separate: float
    events: int
    wall_time: float

    @property
    def events_per_second(self) -> float:
        """Model events per second of wall time."""
        return self.events / self.wall_time


class Pool:
    """A set with a uniform draw: GPUs that can start a prefill, or that have room for a decode."""

    def __init__(self):
        self.members: list[Gpu] = []
        self.position: dict[Gpu, int] = {}

    def set(self, gpu: Gpu, member: bool) -> None:
        """Make `gpu` a member, or not."""
        if member == (gpu in self.position):
            return
        if member:
            self.position[gpu] = len(self.members)
            self.members.append(gpu)
        else:
            hole, last = self.position.pop(gpu), self.members.pop()
            if last is not gpu:
                self.members[hole] = last
                self.position[last] = hole


class Gpu:
    """One GPU: its running prefill's class (or None), its decodes by class, and its process."""

    def __init__(self, cluster: Cluster, in_mixed_group: bool):
        self.cluster = cluster
        self.in_mixed_group = in_mixed_group
        self.prefill: int | None = None
        self.decodes = [0] * cluster.n_classes
        self.n_decodes = 0
        self.process = cluster.environment.process(self.run())
        cluster.update_pools(self)

    def changed(self) -> None:
        """Wake the process, so that it sleeps anew at the present rates; one that is awake will anyway."""
        self.cluster.update_pools(self)
        if self.process is not self.cluster.environment.active_process:
            self.process.interrupt()

    def run(self) -> Generator[simpy.Event, None, None]:
        """Sleep until the next completion, or until interrupted."""
        environment, draw = self.cluster.environment, self.cluster.random
        while True:
            decode_rates = self.cluster.mu_solo if self.prefill is None else self.cluster.mu_mixed
            prefill_rate = 0.0 if self.prefill is None else self.cluster.mu_prefill[self.prefill]
            weights = [rate * count for rate, count in zip(decode_rates, self.decodes, strict=True)]
            total = prefill_rate + sum(weights)
            try:
                yield environment.timeout(draw.expovariate(total)) if total > 0 else environment.event()
            except simpy.Interrupt:
                continue
            if draw.random() * total < prefill_rate:
                self.cluster.prefill_done(self)
            else:
                self.cluster.decode_done(self, draw.choices(range(len(weights)), weights)[0])


class Cluster:
    """The GPUs, the queues and the policy of one replication."""

    def __init__(self, instance: InstanceNumbers, policy: str, plan: PlanNumbers, n_gpus: int, seed: int):
        mixed, solo = instance.mixed_iteration_time, instance.solo_iteration_time
        self.environment = simpy.Environment()
        self.random = random.Random(seed)
        self.n_classes = len(instance.prompt_tokens)
        self.batch_size = instance.batch_size
        self.patience_rate = instance.patience_rate
        self.mu_prefill = [instance.chunk_size / (tokens * mixed) for tokens in instance.prompt_tokens]
        self.mu_mixed = [1 / (tokens * mixed) for tokens in instance.output_tokens]
        self.mu_solo = [1 / (tokens * solo) for tokens in instance.output_tokens]
        self.plan_x = plan.x
        self.plan_waiting = [n_gpus * q for q in plan.q_prefill or [0.0] * self.n_classes]
        self.partitioned = policy == "gate_and_route"
        self.running = [0] * self.n_classes
        self.waiting: list[dict[object, None]] = [{} for _ in range(self.n_classes)]
        self.buffer: list[dict[object, None]] = [{} for _ in range(self.n_classes)]
        n_mixed = partition_size(plan.x, n_gpus) if self.partitioned else 0
        self.startable, self.room_solo, self.room_mixed = Pool(), Pool(), Pool()
        self.gpus = [Gpu(self, g < n_mixed) for g in range(n_gpus)]
        self.events = 0
        self.prefilled = [0] * self.n_classes
        self.completed = [0] * self.n_classes
        for i in range(self.n_classes):
            self.environment.process(self.arrivals(i, n_gpus * instance.arrival_rate[i]))

    # What happens.

    def arrivals(self, i: int, rate: float) -> Generator[simpy.Event, None, None]:
        """The Poisson arrivals of a class; each starts on a GPU that can start a prefill, or waits."""
        while True:
            yield self.environment.timeout(self.random.expovariate(rate))
            self.events += 1
            if self.startable.members:
                self.start(self.random.choice(self.startable.members), i)
            else:
                self.wait(self.waiting[i], i)

    def wait(self, queue: dict[object, None], i: int) -> None:
        """A request joins a queue, and leaves it when its patience ends, if it still waits."""
        request = object()
        queue[request] = None
        if self.patience_rate[i] == 0:
            return
        patience = self.environment.timeout(self.random.expovariate(self.patience_rate[i]))
        patience.callbacks.append(lambda _: self.abandon(queue, request))

    def abandon(self, queue: dict[object, None], request: object) -> None:
        """The patience of a request has ended."""
        if request in queue:
            del queue[request]
            self.events += 1

    def prefill_done(self, gpu: Gpu) -> None:
        """A prefill completes: with a partition the gate acts first, else the decode is placed first."""
        i = gpu.prefill
        assert i is not None
        self.events += 1
        self.prefilled[i] += 1
        self.running[i] -= 1
        gpu.prefill = None
        if self.partitioned:
            self.offer(gpu)
            self.update_pools(gpu)
            self.route(i)
        else:
            self.place(gpu, i)
            self.offer(gpu)

    def decode_done(self, gpu: Gpu, i: int) -> None:
        """A decode completes: its slot goes to the decode buffer, or to the gate without a partition."""
        self.events += 1
        self.completed[i] += 1
        gpu.decodes[i] -= 1
        gpu.n_decodes -= 1
        if not self.partitioned:
            self.offer(gpu)
        elif any(self.buffer):
            counts = [len(queue) for queue in self.buffer]
            chosen = self.random.choices(range(self.n_classes), counts)[0]
            leave(self.buffer[chosen])
            self.place(gpu, chosen)
        self.update_pools(gpu)

    # What the policy does.

    def can_start(self, gpu: Gpu) -> bool:
        """Whether a prefill can start on a GPU."""
        if self.partitioned:
            return gpu.in_mixed_group and gpu.prefill is None
        return gpu.prefill is None and gpu.n_decodes < self.batch_size

    def update_pools(self, gpu: Gpu) -> None:
        """Let the pools follow a change on `gpu`."""
        self.startable.set(gpu, self.can_start(gpu))
        if gpu.in_mixed_group:
            self.room_mixed.set(gpu, gpu.n_decodes < self.batch_size - 1)
        elif self.partitioned:
            self.room_solo.set(gpu, gpu.n_decodes < self.batch_size)

    def offer(self, gpu: Gpu) -> None:
        """Start the gate's choice on `gpu` if it can run a prefill and someone waits."""
        if any(self.waiting) and self.can_start(gpu):
            i = self.occupancy_gate()
            leave(self.waiting[i])
            self.start(gpu, i)

    def occupancy_gate(self) -> int:
        """The waiting class with the least occupancy against its plan; ties: the longest queue against it."""
        candidates = [i for i in range(self.n_classes) if self.waiting[i]]
        occupancy = {i: self.running[i] / self.plan_x[i] for i in candidates if self.plan_x[i] > 0}
        if occupancy:
            least = min(occupancy.values())
            candidates = [i for i, value in occupancy.items() if value <= least * (1 + TIE)]
        return max(candidates, key=lambda i: (len(self.waiting[i]) - self.plan_waiting[i], -i))

    def start(self, gpu: Gpu, i: int) -> None:
        """A class-i prefill starts on `gpu`."""
        gpu.prefill = i
        self.running[i] += 1
        gpu.changed()

    def route(self, i: int) -> None:
        """Solo group first, then mixed group, uniformly over GPUs with a free slot; else the buffer."""
        room = self.room_solo.members or self.room_mixed.members
        if room:
            self.place(self.random.choice(room), i)
        else:
            self.wait(self.buffer[i], i)

    def place(self, gpu: Gpu, i: int) -> None:
        """A class-i decode starts on `gpu`."""
        gpu.decodes[i] += 1
        gpu.n_decodes += 1
        gpu.changed()


def leave(queue: dict[object, None]) -> None:
    """The oldest request of a queue leaves it (which one leaves does not change the law of the counts)."""
    del queue[next(iter(queue))]


def simulate(
    instance: InstanceNumbers,
    policy: str,
    plan: PlanNumbers,
    *,
    n_gpus: int,
    horizon: float,
    warmup: float = 0.0,
    seed: int = 0,
) -> SimpyRun:
    """One replication from an empty cluster; arguments as for `benchmarks.native.simulate`.

    **Raises:** `InputError` for a policy that is not in `POLICIES` or a warm-up not within the horizon.
    """
    if policy not in POLICIES:
        raise InputError(f"policy: expected one of {', '.join(POLICIES)}, got {policy!r}")
    if not 0 <= warmup < horizon:
        raise InputError(f"warmup: expected from 0 to less than the horizon ({horizon:g} s), got {warmup:g}")
    start = time.perf_counter()
    cluster = Cluster(instance, policy, plan, n_gpus, seed)
    if warmup > 0:
        cluster.environment.run(until=warmup)
        cluster.prefilled = [0] * cluster.n_classes
        cluster.completed = [0] * cluster.n_classes
    cluster.environment.run(until=horizon)
    wall_time = time.perf_counter() - start
    prompts = [instance.prefill_price * tokens for tokens in instance.prompt_tokens]
    outputs = [instance.decode_price * tokens for tokens in instance.output_tokens]
    decoded = sum(count * value for count, value in zip(cluster.completed, outputs, strict=True))
    bundled = sum(count * value for count, value in zip(cluster.completed, prompts, strict=True))
    separate = sum(count * value for count, value in zip(cluster.prefilled, prompts, strict=True))
    gpu_seconds = n_gpus * (horizon - warmup)
    return SimpyRun(
        (decoded + bundled) / gpu_seconds, (decoded + separate) / gpu_seconds, cluster.events, wall_time
    )
