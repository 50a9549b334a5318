"""A family of policies with a dozen parameters, in which the published policies are points.

Gate and router draw from a softmax over scores that are linear in what they see, so that revenue is a smooth
function of the parameters; large parameters make a choice all but certain.
"""

from __future__ import annotations

import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._errors import InputError
from .._instance import Instance
from .._plan import Plan, solve_plan
from .base import AbstractGate, AbstractRouter, Observation, Policy, Pool
from .gates import pick
from .parameters import Fixed

UNPLANNED = 1e-3
"""A planned occupancy below this counts as none: such a class comes after all others."""

SHARPNESS = 6.0
"""How certain a published policy's choices are as a start for tuning, in units of the score: the odds of a
choice against the rule are about exp(-6)."""


class PlanReference(Fixed):
    """What the gate knows of the plan: x, q_p (per GPU), and bid prices over the largest request value."""

    prefills: Float[Any, "classes *batch"]
    prefill_queue: Float[Any, "classes *batch"]
    bid_price: Float[Any, "classes *batch"]


class FeedbackGate(AbstractGate):
    """Draws a waiting class, then whether it starts at all.

    Class i is drawn with a chance proportional to the exponential of

        priority_i + bid_price b_i + below_plan (1 - X_i / (n x_i)) + prefill_queue (Q_p,i / n - q_p,i)
        + log_queue log Q_p,i

    with b_i its bid price over the largest request value, and starts with the log-odds

        start_i + start_prefills (X / n - sum x) + start_decode_queue Q_d / n + start_idle (idle slots) / n.

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
    start_decode_queue: Float[Any, "*batch"]
    start_idle: Float[Any, "*batch"]
    plan: PlanReference

    def class_scores(self, observation: Observation) -> Float[Array, "classes *batch"]:
        """The score of each class; minus infinity where nobody waits."""
        seen, plan = observation.per_gpu(), self.plan
        planned = jnp.maximum(plan.prefills, UNPLANNED)
        unplanned = jnp.where(plan.prefills < UNPLANNED, 1.0, 0.0)
        queue = jnp.asarray(observation.prefill_queue, jnp.float32)
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
        return (
            self.start
            + self.start_prefills * (_total(seen.prefills) - _total(self.plan.prefills))
            + self.start_decode_queue * _total([_total(queue) for queue in seen.decode_queue])
            + self.start_idle * seen.idle_prefill_slots
        )

    def scores(
        self, observation: Observation, uniform: Float[Array, "*batch"]
    ) -> Float[Array, "classes *batch"]:
        weights = _weights(self.class_scores(observation))
        starts = jnp.broadcast_to(jax.nn.sigmoid(self.start_log_odds(observation)), weights.shape)
        nothing = _total(weights * (1.0 - starts))
        chosen = pick(jnp.concatenate([weights * starts, nothing[None]]), uniform)
        return jnp.where(chosen[:-1] > 0, 1.0, -jnp.inf)


class AbstractFeedbackRouter(AbstractRouter):
    """Draws a pool with a chance proportional to its room times exp(preference).

    For class c and pool p the score is preference_p + log(room), plus beside_prefill_c for the GPUs that run
    a prefill. Room is the number of GPUs with a free slot (of slots in the solo group), and 1 for the
    request's own GPU and for waiting: equal preferences choose among GPUs uniformly. All are in units of
    log-odds.
    """

    preference: Float[Any, "pools *batch"]
    beside_prefill: Float[Any, "classes *batch"]

    def preferences(
        self, observation: Observation, request_class: Int[Array, "*batch"], uniform: Float[Array, "*batch"]
    ) -> Float[Array, "pools *batch"]:
        room = jnp.asarray(observation.available, jnp.float32)
        beside = jnp.zeros(request_class.shape, jnp.float32)
        for c in range(self.beside_prefill.shape[0]):
            beside = jnp.where(request_class == c, self.beside_prefill[c], beside)
        added = [beside if pool is Pool.WITH_PREFILL else jnp.zeros_like(beside) for pool in self.pools]
        scores = self.preference + jnp.stack(added) + jnp.log(jnp.maximum(room, 1.0))
        scores = jnp.where(room > 0, scores, -jnp.inf)
        return jnp.where(room > 0, pick(_weights(scores), uniform), -jnp.inf)


class FeedbackRouter(AbstractFeedbackRouter):
    """`AbstractFeedbackRouter` without a partition."""

    pools: ClassVar[tuple[Pool, ...]] = (Pool.WITH_PREFILL, Pool.WITHOUT_PREFILL, Pool.OWN, Pool.WAIT)


class PartitionedFeedbackRouter(AbstractFeedbackRouter):
    """`AbstractFeedbackRouter` with a partition; GPUs with and without a prefill are those of the mixed
    group."""

    pools: ClassVar[tuple[Pool, ...]] = (Pool.SOLO, Pool.WITH_PREFILL, Pool.WITHOUT_PREFILL, Pool.WAIT)


def _total(rows: Any) -> Array:
    """The sum over the first axis, unrolled: gates and routers sit in the innermost loops."""
    rows = list(rows)
    return functools.reduce(jnp.add, rows) if rows else jnp.float32(0.0)


def _weights(scores: Float[Array, "choices *batch"]) -> Float[Array, "choices *batch"]:
    """exp(score) up to a common factor; all zero when no score is finite."""
    best = functools.reduce(jnp.maximum, list(scores))
    best = jnp.where(best > -jnp.inf, best, 0.0)
    return jnp.exp(scores - best)


_GATES = {
    "gate_and_route": "below_plan",
    "prioritize_and_route": "priority",
    "sarathi": "log_queue",
    "gate_immediate": "below_plan",
    "gate_fcfs": "below_plan",
    "fcfs_route": "log_queue",
    "price_and_pack": "bid_price",
}
"""The term of the gate's score that alone makes each published gate."""

_ROUTERS = {
    "gate_and_route": (2.0, 0.0, 0.0, -2.0),
    "prioritize_and_route": (2.0, 0.0, 0.0, -2.0),
    "fcfs_route": (2.0, 0.0, 0.0, -2.0),
    "sarathi": (-2.0, -2.0, 0.0, -4.0),
    "gate_immediate": (-2.0, -2.0, 0.0, -4.0),
    "gate_fcfs": (0.0, 2.0, -2.0, -4.0),
    "price_and_pack": (2.0, 0.0, -2.0, -4.0),
}
"""Preferences for the router's pools, in units of the sharpness; solo-first routers have a partition."""

STARTS = tuple(_GATES)
"""The published policies from which `feedback` can start."""


def feedback(
    instance: Instance,
    plan: Plan | None = None,
    *,
    start: str = "gate_and_route",
    sharpness: float = SHARPNESS,
) -> Policy:
    """A policy with tunable parameters (`FeedbackGate`, a router of preferences, the partition's share).

    **Arguments:**

    - `plan`: what the gate compares with; the plan of the published policy when None.
    - `start`: the published policy whose rules it follows; its partition (or none) and its order of
      decisions stay.
    - `sharpness`: how closely: a choice against a rule has odds of about exp(-sharpness). The published
      policy itself is the limit of large numbers.

    **Raises:** `InputError` for a start that is not in `STARTS` (`sli_gate_and_route` keeps a buffer for each
    group, which this family does not).
    """
    from .presets import PRESETS

    if start not in STARTS:
        raise InputError(f"start: expected one of {', '.join(STARTS)}; got {start!r}")
    if not sharpness > 0:
        raise InputError(f"sharpness: expected a positive number, got {sharpness:g}")
    if plan is None:
        scheme = "separate" if start == "prioritize_and_route" else "bundled"
        plan = solve_plan(instance, scheme)
    published = PRESETS[start](instance, plan)
    largest = float(np.max(np.asarray(instance.request_value)))
    reference = PlanReference(plan.x, plan.q_prefill, np.asarray(plan.bid_prices) / largest)
    none, zero = np.zeros(instance.n_classes), np.float64(0.0)
    term = _GATES[start]
    ranked = np.asarray(instance.workload.output_tokens / instance.workload.prompt_tokens)
    gate = FeedbackGate(
        priority=sharpness * np.argsort(np.argsort(ranked)).astype(float) if term == "priority" else none,
        bid_price=np.float64(4 * sharpness if term == "bid_price" else 0.0),
        below_plan=np.float64(4 * sharpness if term == "below_plan" else 0.0),
        prefill_queue=np.float64(sharpness if term == "below_plan" else 0.0),
        log_queue=np.float64(1.0 if term == "log_queue" else 0.0),
        start=np.full(instance.n_classes, 2 * sharpness),
        start_prefills=zero,
        start_decode_queue=zero,
        start_idle=zero,
        plan=reference,
    )
    router = PartitionedFeedbackRouter if published.partition is not None else FeedbackRouter
    return Policy(
        gate,
        router(sharpness * np.asarray(_ROUTERS[start]), none),
        published.partition,
        route_first=published.route_first,
        name=f"feedback({start})",
    )
