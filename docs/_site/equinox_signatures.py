"""Signatures of equinox modules in the reference: dataclasses without a decorator that could be seen."""

from __future__ import annotations

from typing import Any

import griffe

MODULE = "equinox.Module"


class EquinoxSignatures(griffe.Extension):
    """Gives every class below `equinox.Module` without an `__init__` the one that its fields make."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        for cls in list(_classes(pkg)):
            if "__init__" not in cls.members and _is_module(cls):
                cls.set_member("__init__", _init(cls))


def _classes(within: griffe.Module | griffe.Class) -> Any:
    for member in list(within.members.values()):
        if isinstance(member, griffe.Class):
            yield member
        if isinstance(member, griffe.Class | griffe.Module):
            yield from _classes(member)


def _is_module(cls: griffe.Class) -> bool:
    return any(_path(base) == MODULE for each in (cls, *cls.mro()) for base in each.bases)


def _path(base: Any) -> str:
    return base if isinstance(base, str) else base.canonical_path


def _init(cls: griffe.Class) -> griffe.Function:
    """Fields of the class after those of its bases, as in a dataclass."""
    fields: dict[str, griffe.Parameter] = {}
    for each in (*reversed(cls.mro()), cls):
        for name, member in each.members.items():
            if isinstance(member, griffe.Attribute) and _is_field(member):
                fields[name] = griffe.Parameter(
                    name,
                    annotation=member.annotation,
                    kind=griffe.ParameterKind.positional_or_keyword,
                    default=_default(member),
                )
    this = griffe.Parameter("self", kind=griffe.ParameterKind.positional_or_keyword)
    parameters = griffe.Parameters(this, *fields.values())
    return griffe.Function("__init__", parent=cls, parameters=parameters, returns="None")


def _is_field(member: griffe.Attribute) -> bool:
    """Whether an attribute is a field: annotated, no property, and not only promised or of the class."""
    of_class = "class-attribute" in member.labels and "instance-attribute" not in member.labels
    promised = "AbstractVar" in str(member.annotation) or "ClassVar" in str(member.annotation)
    return not ("property" in member.labels or member.annotation is None or of_class or promised)


def _default(member: griffe.Attribute) -> Any:
    """The default of a field; None where there is none."""
    value = member.value
    if not (isinstance(value, griffe.ExprCall) and str(value.function).split(".")[-1] == "field"):
        return value
    given = {argument.name: argument.value for argument in value.arguments if hasattr(argument, "name")}
    if "default_factory" in given:
        return griffe.ExprCall(given["default_factory"], [])
    return given.get("default")
