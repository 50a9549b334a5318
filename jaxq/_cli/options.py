"""Options that several commands share, and how their texts are read."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .._errors import InputError
from .._summary import plain

if TYPE_CHECKING:
    from .._instance import Instance

InstanceFile = Annotated[
    Path, typer.Argument(metavar="FILE", help="Instance, a TOML file.", show_default=False)
]

OptionalInstanceFile = Annotated[
    Path | None,
    typer.Argument(
        metavar="FILE",
        help="Instance, a TOML file; the reference instance of \\[Lin26] when left out.",
        show_default=False,
    ),
]

Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, and nothing else there.")]

Seed = Annotated[
    int, typer.Option("--seed", help="Seed of the random numbers; the same seed, the same results.")
]

OptionalSeed = Annotated[
    int | None,
    typer.Option(
        "--seed", help="Seed of the random numbers; the same seed, the same results.", show_default="0"
    ),
]

MAX_SEED = 2**32 - 1

FieldName = Callable[[str], str]
"""What messages call a field: `option_name` on a command line, the field itself in a file."""


def option_name(field: str) -> str:
    """The option that sets a field."""
    return "--" + field.replace("_", "-")


def read_instance(file: Path | None) -> Instance:
    """The instance in a file; the reference instance when there is none.

    **Raises:** `InputError` that names the file, the field and what would be right.
    """
    from .._instance_file import load_instance

    if file is not None:
        return load_instance(file)
    from importlib.resources import as_file

    from .._presets import bundled_folder

    with as_file(bundled_folder("instances") / "a100_qwen8b_two_class.toml") as path:
        return load_instance(path)


def whole_numbers(text: str, option: str) -> tuple[int, ...]:
    """The whole numbers of at least 1 in a text like `20,50,200`, each once.

    **Raises:** `InputError` that names the option.
    """
    numbers = []
    for part in text.split(","):
        try:
            number = int(part)
        except ValueError:
            number = 0
        if number < 1:
            raise InputError(
                f"{option}: expected whole numbers of at least 1, as in 20,50; got {part.strip()!r}"
            )
        numbers.append(number)
    return tuple(dict.fromkeys(numbers))


def policy_references(text: str) -> tuple[str, ...]:
    """The policies in a text like `gate_and_route,my_module:MyPolicy`, each once; `all` is every preset.

    **Raises:** `InputError` for an empty text.
    """
    from .._policy.presets import PRESETS

    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise InputError("--policy: expected names as in gate_and_route,sarathi (or all); got none")
    names = [name for part in parts for name in (PRESETS if part == "all" else (part,))]
    return tuple(dict.fromkeys(names))


def check_number(value: float | None, option: str, *, least: float = 0.0, above: bool = False) -> None:
    """Refuse a number that is not finite, below `least`, or (with `above`) equal to it; None passes."""
    if value is None:
        return
    if not math.isfinite(value) or value < least or (above and value == least):
        wanted = f"above {least:g}" if above else f"of at least {least:g}"
        raise InputError(f"{option}: expected a finite number {wanted}, got {value:g}")


def check_seed(seed: int, field_name: FieldName = option_name) -> None:
    """Refuse a seed out of range."""
    if not 0 <= seed <= MAX_SEED:
        raise InputError(f"{field_name('seed')}: expected a whole number from 0 to {MAX_SEED}, got {seed}")


def command_line(
    command: Sequence[str], file: Path | None, quick: bool, *more: object, seed: int, out: Path
) -> str:
    """The line that repeats a command with the options that all long ones have, and some `more`."""
    words = ["jaxq", *command, *([] if file is None else [str(file)]), *(["--quick"] if quick else [])]
    return shlex.join([*words, *map(str, more), "--seed", str(seed), "--out", str(out)])


def given(options: Mapping[str, object]) -> list[object]:
    """The words of the options that have a value, and of flags (True), for `command_line`."""
    words: list[object] = []
    for name, value in options.items():
        if value is True:
            words.append(name)
        elif value is not None and value is not False:
            words += [name, value]
    return words


def print_json(value: Any) -> None:
    """One JSON object on stdout; what is not finite becomes null."""
    typer.echo(json.dumps(plain(value), allow_nan=False, indent=2))
