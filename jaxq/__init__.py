"""jaxq: large clusters of GPUs that serve LLM requests, simulated in JAX and measured against an LP bound.

Names are imported when they are first used, so that the command line starts without waiting for JAX.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import policies as policies
    from ._batch import run_studies as run_studies
    from ._calibration import Calibration as Calibration
    from ._calibration import FileCalibration as FileCalibration
    from ._calibration import calibrate as calibrate
    from ._calibration import calibrate_file as calibrate_file
    from ._calibration import plot_calibration as plot_calibration
    from ._cases import simulate_cases as simulate_cases
    from ._compare import Comparison as Comparison
    from ._compare import compare as compare
    from ._engine.cluster import ClusterEngine as ClusterEngine
    from ._engine.group import Case as Case
    from ._engine.record import Record as Record
    from ._engine.steppers import Exact as Exact
    from ._engine.steppers import Leap as Leap
    from ._errors import InputError as InputError
    from ._errors import PlanError as PlanError
    from ._errors import SimulationError as SimulationError
    from ._fluid.engine import FluidEngine as FluidEngine
    from ._gradient.finite_difference import FiniteDifference as FiniteDifference
    from ._gradient.pathwise import Pathwise as Pathwise
    from ._gradient.score_function import ScoreFunction as ScoreFunction
    from ._hardware import IterationTime as IterationTime
    from ._instance import Instance as Instance
    from ._instance_file import load_instance as load_instance
    from ._instance_file import save_instance as save_instance
    from ._plan import Plan as Plan
    from ._plan import solve_plan as solve_plan
    from ._plan import upper_bound as upper_bound
    from ._pooled.engine import PooledEngine as PooledEngine
    from ._presets import Preset as Preset
    from ._presets import list_presets as list_presets
    from ._presets import load_preset as load_preset
    from ._pricing import Pricing as Pricing
    from ._result import Result as Result
    from ._result_file import load_result as load_result
    from ._search import Search as Search
    from ._service_level.convex_penalty import AbstractConvexPenalty as AbstractConvexPenalty
    from ._service_level.convex_penalty import QuadraticPenalty as QuadraticPenalty
    from ._service_level.levels import ServiceLevels as ServiceLevels
    from ._service_level.limits import OccupancyLimit as OccupancyLimit
    from ._simulate import StatisticsWarning as StatisticsWarning
    from ._simulate import simulate as simulate
    from ._sizing import Sizing as Sizing
    from ._sizing import size_cluster as size_cluster
    from ._sizing_target import AbandonmentTarget as AbandonmentTarget
    from ._sizing_target import RevenueTarget as RevenueTarget
    from ._statistics import Estimate as Estimate
    from ._store.damaged import StoreWarning as StoreWarning
    from ._study import Study as Study
    from ._sweep import Sweep as Sweep
    from ._sweep import sweep as sweep
    from ._tiny.optimum import Optimum as Optimum
    from ._tiny.optimum import optimal_control as optimal_control
    from ._tiny.policy_value import PolicyEvaluator as PolicyEvaluator
    from ._tiny.policy_value import policy_value as policy_value
    from ._tune import Tuned as Tuned
    from ._tune import tune as tune
    from ._workload import Workload as Workload

_HOMES = {
    "_batch": ("run_studies",),
    "_calibration": ("Calibration", "FileCalibration", "calibrate", "calibrate_file", "plot_calibration"),
    "_cases": ("simulate_cases",),
    "_compare": ("Comparison", "compare"),
    "_engine.cluster": ("ClusterEngine",),
    "_engine.group": ("Case",),
    "_engine.record": ("Record",),
    "_engine.steppers": ("Exact", "Leap"),
    "_errors": ("InputError", "PlanError", "SimulationError"),
    "_fluid.engine": ("FluidEngine",),
    "_gradient.finite_difference": ("FiniteDifference",),
    "_gradient.pathwise": ("Pathwise",),
    "_gradient.score_function": ("ScoreFunction",),
    "_hardware": ("IterationTime",),
    "_instance": ("Instance",),
    "_instance_file": ("load_instance", "save_instance"),
    "_plan": ("Plan", "solve_plan", "upper_bound"),
    "_pooled.engine": ("PooledEngine",),
    "_presets": ("Preset", "list_presets", "load_preset"),
    "_pricing": ("Pricing",),
    "_result": ("Result",),
    "_result_file": ("load_result",),
    "_service_level.convex_penalty": ("AbstractConvexPenalty", "QuadraticPenalty"),
    "_service_level.levels": ("ServiceLevels",),
    "_service_level.limits": ("OccupancyLimit",),
    "_simulate": ("StatisticsWarning", "simulate"),
    "_sizing": ("Sizing", "size_cluster"),
    "_sizing_target": ("AbandonmentTarget", "RevenueTarget"),
    "_statistics": ("Estimate",),
    "_study": ("Study",),
    "_tiny.optimum": ("Optimum", "optimal_control"),
    "_tiny.policy_value": ("PolicyEvaluator", "policy_value"),
    "_search": ("Search",),
    "_store.damaged": ("StoreWarning",),
    "_sweep": ("Sweep", "sweep"),
    "_tune": ("Tuned", "tune"),
    "_workload": ("Workload",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = ["policies", *sorted(_HOME_OF)]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name == "policies":
        return importlib.import_module(".policies", __name__)
    if name in _HOME_OF:
        return getattr(importlib.import_module(f".{_HOME_OF[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
