"""How a policy was made: what a file needs to make it again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Argument = str | float | bool | None


@dataclass(frozen=True)
class Recipe:
    """The function that made a policy, and what it was called with besides the instance.

    - `factory`: `"feedback"`, `"neural"`, or a user's own as `"my_module:MyPolicy"`.
    - `arguments`: by name, in the order of the names.
    """

    factory: str
    arguments: tuple[tuple[str, Argument], ...] = ()

    @classmethod
    def of(cls, factory: str, **arguments: Argument) -> Recipe:
        """A recipe from keyword arguments; numbers become plain Python numbers."""
        plain: list[tuple[str, Any]] = [
            (name, float(value) if isinstance(value, int | float) and not isinstance(value, bool) else value)
            for name, value in sorted(arguments.items())
        ]
        return cls(factory, tuple(plain))
