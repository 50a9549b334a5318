"""The chain of a tiny cluster under policies of one structure, and its long-run revenue under each."""

from __future__ import annotations

import itertools
import math

import numpy as np
from jaxtyping import Float64, Int
from scipy import sparse
from scipy.sparse import csgraph

from .._errors import InputError
from .._instance import Instance
from .._policy.base import Policy
from .balance import stationary_law
from .courses import Courses
from .events import events
from .observed import laws_of
from .registry import Registry, radix_code
from .scenes import Contents, Layout, Scenes, stack
from .space import MAX_STATES

CHUNK = 8192
"""States whose events are followed at once."""

UNPLACED = 1e-5
"""Share of a state's events that may end nowhere: the laws of choice are sums in float32."""


PATH_COLUMNS = ("source", "weight", "gate", "route", "admit", "target")
"""What is kept of a path: its ends, its rate before any choice (1/s), and the choices on it."""


class PolicyChain:
    """All paths that policies of one structure can take, found once; a policy then only weighs them.

    **Arguments:** `instance`: whose rates and prices hold; `layout`: the structure.
    """

    def __init__(self, instance: Instance, layout: Layout):
        self.instance, self.layout, self.contents = instance, layout, Contents(layout)
        self._courses = Courses(layout, self.contents)
        self._registry = Registry()
        self._states = self._empty()
        self._explored, self._leaving = np.zeros(0, bool), np.zeros(0)
        self._paths: list[dict[str, np.ndarray]] = []
        self._pattern: _Pattern | None = None
        self._number(self._states)
        if self._product() <= MAX_STATES:
            # Most policies of this structure meet most states: follow them all at once.
            self._number(self._everything())
        self._explore(np.arange(len(self._registry)))

    def revenue(self, policy: Policy, scheme: str) -> float:
        """Long-run revenue per GPU and second of a policy of this structure.

        **Raises:** `InputError` when its states are more than `MAX_STATES`, when a request finds no place,
        or when the chain can end up in several sets of states.
        """
        law = stationary_law(self._rates(policy), f"policy {policy.name!r}")
        return float(law @ self._reward(scheme)) / self.layout.n_gpus

    # States.

    def _empty(self) -> Scenes:
        """The state without any request."""
        zero = np.zeros((1, 0), np.int64)
        gpus, buffers = np.zeros((1, self.layout.mixed_gpus), np.int64), len(self.layout.buffers)
        return Scenes.resting(gpus, zero.sum(axis=1), zero.sum(axis=1), np.zeros((1, buffers), np.int64))

    def _product(self) -> int:
        """The number of all contents of GPUs, solo group and queues together."""
        contents, layout = self.contents, self.layout
        clusters = math.comb(contents.gpu.size + layout.mixed_gpus - 1, layout.mixed_gpus)
        return clusters * contents.solo.size * contents.queue.size ** (1 + len(layout.buffers))

    def _everything(self) -> Scenes:
        """Every one of them."""
        contents, layout = self.contents, self.layout
        chosen = itertools.combinations_with_replacement(range(contents.gpu.size), layout.mixed_gpus)
        clusters = np.array(list(chosen), np.int64).reshape(-1, layout.mixed_gpus)
        sizes = [len(clusters), contents.solo.size] + [contents.queue.size] * (1 + len(layout.buffers))
        cluster, solo, queue, *buffers = np.unravel_index(np.arange(math.prod(sizes)), sizes)
        waiting = np.stack(buffers, axis=1) if buffers else np.zeros((len(solo), 0), np.int64)
        return Scenes.resting(clusters[cluster], solo, queue, waiting)

    def _number(self, scenes: Scenes) -> Int[np.ndarray, " rows"]:
        """The number of the state in which each course ends; GPUs are exchangeable."""
        gpus = np.sort(scenes.gpus, axis=1)
        sizes = [self.contents.gpu.size] * gpus.shape[1] + [self.contents.solo.size]
        sizes += [self.contents.queue.size] * (1 + scenes.buffers.shape[1])
        numbers, added = self._registry.numbers(
            radix_code([*gpus.T, scenes.solo, scenes.queue, *scenes.buffers.T], sizes)
        )
        if len(self._registry) > MAX_STATES:
            raise InputError(
                f"queue_limit: a cluster of {self.layout.n_gpus} GPUs has more than {MAX_STATES:,} states "
                f"under this policy at {self.layout.queue_limit}; lower it, n_gpus or the batch size"
            )
        if len(added):
            columns = (gpus[added], scenes.solo[added], scenes.queue[added], scenes.buffers[added])
            found = Scenes.resting(*columns)
            self._states = stack([self._states, found]) if len(self._explored) else found
            self._explored = np.append(self._explored, np.zeros(len(added), bool))
            self._leaving = np.append(self._leaving, np.zeros(len(added)))
        return numbers

    def _explore(self, numbers: Int[np.ndarray, " states"]) -> None:
        """Follow every event of some states, with every decision that any policy could make."""
        for begin in range(0, len(numbers), CHUNK):
            chunk = numbers[begin : begin + CHUNK]
            states = self._states.take(chunk, source=chunk)
            happening = events(self.instance, self.layout, self.contents, states)
            courses = self._courses.all(happening)
            path = {name: getattr(courses, name) for name in PATH_COLUMNS[:-1]}
            self._paths.append({**path, "target": self._number(courses)})
            self._explored[chunk] = True
            self._leaving[chunk] = np.bincount(happening.source, happening.weight, len(self._leaving))[chunk]
        self._pattern = None

    # One policy.

    def _rates(self, policy: Policy) -> sparse.csr_array:
        """Transition rates among all states found so far, complete for those that the policy reaches."""
        laws, courses = laws_of(policy, self.layout), self._courses
        decisions = {"gate": courses.gate, "route": courses.route, "admit": courses.admit}
        chances = {name: np.zeros((0, decision.choices)) for name, decision in decisions.items()}
        while True:
            for name, decision in decisions.items():
                chances[name] = decision.laws(laws[name], chances[name])
            if self._pattern is None:
                self._pattern = _Pattern(self._paths, len(self._registry))
            rates = self._pattern.rates(chances)
            reached = csgraph.breadth_first_order(rates, 0, return_predecessors=False)
            missing = reached[~self._explored[reached]]
            if not len(missing):
                self._check_placed(policy, rates, reached)
                return rates
            self._explore(missing)

    def _check_placed(self, policy: Policy, rates: sparse.csr_array, reached: np.ndarray) -> None:
        """**Raises:** `InputError` when some events end nowhere."""
        expected = self._leaving[reached]
        found = np.asarray(rates.sum(axis=1)).ravel()[reached]
        if (np.abs(found - expected) > UNPLACED * expected).any():
            raise InputError(
                f"policy {policy.name!r}: its router leaves a finished request without a place; expected a "
                "finite preference for a pool that has room"
            )

    def _reward(self, scheme: str) -> Float64[np.ndarray, " states"]:
        """Revenue of the cluster in each state, money/s."""
        instance, gpu, classes = self.instance, self.contents.gpu, np.arange(self.layout.classes)
        speed = np.where(gpu.busy[:, None], instance.mu_mixed, instance.mu_solo)
        bundled = scheme == "bundled"
        value = np.asarray(instance.request_value if bundled else instance.decode_value)
        on_gpu = (gpu.decodes * speed) @ value
        if not bundled:
            prefills = (gpu.prefill[:, None] == classes) * np.asarray(instance.mu_prefill)
            on_gpu = on_gpu + prefills @ np.asarray(instance.prefill_value)
        solo = (self.contents.solo.vectors * np.asarray(instance.mu_solo)) @ value
        return on_gpu[self._states.gpus].sum(axis=1) + solo[self._states.solo]


class _Pattern:
    """Where the paths stand in the matrix of transition rates."""

    def __init__(self, paths: list[dict[str, np.ndarray]], states: int):
        self.columns = {name: np.concatenate([path[name] for path in paths]) for name in PATH_COLUMNS}
        code = self.columns.pop("source") * states + self.columns.pop("target")
        unique, self.place = np.unique(code, return_inverse=True)
        self.row, self.column = np.divmod(unique, states)
        self.states = states

    def rates(self, chances: dict[str, np.ndarray]) -> sparse.csr_array:
        """The matrix (row: from), given the chances of all choices."""
        weight = self.columns["weight"]
        for name, laws in chances.items():
            # A path without such a choice has `NONE` there, which points to the end.
            weight = weight * np.append(laws.ravel(), 1.0)[self.columns[name]]
        data = np.bincount(self.place, weight, len(self.row))
        matrix = sparse.csr_array((data, (self.row, self.column)), shape=(self.states, self.states))
        matrix.eliminate_zeros()
        return matrix
