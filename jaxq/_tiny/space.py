"""The states of a tiny cluster of exchangeable GPUs, and where events and decisions lead."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from typing import Any

import numpy as np
from jaxtyping import Int

from .._errors import InputError
from .._instance import Instance
from .counts import Counts, number_of_counts
from .gpu import NONE, GpuContents, number_of_contents

Whole = Any
"""A whole number; anything else is refused with a line of its own."""

MAX_STATES = 400_000
"""States beyond which the chain is refused: about a minute and a gigabyte."""


@dataclasses.dataclass(frozen=True)
class Size:
    """What the states of a cluster depend on."""

    n_gpus: int
    batch_size: int
    classes: int
    queue_limit: int

    @property
    def states(self) -> int:
        """Contents of the cluster times contents of both queues; the decode buffer holds one more for the
        moment in which a prefill has completed."""
        contents = number_of_contents(self.batch_size, self.classes)
        clusters = math.comb(contents + self.n_gpus - 1, self.n_gpus)
        waiting = number_of_counts(self.queue_limit, self.classes)
        return clusters * waiting * number_of_counts(self.queue_limit + 1, self.classes)

    @classmethod
    def of(cls, instance: Instance, n_gpus: Whole, queue_limit: Whole) -> Size:
        """The size of a cluster whose queues are cut.

        **Raises:** `InputError` for numbers that are not whole or less than 1.
        """
        for name, number in (("n_gpus", n_gpus), ("queue_limit", queue_limit)):
            whole = isinstance(number, int | np.integer) and not isinstance(number, bool)
            if not whole or number < 1:
                raise InputError(f"{name}: expected a whole number of at least 1, got {number!r}")
        return cls(int(n_gpus), int(instance.batch_size), instance.n_classes, int(queue_limit))


@dataclasses.dataclass(frozen=True, eq=False)
class Space:
    """All states: contents of the cluster x prefill queue x decode buffer.

    GPUs are exchangeable, so a cluster's content is the sorted tuple of its GPUs' contents. Clusters come in
    the order of the requests on them: a decision (a request leaves a queue for a GPU) leads to one more.

    - `gpu`: the contents of a GPU; `clusters`: those of every GPU of the cluster.
    - `first`: where the clusters with k requests begin, for each k, and where the last end.
    - `start`, `place`: the cluster after a prefill, or a decode, of each class has started on each GPU.
    - `end_prefill`, `end_decode`: the cluster after the prefill of each GPU, or a decode of each class, has
      ended.
    - `waiting`: prefill queues; `buffered`: decode buffers, up to one more than the limit; the first `kept`
      are within it.
    """

    gpu: GpuContents
    clusters: Int[np.ndarray, "clusters gpus"]
    first: tuple[int, ...]
    start: Int[np.ndarray, "clusters gpus classes"]
    place: Int[np.ndarray, "clusters gpus classes"]
    end_prefill: Int[np.ndarray, "clusters gpus"]
    end_decode: Int[np.ndarray, "clusters gpus classes"]
    waiting: Counts
    buffered: Counts
    kept: int

    @classmethod
    def of(cls, size: Size) -> Space:
        """The states of a cluster."""
        n, gpu = size.n_gpus, GpuContents.of(size.batch_size, size.classes)
        combinations = itertools.combinations_with_replacement(range(gpu.size), n)
        clusters = np.array(list(combinations), np.int64).reshape(-1, n)
        requests = gpu.requests[clusters].sum(axis=1)
        order = np.argsort(requests, kind="stable")
        clusters, requests = clusters[order], requests[order]
        codes = _code(clusters, gpu.size)
        by_code = np.argsort(codes)

        def after(slot: int, content: np.ndarray) -> np.ndarray:
            """The clusters when GPU `slot` has another content."""
            changed = clusters.copy()
            changed[:, slot] = np.maximum(content, 0)
            found = np.searchsorted(codes, _code(np.sort(changed, axis=1), gpu.size), sorter=by_code)
            return np.where(content == NONE, NONE, by_code[found])

        def by_class(table: np.ndarray) -> np.ndarray:
            columns = [[after(g, table[clusters[:, g], i]) for i in range(size.classes)] for g in range(n)]
            return np.moveaxis(np.array(columns, np.int32), -1, 0)

        ends = np.array([after(g, gpu.end_prefill[clusters[:, g]]) for g in range(n)], np.int32)
        return cls(
            gpu=gpu,
            clusters=clusters,
            first=tuple(np.searchsorted(requests, np.arange(n * size.batch_size + 2)).tolist()),
            start=by_class(gpu.start),
            place=by_class(gpu.place),
            end_prefill=ends.T,
            end_decode=by_class(gpu.end_decode),
            waiting=Counts.upto(size.queue_limit, size.classes),
            buffered=Counts.upto(size.queue_limit + 1, size.classes),
            kept=number_of_counts(size.queue_limit, size.classes),
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Clusters, prefill queues and decode buffers within the limit: the states in which time passes."""
        return len(self.clusters), self.waiting.size, self.kept

    def cluster_number(self, contents: Int[np.ndarray, " gpus"]) -> int:
        """The number of the cluster with these contents of its GPUs, in any order."""
        return int(np.flatnonzero((self.clusters == np.sort(contents)).all(axis=1))[0])


@functools.lru_cache(maxsize=8)
def space_of(size: Size) -> Space:
    """The states of a cluster of this size, enumerated once.

    **Raises:** `InputError` when there are more than `MAX_STATES`.
    """
    if size.states > MAX_STATES:
        raise InputError(
            f"n_gpus: {size.n_gpus} GPUs of batch size {size.batch_size} with {size.classes} classes and "
            f"queue_limit {size.queue_limit} have {size.states:,} states, and the limit is {MAX_STATES:,}; "
            "lower one of them"
        )
    return Space.of(size)


def _code(clusters: np.ndarray, contents: int) -> np.ndarray:
    return clusters @ (contents ** np.arange(clusters.shape[1], dtype=np.int64))
