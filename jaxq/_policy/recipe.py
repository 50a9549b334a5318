"""How a policy was made: what a file needs to make it again."""

from __future__ import annotations

from dataclasses import dataclass

Argument = str | int | float | bool | None


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
        """A recipe from keyword arguments."""
        return cls(factory, tuple(sorted(arguments.items())))
