"""A family of policies with a dozen parameters, in which the published policies are points.

Gate and router draw from a softmax over scores that are linear in what they see, so that revenue is a smooth
function of the parameters; large parameters make a choice all but certain.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._errors import InputError
from .._instance import Instance
from .._plan import Plan
from .base import Observation, Partition, Policy, Pool
from .parameters import Fixed
from .presets import PRESETS, plain_plan
from .random_choice import AbstractRandomGate, AbstractRandomRouter
from .recipe import Recipe
from .routers import RandomisedRouter

UNPLANNED = 1e-3
"""A planned occupancy below this counts as none: such a class comes after all others."""

SHARPNESS = 6.0
"""How certain a published policy's choices are, in units of the score: the odds of a choice against the rule
are about exp(-6)."""


TUNING_SHARPNESS = 1.0
"""Of a start for tuning: uncertain enough for slopes to be seen."""


class PlanReference(Fixed):
    """What the gate knows of the plan: x, q_p (per GPU), the reciprocal of the sum of y, and bid prices over
    the largest request value.

    Reciprocals come from the host: a compiler may or may not replace a division by one.
    """

    prefills: Float[Any, "classes *batch"]
    per_decode: Float[Any, "*batch"]
    prefill_queue: Float[Any, "classes *batch"]
    bid_price: Float[Any, "classes *batch"]


class PlannedQueue(Fixed):
    """What the router knows of the plan: the sum of q_p (per GPU), and `per_queue` = 1 / (1 + sum q_p)."""

    prefill_queue: Float[Any, "*batch"]
    per_queue: Float[Any, "*batch"]


class FeedbackGate(AbstractRandomGate):
    """Draws a waiting class, then whether it starts at all.

    Class i is drawn with a chance proportional to the exponential of

        priority_i + bid_price b_i + below_plan (1 - X_i / (n x_i)) + prefill_queue (Q_p,i / n - q_p,i)
        + log_queue log Q_p,i

    with b_i its bid price over the largest request value, and starts with the log-odds

        start_i + start_prefills (X / n - sum x) + start_decodes (Y / (n sum y) - 1)
        + start_decode_queue Q_d / n + start_idle (idle slots) / n.

    `priority` alone is a priority gate, `bid_price` alone the bid-price gate, `below_plan` alone the
    occupancy gate (each in the limit of large numbers); `log_queue` = 1 alone is first come, first served,
    exactly. All are in units of log-odds.
    """

    priority: Float[Any, "classes *batch"]
    bid_price: Float[Any, "*batch"]
    below_plan: Float[Any, "*batch"]
    prefill_queue: Float[Any, "*batch"]
    log_queue: Float[Any, "*batch"]
    start: Float[Any, "classes *batch"]
    start_prefills: Float[Any, "*batch"]
    start_decodes: Float[Any, "*batch"]
    start_decode_queue: Float[Any, "*batch"]
    start_idle: Float[Any, "*batch"]
    plan: PlanReference

    def class_scores(self, observation: Observation) -> Float[Array, "classes *batch"]:
        """The score of each class; minus infinity where nobody waits."""
        seen, plan = observation.per_gpu(), self.plan
        planned = jnp.maximum(plan.prefills, UNPLANNED)
        unplanned = jnp.where(plan.prefills < UNPLANNED, 1.0, 0.0)
        queue = jnp.asarray(observation.prefill_queue, float)
        scores = (
            self.priority
            + self.bid_price * plan.bid_price
            + self.below_plan * (1.0 - (seen.prefills + unplanned) / planned)
            + self.prefill_queue * (seen.prefill_queue - plan.prefill_queue)
            + self.log_queue * jnp.log(jnp.maximum(queue, 1.0))
        )
        return jnp.where(queue > 0, scores, -jnp.inf)

    def start_log_odds(self, observation: Observation) -> Float[Array, "classes *batch"]:
        """The log-odds that a class that was drawn starts."""
        seen = observation.per_gpu()
        decodes = total(seen.decodes_mixed + seen.decodes_solo)
        return (
            self.start
            + self.start_prefills * (total(seen.prefills) - total(self.plan.prefills))
            + self.start_decodes * (decodes * self.plan.per_decode - 1.0)
            + self.start_decode_queue * total([total(queue) for queue in seen.decode_queue])
            + self.start_idle * seen.idle_prefill_slots
        )

    def weights(self, observation: Observation) -> Float[Array, "choices *batch"]:
        weights = exponentials(self.class_scores(observation))
        starts = jnp.broadcast_to(jax.nn.sigmoid(self.start_log_odds(observation)), weights.shape)
        nothing = total(weights * (1.0 - starts))
        return jnp.concatenate([weights * starts, nothing[None]])


class AbstractFeedbackRouter(AbstractRandomRouter):
    """Draws a pool with a chance proportional to its room times exp(preference).

    For class c and pool p the score is preference_p + log(room), plus beside_prefill_c for the GPUs that run
    a prefill, and plus wait_c + wait_prefill_queue (Q_p / n - sum q_p) / (1 + sum q_p) for waiting. Room is
    the number of GPUs with a free slot (of slots in the solo group), and 1 for the request's own GPU and for
    waiting: equal preferences choose among GPUs uniformly. All are in units of log-odds.
    """

    preference: Float[Any, "pools *batch"]
    beside_prefill: Float[Any, "classes *batch"]
    wait: Float[Any, "classes *batch"]
    wait_prefill_queue: Float[Any, "*batch"]
    plan: PlannedQueue

    def weights(
        self, observation: Observation, request_class: Int[Array, "*batch"]
    ) -> Float[Array, "pools *batch"]:
        room = jnp.asarray(observation.available, float)
        excess = total(observation.per_gpu().prefill_queue) - self.plan.prefill_queue
        beside = of_class(self.beside_prefill, request_class)
        waits = of_class(self.wait, request_class)
        waits = waits + self.wait_prefill_queue * (excess * self.plan.per_queue)
        extra = {Pool.WITH_PREFILL: beside, Pool.WAIT: waits}
        added = [extra.get(pool, jnp.zeros_like(beside)) for pool in self.pools]
        scores = self.preference + jnp.stack(added) + jnp.log(jnp.maximum(room, 1.0))
        return exponentials(jnp.where(room > 0, scores, -jnp.inf))


class FeedbackRouter(AbstractFeedbackRouter):
    """`AbstractFeedbackRouter` without a partition."""

    pools: ClassVar[tuple[Pool, ...]] = (Pool.WITH_PREFILL, Pool.WITHOUT_PREFILL, Pool.OWN, Pool.WAIT)


class PartitionedFeedbackRouter(AbstractFeedbackRouter):
    """`AbstractFeedbackRouter` with a partition; GPUs with and without a prefill are those of the mixed
    group."""

    pools: ClassVar[tuple[Pool, ...]] = (Pool.SOLO, Pool.WITH_PREFILL, Pool.WITHOUT_PREFILL, Pool.WAIT)


class GroupedFeedbackRouter(AbstractRandomRouter):
    """Draws a group, then a place in it, where a request also waits when the group is full.

    Class c goes to the solo group with the log-odds to_solo_c; within the mixed group, to GPUs that run a
    prefill with the extra log-odds beside_prefill_c, else uniformly. A group without a GPU is replaced by
    the other. The randomised router of [Lin26] section 5.1 is the point with the plan's odds; a freed slot
    serves its own group's buffer, in proportion to the numbers waiting.
    """

    pools: ClassVar[tuple[Pool, ...]] = (
        Pool.SOLO,
        Pool.WITH_PREFILL,
        Pool.WITHOUT_PREFILL,
        Pool.WAIT_SOLO,
        Pool.WAIT_MIXED,
    )
    to_solo: Float[Any, "classes *batch"]
    beside_prefill: Float[Any, "classes *batch"]

    def weights(
        self, observation: Observation, request_class: Int[Array, "*batch"]
    ) -> Float[Array, "pools *batch"]:
        solo_room, with_room, without_room = jnp.asarray(observation.available[:3], float)
        solo = jax.nn.sigmoid(of_class(self.to_solo, request_class))
        solo = jnp.where(observation.mixed_gpus >= observation.n_gpus, 0.0, solo)
        solo = jnp.where(observation.mixed_gpus <= 0, 1.0, solo)
        beside = with_room * jnp.exp(of_class(self.beside_prefill, request_class))
        room = beside + without_room
        share = (1.0 - solo) / jnp.where(room > 0, room, 1.0)
        return jnp.stack(
            [
                jnp.where(solo_room > 0, solo, 0.0),
                share * beside,
                share * without_room,
                jnp.where(solo_room > 0, 0.0, solo),
                jnp.where(room > 0, 0.0, 1.0 - solo),
            ]
        )

    def admission(self, observation: Observation, group: Pool) -> Float[Array, "buffers classes *batch"]:
        counts = jnp.asarray(observation.decode_queue, float)
        buffer = 0 if group is Pool.SOLO else 1
        return jnp.zeros_like(counts).at[buffer].set(counts[buffer])


def total(rows: Iterable[Any]) -> Array:
    """The sum over the first axis, unrolled: gates and routers sit in the innermost loops."""
    rows = list(rows)
    return functools.reduce(jnp.add, rows) if rows else jnp.float32(0.0)


def of_class(values: Float[Array, "classes *#batch"], request_class: Int[Array, "*batch"]) -> Array:
    """The number of each request's class."""
    found = jnp.zeros(request_class.shape, float)
    for c in range(values.shape[0]):
        found = jnp.where(request_class == c, values[c], found)
    return found


def exponentials(scores: Float[Array, "choices *batch"]) -> Float[Array, "choices *batch"]:
    """exp(score) up to a common factor; all zero when no score is finite."""
    best = functools.reduce(jnp.maximum, list(scores))
    best = jax.lax.stop_gradient(jnp.where(best > -jnp.inf, best, 0.0))
    return jnp.exp(scores - best)


_GATES = {
    "gate_and_route": "below_plan",
    "prioritize_and_route": "priority",
    "sli_gate_and_route": "below_plan",
    "sarathi": "log_queue",
    "gate_immediate": "below_plan",
    "gate_fcfs": "below_plan",
    "fcfs_route": "log_queue",
    "price_and_pack": "bid_price",
}
"""The term of the gate's score that alone makes each published gate."""

_SOLO_FIRST = (2.0, 0.0, 0.0, -2.0)
"""Preferences for the pools of `PartitionedFeedbackRouter`, in units of the sharpness."""

_ROUTERS = {
    "sarathi": (-2.0, -2.0, 0.0, -4.0),
    "gate_immediate": (-2.0, -2.0, 0.0, -4.0),
    "gate_fcfs": (0.0, 2.0, -2.0, -4.0),
    "price_and_pack": (2.0, 0.0, -2.0, -4.0),
}
"""Likewise for `FeedbackRouter`, of the published policies without a partition."""

_NO_PREFERENCE = (0.0, 0.0, 0.0, -2.0)
"""Likewise, where a partition was taken away: any GPU."""

STARTS = tuple(_GATES)
"""The published policies from which `feedback` can start."""


def feedback(
    instance: Instance,
    plan: Plan | None = None,
    *,
    start: str = "gate_and_route",
    sharpness: float = SHARPNESS,
    partition: bool | None = None,
    route_first: bool | None = None,
) -> Policy:
    """A policy with tunable parameters (`FeedbackGate`, a router of preferences, the partition's share).

    Gate and router act by sampling from their softmax, at simulation time as in training.

    **Arguments:**

    - `plan`: what the gate compares with; the plan of the published policy when None.
    - `start`: the published policy whose rules it follows. (`sli_gate_and_route`: as it is when the plan
      keeps nobody waiting for decode.)
    - `sharpness`: how closely: a choice against a rule has odds of about exp(-sharpness). The published
      policy itself is the limit of large numbers.
    - `partition`: whether the GPUs are divided into two groups; as in `start` when None. Without the groups
      of its start, a finished request takes any free slot; with groups that its start has not, the plan's
      share of the GPUs forms the mixed group, and solo slots come first.
    - `route_first`: whether a finished request is placed before its GPU is offered to the gate; as in
      `start` when None.

    **Raises:** `InputError` for a start that is not in `STARTS`, or a sharpness that is not positive.
    """
    if start not in STARTS:
        raise InputError(f"start: expected one of {', '.join(STARTS)}; got {start!r}")
    if not sharpness > 0:
        raise InputError(f"sharpness: expected a positive number, got {sharpness:g}")
    recipe = None
    if plan is None:
        plan = plain_plan(instance, "separate" if start == "prioritize_and_route" else "bundled")
        recipe = Recipe.of(
            "feedback", start=start, sharpness=sharpness, partition=partition, route_first=route_first
        )
    published = PRESETS[start](instance, plan)
    divided = published.partition is not None if partition is None else partition
    first = published.route_first if route_first is None else route_first
    return Policy(
        _gate(instance, plan, start, sharpness),
        _router(instance, plan, published, divided, start, sharpness),
        Partition(min(1.0, plan.mixed_share)) if divided else None,
        route_first=first,
        name=_name(start, divided, published.partition is not None, first, published.route_first),
        recipe=recipe,
    )


def starting_points(instance: Instance, start: str, partition: bool = True) -> list[Policy]:
    """The structures in which a start is worth tuning: its own; and where it has a partition, none, with the
    finished request placed first. `partition`: whether the one with a partition is among them."""
    points = []
    if partition or start in _ROUTERS:
        points.append(feedback(instance, start=start, sharpness=TUNING_SHARPNESS))
    if start not in _ROUTERS:
        free = feedback(instance, start=start, sharpness=TUNING_SHARPNESS, partition=False, route_first=True)
        points.append(free)
    return points


def _name(start: str, divided: bool, was_divided: bool, first: bool, was_first: bool) -> str:
    """`feedback(start)`, and how its structure differs from its start's."""
    changes = []
    if divided != was_divided:
        changes.append("partition" if divided else "no partition")
    if first != was_first:
        changes.append("route first" if first else "gate first")
    return f"feedback({', '.join([start, *changes])})"


def _gate(instance: Instance, plan: Plan, start: str, sharpness: float) -> FeedbackGate:
    largest = float(np.max(np.asarray(instance.request_value)))
    term = _GATES[start]
    ranked = np.asarray(instance.workload.output_tokens / instance.workload.prompt_tokens)
    none, zero = np.zeros(instance.n_classes), np.float64(0.0)
    return FeedbackGate(
        priority=sharpness * np.argsort(np.argsort(ranked)).astype(float) if term == "priority" else none,
        bid_price=np.float64(4 * sharpness if term == "bid_price" else 0.0),
        below_plan=np.float64(4 * sharpness if term == "below_plan" else 0.0),
        prefill_queue=np.float64(sharpness if term == "below_plan" else 0.0),
        log_queue=np.float64(1.0 if term == "log_queue" else 0.0),
        start=np.full(instance.n_classes, 2 * sharpness),
        start_prefills=zero,
        start_decodes=zero,
        start_decode_queue=zero,
        start_idle=zero,
        plan=PlanReference(
            prefills=plan.x,
            per_decode=np.float64(1.0) / max(UNPLANNED, float(np.sum(plan.y_mixed) + np.sum(plan.y_solo))),
            prefill_queue=plan.q_prefill,
            bid_price=np.asarray(plan.bid_prices) / largest,
        ),
    )


def _router(
    instance: Instance, plan: Plan, published: Policy, divided: bool, start: str, sharpness: float
) -> AbstractRandomRouter:
    none = np.zeros(instance.n_classes)
    if divided and isinstance(published.router, RandomisedRouter):
        flows = np.asarray([published.router.solo_flow, published.router.mixed_flow])
        solo, mixed = np.where(flows.sum(axis=0) > 0, flows, [[1.0], [0.0]])
        return GroupedFeedbackRouter(
            np.clip(np.log(np.maximum(solo, 1e-30) / np.maximum(mixed, 1e-30)), -20.0, 20.0), none
        )
    planned = float(np.sum(plan.q_prefill))
    queue = PlannedQueue(np.float64(planned), np.float64(1.0 / (1.0 + planned)))
    if divided:
        preference = sharpness * np.asarray(_SOLO_FIRST)
        return PartitionedFeedbackRouter(preference, none, none, np.float64(0.0), queue)
    return FeedbackRouter(router_preferences(start, sharpness), none, none, np.float64(0.0), queue)


def router_preferences(start: str, sharpness: float) -> Float[np.ndarray, " pools"]:
    """Preferences of `FeedbackRouter` that follow a published policy, or none where it has a partition."""
    return sharpness * np.asarray(_ROUTERS.get(start, _NO_PREFERENCE))
