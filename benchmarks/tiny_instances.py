"""Twenty random clusters of one or two GPUs on which every published policy falls short of the optimum."""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxq import Instance, IterationTime, Pricing, Workload, policies

PUBLISHED = tuple(name for name in policies.PRESETS if name != "price_and_pack")
"""The policies of [Lin26] and their ablations."""

SHORTFALL = 0.02
"""How far below the optimum the best of them is at least, relatively."""

TURNED_AWAY = 1e-3
"""Largest worth of the requests that the cut queues turn away under the optimal control, relative to it."""


CHUNK = 256
"""Prompt tokens that an iteration prefills."""


@dataclasses.dataclass(frozen=True)
class TinyInstance:
    """One random cluster of two classes: `n_gpus` GPUs, each queue cut at `queue_limit` requests."""

    seed: int
    instance: Instance
    n_gpus: int
    queue_limit: int


def random_tiny_instance(seed: int) -> TinyInstance:
    """The cluster with this seed: 1 or 2 GPUs with 2 or 3 slots, at 0.8 to 2 times the load that they can
    serve, with iterations that are up to 2.5 times as long beside a prefill.

    Patience rates are of the order of service rates, so that short queues are enough.
    """
    random = np.random.default_rng(seed)
    n_gpus, batch_size = int(random.integers(1, 3)), int(random.integers(2, 4))
    solo, slowdown = random.uniform(0.01, 0.03), random.uniform(1.0, 2.5)
    time = IterationTime(0.8 * slowdown * solo, 0.2 * slowdown * solo / CHUNK, solo)
    prompts, outputs = 10 ** random.uniform(2.5, 3.8, 2), 10 ** random.uniform(1, 2, 2)
    work = prompts / CHUNK * slowdown * solo + outputs * solo / batch_size
    arrivals = random.uniform(0.8, 2.0) * random.dirichlet([3.0, 3.0]) / work
    workload = Workload(prompts, outputs, arrivals, random.uniform(2.0, 6.0, 2))
    instance = Instance(workload, time, Pricing(0.1, 0.2), batch_size, CHUNK, name=f"tiny-{seed}")
    return TinyInstance(seed, instance, n_gpus, 4 if n_gpus * batch_size > 4 else 5)


SEEDS = (1, 2, 6, 8, 11, 18, 23, 27, 32, 42, 52, 53, 58, 61, 62, 71, 73, 78, 91, 105)
"""The first twenty seeds of which that holds; `python -m benchmarks.optimal_tiny --search` finds them."""


def tiny_instances() -> list[TinyInstance]:
    """The twenty clusters."""
    return [random_tiny_instance(seed) for seed in SEEDS]
