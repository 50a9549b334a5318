"""jaxq: large clusters of GPUs that serve LLM requests, simulated in JAX and measured against an LP bound."""

from ._errors import InputError, PlanError, SimulationError
from ._hardware import IterationTime
from ._instance import Instance
from ._pricing import Pricing
from ._workload import Workload

__all__ = ["InputError", "Instance", "IterationTime", "PlanError", "Pricing", "SimulationError", "Workload"]
