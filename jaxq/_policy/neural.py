"""A small neural policy: one network for all classes, so that it works for any number of them, at any n."""

from __future__ import annotations

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._errors import InputError
from .._instance import Instance
from .base import Observation, Policy, Pool
from .feedback import SHARPNESS, UNPLANNED, FeedbackRouter, exponentials, of_class, router_preferences, total
from .parameters import Fixed
from .presets import plain_plan
from .random_choice import AbstractRandomGate, AbstractRandomRouter
from .recipe import Recipe

CLASS_FEATURES = ("bid price", "output ratio", "below plan", "queue above plan", "log queue")
COMMON_FEATURES = ("prefills above plan", "decodes above plan", "decode queue", "idle prefill slots")
FEATURES = len(CLASS_FEATURES) + len(COMMON_FEATURES)

_TERMS = {
    "gate_and_route": ("below plan", 4.0),
    "prioritize_and_route": ("output ratio", 4.0),
    "sarathi": ("log queue", 0.0),
    "gate_immediate": ("below plan", 4.0),
    "gate_fcfs": ("below plan", 4.0),
    "fcfs_route": ("log queue", 0.0),
    "price_and_pack": ("bid price", 4.0),
}
"""Of each start, the feature that alone makes its gate, and its weight in units of the sharpness (0: a weight
of 1, whatever the sharpness)."""

STARTS = tuple(_TERMS)


class ClassTable(Fixed):
    """What the network knows of the instance: the plan's occupancies per GPU, and two numbers a class.

    `bid_price` and `output_ratio` (D / P) are over their largest value.
    """

    prefills: Float[Any, "classes *batch"]
    prefill_queue: Float[Any, "classes *batch"]
    decodes: Float[Any, "*batch"]
    bid_price: Float[Any, "classes *batch"]
    output_ratio: Float[Any, "classes *batch"]

    def features(self, observation: Observation) -> list[Float[Array, "classes *batch"]]:
        """`CLASS_FEATURES`, then `COMMON_FEATURES`: all independent of n but for a common constant."""
        seen = observation.per_gpu()
        shape = seen.prefills.shape
        planned = jnp.maximum(self.prefills, UNPLANNED)
        queue = jnp.asarray(observation.prefill_queue, float)
        own = [
            self.bid_price,
            self.output_ratio,
            jnp.where(self.prefills < UNPLANNED, 0.0, 1.0) - seen.prefills / planned,
            seen.prefill_queue - self.prefill_queue,
            jnp.log(jnp.maximum(queue, 1.0)) - jnp.log(jnp.maximum(total(queue), 1.0)),
        ]
        common = [
            total(seen.prefills) * (1.0 / jnp.maximum(total(self.prefills), UNPLANNED)) - 1.0,
            total(seen.decodes_mixed + seen.decodes_solo) * (1.0 / jnp.maximum(self.decodes, UNPLANNED))
            - 1.0,
            total([total(waiting) for waiting in seen.decode_queue]),
            seen.idle_prefill_slots,
        ]
        return [jnp.broadcast_to(value, shape) for value in (*own, *common)]


class Perceptron(eqx.Module):
    """One hidden layer of tanh units, applied to each element of its inputs.

    `inputs` (hidden x features) and `bias` (hidden) lead to the hidden layer, `outputs` (outputs x hidden)
    away from it.
    """

    inputs: Float[Any, "hidden features *batch"]
    bias: Float[Any, "hidden *batch"]
    outputs: Float[Any, "outputs hidden *batch"]

    @classmethod
    def silent(cls, outputs: int, hidden: int, rng: np.random.Generator) -> Perceptron:
        """Small random inputs, and outputs of 0: it changes nothing until it is trained."""
        inputs = rng.normal(size=(hidden, FEATURES)) / np.sqrt(FEATURES)
        return cls(inputs, np.zeros(hidden), np.zeros((outputs, hidden)))

    def __call__(self, features: list[Array]) -> list[Array]:
        hidden = [
            jnp.tanh(bias + total(weight * value for weight, value in zip(row, features, strict=True)))
            for row, bias in zip(self.inputs, self.bias, strict=True)
        ]
        return [
            total(weight * unit for weight, unit in zip(row, hidden, strict=True)) for row in self.outputs
        ]


class NeuralGate(AbstractRandomGate):
    """Draws a waiting class, then whether it starts; the same network scores every class.

    The score of a class, and the log-odds that it starts once drawn, are linear in its features
    (`CLASS_FEATURES`, `COMMON_FEATURES`) plus an output of the network.
    """

    score: Float[Any, "features *batch"]
    start: Float[Any, "features *batch"]
    start_bias: Float[Any, "*batch"]
    network: Perceptron
    table: ClassTable

    def weights(self, observation: Observation) -> Float[Array, "choices *batch"]:
        features = self.table.features(observation)
        score, start = self.network(features)
        score = score + total(weight * value for weight, value in zip(self.score, features, strict=True))
        start = start + total(weight * value for weight, value in zip(self.start, features, strict=True))
        waits = observation.prefill_queue > 0
        drawn = exponentials(jnp.where(waits, score, -jnp.inf))
        starts = jax.nn.sigmoid(self.start_bias + start)
        return jnp.concatenate([drawn * starts, total(drawn * (1.0 - starts))[None]])


class NeuralRouter(AbstractRandomRouter):
    """Draws a pool with a chance proportional to its room times exp(preference + an output of a network of
    the features of the request's class)."""

    pools: ClassVar[tuple[Pool, ...]] = FeedbackRouter.pools
    preference: Float[Any, "pools *batch"]
    network: Perceptron
    table: ClassTable

    def weights(
        self, observation: Observation, request_class: Int[Array, "*batch"]
    ) -> Float[Array, "pools *batch"]:
        features = [of_class(value, request_class) for value in self.table.features(observation)]
        room = jnp.asarray(observation.available, float)
        scores = self.preference + jnp.stack(self.network(features)) + jnp.log(jnp.maximum(room, 1.0))
        return exponentials(jnp.where(room > 0, scores, -jnp.inf))


def neural(
    instance: Instance,
    *,
    start: str = "price_and_pack",
    sharpness: float = SHARPNESS,
    hidden: int = 8,
    seed: int = 0,
) -> Policy:
    """A policy whose gate and router are small networks; without a partition, routing first.

    Its parameters do not depend on the instance: trained on one, they may be used on any other, with any
    number of classes and GPUs. Gate and router act by sampling, at simulation time as in training.

    **Arguments:**

    - `start`: the published policy that it follows before training, as far as it can without a partition.
    - `sharpness`: how closely: a choice against a rule has odds of about exp(-sharpness).
    - `hidden`: units of the hidden layer of each network; `seed`: of their first random weights.

    **Raises:** `InputError` for a start that is not in `STARTS`, or a number out of range.
    """
    if start not in STARTS:
        raise InputError(f"start: expected one of {', '.join(STARTS)}; got {start!r}")
    if not sharpness > 0:
        raise InputError(f"sharpness: expected a positive number, got {sharpness:g}")
    if int(hidden) != hidden or hidden < 1:
        raise InputError(f"hidden: expected a whole number of at least 1, got {hidden:g}")
    table, rng = _table(instance), np.random.default_rng(int(seed))
    feature, weight = _TERMS[start]
    score = np.zeros(FEATURES)
    score[CLASS_FEATURES.index(feature)] = weight * sharpness if weight else 1.0
    gate = NeuralGate(
        score=score,
        start=np.zeros(FEATURES),
        start_bias=np.float64(2 * sharpness),
        network=Perceptron.silent(2, int(hidden), rng),
        table=table,
    )
    router = NeuralRouter(
        preference=router_preferences(start, sharpness),
        network=Perceptron.silent(len(NeuralRouter.pools), int(hidden), rng),
        table=table,
    )
    recipe = Recipe.of("neural", start=start, sharpness=sharpness, hidden=hidden, seed=seed)
    return Policy(gate, router, route_first=True, name=f"neural({start})", recipe=recipe)


def _table(instance: Instance) -> ClassTable:
    plan = plain_plan(instance, require_no_decode_queue=True)
    ratio = np.asarray(instance.workload.output_tokens / instance.workload.prompt_tokens)
    bids = np.asarray(plan.bid_prices)
    return ClassTable(
        prefills=plan.x,
        prefill_queue=plan.q_prefill,
        decodes=np.float64(np.sum(plan.y_mixed) + np.sum(plan.y_solo)),
        bid_price=bids / max(float(np.max(np.asarray(instance.request_value))), 1e-30),
        output_ratio=ratio / ratio.max(),
    )
