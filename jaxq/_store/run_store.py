"""The folder of one run: its arguments, and its replications in files as they finish."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import filelock

from .._engine.record import Record
from .._errors import InputError
from .._output import write_file, writing
from .block_file import BlockFile
from .damaged import set_aside
from .stored_record import StoredRecord, head_of

FORMAT = 1
"""Version of the folder's form; a reader refuses others."""

RUN_FILE, LOCK_FILE = "run.json", "run.lock"


@dataclass
class RunStore:
    """The replications of one run, in a folder that one process at a time writes to.

    - `path`: the folder.
    - `arguments`: what the run's numbers depend on; a folder of other arguments is refused.
    - `about`: what is of interest beside them, as for JSON.
    - `blocks`: the checked files.
    - `seconds`: wall-clock time that their replications took.
    - `head`: one of their replications, for what is the same in all; None while there is none.
    """

    path: Path
    arguments: dict[str, Any]
    about: dict[str, Any]
    blocks: list[BlockFile]
    seconds: float = 0.0
    head: Record | None = field(default=None, repr=False)

    @classmethod
    @contextlib.contextmanager
    def opened(cls, path: Path, arguments: dict[str, Any], about: dict[str, Any]) -> Iterator[RunStore]:
        """The folder of a run, new or as an earlier call with the same arguments left it, for writing.

        Files that are damaged are named by a `StoreWarning`, renamed to `... .damaged`, and never used.

        **Raises:** `InputError` when the folder cannot be written, is in use by another process, holds
        something else, or is of other arguments, naming what differs.
        """
        arguments, about = json.loads(json.dumps([arguments, about]))
        _make(path)
        lock = filelock.FileLock(path / LOCK_FILE)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            raise InputError(
                f"{path}: another process is writing to it; wait for it to end, or choose another folder"
            ) from None
        try:
            store = cls(path, arguments, about, [])
            store._check_arguments()
            store._find_blocks()
            yield store
        finally:
            lock.release()

    def missing(self, replications: int, chunk: int) -> list[tuple[int, int]]:
        """Those of the first replications that are not kept, as (first, how many), at most `chunk` each."""
        return [
            (start, min(chunk, end - start))
            for first, end in self._gaps(replications)
            for start in range(first, end, chunk)
        ]

    def kept(self, replications: int) -> StoredRecord:
        """The first replications, of which none is missing."""
        assert self.head is not None
        return StoredRecord(tuple(self.blocks), replications, self.head)

    def done(self, replications: int) -> int:
        """How many of the first replications are kept."""
        return replications - sum(end - first for first, end in self._gaps(replications))

    def _gaps(self, replications: int) -> list[tuple[int, int]]:
        """The replications that are not kept, as (first, end)."""
        gaps, reached = [], 0
        for block in self.blocks:
            if block.first > reached:
                gaps.append((reached, block.first))
            reached = block.end
        gaps.append((reached, max(reached, replications)))
        cut = [(first, min(end, replications)) for first, end in gaps]
        return [(first, end) for first, end in cut if end > first]

    def add(self, first: int, record: Record, seconds: float) -> None:
        """Keep the replications from `first` on, which took so long.

        **Raises:** `SimulationError` when the disk is full, saying how to go on; as `writing`.
        """
        with writing(self.path, f"{self.done(first)} kept replications"):
            block = BlockFile.write(self.path, first, record, {"run": self._digest, "seconds": seconds})
        self.blocks = sorted([*self.blocks, block], key=lambda block: block.first)
        self.seconds += seconds
        self.head = self.head or head_of(record)

    @property
    def _digest(self) -> str:
        """Of the arguments."""
        return digest_of(self.arguments)

    def _check_arguments(self) -> None:
        """Compare with the arguments that the folder is of; write them into a new one."""
        file = self.path / RUN_FILE
        if file.exists():
            try:
                kept = read_run_file(file)["arguments"]
            except InputError as error:
                set_aside(file, str(error))
            else:
                _refuse_other(self.path, kept, self.arguments)
        elif not all(_belongs(entry) for entry in self.path.iterdir()):
            raise InputError(f"{self.path}: holds something else than a run of jaxq; choose another folder")
        write_run_file(file, self.arguments, self.about)

    def _find_blocks(self) -> None:
        """Check every file, and set aside what is damaged or of another run."""
        for entry in sorted(self.path.iterdir()):
            if entry.name.startswith(".") and entry.name.endswith(".part"):
                entry.unlink()
        for block in sorted(filter(None, map(BlockFile.named, self.path.iterdir())), key=lambda b: b.first):
            reached = self.blocks[-1].end if self.blocks else 0
            try:
                record, about = block.read()
                if about["run"] != self._digest:
                    raise InputError(f"{block.path}: of another run")
                if block.first < reached or block.end - block.first != record.replications:
                    raise InputError(f"{block.path}: its replications do not follow from its name")
            except InputError as error:
                set_aside(block.path, str(error))
            else:
                self.blocks.append(block)
                self.seconds += about["seconds"]
                self.head = self.head or head_of(record)


def wait_until_unlocked(path: Path, seconds: float) -> None:
    """Wait for the process that writes to a folder to end, so many seconds at most."""
    if (path / LOCK_FILE).exists():
        lock = filelock.FileLock(path / LOCK_FILE)
        with contextlib.suppress(filelock.Timeout), lock.acquire(timeout=seconds):
            pass


def unbroken(path: Path) -> list[BlockFile]:
    """The files of a folder from the first replication on, up to the first gap; their contents unchecked."""
    found: list[BlockFile] = []
    for block in sorted(filter(None, map(BlockFile.named, path.iterdir())), key=lambda b: b.first):
        if block.first == (found[-1].end if found else 0):
            found.append(block)
    return found


def _belongs(entry: Path) -> bool:
    """Whether a file is one that a run leaves."""
    own = entry.name == LOCK_FILE or entry.name.endswith(".part") or ".damaged" in entry.name
    return own or BlockFile.named(entry) is not None


def digest_of(arguments: dict[str, Any]) -> str:
    """Of arguments, whatever their order."""
    return hashlib.sha256(json.dumps(arguments, sort_keys=True).encode()).hexdigest()


def write_run_file(file: Path, arguments: dict[str, Any], about: dict[str, Any]) -> None:
    """Write what a run is, whole or not at all. **Raises:** as `writing`."""
    told = {"format": FORMAT, "arguments": arguments, "about": about}
    with writing(file):
        write_file(file, (json.dumps({**told, "digest": digest_of(told)}, indent=2) + "\n").encode())


def read_run_file(file: Path) -> dict[str, Any]:
    """What a run is. **Raises:** `InputError` that names the file, when it is damaged or of another form."""
    try:
        told = json.loads(file.read_text())
        kept = told.pop("digest")
        form = told["format"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{file}: damaged; it does not say what the run is") from None
    if kept != digest_of(told):
        raise InputError(f"{file}: damaged; its contents do not match their checksum")
    if form != FORMAT:
        raise InputError(f"{file}: form {form} of a run; this version of jaxq reads form {FORMAT}")
    return told


def _refuse_other(path: Path, kept: dict[str, Any], given: dict[str, Any]) -> None:
    """Refuse a folder of other arguments, naming the first that differs."""
    for name in {**given, **kept}:
        if kept.get(name) != given.get(name):
            raise InputError(
                f"{path}: was made with {name} {_shown(kept.get(name))}, and this call has "
                f"{_shown(given.get(name))}; choose another folder, or move this one away"
            )


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _make(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
        (path / LOCK_FILE).touch()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(
            f"{path}: cannot be written ({reason}); expected a folder in a writable place"
        ) from None
