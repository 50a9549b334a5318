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

    Solves the steady-state planning problem (a linear program): how many prefills, decodes and
    waiting requests of each class a GPU should hold on average, what one more request or slot would be worth,
    and the revenue that no policy can exceed in the long run. Service levels, the file's table \\[sli], limit
    the plan or are paid for in its objective.

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
    from .tables import print_table, print_text

    best = f"best possible revenue {solution.revenue:.6f} per GPU and second ({solution.scheme})"
    print_text(f"{instance.name}: {best}")
    columns = (solution.x, solution.y_mixed, solution.y_solo, solution.q_prefill, solution.q_decode)
    print_table(
        ("class", "prefills", "decodes mixed", "decodes solo", "prefill queue", "decode queue", "bid price"),
        [
            (name, *(f"{column[i]:.6f}" for column in columns), f"{solution.bid_prices[i]:.4f}")
            for i, name in enumerate(instance.workload.names)
        ],
        title="The plan, per GPU",
    )
    priced = {row for name in solution.indicators for row in (name, f"{name}_penalty")}
    print_table(
        ("constraint", "price"),
        [
            (name, ", ".join(f"{value:.4f}" for value in price))
            for name, price in solution.shadow_prices.items()
            if name not in priced
        ],
        title="Shadow prices: revenue for one more unit",
    )
    _print_service_levels(solution)
    unique = "The optimum is unique." if solution.unique else "Other plans are as good."
    share = 100 * float(solution.mixed_share)
    print_text(f"{unique} {share:.2f} % of the GPUs run a prefill at any time.")


def _print_service_levels(solution: Plan) -> None:
    """The service levels of a plan, and what keeping to them costs."""
    from .._service_level.levels import ServiceLevels
    from .._summary import plan_levels
    from .tables import print_table, print_text

    def shown(number: float | None) -> str:
        return "none" if number is None else f"{number:.6g}"

    levels = solution.service_levels or ServiceLevels()
    columns = {"value": "value", "limit": "limit", "shadow price": "shadow_price", "penalty": "penalty"}
    columns |= {"above": "penalty_above", "shadow price of above": "penalty_shadow_price", "cost": "cost"}
    print_table(
        ("service level", "unit", *columns),
        [
            (name, levels.unit(name), *(shown(level[key]) for key in columns.values()))
            for name, level in plan_levels(solution).items()
        ],
        texts=("unit",),
        title="Service levels: shadow prices and penalty per unit",
    )
    if solution.service_levels is not None:
        penalties = float(solution.plan_revenue - solution.objective)
        print_text(
            f"Under these service levels the plan earns {solution.plan_revenue:.6f} per GPU and second; "
            f"less penalties of {penalties:.6f} that is {solution.objective:.6f}."
        )
