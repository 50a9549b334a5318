"""What a policy does, as chances that can be drawn and told: which class starts, when none does, and where a
finished request goes."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from ._engine.base import choose_pool, choose_start, device_policy
from ._instance import Instance
from ._plan import Plan
from ._policy.base import Observation, Policy, Pool

DRAWS = 128
"""Random numbers, evenly spaced, over which a choice is averaged."""

POINTS = 31
"""Queue lengths along each axis, at most."""

LEAST_QUEUE = 12
"""Requests that an axis of queue lengths reaches, at least."""


def portrait(policy: Policy, instance: Instance, plan: Plan, n_gpus: int) -> dict[str, Any]:
    """The choices of a policy on a cluster that is otherwise as the plan wants it; all of it for JSON.

    - `shown`: the two classes with most work in the plan's prefills (one, where there is one); `queues`: the
      lengths of their prefill queues at which the gate is asked, the others' being as planned.
    - `starts`: the chance that each class starts, and in the last row that none does, over these lengths:
      shape (classes + 1, lengths of the second, lengths of the first).
    - `at_plan`: the same chances with every queue as planned (at least one request).
    - `idle`: `running`, prefills per GPU, and the chance `starts_none` when so many run.
    - `routes`: for each class, the chance of each pool while every pool has room; `pools`: their meanings.
    """
    scene = _Scene(policy, instance, plan, n_gpus)
    shown = [int(i) for i in np.argsort(-np.asarray(plan.x), kind="stable")[:2]]
    lengths = [_lengths(int(scene.queue[i])) for i in shown]
    grid = np.meshgrid(*lengths)
    queues = np.repeat(scene.queue[:, None], grid[0].size, axis=1)
    for i, values in zip(shown, grid, strict=True):
        queues[i] = values.ravel()
    starts = scene.starts(queues)
    running = np.unique(np.round(np.linspace(0, scene.slots - 1, min(POINTS, scene.slots)))).astype(int)
    at_plan = np.repeat(scene.queue[:, None], len(running), axis=1)
    return {
        "gpus": n_gpus,
        "classes": list(instance.workload.names),
        "shown": shown,
        "queues": [values.tolist() for values in lengths],
        "planned_queues": [float(n_gpus * plan.q_prefill[i]) for i in shown],
        "starts": starts.reshape(len(starts), *grid[0].shape).tolist(),
        "at_plan": scene.starts(scene.queue[:, None])[:, 0].tolist(),
        "idle": {
            "running": (running / n_gpus).tolist(),
            "planned": float(np.sum(plan.x)),
            "starts_none": scene.starts(at_plan, running)[-1].tolist(),
        },
        "pools": [pool.value for pool in policy.router.pools],
        "routes": scene.routes().tolist(),
    }


def _lengths(planned: int) -> Int[np.ndarray, " lengths"]:
    """Queue lengths from 0 to twice the planned one."""
    most = max(LEAST_QUEUE, 2 * planned)
    return np.unique(np.round(np.linspace(0, most, POINTS))).astype(int)


class _Scene:
    """A cluster as the plan wants it, and the policy that is asked there."""

    def __init__(self, policy: Policy, instance: Instance, plan: Plan, n_gpus: int):
        self.policy, self.n_gpus, self.classes = device_policy(policy), n_gpus, instance.n_classes
        self.slots = max(1, policy.mixed_gpus(n_gpus))
        self.x, self.mixed, self.solo = (
            np.round(n_gpus * np.asarray(share)).astype(int) for share in (plan.x, plan.y_mixed, plan.y_solo)
        )
        self.queue = np.maximum(1, np.round(n_gpus * np.asarray(plan.q_prefill)).astype(int))

    def observe(self, queues: Int[np.ndarray, "classes cases"], running: Any = None) -> Observation:
        """What the policy sees in each case, once for each random number."""
        cases = queues.shape[1] * DRAWS
        planned = int(self.x.sum())
        share = self.x / planned if planned else np.full(self.classes, 1.0 / self.classes)
        total = np.full(queues.shape[1], min(planned, self.slots - 1)) if running is None else running
        prefills = np.round(share[:, None] * total)

        def spread(values: Any) -> Any:
            return jnp.asarray(np.repeat(values, DRAWS, axis=-1), jnp.int32)

        room = [self._room(pool, total) for pool in self.policy.router.pools]
        return Observation(
            n_gpus=jnp.asarray([self.n_gpus]),
            mixed_gpus=jnp.asarray([self.slots]),
            prefills=spread(prefills),
            decodes_mixed=jnp.broadcast_to(jnp.asarray(self.mixed)[:, None], (self.classes, cases)),
            decodes_solo=jnp.broadcast_to(jnp.asarray(self.solo)[:, None], (self.classes, cases)),
            prefill_queue=spread(queues),
            decode_queue=jnp.zeros((len(self.policy.router.buffers), self.classes, cases), jnp.int32),
            idle_prefill_slots=spread(np.maximum(1, self.slots - total)),
            available=spread(np.stack(room)),
        )

    def _room(self, pool: Pool, running: Int[np.ndarray, " cases"]) -> Int[np.ndarray, " cases"]:
        """GPUs of a pool, all with room; at least one where the pool can have any."""
        counts = {
            Pool.WITH_PREFILL: np.maximum(1, running),
            Pool.WITHOUT_PREFILL: np.maximum(1, self.slots - running),
            Pool.MIXED: np.full_like(running, self.slots),
            Pool.SOLO: np.full_like(running, self.n_gpus - self.slots),
        }
        return counts.get(pool, np.ones_like(running))

    def starts(
        self, queues: Int[np.ndarray, "classes cases"], running: Any = None
    ) -> Float[np.ndarray, "choices cases"]:
        """The chance that each class starts, and that none does."""
        seen = self.observe(queues, running)
        choice = choose_start(self.policy, seen, _uniforms(queues.shape[1]))
        return _chances(np.asarray(choice), self.classes + 1)

    def routes(self) -> Float[np.ndarray, "classes pools"]:
        """The chance that a finished request of each class goes to each pool."""
        queues = np.repeat(self.queue[:, None], self.classes, axis=1)
        request = jnp.asarray(np.repeat(np.arange(self.classes), DRAWS))
        choice = choose_pool(self.policy, self.observe(queues), request, _uniforms(self.classes))
        return _chances(np.asarray(choice), len(self.policy.router.pools)).T


def _uniforms(cases: int) -> Any:
    return jnp.tile((jnp.arange(DRAWS, dtype=jnp.float32) + 0.5) / DRAWS, cases)


def _chances(choice: Int[np.ndarray, " draws"], choices: int) -> Float[np.ndarray, "choices cases"]:
    """The share of each choice among the draws of each case."""
    by_case = choice.reshape(-1, DRAWS)
    return np.stack([(by_case == k).mean(axis=1) for k in range(choices)])
