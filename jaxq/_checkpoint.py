"""The file from which an interrupted tuning goes on."""

from __future__ import annotations

import io
import json
import os
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ._ascent import Check, Climb
from ._errors import InputError

FORMAT = "jaxq tuning 1"


@dataclass(frozen=True)
class Checkpoint:
    """A file from which climbs go on; written whole or not at all.

    `arguments` say what is being tuned, and how: a file with others is refused.
    """

    path: Path
    arguments: dict[str, Any]

    def save(self, climbs: list[Climb]) -> None:
        """Write the state of all climbs."""
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
        told = json.dumps({"format": FORMAT, "arguments": self.arguments, "climbs": told})
        buffer = io.BytesIO()
        np.savez(buffer, told=np.frombuffer(told.encode(), np.uint8), **arrays)
        temporary = self.path.with_name(f".{self.path.name}.part")
        temporary.write_bytes(buffer.getvalue())
        os.replace(temporary, self.path)

    def load(self, climbs: list[Climb]) -> bool:
        """Bring fresh climbs to where the file left them; False when there is no file.

        **Raises:** `InputError` that names the file, when it is damaged or is of another tuning.
        """
        if not self.path.exists():
            return False
        try:
            with np.load(io.BytesIO(self.path.read_bytes()), allow_pickle=False) as arrays:
                told = json.loads(arrays["told"].tobytes())
                self._check(told)
                for k, (climb, was) in enumerate(zip(climbs, told["climbs"], strict=True)):
                    self._restore(climb, was, arrays, k)
        except InputError:
            raise
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(
                f"{self.path}: is damaged and cannot be resumed ({reason}); move it away to start again"
            ) from None
        return True

    def _check(self, told: dict[str, Any]) -> None:
        if told["format"] != FORMAT:
            raise InputError(
                f"{self.path}: was written by another version of jaxq; move it away to start again"
            )
        expected = json.loads(json.dumps(self.arguments))
        for name in {**expected, **told["arguments"]}:
            was, now = told["arguments"].get(name), expected.get(name)
            if was != now:
                raise InputError(
                    f"{self.path}: is of another tuning ({name} was {was}, is {now}); choose another folder, "
                    "or move it away to start again"
                )

    @staticmethod
    def _restore(climb: Climb, was: dict[str, Any], arrays: Any, k: int) -> None:
        climb.values, climb.best_values = arrays[f"values_{k}"], arrays[f"best_values_{k}"]
        leaves, structure = jax.tree.flatten(climb.memory)
        climb.memory = jax.tree.unflatten(
            structure, [jnp.asarray(arrays[f"memory_{k}_{j}"]) for j in range(len(leaves))]
        )
        climb.step, climb.ended, climb.notes = was["step"], was["ended"], was["notes"]
        climb.checks = [Check(**check) for check in was["checks"]]
        climb.best = None if was["best"] is None else Check(**was["best"])
