"""The published policies of [Lin26], the ablations, and price-and-pack, by name."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .._instance import Instance
from .._plan import Plan, solve_plan
from .._service_level.levels import ServiceLevels
from .base import Partition, Policy
from .gates import FcfsGate, OccupancyGate, PriorityGate
from .routers import ImmediateRouter, PackingRouter, PrefillFirstRouter, RandomisedRouter, SoloFirstRouter


def plain_plan(
    instance: Instance, scheme: str = "bundled", require_no_decode_queue: bool | None = None
) -> Plan:
    """The plan without service level indicators: `sli_gate_and_route` alone follows those of an instance."""
    return solve_plan(
        instance,
        scheme,
        require_no_decode_queue=require_no_decode_queue,
        service_levels=ServiceLevels(),
    )


def gate_and_route(instance: Instance, plan: Plan | None = None) -> Policy:
    """GG-SP, the policy of [Lin26] for bundled charging: static partition, occupancy gate, solo-first
    router."""
    plan = plain_plan(instance) if plan is None else plan
    gate = OccupancyGate(plan.x, plan.q_prefill)
    return Policy(gate, SoloFirstRouter(), Partition(plan.mixed_share), name="gate_and_route")


def prioritize_and_route(instance: Instance, plan: Plan | None = None) -> Policy:
    """The policy of [Lin26] for separate charging: the separate plan's partition, priority D_i / P_i,
    solo-first."""
    plan = plain_plan(instance, "separate") if plan is None else plan
    gate = PriorityGate(np.asarray(instance.workload.output_tokens / instance.workload.prompt_tokens))
    return Policy(gate, SoloFirstRouter(), Partition(plan.mixed_share), name="prioritize_and_route")


def sli_gate_and_route(instance: Instance, plan: Plan | None = None) -> Policy:
    """The policy of [Lin26] under service level indicators: static partition, occupancy gate, randomised
    router."""
    plan = solve_plan(instance, "bundled") if plan is None else plan
    router = RandomisedRouter(
        solo_flow=np.asarray(instance.mu_solo * plan.y_solo),
        mixed_flow=np.asarray(instance.mu_mixed * plan.y_mixed),
        persistent=np.asarray(float(np.sum(plan.q_decode) > 1e-9)),
    )
    gate = OccupancyGate(plan.x, plan.q_prefill)
    return Policy(gate, router, Partition(plan.mixed_share), name="sli_gate_and_route")


def fcfs_route(instance: Instance, plan: Plan | None = None) -> Policy:
    """FG-SP, an ablation without the occupancy gate: static partition, first come first served, solo-first
    router."""
    plan = plain_plan(instance) if plan is None else plan
    return Policy(FcfsGate(), SoloFirstRouter(), Partition(plan.mixed_share), name="fcfs_route")


def sarathi(instance: Instance, plan: Plan | None = None) -> Policy:
    """FI-WSP, chunked-prefill serving as deployed: first come first served, decodes where it prefilled.
    Needs no plan."""
    del instance, plan
    return Policy(FcfsGate(), ImmediateRouter(), route_first=True, name="sarathi")


def gate_immediate(instance: Instance, plan: Plan | None = None) -> Policy:
    """GI-WSP, an ablation with the gate only: occupancy gate, decodes where it prefilled."""
    plan = plain_plan(instance) if plan is None else plan
    gate = OccupancyGate(plan.x, plan.q_prefill)
    return Policy(gate, ImmediateRouter(), route_first=True, name="gate_immediate")


def gate_fcfs(instance: Instance, plan: Plan | None = None) -> Policy:
    """GF-WSP, an ablation that prefills first: occupancy gate; a finished prefill takes a GPU without a
    prefill."""
    plan = plain_plan(instance) if plan is None else plan
    gate = OccupancyGate(plan.x, plan.q_prefill)
    return Policy(gate, PrefillFirstRouter(), name="gate_fcfs")


def price_and_pack(instance: Instance, plan: Plan | None = None) -> Policy:
    """Nearly optimal under bundled charging: starts the class with the largest bid price dR*/dlambda_i, and
    packs decodes beside prefills. Not in [Lin26]."""
    plan = plain_plan(instance, "bundled", require_no_decode_queue=True) if plan is None else plan
    gate = PriorityGate(plan.bid_prices)
    return Policy(gate, PackingRouter(), route_first=True, name="price_and_pack")


PRESETS: dict[str, Callable[..., Policy]] = {
    preset.__name__: preset
    for preset in (
        gate_and_route,
        prioritize_and_route,
        sli_gate_and_route,
        sarathi,
        gate_immediate,
        gate_fcfs,
        fcfs_route,
        price_and_pack,
    )
}
"""Every policy that can be called by name; a function `(instance, plan=None) -> Policy`."""

TABLE: tuple[dict[str, str], ...] = (
    {
        "name": "gate_and_route",
        "partition": "static",
        "gate": "occupancy",
        "router": "solo first",
        "role": "the paper's policy, bundled charging (GG-SP)",
    },
    {
        "name": "prioritize_and_route",
        "partition": "static (separate plan)",
        "gate": "priority D/P",
        "router": "solo first",
        "role": "the paper's policy, separate charging",
    },
    {
        "name": "sli_gate_and_route",
        "partition": "static",
        "gate": "occupancy",
        "router": "randomised",
        "role": "the paper's policy under service level indicators",
    },
    {
        "name": "sarathi",
        "partition": "none",
        "gate": "first come, first served*",
        "router": "immediate",
        "role": "chunked-prefill serving as deployed (FI-WSP)",
    },
    {
        "name": "gate_immediate",
        "partition": "none",
        "gate": "occupancy",
        "router": "immediate",
        "role": "ablation: gate only (GI-WSP)",
    },
    {
        "name": "gate_fcfs",
        "partition": "none",
        "gate": "occupancy",
        "router": "prefill first",
        "role": "ablation: prefill first (GF-WSP)",
    },
    {
        "name": "fcfs_route",
        "partition": "static",
        "gate": "first come, first served*",
        "router": "solo first",
        "role": "ablation: no gate (FG-SP)",
    },
    {
        "name": "price_and_pack",
        "partition": "none",
        "gate": "bid price",
        "router": "packing",
        "role": "jaxq's own: nearly optimal under bundled charging",
    },
)
"""What each preset is made of. *: engines keep counts, not order, and draw the class in proportion to the
numbers waiting; with unequal patience this changes the mix of classes (0.5 % of revenue has been seen)."""
