"""One file of replications: a zarr group in a zip archive, named after its contents."""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .._engine.record import COUNTS, FINAL, INTEGRALS, Record
from .._errors import InputError
from .._output import write_file

_NAME = re.compile(r"(\d{8})-(\d{8})\.([0-9a-f]{32})\.zarr\.zip")
_WINDOWED = (*COUNTS, *INTEGRALS)


@dataclass(frozen=True)
class BlockFile:
    """A file that holds replications `first`, ..., `end - 1` of a run, counted from the run's first.

    Its name says which, and the SHA-256 of its bytes (the first 32 digits).
    """

    path: Path
    first: int
    end: int
    digest: str

    @classmethod
    def named(cls, path: Path) -> BlockFile | None:
        """The file of that name; None when it is not a block's name."""
        found = _NAME.fullmatch(path.name)
        return None if found is None else cls(path, int(found[1]), int(found[2]), found[3])

    @classmethod
    def write(cls, folder: Path, first: int, record: Record, about: dict[str, Any]) -> BlockFile:
        """Write replications, whole or not at all.

        **Arguments:** `about`: what is kept beside them, as for JSON.

        **Raises:** `OSError` when the disk does not take it; nothing is left then.
        """
        contents = _archive(record, about, first)
        digest = hashlib.sha256(contents).hexdigest()[:32]
        end = first + record.replications
        path = folder / f"{first:08d}-{end:08d}.{digest}.zarr.zip"
        write_file(path, contents)
        return cls(path, first, end, digest)

    def read(self) -> tuple[Record, dict[str, Any]]:
        """The replications and what is kept beside them.

        **Raises:** `InputError` that names the file, when it is not what was written.
        """
        try:
            contents = self.path.read_bytes()
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read ({error.strerror or error})") from None
        if hashlib.sha256(contents).hexdigest()[:32] != self.digest:
            raise InputError(f"{self.path}: damaged; its contents do not match the checksum in its name")
        # Imported where it is used: half a second that most commands have no need of.
        import xarray
        from zarr.storage import ZipStore

        store = ZipStore(self.path, mode="r")
        try:
            dataset = xarray.open_zarr(store, consolidated=False, chunks=None).load()
        finally:
            store.close()
        return _record(dataset), json.loads(dataset.attrs["about"])


def _archive(record: Record, about: dict[str, Any], first: int) -> bytes:
    """The bytes of a file."""
    import xarray
    from zarr.codecs import Crc32cCodec, ZstdCodec
    from zarr.storage import MemoryStore

    windowed = ("window", "request_class", "replication")
    variables: dict[str, Any] = {name: (windowed, getattr(record, name)) for name in _WINDOWED}
    variables["events"] = (("window", "replication"), record.events)
    variables["duration"] = ("window", record.durations)
    for name in FINAL:
        variables[f"final_{name}"] = (("request_class", "replication"), record.final[name])
    coordinates = {"replication": first + np.arange(record.replications)}
    attributes = {"about": json.dumps(about), "warmup_windows": int(record.warmup_windows)}
    if record.n_gpus is not None:
        attributes["n_gpus"] = int(record.n_gpus)
    if record.dt is not None:
        attributes["dt"] = float(record.dt)
    dataset = xarray.Dataset(variables, coordinates, attributes)
    checked = {"compressors": [ZstdCodec(level=1), Crc32cCodec()]}
    files: dict[str, Any] = {}
    dataset.to_zarr(
        MemoryStore(files),
        zarr_format=3,
        consolidated=False,
        encoding={name: {**checked, "chunks": array.shape} for name, array in dataset.variables.items()},
    )
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for key, value in sorted(files.items()):
            archive.writestr(key, value.to_bytes())
    return buffer.getvalue()


def _record(dataset: Any) -> Record:
    """The replications of a data set that `_archive` made."""
    attributes = dataset.attrs
    fluid = "n_gpus" not in attributes
    return Record(
        durations=dataset["duration"].values,
        final={
            name: dataset[f"final_{name}"].values.astype(np.float64 if fluid else np.int64) for name in FINAL
        },
        warmup_windows=int(attributes["warmup_windows"]),
        n_gpus=None if fluid else int(attributes["n_gpus"]),
        dt=float(attributes["dt"]) if "dt" in attributes else None,
        events=dataset["events"].values,
        **{name: dataset[name].values for name in _WINDOWED},
    )
