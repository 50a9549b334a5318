"""Independent answers for the tests: closed forms of queues, the planning LP, exact laws of tiny clusters.

Written from the mathematics alone, with numpy and scipy, and without any of jaxq's planning or simulation
code: `Cluster` recomputes every rate from raw lengths, times and prices. jaxq itself is imported only where a
corner case hands an `Instance` to a test of an engine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse
from scipy.optimize import linprog
from scipy.sparse.linalg import LinearOperator, gmres, splu

# ------------------------------------------------------------------------------------------
# Closed forms
# ------------------------------------------------------------------------------------------


class QueueLaw(NamedTuple):
    """Stationary averages of a queue: what a single station with Poisson arrivals does in the long run.

    `number`: mean number in the system; `queue`: mean number waiting; `busy`: mean number of busy servers;
    `wait_probability`: probability that an arrival does not start at once (it waits, or is blocked);
    `abandonment_rate`: customers lost without service, 1/s; `throughput`: customers served, 1/s.
    """

    number: float
    queue: float
    busy: float
    wait_probability: float
    abandonment_rate: float
    throughput: float


def erlang_b(servers: int, offered_load: float) -> float:
    """Blocking probability of M/M/c/c, by the recursion B(k) = a B(k-1) / (k + a B(k-1))."""
    blocking = 1.0
    for k in range(1, servers + 1):
        blocking = offered_load * blocking / (k + offered_load * blocking)
    return blocking


def erlang_c(servers: int, offered_load: float) -> float:
    """Waiting probability of M/M/c, from Erlang B: C = B / (1 - rho (1 - B)), with rho = a/c < 1."""
    blocking = erlang_b(servers, offered_load)
    return blocking / (1.0 - offered_load / servers * (1.0 - blocking))


def mm1(arrival_rate: float, service_rate: float) -> QueueLaw:
    """M/M/1: number rho/(1 - rho), queue rho^2/(1 - rho)."""
    rho = arrival_rate / service_rate
    return QueueLaw(rho / (1 - rho), rho**2 / (1 - rho), rho, rho, 0.0, arrival_rate)


def mmc(arrival_rate: float, service_rate: float, servers: int) -> QueueLaw:
    """M/M/c: queue C(c, a) rho/(1 - rho)."""
    load = arrival_rate / service_rate
    wait, rho = erlang_c(servers, load), load / servers
    queue = wait * rho / (1 - rho)
    return QueueLaw(load + queue, queue, load, wait, 0.0, arrival_rate)


def mmcc(arrival_rate: float, service_rate: float, servers: int) -> QueueLaw:
    """M/M/c/c: a blocked customer is lost; `abandonment_rate` is the rate of loss."""
    load = arrival_rate / service_rate
    blocking = erlang_b(servers, load)
    busy = load * (1 - blocking)
    return QueueLaw(busy, 0.0, busy, blocking, arrival_rate * blocking, arrival_rate * (1 - blocking))


def mminf(arrival_rate: float, service_rate: float) -> QueueLaw:
    """M/M/infinity: Poisson with mean a."""
    load = arrival_rate / service_rate
    return QueueLaw(load, 0.0, load, 0.0, 0.0, arrival_rate)


def erlang_a(arrival_rate: float, service_rate: float, servers: int, patience_rate: float) -> QueueLaw:
    """M/M/c+M: the birth-death law with death rate min(k, c) mu + (k - c)^+ theta in state k.

    Cut where the law has fallen below 1e-17 of its largest weight and keeps falling.
    """
    if patience_rate == 0:
        return mmc(arrival_rate, service_rate, servers)
    size, tail = servers + 64, 1.0
    while tail > 1e-17:
        k = np.arange(size + 1)
        deaths = np.minimum(k, servers) * service_rate + np.maximum(k - servers, 0) * patience_rate
        logs = np.concatenate([[0.0], np.cumsum(np.log(arrival_rate / deaths[1:]))])
        law = np.exp(logs - logs.max())
        # The law is unimodal, so a small last weight is the tail only once deaths outrun births.
        tail = law[-1] if deaths[-1] > arrival_rate else 1.0
        size *= 2
    law /= law.sum()
    busy = float(law @ np.minimum(k, servers))
    queue = float(law @ np.maximum(k - servers, 0))
    waits = float(law[k >= servers].sum())
    return QueueLaw(busy + queue, queue, busy, waits, patience_rate * queue, service_rate * busy)


# ------------------------------------------------------------------------------------------
# The cluster and its plan
# ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cluster:
    """Raw numbers of an instance, in the units of the model; vectors have one entry a class."""

    prompt_tokens: np.ndarray
    output_tokens: np.ndarray
    arrival_rate: np.ndarray
    patience_rate: np.ndarray
    alpha: float
    beta: float
    solo: float
    batch_size: int
    chunk_size: int
    price_prefill: float = 0.1
    price_decode: float = 0.2

    def __post_init__(self):
        for name in ("prompt_tokens", "output_tokens", "arrival_rate", "patience_rate"):
            object.__setattr__(self, name, np.atleast_1d(np.asarray(getattr(self, name), float)))

    @classmethod
    def of(cls, instance: Any) -> Cluster:
        """The raw numbers of a `jaxq.Instance`; none of its derived rates are used."""
        workload, times, pricing = instance.workload, instance.iteration_time, instance.pricing
        return cls(
            *(workload.prompt_tokens, workload.output_tokens, workload.arrival_rate, workload.patience_rate),
            *(float(times.alpha), float(times.beta), float(times.solo)),
            *(int(instance.batch_size), int(instance.chunk_size)),
            *(float(pricing.prefill), float(pricing.decode)),
        )

    def instance(self, name: str = "oracle") -> Any:
        """The same numbers as a `jaxq.Instance`."""
        import jaxq

        workload = (self.prompt_tokens, self.output_tokens, self.arrival_rate, self.patience_rate)
        return jaxq.Instance(
            workload=jaxq.Workload(*workload),
            iteration_time=jaxq.IterationTime(self.alpha, self.beta, self.solo),
            pricing=jaxq.Pricing(self.price_prefill, self.price_decode),
            batch_size=self.batch_size,
            chunk_size=self.chunk_size,
            name=name,
        )

    @property
    def classes(self) -> int:
        """The number of classes."""
        return len(self.prompt_tokens)

    @cached_property
    def mixed(self) -> float:
        """Iteration time beside a prefill, s: tau = alpha + beta C."""
        return self.alpha + self.beta * self.chunk_size

    @cached_property
    def mu_prefill(self) -> np.ndarray:
        """C / (P tau), 1/s."""
        return self.chunk_size / (self.prompt_tokens * self.mixed)

    @cached_property
    def mu_mixed(self) -> np.ndarray:
        """1 / (D tau), 1/s."""
        return 1.0 / (self.output_tokens * self.mixed)

    @cached_property
    def mu_solo(self) -> np.ndarray:
        """1 / (D tau_solo), 1/s."""
        return 1.0 / (self.output_tokens * self.solo)

    @property
    def prefill_value(self) -> np.ndarray:
        """c_p P, money."""
        return self.price_prefill * self.prompt_tokens

    @property
    def decode_value(self) -> np.ndarray:
        """c_d D, money."""
        return self.price_decode * self.output_tokens


def reference_cluster(**changes: Any) -> Cluster:
    """The reference instance of [Lin26] section 6: Qwen-8B on an A100-40GB, two classes."""
    cluster = Cluster(
        prompt_tokens=np.array([300.0, 3000.0]),
        output_tokens=np.array([1000.0, 400.0]),
        arrival_rate=np.array([0.5, 0.5]),
        patience_rate=np.array([0.1, 0.1]),
        **{"alpha": 0.0174, "beta": 6.2e-5, "solo": 0.022, "batch_size": 16, "chunk_size": 256},
    )
    return replace(cluster, **changes)


def tiny_cluster(**changes: Any) -> Cluster:
    """A two-class cluster small enough (n = 2, B = 2) for global balance; the plan has q_d* = 0."""
    lengths = {"prompt_tokens": [300.0, 900.0], "output_tokens": [60.0, 25.0]}
    rates = {"arrival_rate": [0.9, 0.8], "patience_rate": [3.0, 4.0]}
    return reference_cluster(**{**lengths, **rates, "batch_size": 2, **changes})


def tiny_buffered_cluster(**changes: Any) -> Cluster:
    """A tiny two-class cluster whose bundled plan has q_d* > 0: prefills speed decodes up (gamma tau = 0.15).

    Its queues are long: take one GPU where the randomised router's two buffers would make too many states.
    """
    times = {"alpha": 0.003, "beta": 0.0, "solo": 0.02}
    lengths = {"prompt_tokens": [8000.0, 6400.0], "output_tokens": [60.0, 40.0]}
    rates = {"arrival_rate": [1.2, 3.6], "patience_rate": [3.0, 4.0]}
    return reference_cluster(**{**times, **lengths, **rates, "batch_size": 2, **changes})


@dataclass(frozen=True)
class Plan:
    """An optimum of the steady-state LP (eq. 40 or 42), per GPU, after the tie-break."""

    scheme: str
    value: float
    x: np.ndarray
    y_mixed: np.ndarray
    y_solo: np.ndarray
    q_prefill: np.ndarray
    q_decode: np.ndarray
    bid_prices: np.ndarray


class _Lp:
    """The LP of one cluster in the variables (x, y_m, y_s, q_p, q_d), with rows that the tie-break adds."""

    def __init__(self, cluster: Cluster, scheme: str, decode_queue: bool):
        k, zero, one = cluster.classes, np.zeros(cluster.classes), np.ones(cluster.classes)
        prefill, mixed, solo = (np.diag(mu) for mu in (cluster.mu_prefill, cluster.mu_mixed, cluster.mu_solo))
        theta, none = np.diag(cluster.patience_rate), np.zeros((k, k))
        paid_at_decode = cluster.decode_value + (cluster.prefill_value if scheme == "bundled" else 0.0)
        paid_at_prefill = cluster.prefill_value if scheme == "separate" else zero
        flow = [paid_at_prefill @ prefill, paid_at_decode @ mixed, paid_at_decode @ solo, zero, zero]
        self.gain = np.concatenate(flow)
        batch = cluster.batch_size
        self.upper = [
            np.concatenate([one, zero, zero, zero, zero]),
            np.concatenate([-(batch - 1) * one, one, zero, zero, zero]),
            np.concatenate([batch * one, zero, one, zero, zero]),
        ]
        self.upper_limits = [1.0, 0.0, float(batch)]
        arrivals = np.hstack([prefill, none, none, theta, none])
        decodes = np.hstack([-prefill, mixed, solo, none, theta])
        self.equal = np.vstack([arrivals, decodes])
        self.equal_to = np.concatenate([cluster.arrival_rate, zero])
        patient = cluster.patience_rate == 0
        closed = np.concatenate([np.zeros(3 * k, bool), patient, patient | (not decode_queue)])
        self.bounds = [(0.0, 0.0 if shut else None) for shut in closed]

    def maximise(self, gain: np.ndarray):
        """The optimum of `gain` under the rows so far."""
        answer = linprog(
            -gain,
            A_ub=np.array(self.upper),
            b_ub=self.upper_limits,
            A_eq=self.equal,
            b_eq=self.equal_to,
            bounds=self.bounds,
            method="highs-ds",
            options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
        )
        if answer.status != 0:
            raise ValueError(f"no plan: {answer.message}")
        return answer

    def keep(self, gain: np.ndarray, slack: float = 1e-9) -> np.ndarray:
        """Maximise `gain` (scaled to a largest entry of 1) and hold it there for the criteria that follow."""
        scaled = gain / np.abs(gain).max()
        answer = self.maximise(scaled)
        self.upper.append(-scaled)
        self.upper_limits.append(answer.fun + slack)
        return answer.x


def plan(cluster: Cluster, scheme: str = "bundled", decode_queue: bool | None = None) -> Plan:
    """The plan of the steady-state LP after the tie-break: least q_d, lexicographically largest x, most y_s.

    `decode_queue` False plans with q_d = 0; None takes q_d = 0 for a bundled plan whenever that costs nothing
    (relative 1e-9). `value` is the LP's optimum without that restriction. Bid prices are the duals of the
    arrivals in the bundled LP with q_d = 0.
    """
    free, bundled = _Lp(cluster, scheme, True), _Lp(cluster, "bundled", False)
    value = -free.maximise(free.gain).fun
    without_queue = bundled.maximise(bundled.gain)
    if decode_queue is None:
        decode_queue = scheme == "separate" or -without_queue.fun < value * (1 - 1e-9)
    lp, k = _Lp(cluster, scheme, decode_queue), cluster.classes
    lp.keep(lp.gain)
    parts = np.repeat(np.arange(5), k)
    best = lp.keep(-(parts == 4).astype(float))
    for i in range(k):
        best = lp.keep((np.arange(5 * k) == i).astype(float))
    x, _, _, q_prefill, q_decode = np.where(best > 1e-6, best, 0.0).reshape(5, k)
    y_mixed, y_solo = _decodes(cluster, x, q_decode)
    return Plan(scheme, value, x, y_mixed, y_solo, q_prefill, q_decode, -without_queue.eqlin.marginals[:k])


def _decodes(cluster: Cluster, x: np.ndarray, q_decode: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Decodes by mode for given completions: as many solo as fit, classes in proportion to their work."""
    work = cluster.output_tokens * (cluster.mu_prefill * x - cluster.patience_rate * q_decode)
    total = work.sum()
    solo = min(cluster.batch_size * (1 - x.sum()), total * cluster.solo)
    mixed = cluster.mixed * (total - solo / cluster.solo)
    return mixed * work / total, solo * work / total


# ------------------------------------------------------------------------------------------
# The exact law of tiny clusters
# ------------------------------------------------------------------------------------------

PARTITIONED = ("gate_and_route", "prioritize_and_route", "sli_gate_and_route", "fcfs_route")
UNPARTITIONED = ("sarathi", "gate_immediate", "gate_fcfs", "price_and_pack")
POLICIES = PARTITIONED + UNPARTITIONED
TINY_REVENUE = {
    "gate_and_route": 74.85,
    "sli_gate_and_route": 56.05,
    "prioritize_and_route": 74.81,
    "sarathi": 88.69,
    "gate_immediate": 87.87,
    "gate_fcfs": 87.87,
    "fcfs_route": 75.04,
    "price_and_pack": 89.88,
}
"""Bundled revenue of the tiny system of two GPUs, in the order of the published tables."""

GATES = {
    "gate_and_route": "occupancy",
    "prioritize_and_route": "priority",
    "sli_gate_and_route": "occupancy",
    "sarathi": "fcfs",
    "gate_immediate": "occupancy",
    "gate_fcfs": "occupancy",
    "fcfs_route": "fcfs",
    "price_and_pack": "bid price",
}
ROUTERS = {
    "gate_and_route": "solo first",
    "prioritize_and_route": "solo first",
    "sli_gate_and_route": "randomised",
    "sarathi": "immediate",
    "gate_immediate": "immediate",
    "gate_fcfs": "prefill first",
    "fcfs_route": "solo first",
    "price_and_pack": "packing",
}
NO_PREFILL = -1


class Gpu(NamedTuple):
    """`mixed_group`: a partition lets it run prefills; `prefill`: the class it runs, or NO_PREFILL."""

    mixed_group: bool
    prefill: int
    decodes: tuple[int, ...]


class State(NamedTuple):
    """All that the chain remembers: the GPUs, the prefill queue and the decode buffers, by class."""

    gpus: tuple[Gpu, ...]
    waiting: tuple[int, ...]
    buffers: tuple[tuple[int, ...], ...]

    def with_gpu(self, g: int, prefill: int, decodes: tuple[int, ...]) -> State:
        """GPU g with another content."""
        return State(
            put(self.gpus, g, Gpu(self.gpus[g].mixed_group, prefill, decodes)), self.waiting, self.buffers
        )

    def with_waiting(self, i: int, change: int) -> State:
        """The prefill queue with `change` more requests of class i."""
        return State(self.gpus, bump(self.waiting, i, change), self.buffers)

    def with_buffered(self, b: int, i: int, change: int) -> State:
        """Decode buffer b with `change` more requests of class i."""
        return State(self.gpus, self.waiting, put(self.buffers, b, bump(self.buffers[b], i, change)))


Law = list[tuple[float, State]]
"""A random next state: pairs of probability and state."""


def then(law: Law, step: Callable[[State], Law]) -> Law:
    """Draw a state, then let `step` draw from there."""
    return [(p * q, after) for p, state in law for q, after in step(state)]


def uniformly(states: list[State]) -> Law:
    """Each of the states with the same probability."""
    return [(1.0 / len(states), state) for state in states]


def bump(counts: tuple[int, ...], i: int, change: int) -> tuple[int, ...]:
    """`counts` with entry i changed."""
    return (*counts[:i], counts[i] + change, *counts[i + 1 :])


def put(items: tuple, index: int, item: Any) -> tuple:
    """`items` with one replaced."""
    return (*items[:index], item, *items[index + 1 :])


@dataclass(frozen=True)
class Chain:
    """The continuous-time chain of n GPUs under a policy: event rates, and what the policy does after events.

    `queue_limit` cuts the prefill queue and each decode buffer (all classes together): one too many is lost.
    """

    cluster: Cluster
    policy: str
    plan: Plan
    n_gpus: int
    queue_limit: int
    mixed_gpus: int = field(init=False)

    def __post_init__(self):
        mixed = min(self.n_gpus, math.ceil(self.n_gpus * float(self.plan.x.sum()) - 1e-6))
        object.__setattr__(self, "mixed_gpus", mixed if self.partitioned else 0)

    @property
    def partitioned(self) -> bool:
        """Whether a static partition says which GPUs run prefills."""
        return self.policy in PARTITIONED

    def empty(self) -> State:
        """No request anywhere."""
        none = (0,) * self.cluster.classes
        gpus = tuple(Gpu(g < self.mixed_gpus, NO_PREFILL, none) for g in range(self.n_gpus))
        return State(gpus, none, (none,) * (2 if ROUTERS[self.policy] == "randomised" else 1))

    # What a GPU has room for.

    def free_slots(self, gpu: Gpu) -> int:
        """Slots for decodes: B - 1 beside a prefill or in the mixed group (one stays reserved), else B."""
        reserved = gpu.mixed_group or gpu.prefill != NO_PREFILL
        return self.cluster.batch_size - reserved - sum(gpu.decodes)

    def can_start(self, gpu: Gpu) -> bool:
        """Whether the GPU may start a prefill: it runs none, has a slot, and the partition lets it."""
        allowed = gpu.mixed_group or not self.partitioned
        return allowed and gpu.prefill == NO_PREFILL and sum(gpu.decodes) < self.cluster.batch_size

    # The gate.

    def gate(self, state: State) -> list[tuple[float, int]]:
        """The class to start next, with probabilities; empty when nobody waits."""
        waiting = [i for i, count in enumerate(state.waiting) if count > 0]
        if not waiting:
            return []
        kind = GATES[self.policy]
        if kind == "fcfs":
            total = sum(state.waiting)
            return [(state.waiting[i] / total, i) for i in waiting]
        if kind == "occupancy":
            return [(1.0, self.smallest_occupancy(state, waiting))]
        scores = self.cluster.output_tokens / self.cluster.prompt_tokens
        if kind == "bid price":
            scores = self.plan.bid_prices
        return [(1.0, first_largest(waiting, scores))]

    def smallest_occupancy(self, state: State, waiting: list[int]) -> int:
        """Smallest X/x*, tied within a relative 1e-6; then largest Q_p - n q_p*; then the lowest index."""
        planned = [i for i in waiting if self.plan.x[i] > 1e-9]
        excess = [q - self.n_gpus * self.plan.q_prefill[i] for i, q in enumerate(state.waiting)]
        if not planned:
            return first_largest(waiting, excess)
        running = [sum(gpu.prefill == i for gpu in state.gpus) for i in range(self.cluster.classes)]
        ratio = {i: running[i] / self.plan.x[i] for i in planned}
        least = min(ratio.values())
        return first_largest([i for i in planned if ratio[i] <= least * (1 + 1e-6)], excess)

    def offer(self, state: State, g: int) -> Law:
        """Offer GPU g to the gate: it starts a prefill there if it can and someone waits."""
        gpu = state.gpus[g]
        choices = self.gate(state) if self.can_start(gpu) else []
        if not choices:
            return [(1.0, state)]
        law = []
        for probability, i in choices:
            law.append((probability, state.with_gpu(g, i, gpu.decodes).with_waiting(i, -1)))
        return law

    # The router.

    def route(self, state: State, i: int, g: int) -> Law:
        """Place a class-i request whose prefill has completed on GPU g."""
        kind, gpus = ROUTERS[self.policy], list(enumerate(state.gpus))
        solo = [h for h, gpu in gpus if not gpu.mixed_group]
        mixed = [h for h, gpu in gpus if gpu.mixed_group]
        idle = [h for h, gpu in gpus if gpu.prefill == NO_PREFILL]
        running = [h for h, gpu in gpus if gpu.prefill != NO_PREFILL]
        if kind == "immediate":
            return self.place(state, i, [[g]], buffer=0)
        if kind == "solo first":
            return self.place(state, i, [solo, mixed], buffer=0)
        if kind == "prefill first":
            return self.place(state, i, [idle, running], buffer=0)
        if kind == "packing":
            return self.place(state, i, [running, idle], buffer=0)
        share = self.solo_share(i) if solo and mixed else float(bool(solo))
        to_solo, to_mixed = self.place(state, i, [solo], buffer=0), self.place(state, i, [mixed], buffer=1)
        return [(share * p, s) for p, s in to_solo] + [((1 - share) * p, s) for p, s in to_mixed]

    def solo_share(self, i: int) -> float:
        """Probability that the randomised router sends class i to the solo group."""
        solo = self.cluster.mu_solo[i] * self.plan.y_solo[i]
        mixed = self.cluster.mu_mixed[i] * self.plan.y_mixed[i]
        return solo / (solo + mixed) if solo + mixed > 0 else 1.0

    def place(self, state: State, i: int, pools: Iterable[list[int]], buffer: int) -> Law:
        """Decode on a uniformly random GPU with a free slot of the first pool that has one, else wait."""
        for pool in pools:
            free = [g for g in pool if self.free_slots(state.gpus[g]) > 0]
            if free:
                return uniformly([self.decode_on(state, g, i) for g in free])
        if sum(state.buffers[buffer]) == self.queue_limit:
            return [(1.0, state)]
        return [(1.0, state.with_buffered(buffer, i, 1))]

    def decode_on(self, state: State, g: int, i: int) -> State:
        """One more class-i decode on GPU g."""
        gpu = state.gpus[g]
        return state.with_gpu(g, gpu.prefill, bump(gpu.decodes, i, 1))

    def admit(self, state: State, g: int) -> Law:
        """Move one request from the buffer that GPU g serves to its free slot, if there are both."""
        gpu = state.gpus[g]
        buffer = 1 if gpu.mixed_group and len(state.buffers) == 2 else 0
        counts = state.buffers[buffer]
        if self.free_slots(gpu) <= 0 or sum(counts) == 0:
            return [(1.0, state)]
        weights = self.admission_weights(counts, gpu.mixed_group)
        total, law = sum(weights), []
        for i, weight in enumerate(weights):
            if weight > 0:
                law.append((weight / total, self.decode_on(state.with_buffered(buffer, i, -1), g, i)))
        return law

    def admission_weights(self, counts: tuple[int, ...], mixed_group: bool) -> Sequence[float]:
        """Counts; under the randomised router with q_d* > 0, mu y* of the group for the classes that wait."""
        if ROUTERS[self.policy] != "randomised" or max(self.plan.q_decode) <= 1e-9:
            return counts
        planned = self.cluster.mu_solo * self.plan.y_solo
        if mixed_group:
            planned = self.cluster.mu_mixed * self.plan.y_mixed
        weights = [weight if count else 0.0 for weight, count in zip(planned, counts, strict=True)]
        # A buffer that holds only classes without planned decodes must not block the slot.
        return weights if sum(weights) > 0 else counts

    # The events.

    def arrival(self, state: State, i: int) -> Law:
        """A class-i request joins, and starts on a random GPU that can start a prefill."""
        if sum(state.waiting) == self.queue_limit:
            return [(1.0, state)]
        state = state.with_waiting(i, 1)
        starters = [g for g, gpu in enumerate(state.gpus) if self.can_start(gpu)]
        if not starters:
            return [(1.0, state)]
        return [(p / len(starters), after) for g in starters for p, after in self.offer(state, g)]

    def prefill_completion(self, state: State, g: int) -> Law:
        """The prefill on GPU g ends: gate before router, except for immediate and packing policies."""
        gpu = state.gpus[g]
        ended = state.with_gpu(g, NO_PREFILL, gpu.decodes)
        if ROUTERS[self.policy] in ("immediate", "packing"):
            return then(self.route(ended, gpu.prefill, g), lambda s: self.offer(s, g))
        law = then(self.offer(ended, g), lambda s: self.route(s, gpu.prefill, g))
        return then(law, lambda s: self.admit(s, g)) if self.policy == "gate_fcfs" else law

    def decode_completion(self, state: State, g: int, i: int) -> Law:
        """A class-i decode on GPU g ends and frees its slot."""
        gpu = state.gpus[g]
        ended = state.with_gpu(g, gpu.prefill, bump(gpu.decodes, i, -1))
        if self.partitioned:
            return self.admit(ended, g)
        if self.policy == "gate_fcfs" and (gpu.prefill != NO_PREFILL or sum(state.waiting) == 0):
            return self.admit(ended, g)
        return self.offer(ended, g)

    def events(self, state: State) -> Iterable[tuple[float, Law]]:
        """Every event that can happen: its rate, and the law of the state after it."""
        cluster = self.cluster
        for i in range(cluster.classes):
            yield self.n_gpus * cluster.arrival_rate[i], self.arrival(state, i)
            if state.waiting[i]:
                yield cluster.patience_rate[i] * state.waiting[i], [(1.0, state.with_waiting(i, -1))]
            for b, counts in enumerate(state.buffers):
                if counts[i]:
                    yield cluster.patience_rate[i] * counts[i], [(1.0, state.with_buffered(b, i, -1))]
        for g, gpu in enumerate(state.gpus):
            if gpu.prefill != NO_PREFILL:
                yield cluster.mu_prefill[gpu.prefill], self.prefill_completion(state, g)
            rate = cluster.mu_solo if gpu.prefill == NO_PREFILL else cluster.mu_mixed
            for i, count in enumerate(gpu.decodes):
                if count:
                    yield rate[i] * count, self.decode_completion(state, g, i)


def first_largest(candidates: list[int], scores: Sequence[float] | np.ndarray) -> int:
    """The candidate with the largest score; scores within 1e-9 are equal, and the lowest index wins."""
    best = max(scores[i] for i in candidates)
    return next(i for i in candidates if scores[i] >= best - 1e-9 * max(1.0, abs(best)))


def canonical(state: State) -> State:
    """GPUs of one group are exchangeable: keep one state of every set that differs in their order only."""
    return State(tuple(sorted(state.gpus)), state.waiting, state.buffers)


@dataclass(frozen=True)
class Averages:
    """Stationary averages per GPU: occupancies and queues by class, flows in 1/s, both revenues in money/s.

    `lost_prefill` and `lost_decode` are the flows that the cut of the queues turns away: they size its error.
    """

    x: np.ndarray
    y_mixed: np.ndarray
    y_solo: np.ndarray
    q_prefill: np.ndarray
    q_decode: np.ndarray
    prefill_completions: np.ndarray
    decode_completions: np.ndarray
    abandonment_prefill: np.ndarray
    abandonment_decode: np.ndarray
    lost_prefill: np.ndarray
    lost_decode: np.ndarray
    revenue_bundled: float
    revenue_separate: float
    states: int


def explore(chain: Chain) -> tuple[list[State], sparse.csr_matrix]:
    """The states reachable from empty, and the matrix of their transition rates (row: from; column: to)."""
    states, index = [canonical(chain.empty())], {canonical(chain.empty()): 0}
    rows, columns, rates = [], [], []
    for row, state in enumerate(states):  # the list grows while it is read: breadth first
        for rate, law in chain.events(state):
            for probability, after in law:
                if probability == 0.0:
                    continue
                target = canonical(after)
                if target not in index:
                    index[target] = len(states)
                    states.append(target)
                rows.append(row)
                columns.append(index[target])
                rates.append(rate * probability)
    size = len(states)
    return states, sparse.csr_matrix((rates, (rows, columns)), shape=(size, size))


def balance(rates: sparse.csr_matrix) -> np.ndarray:
    """The law that solves global balance: the flow out of every state is the flow into it."""
    out = np.asarray(rates.sum(axis=1)).ravel()
    generator = (rates.T - sparse.diags(out)).tocsc()
    # Balance in state 0 follows from the others; give it weight 1 and solve for the rest.
    matrix, right = generator[1:, 1:].tocsc(), -generator[1:, [0]].toarray().ravel()
    # One sweep of Gauss-Seidel preconditions well, because most events change a count by one; a direct
    # factorisation of these lattices fills in.
    lower = sparse.tril(matrix).tocsc()
    sweep = splu(lower, permc_spec="NATURAL", diag_pivot_thresh=0.0, options={"Equil": False})
    preconditioner = LinearOperator(matrix.shape, sweep.solve)
    rest, _ = gmres(matrix, right, rtol=1e-12, restart=60, maxiter=40, M=preconditioner)
    law = np.concatenate([[1.0], rest])
    law /= law.sum()
    if law.min() < -1e-12 or np.abs(generator @ law).max() > 1e-11 * out.max():
        raise ArithmeticError("global balance was not solved")
    return law


def policy_plan(cluster: Cluster, policy: str) -> Plan:
    """The plan that a policy is given: separate for `prioritize_and_route`, bundled otherwise."""
    return plan(cluster, "separate" if policy == "prioritize_and_route" else "bundled")


def stationary(
    cluster: Cluster, policy: str, n_gpus: int, queue_limit: int = 5, from_plan: Plan | None = None
) -> Averages:
    """Long-run averages of a tiny cluster (n_gpus <= 2, batch <= 3, at most two classes) by global balance.

    `from_plan` defaults to `policy_plan`; give it to test other plans (under SLIs, say). `queue_limit` cuts
    each queue; the error it makes shows in `lost_prefill` and `lost_decode`.
    """
    chain = Chain(cluster, policy, from_plan or policy_plan(cluster, policy), n_gpus, queue_limit)
    states, rates = explore(chain)
    return averages(chain, states, balance(rates))


def averages(chain: Chain, states: list[State], law: np.ndarray) -> Averages:
    """Averages of a law over states."""
    cluster, n, k = chain.cluster, chain.n_gpus, chain.cluster.classes
    counts = np.zeros((len(states), 5, k))
    for row, state in enumerate(states):
        for gpu in state.gpus:
            if gpu.prefill != NO_PREFILL:
                counts[row, 0, gpu.prefill] += 1
            counts[row, 2 if gpu.prefill == NO_PREFILL else 1] += gpu.decodes
        counts[row, 3] = state.waiting
        counts[row, 4] = np.sum(state.buffers, axis=0)
    x, y_mixed, y_solo, q_prefill, q_decode = np.tensordot(law, counts, 1) / n
    prefilled = cluster.mu_prefill * x
    decoded = cluster.mu_mixed * y_mixed + cluster.mu_solo * y_solo
    left_prefill, left_decode = cluster.patience_rate * q_prefill, cluster.patience_rate * q_decode
    return Averages(
        *(x, y_mixed, y_solo, q_prefill, q_decode, prefilled, decoded, left_prefill, left_decode),
        lost_prefill=cluster.arrival_rate - left_prefill - prefilled,
        lost_decode=prefilled - left_decode - decoded,
        revenue_bundled=float((cluster.prefill_value + cluster.decode_value) @ decoded),
        revenue_separate=float(cluster.prefill_value @ prefilled + cluster.decode_value @ decoded),
        states=len(states),
    )


# ------------------------------------------------------------------------------------------
# Corners of the model that are classical queues
# ------------------------------------------------------------------------------------------


SUMS = {
    "y": ("y_mixed", "y_solo"),
    "q": ("q_prefill", "q_decode"),
    "abandonment": ("abandonment_prefill", "abandonment_decode"),
}
"""Averages that a corner knows in sum only."""


class Corner(NamedTuple):
    """An instance whose stationary averages have a closed form, for every engine to be held against.

    `expected` maps names of `Averages`, or of sums in `SUMS`, to vectors over classes, per GPU; revenues
    have one entry. `perturbation` bounds the relative distance between model and closed form (0: exact).
    """

    name: str
    instance: Any
    policy: str
    n_gpus: int
    expected: dict[str, np.ndarray]
    perturbation: float


def one_class(
    arrival_rate: float,
    prefill_time: float,
    decode_time: float,
    patience_rate: float,
    batch_size: int = 4,
    contention: float = 1.0,
) -> Cluster:
    """One class by mean times, s; beside a prefill a decode takes gamma tau = `contention` times as long."""
    solo, chunk = 0.02, 100
    mixed = solo * contention
    return Cluster(
        *(np.array([chunk * prefill_time / mixed]), np.array([decode_time / solo])),
        *(np.array([arrival_rate]), np.array([patience_rate])),
        **{"alpha": mixed, "beta": 0.0, "solo": solo, "batch_size": batch_size, "chunk_size": chunk},
    )


def _mixed_gpus(cluster: Cluster, policy: str, n_gpus: int) -> int:
    """GPUs of the mixed group under the policy's plan."""
    return Chain(cluster, policy, policy_plan(cluster, policy), n_gpus, 0).mixed_gpus


def _prefill_averages(law: QueueLaw, n_gpus: int, shares: Any = (1.0,)) -> dict[str, np.ndarray]:
    """A queue's law as averages of the prefill stage, per GPU, with each class's share."""
    share = np.asarray(shares, float) / n_gpus
    return {
        "x": law.busy * share,
        "q_prefill": law.queue * share,
        "abandonment_prefill": law.abandonment_rate * share,
        "prefill_completions": law.throughput * share,
    }


def _decode_averages(law: QueueLaw, n_gpus: int, occupancy: str = "y") -> dict[str, np.ndarray]:
    """A queue's law as averages of the decode stage, per GPU."""
    return {
        occupancy: np.array([law.busy / n_gpus]),
        "q_decode": np.array([law.queue / n_gpus]),
        "abandonment_decode": np.array([law.abandonment_rate / n_gpus]),
        "decode_completions": np.array([law.throughput / n_gpus]),
    }


def patient_prefill_corner(n_gpus: int = 6, load: float = 0.45, patience_rate: float = 0.8) -> Corner:
    """M/M/M+M: under a partition the prefill stage of M GPUs never waits for decodes. Exact."""
    cluster = one_class(load, 1.0, 3.0, patience_rate, contention=1.7)
    mixed = _mixed_gpus(cluster, "gate_and_route", n_gpus)
    law = erlang_a(n_gpus * load, 1.0, mixed, patience_rate)
    return Corner(
        "prefill stage is M/M/M+M",
        *(cluster.instance("patient-prefill"), "gate_and_route", n_gpus, _prefill_averages(law, n_gpus), 0.0),
    )


def two_class_prefill_corner(
    n_gpus: int = 6, rates: tuple[float, float] = (0.3, 0.15), batch_size: int = 4
) -> Corner:
    """M/M/M+M shared by two classes that differ in their decodes only, first come first served. Exact."""
    cluster = one_class(sum(rates), 1.0, 2.0, 0.8, batch_size, contention=1.7)
    cluster = replace(
        cluster,
        prompt_tokens=np.repeat(cluster.prompt_tokens, 2),
        output_tokens=cluster.output_tokens * np.array([0.5, 1.5]),
        arrival_rate=np.array(rates),
        patience_rate=np.repeat(cluster.patience_rate, 2),
    )
    law = erlang_a(n_gpus * sum(rates), 1.0, _mixed_gpus(cluster, "fcfs_route", n_gpus), 0.8)
    expected = _prefill_averages(law, n_gpus, np.array(rates) / sum(rates))
    return Corner(
        "prefill stage is M/M/M+M of two classes",
        *(cluster.instance("two-class-prefill"), "fcfs_route", n_gpus, expected, 0.0),
    )


def loss_corner(n_gpus: int = 6, load: float = 0.45) -> Corner:
    """M/M/M/M (Erlang B): nobody is willing to wait for a prefill. Off by the waits that end in time."""
    patience = 2e4
    cluster = one_class(load, 1.0, 0.2, patience, batch_size=32)
    mixed = _mixed_gpus(cluster, "fcfs_route", n_gpus)
    law = mmcc(n_gpus * load, 1.0, mixed)
    expected = _prefill_averages(law, n_gpus)
    del expected["q_prefill"]  # zero in the closed form: of the order of the perturbation in the model
    return Corner(
        "prefill stage is M/M/M/M",
        *(cluster.instance("loss"), "fcfs_route", n_gpus, expected, mixed / patience),
    )


def tandem_corner(n_gpus: int = 5, load: float = 0.3, batch_size: int = 4, decodes: float = 2.4) -> Corner:
    """M/M/M then M/M/c: nobody abandons; with gamma tau = 1 all c decode slots are alike. Exact (Burke).

    With one GPU the first station is M/M/1. `decodes` is the mean number of decodes a GPU.
    """
    cluster = one_class(load, 1.0, decodes / load, 0.0, batch_size)
    mixed = _mixed_gpus(cluster, "gate_and_route", n_gpus)
    slots = n_gpus * batch_size - mixed
    prefill = mmc(n_gpus * load, 1.0, mixed) if mixed > 1 else mm1(n_gpus * load, 1.0)
    expected = _prefill_averages(prefill, n_gpus)
    expected |= _decode_averages(mmc(n_gpus * load, load / decodes, slots), n_gpus)
    expected["revenue_bundled"] = expected["revenue_separate"] = _revenue(cluster, load)
    name = f"M/M/{mixed} then M/M/{slots}"
    return Corner(name, cluster.instance("tandem"), "gate_and_route", n_gpus, expected, 0.0)


def solo_group_corner(
    n_gpus: int = 5, load: float = 0.3, batch_size: int = 4, decodes: float = 2.0
) -> Corner:
    """M/M/c in the solo group: the plan sends every decode there, and it never slows down. Exact (Burke)."""
    cluster = one_class(load, 1.0, decodes / load, 0.0, batch_size, contention=1.5)
    mixed = _mixed_gpus(cluster, "sli_gate_and_route", n_gpus)
    slots = batch_size * (n_gpus - mixed)
    expected = _prefill_averages(mmc(n_gpus * load, 1.0, mixed), n_gpus)
    expected |= _decode_averages(mmc(n_gpus * load, load / decodes, slots), n_gpus, "y_solo")
    expected |= {"y_mixed": np.zeros(1), "revenue_bundled": _revenue(cluster, load)}
    name = f"solo group is M/M/{slots}"
    return Corner(name, cluster.instance("solo-group"), "sli_gate_and_route", n_gpus, expected, 0.0)


def ample_slots_corner(n_gpus: int = 5, load: float = 0.3, batch_size: int = 16) -> Corner:
    """M/M/infinity in the solo group: it is hardly ever full. Off by the chance that it is (Erlang B)."""
    decodes = 3.0
    cluster = one_class(load, 1.0, decodes / load, 0.0, batch_size, contention=1.5)
    mixed = _mixed_gpus(cluster, "gate_and_route", n_gpus)
    full = erlang_b(batch_size * (n_gpus - mixed), n_gpus * decodes)
    law = mminf(n_gpus * load, load / decodes)
    expected = {"y_solo": np.array([law.busy / n_gpus]), "revenue_bundled": _revenue(cluster, load)}
    return Corner(
        "solo group is M/M/infinity",
        *(cluster.instance("ample-slots"), "gate_and_route", n_gpus, expected, 10 * full),
    )


def quick_decode_corner(policy: str = "sarathi", n_gpus: int = 5, load: float = 0.9) -> Corner:
    """M/M/n+M without a partition: decodes end so soon that they never fill a GPU. Off by less than 1e-9."""
    cluster = one_class(load, 1.0, 0.1, 0.5, batch_size=16, contention=1.5)
    law = erlang_a(n_gpus * load, 1.0, n_gpus, 0.5)
    expected = _prefill_averages(law, n_gpus)
    expected["revenue_bundled"] = expected["revenue_separate"] = _revenue(cluster, law.throughput / n_gpus)
    name = f"{policy}: prefill stage is M/M/n+M"
    return Corner(name, cluster.instance("quick-decode"), policy, n_gpus, expected, 1e-9)


def quick_prefill_corner(policy: str = "sarathi", n_gpus: int = 5, batch_size: int = 4) -> Corner:
    """M/M/nB+M without a partition: prefills take no time, so a GPU is B slots and requests wait for a slot.

    Off by about the chance of an arrival during a prefill. For the exact chain only: a prefill takes 20 us.
    `gate_fcfs` prefills all who wait as soon as one slot frees, so only the sum of both queues is classical.
    """
    prefill_time, load, patience = 2e-5, 1.1 * batch_size, 0.5
    cluster = one_class(load, prefill_time, 1.0, patience, batch_size)
    law = erlang_a(n_gpus * load, 1.0, n_gpus * batch_size, patience)
    expected = {
        "y": np.array([law.busy / n_gpus]),
        "q": np.array([law.queue / n_gpus]),
        "abandonment": np.array([law.abandonment_rate / n_gpus]),
        "decode_completions": np.array([law.throughput / n_gpus]),
        "revenue_bundled": _revenue(cluster, law.throughput / n_gpus),
    }
    off = 5 * n_gpus * load * prefill_time
    name = f"{policy}: the cluster is M/M/nB+M"
    return Corner(name, cluster.instance("quick-prefill"), policy, n_gpus, expected, off)


def patient_decode_corner(n_gpus: int = 5, batch_size: int = 4, load: float = 1.1) -> Corner:
    """M/M/c+M in the decode stage: prefills take almost no time and with gamma tau = 1 all slots are alike.

    Off by about the share that abandons before its prefill. `load` is the number of decodes per slot, were
    all to be served.
    """
    prefill_time, patience = 1e-4, 0.5
    arrival_rate = load * batch_size
    cluster = one_class(arrival_rate, prefill_time, 1.0, patience, batch_size)
    slots = n_gpus * batch_size - _mixed_gpus(cluster, "gate_and_route", n_gpus)
    law = erlang_a(n_gpus * arrival_rate, 1.0, slots, patience)
    expected = _decode_averages(law, n_gpus)
    expected["revenue_bundled"] = _revenue(cluster, law.throughput / n_gpus)
    off = 5 * patience * n_gpus * arrival_rate * prefill_time**2
    name = f"decode stage is M/M/{slots}+M"
    return Corner(name, cluster.instance("patient-decode"), "gate_and_route", n_gpus, expected, off)


def _revenue(cluster: Cluster, completions: float) -> np.ndarray:
    """Value of `completions` of a one-class cluster, money/s."""
    return (cluster.prefill_value + cluster.decode_value) * completions


def corners() -> list[Corner]:
    """Every corner at its default size: 5 or 6 GPUs."""
    makers = (quick_decode_corner, quick_prefill_corner)
    return [
        tandem_corner(n_gpus=1, load=0.7, decodes=1.5),
        tandem_corner(),
        patient_prefill_corner(),
        two_class_prefill_corner(),
        loss_corner(),
        solo_group_corner(),
        ample_slots_corner(),
        patient_decode_corner(),
        *(make(policy) for make in makers for policy in UNPARTITIONED),
    ]
