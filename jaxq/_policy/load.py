"""Policies by what a command line can say: a published name, a user's own, or a file."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import os
from collections.abc import Callable

from .._errors import InputError
from .._instance import Instance
from .base import Policy
from .feedback import feedback
from .neural import neural
from .parameters import with_parameters
from .policy_file import SUFFIX, check_instance, parameter_values, read_policy_file
from .presets import PRESETS
from .recipe import Recipe

FAMILIES: dict[str, Callable[..., Policy]] = {"feedback": feedback, "neural": neural}
"""Families of policies with parameters; a function `(instance, **arguments) -> Policy`."""

ANY_INSTANCE = ("neural",)
"""Families whose parameters mean the same on every instance, whatever its classes."""


def load_policy(reference: str, instance: Instance) -> Policy:
    """A policy by name (`gate_and_route`), by reference (`my_module:MyPolicy`, called with the instance), or
    from a policy file (`policy.json`).

    **Raises:** `InputError` for an unknown name (with the nearest), a module or attribute that does not
    exist, a callable that does not return a `Policy`, or a file that is missing, damaged, or made for
    another instance.
    """
    if reference.endswith(SUFFIX):
        return _from_file(reference, instance)
    if ":" in reference:
        return from_recipe(Recipe(reference), instance)
    if reference in PRESETS:
        return PRESETS[reference](instance)
    if reference in FAMILIES:
        return FAMILIES[reference](instance)
    known = [*PRESETS, *FAMILIES]
    near = difflib.get_close_matches(reference, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"
    raise InputError(f"policy: unknown name {reference!r}{hint}")


def from_recipe(recipe: Recipe, instance: Instance) -> Policy:
    """The policy that a recipe makes for an instance; user modules are imported.

    **Raises:** `InputError` as `load_policy`.
    """
    arguments = dict(recipe.arguments)
    if recipe.factory in FAMILIES:
        return FAMILIES[recipe.factory](instance, **arguments)
    module_name, _, attribute = recipe.factory.partition(":")
    try:
        factory = getattr(importlib.import_module(module_name), attribute)
    except ImportError as error:
        raise InputError(f"policy: cannot import {module_name!r} of {recipe.factory!r}: {error}") from None
    except AttributeError:
        raise InputError(f"policy: module {module_name!r} has no {attribute!r}") from None
    policy = factory(instance, **arguments)
    if not isinstance(policy, Policy):
        raise InputError(
            f"policy: {recipe.factory!r} returned {type(policy).__name__}, expected a jaxq.policies.Policy"
        )
    return dataclasses.replace(policy, recipe=recipe)


def _from_file(path: str | os.PathLike[str], instance: Instance) -> Policy:
    file = read_policy_file(path)
    if file.recipe.factory not in ANY_INSTANCE:
        check_instance(file, path, instance)
    policy = from_recipe(file.recipe, instance)
    policy = with_parameters(policy, parameter_values(file, path, policy))
    return dataclasses.replace(policy, name=file.name)
