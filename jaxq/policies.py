"""Policies: the published ones by name, and the parts from which to write one's own."""

from ._policy.base import AbstractGate, AbstractRouter, Observation, Partition, Policy, Pool
from ._policy.feedback import feedback
from ._policy.gates import FcfsGate, OccupancyGate, PriorityGate, QueueGate
from ._policy.load import load_policy
from ._policy.neural import neural
from ._policy.parameters import Fixed, parameter_names, parameters, with_parameters
from ._policy.policy_file import save_policy
from ._policy.presets import (
    PRESETS,
    TABLE,
    fcfs_route,
    gate_and_route,
    gate_fcfs,
    gate_immediate,
    price_and_pack,
    prioritize_and_route,
    sarathi,
    sli_gate_and_route,
)
from ._policy.random_choice import AbstractRandomGate, AbstractRandomRouter
from ._policy.routers import (
    ImmediateRouter,
    PackingRouter,
    PrefillFirstRouter,
    RandomisedRouter,
    SoloFirstRouter,
)

__all__ = [
    "PRESETS",
    "TABLE",
    "AbstractGate",
    "AbstractRandomGate",
    "AbstractRandomRouter",
    "AbstractRouter",
    "FcfsGate",
    "Fixed",
    "ImmediateRouter",
    "Observation",
    "OccupancyGate",
    "PackingRouter",
    "Partition",
    "Policy",
    "Pool",
    "PrefillFirstRouter",
    "PriorityGate",
    "QueueGate",
    "RandomisedRouter",
    "SoloFirstRouter",
    "fcfs_route",
    "feedback",
    "gate_and_route",
    "gate_fcfs",
    "gate_immediate",
    "load_policy",
    "neural",
    "parameter_names",
    "parameters",
    "price_and_pack",
    "prioritize_and_route",
    "sarathi",
    "save_policy",
    "sli_gate_and_route",
    "with_parameters",
]
