"""jaxq: large clusters of GPUs that serve LLM requests, simulated in JAX and measured against an LP bound."""

from . import policies
from ._calibration import Calibration, FileCalibration, calibrate, calibrate_file, plot_calibration
from ._compare import Comparison, compare
from ._engine.cluster import ClusterEngine
from ._engine.record import Record
from ._engine.steppers import Exact, Leap
from ._errors import InputError, PlanError, SimulationError
from ._hardware import IterationTime
from ._instance import Instance
from ._instance_file import load_instance, save_instance
from ._plan import Plan, solve_plan, upper_bound
from ._presets import Preset, list_presets, load_preset
from ._pricing import Pricing
from ._result import Result
from ._result_file import load_result
from ._simulate import StatisticsWarning, simulate
from ._statistics import Estimate
from ._workload import Workload

__all__ = [
    "Calibration",
    "ClusterEngine",
    "Comparison",
    "Estimate",
    "Exact",
    "FileCalibration",
    "InputError",
    "Instance",
    "IterationTime",
    "Leap",
    "Plan",
    "PlanError",
    "Preset",
    "Pricing",
    "Record",
    "Result",
    "SimulationError",
    "StatisticsWarning",
    "Workload",
    "calibrate",
    "calibrate_file",
    "compare",
    "list_presets",
    "load_instance",
    "load_preset",
    "load_result",
    "plot_calibration",
    "policies",
    "save_instance",
    "simulate",
    "solve_plan",
    "upper_bound",
]
