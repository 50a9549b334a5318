"""An event-driven simulation of the exact chain in C++: the speed to beat, and an oracle for jaxq's engines.

`chain.cpp` is compiled by the system's C++ compiler when it is first needed, for the number of classes at
hand, and kept in the user's cache folder. It shares no code with jaxq: rates, partition and router
probabilities are computed here from the plain numbers of an instance and a plan.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import math
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from jaxq._errors import InputError

POLICIES = (
    "gate_and_route",
    "sli_gate_and_route",
    "prioritize_and_route",
    "sarathi",
    "gate_immediate",
    "gate_fcfs",
    "fcfs_route",
    "price_and_pack",
)
"""The policies by name, in the order of `kPolicies` in `chain.cpp`."""

PARTITIONED = frozenset({"gate_and_route", "sli_gate_and_route", "prioritize_and_route", "fcfs_route"})
"""The policies that divide the GPUs into a mixed and a solo group."""

PERSISTENT_BUFFER = 1e-9
"""A plan whose q_d sums to more than this has persistent decode buffers."""

COUNTS = ("arrivals", "prefill_completions", "completions", "abandonments_prefill", "abandonments_decode")
AVERAGES = ("x", "y_mixed", "y_solo", "q_prefill", "q_decode")
STATES = tuple(f"{when}_{what}" for when in ("start", "end") for what in ("x", "y", "q_prefill", "q_decode"))

_LARGEST_BATCH = 2**15 - 1
_PLAN_NEEDS = dict.fromkeys(POLICIES, ("x",)) | {
    "sli_gate_and_route": ("x", "y_mixed", "y_solo"),
    "sarathi": (),
    "price_and_pack": ("bid_prices",),
}

_SOURCE = Path(__file__).with_name("chain.cpp")
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-fPIC", "-shared")
_RATES = (
    "arrival_rate",
    "patience_rate",
    "mu_prefill",
    "mu_mixed",
    "mu_solo",
    "plan_prefills",
    "plan_waiting",
    "score",
    "solo_probability",
    "solo_weight",
    "mixed_weight",
)
_TIMES = ("horizon", "warmup")
_INTEGERS = ("n_gpus", "batch_size", "mixed_gpus", "policy", "weighted")
_PER_CLASS = (*COUNTS, *AVERAGES, *STATES)
_PER_RUN = ("events", "faults")


class NativeUnavailable(RuntimeError):
    """The native chain cannot be compiled or loaded here; the message is one line."""


@dataclass(frozen=True)
class InstanceNumbers:
    """The plain numbers of an instance.

    **Arguments:**

    - `prompt_tokens`, `output_tokens`: mean lengths of each class, tokens.
    - `arrival_rate`: of each class, 1/s per GPU.
    - `patience_rate`: of each class, 1/s; 0 never abandons.
    - `mixed_iteration_time`, `solo_iteration_time`: s (tau and 1/gamma, [Lin26] eq. 2, 3).
    - `batch_size`: slots of a GPU, at least 2.
    - `chunk_size`: prompt tokens a mixed iteration prefills.
    - `prefill_price`, `decode_price`: money per token.
    """

    prompt_tokens: Sequence[float]
    output_tokens: Sequence[float]
    arrival_rate: Sequence[float]
    patience_rate: Sequence[float]
    mixed_iteration_time: float
    solo_iteration_time: float
    batch_size: int
    chunk_size: int
    prefill_price: float
    decode_price: float

    @classmethod
    def of(cls, instance: Any) -> InstanceNumbers:
        """The numbers of a `jaxq.Instance`."""
        workload = instance.workload
        return cls(
            prompt_tokens=workload.prompt_tokens.tolist(),
            output_tokens=workload.output_tokens.tolist(),
            arrival_rate=workload.arrival_rate.tolist(),
            patience_rate=workload.patience_rate.tolist(),
            mixed_iteration_time=float(instance.mixed_iteration_time),
            solo_iteration_time=float(instance.iteration_time.solo),
            batch_size=int(instance.batch_size),
            chunk_size=int(instance.chunk_size),
            prefill_price=float(instance.pricing.prefill),
            decode_price=float(instance.pricing.decode),
        )


@dataclass(frozen=True)
class PlanNumbers:
    """The plain numbers of a plan, per GPU and class; what a policy does not use may be left out (0).

    **Arguments:**

    - `x`: running prefills (partition, occupancy gate).
    - `y_mixed`, `y_solo`: decodes beside a prefill and without one (randomised router).
    - `q_prefill`, `q_decode`: waiting requests (ties of the occupancy gate; persistent buffers).
    - `bid_prices`: money per request (bid-price gate).
    """

    x: Sequence[float]
    y_mixed: Sequence[float] | None = None
    y_solo: Sequence[float] | None = None
    q_prefill: Sequence[float] | None = None
    q_decode: Sequence[float] | None = None
    bid_prices: Sequence[float] | None = None

    @classmethod
    def of(cls, plan: Any) -> PlanNumbers:
        """The numbers of a `jaxq.Plan`."""
        return cls(**{field.name: np.asarray(getattr(plan, field.name)).tolist() for field in fields(cls)})


def simulate(
    instance: InstanceNumbers,
    policy: str,
    plan: PlanNumbers | None = None,
    *,
    n_gpus: int,
    horizon: float,
    warmup: float = 0.0,
    seed: int = 0,
    replications: int = 1,
    check: bool = False,
) -> dict[str, np.ndarray]:
    """Independent replications of the exact chain under a policy, from an empty cluster, on one core.

    **Arguments:**

    - `instance`, `plan`: plain numbers; `sarathi` needs no plan.
    - `policy`: one of `POLICIES`.
    - `n_gpus`: GPUs of the cluster.
    - `horizon`, `warmup`: s; everything is measured between the two.
    - `seed`, `replications`: replication r uses stream r of the seed, whatever their number.
    - `check`: recompute the state from the GPUs after every event (slow) and count disagreements in `faults`.

    **Returns:** arrays whose first axis is the replication. Of shape `(replications, classes)`: the counts of
    `COUNTS` (int64, of the cluster, after the warm-up), the time averages of `AVERAGES` (per GPU), and the
    cluster's state when the warm-up ends and at the horizon in `STATES` (int64, `y` being decodes in either
    mode), so that per class exactly start + arrivals = completions + abandonments + end. Of shape
    `(replications,)`: `revenue_bundled` and `revenue_separate` (money per GPU and second, [Lin26] eq. 22,
    23), `events` and `faults` (int64, of the whole run).

    **Raises:** `InputError` for a bad argument; `NativeUnavailable` without a working C++ compiler.
    """
    _check(instance, policy, plan, n_gpus, horizon, warmup, replications)
    n_classes = len(instance.prompt_tokens)
    parameters = _parameters(instance, policy, plan, n_gpus, horizon, warmup)
    run = _library(n_classes, check).run_replication
    rows = np.empty((replications, len(_PER_CLASS) * n_classes + len(_PER_RUN)))
    for replication, row in enumerate(rows):
        run(ctypes.byref(parameters), seed % 2**64, replication, row.ctypes.data)
    return _results(rows, instance, n_gpus * (horizon - warmup))


def _results(rows: np.ndarray, instance: InstanceNumbers, gpu_seconds: float) -> dict[str, np.ndarray]:
    n_classes = len(instance.prompt_tokens)
    per_class = rows[:, : -len(_PER_RUN)].reshape(len(rows), len(_PER_CLASS), n_classes)
    result = {name: per_class[:, k].copy() for k, name in enumerate(_PER_CLASS)}
    result |= {name: rows[:, k - len(_PER_RUN)] for k, name in enumerate(_PER_RUN)}
    result |= {name: result[name].astype(np.int64) for name in (*COUNTS, *STATES, *_PER_RUN)}
    prefill_value = instance.prefill_price * np.asarray(instance.prompt_tokens)
    decode_value = instance.decode_price * np.asarray(instance.output_tokens)
    result["revenue_bundled"] = result["completions"] @ (prefill_value + decode_value) / gpu_seconds
    result["revenue_separate"] = (
        result["prefill_completions"] @ prefill_value + result["completions"] @ decode_value
    ) / gpu_seconds
    return result


def _check(
    instance: InstanceNumbers,
    policy: str,
    plan: PlanNumbers | None,
    n_gpus: int,
    horizon: float,
    warmup: float,
    replications: int,
) -> None:
    if policy not in POLICIES:
        raise InputError(f"policy: expected one of {', '.join(POLICIES)}, got {policy!r}")
    if n_gpus < 1:
        raise InputError(f"n_gpus: expected at least 1, got {n_gpus}")
    if replications < 1:
        raise InputError(f"replications: expected at least 1, got {replications}")
    if not 0 <= warmup < horizon:
        raise InputError(f"warmup: expected from 0 to less than the horizon ({horizon:g} s), got {warmup:g}")
    if not 2 <= instance.batch_size <= _LARGEST_BATCH:
        raise InputError(f"batch_size: expected from 2 to {_LARGEST_BATCH}, got {instance.batch_size}")
    for name in _PLAN_NEEDS[policy]:
        if getattr(plan, name, None) is None:
            raise InputError(f"plan.{name}: {policy} needs it, one number a class")
    n_classes = len(instance.prompt_tokens)
    for source in (instance, plan):
        for field in fields(source) if source is not None else ():
            value = getattr(source, field.name)
            if value is not None and np.ndim(value) == 1 and len(value) != n_classes:
                raise InputError(
                    f"{field.name}: expected {n_classes} numbers (one a class), got {len(value)}"
                )


def partition_size(x: Sequence[float] | np.ndarray, n_gpus: int) -> int:
    """GPUs of the mixed group of a static partition."""
    return min(n_gpus, math.ceil(n_gpus * float(np.sum(x)) - 1e-6))


def _parameters(
    instance: InstanceNumbers,
    policy: str,
    plan: PlanNumbers | None,
    n_gpus: int,
    horizon: float,
    warmup: float,
) -> ctypes.Structure:
    """`Parameters` of `chain.cpp`: every rate per cluster and second, and the plan as the policy reads it."""
    n_classes = len(instance.prompt_tokens)
    prompt, output = np.asarray(instance.prompt_tokens), np.asarray(instance.output_tokens)
    mu_mixed = 1 / (output * instance.mixed_iteration_time)
    mu_solo = 1 / (output * instance.solo_iteration_time)
    aim = {field.name: np.zeros(n_classes) for field in fields(PlanNumbers)}
    for name in aim:
        if plan is not None and getattr(plan, name) is not None:
            aim[name] = np.asarray(getattr(plan, name), dtype=np.float64)
    solo_weight, mixed_weight = mu_solo * aim["y_solo"], mu_mixed * aim["y_mixed"]
    decode_rate = solo_weight + mixed_weight
    solo_probability = np.divide(solo_weight, decode_rate, out=np.ones(n_classes), where=decode_rate > 0)
    rates = dict(
        arrival_rate=n_gpus * np.asarray(instance.arrival_rate),
        patience_rate=instance.patience_rate,
        mu_prefill=instance.chunk_size / (prompt * instance.mixed_iteration_time),
        mu_mixed=mu_mixed,
        mu_solo=mu_solo,
        plan_prefills=aim["x"],
        plan_waiting=n_gpus * aim["q_prefill"],
        score=aim["bid_prices"] if policy == "price_and_pack" else output / prompt,
        solo_probability=solo_probability,
        solo_weight=solo_weight,
        mixed_weight=mixed_weight,
    )
    values = dict(
        horizon=horizon,
        warmup=warmup,
        n_gpus=n_gpus,
        batch_size=instance.batch_size,
        mixed_gpus=partition_size(aim["x"], n_gpus) if policy in PARTITIONED else 0,
        policy=POLICIES.index(policy),
        weighted=int(aim["q_decode"].sum() > PERSISTENT_BUFFER),
    )
    vector = ctypes.c_double * n_classes
    return _structure(n_classes)(**values, **{name: vector(*numbers) for name, numbers in rates.items()})


@functools.cache
def _structure(n_classes: int) -> type[ctypes.Structure]:
    """`Parameters` of `chain.cpp`."""
    layout = [(name, ctypes.c_double * n_classes) for name in _RATES]
    layout += [(name, ctypes.c_double) for name in _TIMES]
    layout += [(name, ctypes.c_int64) for name in _INTEGERS]
    return type("Parameters", (ctypes.Structure,), {"_fields_": layout})


@functools.cache
def _library(n_classes: int, check: bool) -> ctypes.CDLL:
    path = _compiled(n_classes, check)
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise NativeUnavailable(f"native chain: cannot load {path}: {error}") from None
    library.run_replication.restype = None
    library.run_replication.argtypes = [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_void_p]
    return library


def _compiled(n_classes: int, check: bool) -> Path:
    """The compiled chain, from the cache folder or fresh.

    The name holds a hash of all that the machine code depends on; the machine's name is part of it because
    the code is compiled for its processor and a cache folder may be shared between machines.
    """
    candidates = (os.environ.get("CXX", ""), "c++", "g++", "clang++")
    compiler = next(filter(None, map(shutil.which, candidates)), None)
    if compiler is None:
        raise NativeUnavailable("native chain: no C++ compiler found (looked for $CXX, c++, g++, clang++)")
    flags = [*_FLAGS, f"-DN_CLASSES={n_classes}", *(["-DCHECK_INVARIANTS", "-O1"] if check else [])]
    identity = "\0".join([_SOURCE.read_text(), compiler, *flags, platform.machine(), platform.node()])
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxq" / "native"
    path = folder / f"chain-{hashlib.sha256(identity.encode()).hexdigest()[:24]}.so"
    if not path.exists():
        _compile(compiler, flags, path)
    return path


def _compile(compiler: str, flags: list[str], path: Path) -> None:
    """Compiles next to `path` and renames, so that another process never loads half a file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            fresh = Path(folder) / path.name
            command = [compiler, *flags, str(_SOURCE), "-o", str(fresh)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                errors = [line.strip() for line in done.stderr.splitlines() if "error" in line]
                reason = errors[0] if errors else f"exit code {done.returncode}"
                raise NativeUnavailable(f"native chain: {compiler} failed: {reason}")
            os.replace(fresh, path)
    except OSError as error:
        raise NativeUnavailable(
            f"native chain: cannot compile into {path.parent}: {error.strerror}"
        ) from None
