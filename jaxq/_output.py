"""Folders and files of output that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ._errors import InputError, SimulationError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def staged_folder(out: Path, marker: str) -> Iterator[Path]:
    """A new folder beside `out` that takes its place when the block ends well, and vanishes when it does not.

    Entering it shows at once whether the output can be written. An earlier output is replaced only then, as a
    whole.

    **Arguments:**

    - `out`: where the output goes: a path that does not exist, an empty folder, or an earlier output.
    - `marker`: a file that every output of this kind holds, by which an earlier one is known.

    **Raises:** `InputError` when `out` cannot be written, or is something else that must not be replaced.
    """
    target = Path(os.path.realpath(out))
    _check_replaceable(out, target, marker)
    made = _missing_parents(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        staged = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-"))
    except (OSError, ValueError) as error:
        _remove_empty(made)
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(
            f"--out: {out} cannot be written ({reason}); expected a folder in a writable place"
        ) from None
    try:
        yield staged
        staged.chmod(0o755)
        _swap(staged, target)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        _remove_empty(made)
        raise


def write_file(path: Path, contents: bytes, earlier: Path | None = None) -> None:
    """Write a file, whole or not at all, whatever happens to the process or the machine.

    **Arguments:** `earlier`: where what has been there goes; it is gone when None.

    **Raises:** `OSError` when the disk does not take it; what has been there is then as it was.
    """
    temporary = path.with_name(f".{path.name}.part")
    try:
        with open(temporary, "wb") as file:
            file.write(contents)
            file.flush()
            os.fsync(file.fileno())
        if earlier is not None and path.exists():
            os.replace(path, earlier)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


@contextlib.contextmanager
def writing(path: Path, kept: str = "what is kept") -> Iterator[None]:
    """Meanwhile an `OSError` becomes one line that names the path.

    **Arguments:** `kept`: from what the same call goes on when the disk was full.

    **Raises:** `SimulationError` when the disk is full; `InputError` when it cannot be written otherwise.
    """
    try:
        yield
    except OSError as error:
        said = f"{path}: cannot be written ({error.strerror or error})"
        if error.errno in _FULL:
            raise SimulationError(f"{said}; make room, and the same call goes on from {kept}") from None
        raise InputError(f"{said}; expected a folder in a writable place") from None


def writable_folder(out: Path, field: str = "--out") -> None:
    """Make a folder for files that are written one by one, or refuse it before any work.

    **Raises:** `InputError` that names the field, when it cannot be made or written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{field}: {out} cannot be written ({reason}); expected a writable folder") from None


def _check_replaceable(out: Path, target: Path, marker: str) -> None:
    """Refuse an `out` that is neither new, nor empty, nor an earlier output."""
    try:
        if not target.exists():
            return
        if not target.is_dir():
            raise InputError(f"--out: {out} is a file; expected a folder")
        if os.path.ismount(target):
            raise InputError(
                f"--out: {out} is a mount point and cannot be replaced; choose a folder inside it"
            )
        if any(target.iterdir()) and not (target / marker).is_file():
            raise InputError(
                f"--out: {out} holds other files (no {marker}) and is left alone; choose a new or empty "
                "folder"
            )
    except OSError as error:
        raise InputError(
            f"--out: {out} cannot be read ({error.strerror}); expected a writable folder"
        ) from None


def _missing_parents(target: Path) -> list[Path]:
    """The parents that do not exist yet, deepest first."""
    missing = []
    for parent in target.parents:
        if os.path.lexists(parent):
            break
        missing.append(parent)
    return missing


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def _swap(staged: Path, target: Path) -> None:
    """Put `staged` where `target` is; what was there goes only when the new one is in place."""
    if not target.exists():
        os.rename(staged, target)
        return
    earlier = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-earlier-"))
    os.rename(target, earlier)
    try:
        os.rename(staged, target)
    except BaseException:
        os.rename(earlier, target)
        raise
    shutil.rmtree(earlier, ignore_errors=True)
