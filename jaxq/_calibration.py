"""Iteration times from measurements: the law with a knee, its intervals, and data that are refused."""

from __future__ import annotations

import csv
import difflib
import io
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from . import _knee_law
from ._errors import InputError
from ._hardware import IterationTime

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Group = tuple[tuple[str, str], ...]
"""The columns and values that a group of measurements shares, in the file's order of columns."""

COLUMNS = ("num_tokens", "iteration_time_s")
_UNITS = {"num_tokens": "tokens", "iteration_time": "seconds", "iteration_time_s": "seconds"}

MIN_SIZES = 6
MIN_SIZES_BELOW = 2
MIN_SIZES_ABOVE = 3
_FLAT = 1e-6
"""A rise over the measured range of less than this part of the base counts as none."""


@dataclass(frozen=True)
class Coefficient:
    """A number with its 95 % interval; `ci95` is None for a published number that came without one."""

    value: float
    ci95: tuple[float, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        """`{"estimate": ..., "ci95": [low, high]}`; `ci95` is None where there is none."""
        return {"estimate": self.value, "ci95": None if self.ci95 is None else list(self.ci95)}


@dataclass(frozen=True, eq=False)
class Calibration:
    """The law tau(b) = base + slope * max(0, b - knee) fitted to measurements ([Lin26] eq. 1).

    Made by `calibrate` and `calibrate_file`.

    - `base`: s; the time of an iteration below the knee (tau_solo).
    - `slope`: s/token (beta).
    - `knee`: tokens; where the time starts to grow.
    - `alpha`: s; base - slope * knee, the intercept of a mixed iteration's time (eq. 3).
    - `r2`: share of the variance of the times in seconds that the law explains, over all measurements.
    - `max_relative_error`: largest |law / measured - 1| over all measurements.
    - `group`: the columns and values that these measurements share, as pairs; empty for arrays.
    - `num_tokens`, `iteration_time_s`: the measurements, tokens and s, each of shape `(measurements,)`.
    """

    base: Coefficient
    slope: Coefficient
    knee: Coefficient
    alpha: Coefficient
    r2: float
    max_relative_error: float
    num_tokens: Float[np.ndarray, " measurements"]
    iteration_time_s: Float[np.ndarray, " measurements"]
    group: Group = ()

    @property
    def label(self) -> str:
        """The group in words: `gpu=a100, tensor_parallel=1`."""
        return _label(self.group)

    @property
    def n_measurements(self) -> int:
        """How many measurements were fitted."""
        return len(self.num_tokens)

    @property
    def n_sizes(self) -> int:
        """How many distinct numbers of tokens were measured."""
        return len(np.unique(self.num_tokens))

    @property
    def token_range(self) -> tuple[float, float]:
        """The smallest and the largest number of tokens measured: the law holds between them."""
        return float(self.num_tokens.min()), float(self.num_tokens.max())

    @property
    def chunk_range(self) -> tuple[float, float]:
        """Chunk sizes for which alpha + beta * C is this law, tokens: from the knee to the largest size."""
        return self.knee.value, self.token_range[1]

    @property
    def iteration_time(self) -> IterationTime:
        """The three numbers of the model, valid for chunk sizes in `chunk_range`."""
        return IterationTime.from_law(self.base.value, self.slope.value, self.knee.value)

    def law(self, num_tokens: Any) -> Any:
        """The fitted time of an iteration with `num_tokens` tokens in the batch, s; of the same shape."""
        return self.base.value + self.slope.value * np.maximum(0.0, np.asarray(num_tokens) - self.knee.value)

    def plot(self, axes: Axes) -> None:
        """Draw the relative residuals, measured / law - 1, against the tokens, with the knee's interval."""
        residual = 100 * (self.iteration_time_s / self.law(self.num_tokens) - 1)
        axes.axhline(0.0, color="0.6", linewidth=1)
        _mark_knee(axes, self.knee)
        axes.plot(self.num_tokens, residual, "o", markersize=4)
        axes.set_xscale("log")
        axes.set_xlabel("tokens in the batch")
        axes.set_ylabel("measured / law - 1, %")

    def to_dict(self) -> dict[str, Any]:
        """Everything but the measurements, as plain numbers, lists and texts that JSON holds."""
        return {
            "group": dict(self.group),
            "base": self.base.to_dict(),
            "slope": self.slope.to_dict(),
            "knee": self.knee.to_dict(),
            "alpha": self.alpha.to_dict(),
            "r2": self.r2,
            "max_relative_error": self.max_relative_error,
            "token_range": list(self.token_range),
            "chunk_range": list(self.chunk_range),
            "measurements": self.n_measurements,
            "sizes": self.n_sizes,
        }


@dataclass(frozen=True)
class Refusal:
    """A group of measurements that no law was fitted to, and why."""

    group: Group
    reason: str

    @property
    def label(self) -> str:
        """The group in words: `gpu=a100, tensor_parallel=1`."""
        return _label(self.group)

    def to_dict(self) -> dict[str, Any]:
        """`{"group": {...}, "reason": ...}`."""
        return {"group": dict(self.group), "reason": self.reason}


@dataclass(frozen=True, eq=False)
class FileCalibration:
    """What `calibrate_file` found: the calibrations and the refused groups, each in the file's order."""

    path: str
    calibrations: tuple[Calibration, ...]
    refused: tuple[Refusal, ...]

    def to_dict(self) -> dict[str, Any]:
        """`{"file": ..., "groups": [...], "refused": [...]}`, ready for JSON."""
        return {
            "file": self.path,
            "groups": [calibration.to_dict() for calibration in self.calibrations],
            "refused": [refusal.to_dict() for refusal in self.refused],
        }


def calibrate(num_tokens: Any, iteration_time: Any, *, bootstrap: int = 2000, seed: int = 0) -> Calibration:
    """Fit tau(b) = base + slope * max(0, b - knee) ([Lin26] eq. 1) to measured iteration times.

    Repeats of a size are averaged first, so that a size measured often does not bend the law. The fit then
    minimises the sum over sizes of (law / mean - 1)^2, exactly (no local search). Intervals are basic
    bootstrap intervals from a wild bootstrap of the sizes' log residuals, so they cover both noise and,
    roughly, a law that does not fit; on simulated data (8 or 20 sizes, 3 to 8 % scatter, equal or unequal
    below and above the knee) 92 to 97 % of them held the true value.

    Weights of 1 / mean^2 favour sizes that were measured too fast: a scatter of s (relative, of the means)
    puts base and slope low by up to about 2 s^2, 0.5 % at 5 % scatter; the intervals correct for it, the
    estimates do not.

    **Arguments:**

    - `num_tokens`: tokens in the batch of each measured iteration, shape `(measurements,)`.
    - `iteration_time`: its time, s, the same shape.
    - `bootstrap`: number of resamples, at least 100.
    - `seed`: of the bootstrap; the same seed gives the same intervals.

    **Returns:** a `Calibration`.

    **Raises:** `InputError` for numbers that are not positive and finite, and for data that cannot identify
    the law: fewer than 6 distinct sizes, fewer than 2 at or below the knee or 3 above it, times that do not
    grow, or scatter that leaves a straight line or a knee outside the sizes measured possible.
    """
    tokens = _positive(num_tokens, "num_tokens")
    times = _positive(iteration_time, "iteration_time")
    if tokens.shape != times.shape:
        raise InputError(
            f"iteration_time: expected one for each of {len(tokens)} num_tokens, got {len(times)}"
        )
    _check_bootstrap(bootstrap, seed)
    return _calibrate(tokens, times, bootstrap, seed, group=())


def calibrate_file(
    path: str | os.PathLike[str],
    *,
    group_by: Sequence[str] | None = None,
    bootstrap: int = 2000,
    seed: int = 0,
) -> FileCalibration:
    """Calibrate each group of measurements in a CSV file.

    **Arguments:**

    - `path`: a CSV file with a header and the columns `num_tokens` and `iteration_time_s` (seconds).
    - `group_by`: the columns whose values make the groups; when None, all further columns.
    - `bootstrap`, `seed`: as in `calibrate`, for each group.

    **Returns:** a `FileCalibration`. A group whose data are refused does not stop the others.

    **Raises:** `InputError` that names the file, and the column or line, when the file cannot be read as
    such a table; or the first group and its reason when every group is refused.
    """
    _check_bootstrap(bootstrap, seed)
    try:
        groups = _read_groups(Path(path), group_by)
        calibrations, refused = [], []
        for group, rows in groups.items():
            try:
                tokens, times = _columns(rows)
                calibrations.append(_calibrate(tokens, times, bootstrap, seed, group))
            except InputError as error:
                refused.append(Refusal(group, str(error)))
        if not calibrations:
            count = "" if len(refused) == 1 else f"none of {len(refused)} groups can be calibrated; "
            raise InputError(f"{count}{refused[0].label}: {refused[0].reason}")
    except InputError as error:
        raise InputError(f"{os.fspath(path)}: {error}") from None
    return FileCalibration(os.fspath(path), tuple(calibrations), tuple(refused))


def plot_calibration(calibration: Calibration) -> Figure:
    """A figure with the measurements and the law above, the relative residuals below; needs matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 6.0), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    tokens = np.geomspace(*calibration.token_range, 400)
    _mark_knee(above, calibration.knee)
    above.plot(calibration.num_tokens, calibration.iteration_time_s, "o", markersize=4, label="measured")
    above.plot(tokens, calibration.law(tokens), color="black", linewidth=1, label="law")
    above.set_yscale("log")
    above.set_ylabel("iteration time, s")
    above.set_title(calibration.label, fontsize="small", wrap=True)
    above.legend()
    calibration.plot(below)
    return figure


def _mark_knee(axes: Axes, knee: Coefficient) -> None:
    if knee.ci95 is not None:
        axes.axvspan(*knee.ci95, color="0.9", linewidth=0)
    axes.axvline(knee.value, color="0.6", linestyle="--", linewidth=1)


def _label(group: Group) -> str:
    return ", ".join(f"{column}={value}" for column, value in group) or "all measurements"


def _positive(values: Any, name: str) -> Float[np.ndarray, " measurements"]:
    """A vector of positive finite numbers."""
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{name}: expected a vector of numbers") from None
    if array.ndim != 1 or array.size == 0:
        raise InputError(f"{name}: expected a vector of at least one number, got shape {array.shape}")
    wrong = np.flatnonzero(~(np.isfinite(array) & (array > 0)))
    if wrong.size:
        value = array[wrong[0]]
        raise InputError(
            f"{name}[{wrong[0]}]: expected a positive finite number of {_UNITS[name]}, got {value:g}"
        )
    return array


def _check_bootstrap(bootstrap: Any, seed: Any) -> None:
    for name, value, least in (("bootstrap", bootstrap, 100), ("seed", seed, 0)):
        whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
        if not whole or value < least:
            raise InputError(f"{name}: expected a whole number of at least {least}, got {value!r}")


def _calibrate(tokens: np.ndarray, times: np.ndarray, bootstrap: int, seed: int, group: Group) -> Calibration:
    """The fit, its intervals and its quality; refuses data that do not identify the law."""
    sizes, position = np.unique(tokens, return_inverse=True)
    if len(sizes) < MIN_SIZES:
        raise InputError(f"num_tokens: expected at least {MIN_SIZES} distinct sizes, got {len(sizes)}")
    means = np.bincount(position, times) / np.bincount(position)
    law = _knee_law.fit(sizes, means[None])
    _check_shape(sizes, law)
    draws = _knee_law.resample(sizes, means, law, bootstrap, seed)
    _check_scatter(draws, sizes)
    intervals = _intervals(law, draws)
    _check_knee(intervals["knee"], sizes)
    fitted = _knee_law.evaluate(law, tokens)[0]
    return Calibration(
        **{name: Coefficient(float(x), intervals[name]) for name, (x,) in _coefficients(law).items()},
        r2=float(1 - np.sum((times - fitted) ** 2) / np.sum((times - times.mean()) ** 2)),
        max_relative_error=float(np.max(np.abs(fitted / times - 1))),
        num_tokens=tokens,
        iteration_time_s=times,
        group=group,
    )


def _check_shape(sizes: np.ndarray, law: _knee_law.Law) -> None:
    """Refuse a best law that is no law with a knee."""
    base, slope, knee = (float(value[0]) for value in law)
    if not math.isfinite(base + slope + knee):
        raise InputError("iteration_time: the times span too many orders of magnitude to be fitted")
    if slope * (sizes[-1] - knee) <= _FLAT * base:
        raise InputError(
            f"iteration_time does not grow with num_tokens up to {sizes[-1]:g}; measure batches of more "
            "tokens"
        )
    below, above = int(np.sum(sizes <= knee)), int(np.sum(sizes > knee))
    if below < MIN_SIZES_BELOW:
        raise InputError(
            f"num_tokens: no flat part to place the knee by ({below} size at or below the best knee, "
            f"{knee:.4g}; at least {MIN_SIZES_BELOW} are needed); measure batches of fewer tokens"
        )
    if above < MIN_SIZES_ABOVE:
        raise InputError(
            f"num_tokens: no rising part to place the knee by ({above} sizes above the best knee, "
            f"{knee:.4g}; at least {MIN_SIZES_ABOVE} are needed); measure batches of more tokens"
        )


def _coefficients(law: _knee_law.Law) -> dict[str, np.ndarray]:
    """Base, slope, knee and alpha of one or more laws."""
    return law._asdict() | {"alpha": law.base - law.slope * law.knee}


def _check_scatter(draws: _knee_law.Law, sizes: np.ndarray) -> None:
    """Refuse a law that more than 2.5 % of the resamples contradict; draws of NaN are refused too."""
    for name, values, least, instead in (
        ("base", draws.base, 0.0, "an iteration could take no time"),
        ("slope", draws.slope, 0.0, "a constant would do as well"),
        ("knee", draws.knee, sizes[0], "a straight line would do as well"),
    ):
        if not np.percentile(values, 2.5) > least:
            raise InputError(
                f"iteration_time scatters too much about the law to find its {name}: {instead}; measure more "
                "sizes, smaller and larger, or repeats"
            )


def _intervals(law: _knee_law.Law, draws: _knee_law.Law) -> dict[str, tuple[float, float]]:
    """Basic bootstrap intervals: the draws' spread, reflected about the estimate, which corrects its bias.

    The three positive coefficients are reflected in proportion, alpha, which may be negative, in seconds.
    """
    resampled = _coefficients(draws)
    intervals = {}
    for name, (value,) in _coefficients(law).items():
        low, high = np.percentile(resampled[name], [2.5, 97.5])
        ends = (2 * value - high, 2 * value - low) if name == "alpha" else (value**2 / high, value**2 / low)
        intervals[name] = float(ends[0]), float(ends[1])
    return intervals


def _check_knee(interval: tuple[float, float], sizes: np.ndarray) -> None:
    """Refuse a knee that could lie outside the sizes measured."""
    low, high = interval
    if not (low > sizes[0] and high < sizes[-1]):
        raise InputError(
            f"iteration_time scatters too much about the law to find its knee: the 95 % interval, {low:.4g} "
            f"to {high:.4g} tokens, is not within the sizes measured, {sizes[0]:g} to {sizes[-1]:g}; measure "
            "more sizes, smaller and larger, or repeats"
        )


Row = tuple[int, str, str]
"""A line of the file: its number, and the texts of its num_tokens and iteration_time_s."""


def _read_groups(path: Path, group_by: Sequence[str] | None) -> dict[Group, list[Row]]:
    """The lines of each group, in the file's order."""
    reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        columns = _group_columns(header, group_by)
        places = [header.index(name) for name in COLUMNS]
        groups: dict[Group, list[Row]] = {}
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(header):
                raise InputError(f"line {reader.line_num}: expected {len(header)} columns, got {len(cells)}")
            group = tuple((name, cells[header.index(name)].strip()) for name in columns)
            tokens, time = (cells[place].strip() for place in places)
            groups.setdefault(group, []).append((reader.line_num, tokens, time))
    except csv.Error as error:
        raise InputError(f"line {reader.line_num}: not a CSV table ({error})") from None
    if not groups:
        raise InputError("no measurements below the header; expected one a line")
    return groups


def _text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError("no such file; expected the path of a CSV file") from None
    except UnicodeDecodeError:
        raise InputError("not UTF-8 text; expected a CSV file") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"cannot be read ({reason}); expected the path of a CSV file") from None
    if not text.strip():
        raise InputError(f"empty; expected a header with the columns {' and '.join(COLUMNS)}")
    return text


def _group_columns(header: list[str], group_by: Sequence[str] | None) -> list[str]:
    """The columns that make the groups; refuses missing and repeated columns."""
    further = [name for name in header if name not in COLUMNS]
    for name in COLUMNS:
        if name not in header:
            raise _missing_column(name, further, header)
    for i, name in enumerate(header):
        if name in header[:i]:
            raise InputError(f"column {name!r} stands twice in the header; each needs its own name")
    if group_by is None:
        return further
    for name in group_by:
        if name not in further:
            raise _missing_column(name, further, header)
    return list(group_by)


def _missing_column(name: str, candidates: list[str], header: list[str]) -> InputError:
    near = difflib.get_close_matches(name, candidates, n=1, cutoff=0.5)
    found = f"the nearest is {near[0]!r}" if near else f"the header has {', '.join(map(repr, header))}"
    unit = f" ({_UNITS[name]})" if name in _UNITS else ""
    return InputError(f"column {name!r}{unit} is missing; {found}")


def _columns(rows: list[Row]) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of one group's lines."""
    columns = np.empty((2, len(rows)))
    for j, (line, *cells) in enumerate(rows):
        for i, (name, cell) in enumerate(zip(COLUMNS, cells, strict=True)):
            try:
                value = float(cell)
            except ValueError:
                value = math.nan
            if not (math.isfinite(value) and value > 0):
                expected = f"expected a positive finite number of {_UNITS[name]}"
                raise InputError(f"line {line}, column {name}: {expected}, got {cell!r}")
            columns[i, j] = value
    return columns[0], columns[1]
