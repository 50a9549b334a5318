"""The file from which an interrupted tuning goes on."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ._ascent import Check, Climb
from ._errors import InputError
from ._output import write_file, writing
from ._store.damaged import set_aside

FORMAT = "jaxq tuning 2"


@dataclass(frozen=True)
class Checkpoint:
    """A file from which climbs go on, written whole or not at all; the one before it stays beside it, as
    `... .previous`.

    `arguments` say what is being tuned, and how: a file with others is refused.
    """

    path: Path
    arguments: dict[str, Any]

    @property
    def previous(self) -> Path:
        """Where the checkpoint before goes."""
        return self.path.with_name(f"{self.path.name}.previous")

    def save(self, climbs: list[Climb]) -> None:
        """Write the state of all climbs. **Raises:** as `writing`."""
        arrays: dict[str, Any] = {}
        told = []
        for k, climb in enumerate(climbs):
            arrays[f"values_{k}"], arrays[f"best_values_{k}"] = climb.values, climb.best_values
            for j, leaf in enumerate(jax.tree.leaves(climb.memory)):
                arrays[f"memory_{k}_{j}"] = np.asarray(leaf)
            told.append(
                {
                    "step": climb.step,
                    "ended": climb.ended,
                    "checks": [asdict(check) for check in climb.checks],
                    "best": None if climb.best is None else asdict(climb.best),
                    "notes": climb.notes,
                }
            )
        told = {"arguments": self.arguments, "climbs": told, "arrays": _digest(arrays)}
        told = json.dumps({"format": FORMAT, **told})
        buffer = io.BytesIO()
        np.savez(buffer, told=np.frombuffer(told.encode(), np.uint8), **arrays)
        with writing(self.path, "the last check"):
            write_file(self.path, buffer.getvalue(), earlier=self.previous)

    def load(self, climbs: list[Climb]) -> bool:
        """Bring fresh climbs to where the file left them, or where the one before it did when it is damaged;
        False when there is none.

        Files that are damaged are named by a `StoreWarning`, renamed to `... .damaged`, and never used.

        **Raises:** `InputError` that names the file, when it cannot be read, is of another version of jaxq,
        or of another tuning, saying what differs.
        """
        found = [self._read(path) for path in (self.path, self.previous) if path.exists()]
        intact = [contents for contents in found if contents is not None]
        if not intact:
            return False
        told, arrays = intact[0]
        for k, (climb, was) in enumerate(zip(climbs, told["climbs"], strict=True)):
            _restore(climb, was, arrays, k)
        return True

    def _read(self, path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
        """What a file holds; None when it was damaged, and has been set aside."""
        try:
            contents = path.read_bytes()
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
        try:
            with np.load(io.BytesIO(contents), allow_pickle=False) as file:
                arrays = dict(file)
            told = json.loads(arrays.pop("told").tobytes())
            is_ours = told["format"] == FORMAT
            if is_ours and told["arrays"] != _digest(arrays):
                raise ValueError("its contents do not match their checksum")
        except Exception as error:  # wrong bytes fail in whatever way the readers of zip, numpy and JSON do
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            set_aside(path, f"{path}: damaged ({reason})")
            return None
        if not is_ours:
            raise InputError(f"{path}: was written by another version of jaxq; move it away to start again")
        self._refuse_other(path, told["arguments"])
        return told, arrays

    def _refuse_other(self, path: Path, kept: dict[str, Any]) -> None:
        """Refuse a file of other arguments, naming the first that differs."""
        expected = json.loads(json.dumps(self.arguments))
        for name in {**expected, **kept}:
            was, now = kept.get(name), expected.get(name)
            if was != now:
                raise InputError(
                    f"{path}: is of another tuning ({name} was {was}, is {now}); choose another folder, or "
                    "move it away to start again"
                )


def _digest(arrays: dict[str, np.ndarray]) -> str:
    """Of names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape} ".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _restore(climb: Climb, was: dict[str, Any], arrays: dict[str, np.ndarray], k: int) -> None:
    """Bring a climb to where arrays and what is told of it say."""
    climb.values, climb.best_values = arrays[f"values_{k}"], arrays[f"best_values_{k}"]
    leaves, structure = jax.tree.flatten(climb.memory)
    climb.memory = jax.tree.unflatten(
        structure, [jnp.asarray(arrays[f"memory_{k}_{j}"]) for j in range(len(leaves))]
    )
    climb.step, climb.ended, climb.notes = was["step"], was["ended"], was["notes"]
    climb.checks = [Check(**check) for check in was["checks"]]
    climb.best = None if was["best"] is None else Check(**was["best"])
