"""`jaxq presets` and `jaxq policies`: what comes with jaxq."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from .options import Json, print_json

if TYPE_CHECKING:
    from .._presets import Preset


def presets(
    name: Annotated[
        str | None,
        typer.Argument(metavar="TEXT", help="Only presets whose name contains it.", show_default=False),
    ] = None,
    json: Json = False,
) -> None:
    """Iteration times of real hardware and models, for `hardware.preset` in an instance.

    Each preset gives alpha, beta and the solo iteration time of a model on a GPU, with its source, the chunk
    sizes it holds for, the quality of the fit, and what its measurements leave out.

    \b
    Examples:
      jaxq presets
      jaxq presets h100
      jaxq presets a100-40gb/qwen-8b --json
    """
    from .._presets import list_presets, load_preset

    chosen = [preset for preset in list_presets() if name is None or name.lower() in preset.name]
    if not chosen and name is not None:
        load_preset(name)  # refuses it, naming the nearest
    if json:
        print_json({"presets": [preset.to_dict() for preset in chosen]})
        return
    from .tables import print_table, print_text

    print_table(
        ("preset", "alpha, s", "beta, s/token", "solo, s", "chunk sizes", "fit", "R²", "worst error"),
        [_row(preset) for preset in chosen],
        texts=("fit",),
    )
    for text in dict.fromkeys(f"Source: {preset.source}. {preset.leaves_out}" for preset in chosen):
        print_text(text)
    if len(chosen) == 1 and chosen[0].notes:
        print_text(chosen[0].notes)


def _row(preset: Preset) -> tuple[str, ...]:
    """A preset's numbers as they stand in the table."""
    low, high = preset.chunk_range
    error = preset.max_relative_error
    return (
        preset.name,
        f"{preset.alpha.value:.4g}",
        f"{preset.beta.value:.4g}",
        f"{preset.solo.value:.4g}",
        f"{low:g} to {high:g}" if high < float("inf") else f"from {low:g}",
        preset.fit,
        "" if preset.r2 is None else f"{preset.r2:.4f}",
        "" if error is None else f"{100 * error:.1f} %",
    )


def policies(json: Json = False) -> None:
    """The scheduling policies that can be called by name.

    A policy is a partition (which GPUs may run prefills), a gate (which waiting request starts its prefill)
    and a router (where a request decodes after its prefill). Your own: `--policy my_module:MyPolicy`, a
    function of the instance that returns a `jaxq.policies.Policy`; modules in the present folder are found.

    \b
    Examples:
      jaxq policies
      jaxq simulate cluster.toml --policy gate_and_route,my_module:MyPolicy
    """
    from .._policy.presets import TABLE

    if json:
        print_json({"policies": list(TABLE)})
        return
    from .tables import print_table, print_text

    headings = tuple(TABLE[0])
    print_table(headings, [tuple(row.values()) for row in TABLE], texts=headings)
    print_text(
        "* Counts are kept, not order: the class is drawn in proportion to the numbers waiting. With unequal "
        "patience this changes the mix of classes (0.5 % of revenue has been seen)."
    )
