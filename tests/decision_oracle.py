"""The best control of a tiny cluster as a linear program over frequencies of states and decisions.

Independent of jaxq: states and rates come from `oracles`, decisions from a search written here.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy import sparse
from scipy.optimize import linprog

from .oracles import NO_PREFILL, Cluster, Gpu, State, bump, canonical


def moves(cluster: Cluster, state: State) -> Iterator[State]:
    """The states after one decision: a prefill starts, or a request leaves the decode buffer for a GPU."""
    for g, gpu in enumerate(state.gpus):
        running = gpu.prefill != NO_PREFILL
        if sum(gpu.decodes) + running >= cluster.batch_size:
            continue
        for i in range(cluster.classes):
            if state.waiting[i] and not running:
                yield state.with_gpu(g, i, gpu.decodes).with_waiting(i, -1)
            if state.buffers[0][i]:
                decodes = bump(gpu.decodes, i, 1)
                yield state.with_gpu(g, gpu.prefill, decodes).with_buffered(0, i, -1)


def rests(cluster: Cluster, state: State, limit: int) -> set[State]:
    """Every state in which the controller can stop after an event."""
    found = {canonical(state)} if sum(state.buffers[0]) <= limit else set()
    for after in moves(cluster, state):
        found |= rests(cluster, after, limit)
    if sum(state.buffers[0]) > limit:
        for i, count in enumerate(state.buffers[0]):
            if count:
                found |= rests(cluster, state.with_buffered(0, i, -1), limit)
    return found


def events(cluster: Cluster, n_gpus: int, state: State, limit: int) -> Iterator[tuple[float, State]]:
    """Every event: its rate, and the state before any decision."""
    for i in range(cluster.classes):
        full = sum(state.waiting) == limit
        yield n_gpus * cluster.arrival_rate[i], state if full else state.with_waiting(i, 1)
        if state.waiting[i]:
            yield cluster.patience_rate[i] * state.waiting[i], state.with_waiting(i, -1)
        if state.buffers[0][i]:
            yield cluster.patience_rate[i] * state.buffers[0][i], state.with_buffered(0, i, -1)
    for g, gpu in enumerate(state.gpus):
        if gpu.prefill != NO_PREFILL:
            ended = state.with_gpu(g, NO_PREFILL, gpu.decodes).with_buffered(0, gpu.prefill, 1)
            yield cluster.mu_prefill[gpu.prefill], ended
        for i, count in enumerate(gpu.decodes):
            if count:
                yield (
                    speeds(cluster, gpu)[i] * count,
                    state.with_gpu(g, gpu.prefill, bump(gpu.decodes, i, -1)),
                )


def speeds(cluster: Cluster, gpu: Gpu) -> np.ndarray:
    """Rate at which a decode of each class ends on a GPU, 1/s."""
    return cluster.mu_solo if gpu.prefill == NO_PREFILL else cluster.mu_mixed


def revenue(cluster: Cluster, state: State, scheme: str) -> float:
    """Money per second in a state."""
    total = 0.0
    for gpu in state.gpus:
        value = cluster.decode_value + (cluster.prefill_value if scheme == "bundled" else 0.0)
        total += float(np.asarray(gpu.decodes) * speeds(cluster, gpu) @ value)
        if scheme == "separate" and gpu.prefill != NO_PREFILL:
            total += float(cluster.mu_prefill[gpu.prefill] * cluster.prefill_value[gpu.prefill])
    return total


def best_revenue(cluster: Cluster, n_gpus: int, limit: int, scheme: str = "bundled") -> float:
    """The largest long-run revenue per GPU and second.

    Variables: the share of time in each state, and for each state that an event leaves behind how often the
    controller goes from there to each state where it may stop. Every state is left as often as entered.
    """
    none = (0,) * cluster.classes
    empty = State((Gpu(False, NO_PREFILL, none),) * n_gpus, none, (none,))
    states, index, choices = [empty], {empty: 0}, {}
    leaving: list[tuple[int, int, float]] = []  # event state, resting state, rate
    for row, state in enumerate(states):  # the list grows while it is read
        for rate, event_state in events(cluster, n_gpus, state, limit):
            event_state = canonical(event_state)
            if event_state not in choices:
                choices[event_state] = (len(choices), rests(cluster, event_state, limit))
            number, targets = choices[event_state]
            leaving.append((number, row, rate))
            for target in targets - index.keys():
                index[target] = len(states)
                states.append(target)
    flows = [(number, index[target]) for number, targets in choices.values() for target in targets]
    n_states, n_events, n_flows = len(states), len(choices), len(flows)
    chosen_from, chosen_to = np.array(flows).T
    numbers, rows, rates = (np.array(column) for column in zip(*leaving, strict=True))
    ones = np.ones(n_flows)
    out = sparse.coo_array((rates, (rows, rows)), (n_states, n_states))
    met = sparse.coo_array((rates, (numbers, rows)), (n_events, n_states))
    chosen = sparse.coo_array((-ones, (chosen_from, np.arange(n_flows))), (n_events, n_flows))
    entered = sparse.coo_array((-ones, (chosen_to, np.arange(n_flows))), (n_states, n_flows))
    whole = sparse.coo_array(np.append(np.ones(n_states), np.zeros(n_flows))[None])
    balance = sparse.vstack([sparse.block_array([[met, chosen], [out, entered]]), whole])
    gain = np.array([revenue(cluster, state, scheme) for state in states])
    answer = linprog(
        -np.append(gain, np.zeros(n_flows)),
        A_eq=balance,
        b_eq=np.append(np.zeros(n_events + n_states), 1.0),
        method="highs",
    )
    if answer.status != 0:
        raise ArithmeticError(answer.message)
    return -answer.fun / n_gpus
