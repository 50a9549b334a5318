"""Runs of the cluster engine for the tests, and their averages under the names of `oracles.Averages`."""

from __future__ import annotations

import hashlib
from typing import Any

import jax
import numpy as np

from jaxq import policies
from jaxq._engine.cluster import ClusterEngine
from jaxq._engine.record import Record
from jaxq._engine.steppers import Exact
from jaxq._gradient.base import Experiment

PER_GPU = {
    "x": "prefills",
    "y_mixed": "decodes_mixed",
    "y_solo": "decodes_solo",
    "q_prefill": "prefill_queue",
    "q_decode": "decode_queue",
    "arrivals": "arrivals",
    "prefill_completions": "prefills_completed",
    "decode_completions": "completions",
    "abandonment_prefill": "abandoned_prefill",
    "abandonment_decode": "abandoned_decode",
}
"""Averages per GPU and second, by the field of a record that they come from."""


def run(instance: Any, policy: str | policies.Policy, n_gpus: int, **given: Any) -> Record:
    """A run of the cluster engine's exact chain with seed 0, unless told otherwise; policies also by name."""
    arguments = {"horizon": 100.0, "warmup": 0.0, "replications": 16, "key": 0, "stepper": Exact()} | given
    engine = {name: arguments.pop(name) for name in ("stepper", "generator", "block") if name in arguments}
    key = jax.random.key(arguments.pop("key"))
    policy = policies.load_policy(policy, instance) if isinstance(policy, str) else policy
    kind = arguments.pop("engine", ClusterEngine)
    return kind(**engine).run(instance, policy, n_gpus=n_gpus, key=key, **arguments)


def averages(record: Record, instance: Any) -> dict[str, np.ndarray]:
    """Averages after the warm-up, per GPU (and s for flows), each of shape (replications, classes or 1)."""
    gpu_seconds = record.n_gpus * record.measured_durations.sum()
    means = {name: record.measured(kept).sum(axis=0).T / gpu_seconds for name, kept in PER_GPU.items()}
    prefill_value = float(instance.pricing.prefill) * np.asarray(instance.workload.prompt_tokens)
    decode_value = float(instance.pricing.decode) * np.asarray(instance.workload.output_tokens)
    done = means["decode_completions"]
    means["revenue_bundled"] = done @ (prefill_value + decode_value)[:, None]
    means["revenue_separate"] = (means["prefill_completions"] @ prefill_value + done @ decode_value)[:, None]
    return means


def counted_values(experiment: Experiment, policy: policies.Policy, replications: int) -> np.ndarray:
    """What an experiment measures, from events as they were counted."""
    record = experiment.engine.run(
        experiment.instance,
        policy,
        n_gpus=experiment.n_gpus,
        horizon=experiment.horizon,
        warmup=experiment.warmup,
        key=experiment.key,
        replications=replications,
        n_windows=experiment.windows,
    )
    return experiment.worth(experiment.result(policy, record))


def standard_error(sample: np.ndarray) -> np.ndarray:
    """Of the mean over the first axis."""
    return sample.std(axis=0, ddof=1) / np.sqrt(len(sample))


def identical(a: Record, b: Record) -> bool:
    """Whether two records agree in every bit."""
    x, y = jax.tree.leaves(a), jax.tree.leaves(b)
    return len(x) == len(y) and all(np.array_equal(u, v) for u, v in zip(x, y, strict=True))


def digest(record: Record) -> str:
    """A fingerprint of every bit of a record."""
    whole = hashlib.sha256()
    for leaf in jax.tree.leaves(record):
        whole.update(np.ascontiguousarray(leaf).tobytes())
    return whole.hexdigest()
