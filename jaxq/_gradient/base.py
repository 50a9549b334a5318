"""What gradient estimators share: the experiment that values a policy, and the estimate of its slope."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Float64

from .._engine.cluster import ClusterEngine
from .._engine.record import Record
from .._errors import InputError
from .._instance import Instance
from .._policy.base import Policy
from .._policy.parameters import Vector
from .._result import Result
from .flow_balance import FlowValues, expected_counts, imbalances

Objective = Callable[[Result], Float64[np.ndarray, " replications"]]
"""What a run is worth, replication by replication."""

Values = Float64[np.ndarray, "policies replications"]


@dataclass(frozen=True)
class Experiment:
    """How policies are valued: replications of a cluster that starts empty, measured after a warm-up.

    - `n_gpus`, `horizon`, `warmup` (s): as for `simulate`.
    - `objective`: `"bundled"` or `"separate"` for that revenue per GPU and second, or a function of a
      `Result` that returns one number a replication.
    - `windows`: of time after the warm-up that a run keeps; few cost less.
    - `engine`, `key`: how it runs; policies are valued with common random numbers.

    **Raises:** `InputError` for an unknown objective.
    """

    instance: Instance
    n_gpus: int
    horizon: float
    warmup: float
    objective: str | Objective = "bundled"
    engine: ClusterEngine = field(default_factory=ClusterEngine)
    key: jax.Array = field(default_factory=lambda: jax.random.key(0))
    windows: int = 4

    def __post_init__(self):
        if not callable(self.objective) and self.objective not in ("bundled", "separate"):
            raise InputError(
                f"objective: expected 'bundled', 'separate' or a function, got {self.objective!r}"
            )

    def values(self, policies: Sequence[Policy], replications: int, first: int = 0) -> Values:
        """The value of each policy in each of the replications `first`, `first + 1`, ..., run as one.

        Events count as the integrals of their rates, and flow balance takes noise out of each
        (`FlowValues.steadied_alone`): means are those of the counts, with a fraction of their variance.
        """
        return self.flow_values(policies, replications, first).steadied_alone()

    def value(
        self, policy: Policy, replications: int, first: int = 0
    ) -> Float64[np.ndarray, " replications"]:
        """The value of one policy alone, as in `values`."""
        record = self.engine.run(self.instance, policy, **self._run(replications, first))
        return self._flow_values([policy], [record], first).steadied_alone()[0]

    def flow_values(self, policies: Sequence[Policy], replications: int, first: int = 0) -> FlowValues:
        """What `values` are made of."""
        records = self.engine.run_together(self.instance, policies, **self._run(replications, first))
        return self._flow_values(policies, records, first)

    def _flow_values(self, policies: Sequence[Policy], records: Sequence[Record], first: int) -> FlowValues:
        flows = [expected_counts(self.instance, record) for record in records]
        pairs = zip(policies, flows, strict=True)
        return FlowValues(
            np.stack([self.worth(self.result(policy, record, first)) for policy, record in pairs]),
            np.stack([imbalances(self.instance, record).mean(axis=0) for record in records]),
        )

    def _run(self, replications: int, first: int) -> dict[str, Any]:
        return {
            "n_gpus": self.n_gpus,
            "horizon": self.horizon,
            "warmup": self.warmup,
            "key": self.key,
            "replications": replications,
            "first": first,
            "n_windows": self.windows,
        }

    def result(self, policy: Policy, record: Record, first: int = 0) -> Result:
        """A run as objectives see it."""
        return Result(
            instance=self.instance,
            policy_name=policy.name,
            record=record,
            horizon=self.horizon,
            warmup=self.warmup,
            key="",
            first=first,
            engine_description=self.engine.describe(self.instance, policy, self.n_gpus),
            seconds=0.0,
        )

    def worth(self, result: Result) -> Float64[np.ndarray, " replications"]:
        """The objective of a run, replication by replication."""
        if isinstance(self.objective, str):
            return result.per_replication(f"revenue_{self.objective}")
        values = np.asarray(self.objective(result), np.float64)
        if values.shape != (result.replications,):
            raise InputError(
                f"objective: expected one number for each of {result.replications} replications, got shape "
                f"{values.shape}"
            )
        return values


@dataclass(frozen=True)
class GradientEstimate:
    """The slope of a policy's value: per unit of each parameter, with standard errors.

    - `value`: the mean over all runs that the estimate is made of.
    - `gradient`, `standard_error`: in the order of `parameter_names`.
    """

    value: float
    gradient: Vector
    standard_error: Vector


class AbstractGradient(eqx.Module):
    """A way to estimate the slope of a policy's value."""

    @abc.abstractmethod
    def estimate(self, experiment: Experiment, policy: Policy, first: int = 0) -> GradientEstimate:
        """The slope at a policy, from replications numbered from `first` on; other numbers are independent
        of it."""

    @abc.abstractmethod
    def replications_used(self) -> int:
        """How many replication numbers an estimate uses."""
