"""Results as netCDF files: labelled, written whole or not at all, read back to the same numbers."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import xarray

from ._engine.record import COUNTS, FINAL, INTEGRALS, Record
from ._errors import InputError
from ._instance_file import instance_from_tables, instance_to_toml
from ._result import QUANTITIES, Result

FORMAT = 1
"""Version of the file's form; a reader refuses others."""

_ENGINE = "netcdf4"
_CLASS = "request_class"
_STATISTICS = ("mean", "standard_error", "ci_low", "ci_high")


def to_dataset(result: Result) -> xarray.Dataset:
    """See `Result.to_xarray`."""
    record = result.record.load()
    per_window = ("window", _CLASS, "replication")
    variables: dict[str, Any] = {}
    for name, (description, unit, per_class) in QUANTITIES.items():
        classes = (_CLASS,) if per_class else ()
        attrs = {"long_name": description, "units": unit}
        estimate = result.estimate(name)
        stacked = np.stack([estimate.mean, estimate.standard_error, *estimate.ci95])
        variables[name] = (("replication", *classes), result.per_replication(name), attrs)
        variables[f"{name}_estimate"] = (("statistic", *classes), stacked, attrs)
    for name in COUNTS:
        variables[f"window_{name}"] = (per_window, getattr(record, name), {"units": "requests"})
    for name in INTEGRALS:
        variables[f"window_{name}"] = (per_window, getattr(record, name), {"units": "requests s"})
    variables["window_events"] = (("window", "replication"), record.events, {"units": "events"})
    variables["window_duration"] = (("window",), record.durations, {"units": "s"})
    for name in FINAL:
        variables[f"final_{name}"] = ((_CLASS, "replication"), record.final[name], {"units": "requests"})
    coordinates = {
        _CLASS: list(result.instance.workload.names),
        "replication": result.first + np.arange(result.replications),
        "statistic": list(_STATISTICS),
        "window_end": ("window", np.cumsum(record.durations), {"units": "s"}),
    }
    return xarray.Dataset(variables, coordinates, _attributes(result))


def save_result(result: Result, path: str | os.PathLike[str]) -> None:
    """See `Result.save`."""
    file = Path(path)
    dataset = to_dataset(result)
    dataset.attrs["digest"] = _digest(dataset)
    arrays = {name: {"zlib": True, "complevel": 1} for name in _record_names() if name.startswith("window_")}
    try:
        descriptor, temporary = tempfile.mkstemp(dir=file.parent, prefix=".jaxq-", suffix=".nc")
        os.close(descriptor)
        try:
            dataset.to_netcdf(temporary, engine=_ENGINE, encoding=arrays)
            os.chmod(temporary, 0o644)
            os.replace(temporary, file)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
    except (OSError, RuntimeError, ValueError) as error:
        reason = _reason(error)
        raise InputError(
            f"{file}: cannot be written ({reason}); expected a path in a writable directory"
        ) from None


def load_result(path: str | os.PathLike[str]) -> Result:
    """A result from a file of `Result.save` or a folder of `simulate(..., out=...)`: every estimate and array
    is the same.

    **Raises:** `InputError`, one line that names the file, when it is missing, not a result of jaxq, of
    another version of the form, or damaged (its contents carry a checksum).
    """
    file = Path(path)
    if file.is_dir():
        from ._store.kept_run import load_run

        return load_run(file)
    if not file.is_file():
        raise InputError(f"{file}: no such file; expected a result that jaxq saved")
    try:
        dataset = xarray.load_dataset(file, engine=_ENGINE)
    except Exception as error:  # the netCDF and HDF5 libraries raise many kinds for a damaged file
        raise InputError(f"{file}: not a readable netCDF file ({_reason(error)})") from None
    form = dataset.attrs.get("jaxq_format")
    if form is None:
        raise InputError(f"{file}: not a result of jaxq; expected a file that jaxq saved")
    if not isinstance(form, int | np.integer) or int(form) != FORMAT:
        raise InputError(f"{file}: form {form} of a jaxq result; this version of jaxq reads form {FORMAT}")
    try:
        if dataset.attrs.get("digest") != _digest(dataset):
            raise InputError("its checksum does not match its contents")
        return _result(dataset)
    except (InputError, KeyError, ValueError, TypeError) as error:
        raise InputError(f"{file}: damaged result ({_reason(error)}); simulate again") from None


def _attributes(result: Result) -> dict[str, Any]:
    """What stands beside the arrays; enough to make the result again."""
    size = "in the fluid limit" if result.n_gpus is None else f"on {result.n_gpus} GPUs"
    attributes = {
        "title": f"jaxq: {result.policy_name} {size}, {result.instance.name}",
        "jaxq_format": FORMAT,
        "instance_toml": instance_to_toml(result.instance),
        "versions": json.dumps(result.versions),
        "policy_name": result.policy_name,
        "key": result.key,
        "engine_description": result.engine_description,
        "stopped_because": result.stopped_because,
        "horizon": float(result.horizon),
        "warmup": float(result.warmup),
        "seconds": float(result.seconds),
        "first": int(result.first),
        "warmup_windows": int(result.record.warmup_windows),
    }
    if result.n_gpus is not None:
        attributes["n_gpus"] = int(result.n_gpus)
    if result.dt is not None:
        attributes["dt"] = float(result.dt)
    return attributes


def _record_names() -> list[str]:
    """The variables that the record is made of; the others follow from them."""
    windows = [f"window_{name}" for name in (*COUNTS, *INTEGRALS, "events", "duration")]
    return windows + [f"final_{name}" for name in FINAL]


def _digest(dataset: xarray.Dataset) -> str:
    """SHA-256 of the record and of all attributes but the digest itself."""
    plain = {
        name: value.item() if isinstance(value, np.generic) else value
        for name, value in dataset.attrs.items()
        if name != "digest"
    }
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode())
    for name in _record_names():
        values = np.asarray(dataset[name].values)
        little = np.ascontiguousarray(values.astype(values.dtype.newbyteorder("<")))
        digest.update(f"{name}{values.shape}{little.dtype.str}".encode())
        digest.update(little.tobytes())
    return digest.hexdigest()


def _result(dataset: xarray.Dataset) -> Result:
    """The result that a checked data set holds."""
    attributes = dataset.attrs

    def values(name: str, kind: type) -> np.ndarray:
        return np.ascontiguousarray(dataset[name].values.astype(kind))

    names = (*COUNTS, *INTEGRALS, "events")
    fluid = "n_gpus" not in attributes
    record = Record(
        durations=values("window_duration", np.float64),
        final={name: values(f"final_{name}", np.float64 if fluid else np.int64) for name in FINAL},
        warmup_windows=int(attributes["warmup_windows"]),
        n_gpus=None if fluid else int(attributes["n_gpus"]),
        dt=float(attributes["dt"]) if "dt" in attributes else None,
        **{name: values(f"window_{name}", np.float64) for name in names},
    )
    return Result(
        instance=instance_from_tables(tomllib.loads(attributes["instance_toml"])),
        policy_name=str(attributes["policy_name"]),
        record=record,
        horizon=float(attributes["horizon"]),
        warmup=float(attributes["warmup"]),
        key=str(attributes["key"]),
        engine_description=str(attributes["engine_description"]),
        seconds=float(attributes["seconds"]),
        first=int(attributes["first"]),
        stopped_because=str(attributes["stopped_because"]),
        versions=json.loads(attributes["versions"]),
    )


def _reason(error: BaseException) -> str:
    """Why something failed, on one line."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())[:200]
