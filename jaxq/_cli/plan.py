"""`jaxq plan`: the best possible revenue, and the occupancies that attain it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from .._summary import plan_dict
from .options import InstanceFile, Json, print_json, read_instance

if TYPE_CHECKING:
    from .._instance import Instance
    from .._plan import Plan


def plan(
    file: InstanceFile,
    scheme: Annotated[
        str | None,
        typer.Option(metavar="bundled|separate", help="Revenue to plan for; the file's own when left out."),
    ] = None,
    json: Json = False,
) -> None:
    """The best possible revenue of an instance, and the plan that attains it.

    Solves the steady-state planning problem of [Lin26] (a linear program): how many prefills, decodes and waiting
    requests of each class a GPU should hold on average, what one more request or slot would be worth, and the
    revenue that no policy can exceed in the long run.

    \b
    Examples:
      jaxq plan cluster.toml
      jaxq plan cluster.toml --scheme separate --json
    """
    from .._plan import solve_plan

    instance = read_instance(file)
    solution = solve_plan(instance, scheme)
    if json:
        print_json(plan_dict(instance, solution))
    else:
        _print(instance, solution)


def _print(instance: Instance, solution: Plan) -> None:
    """The plan as tables for a person."""
    import numpy as np
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.print(
        f"{instance.name}: best possible revenue {solution.revenue:.6f} per GPU and second ({solution.scheme})",
        highlight=False,
    )
    table = Table(title="The plan, per GPU", title_justify="left")
    for heading in (
        "class",
        "prefills",
        "decodes mixed",
        "decodes solo",
        "prefill queue",
        "decode queue",
        "bid price",
    ):
        table.add_column(heading, justify="left" if heading == "class" else "right")
    columns = (solution.x, solution.y_mixed, solution.y_solo, solution.q_prefill, solution.q_decode)
    for i, name in enumerate(instance.workload.names):
        table.add_row(name, *(f"{column[i]:.6f}" for column in columns), f"{solution.bid_prices[i]:.4f}")
    console.print(table)
    prices = Table(title="Shadow prices: revenue for one more unit", title_justify="left")
    prices.add_column("constraint")
    prices.add_column("price", justify="right")
    for name, price in solution.shadow_prices.items():
        prices.add_row(name, ", ".join(f"{value:.4f}" for value in np.atleast_1d(price)))
    console.print(prices)
    unique = "The optimum is unique." if solution.unique else "Other plans attain the same revenue."
    console.print(
        f"{unique} GPUs of the mixed group: {100 * float(solution.mixed_share):.2f} %.", highlight=False
    )
