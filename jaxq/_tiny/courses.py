"""What a policy may do after an event: every choice of its gate, its router and its admission, one by one."""

from __future__ import annotations

import numpy as np

from .._policy.base import Pool
from .gpu import NONE
from .observed import GROUPS, Decision, room
from .scenes import Contents, Layout, Scenes, put, stack


class Courses:
    """Lets events take every course that a policy of one structure could choose.

    The order of decisions is that of the engines: gate, then router (or the reverse), then the buffer.
    """

    def __init__(self, layout: Layout, contents: Contents):
        self.layout, self.contents = layout, contents
        outcomes = len(layout.buffers) * layout.classes
        self.gate = Decision(layout, contents, 1, layout.classes + 1)
        self.route = Decision(layout, contents, layout.classes, len(layout.pools) + 1)
        self.admit = Decision(layout, contents, len(GROUPS), outcomes + 1)

    def all(self, scenes: Scenes) -> Scenes:
        """Every course of every event, to its end."""
        first, second = self._offer, self._route
        if self.layout.route_first:
            first, second = second, first
        scenes = second(first(scenes))
        return self._admit_solo(self._admit(scenes)) if self.layout.buffers else scenes

    def _offer(self, scenes: Scenes) -> Scenes:
        """Offer the event's GPU to the gate, if it can start a prefill and someone waits."""
        contents = self.contents
        offered = scenes.own & (scenes.queue > 0)
        if self.layout.mixed_gpus:
            offered &= contents.can_start[scenes.gpus[:, 0]]
        rest, scenes = scenes.take(~offered), scenes.take(offered)
        if not len(scenes):
            return rest
        seen = self.gate.number(scenes)
        parts = [rest, scenes.having(gate=self.gate.key(seen, self.layout.classes))]
        for i in range(self.layout.classes):
            shorter = contents.queue.minus[scenes.queue, i]
            waits = shorter != NONE
            content = contents.gpu.start[scenes.gpus[waits, 0], i]
            gate = self.gate.key(seen[waits], i)
            parts.append(scenes.with_own(waits, content, queue=shorter[waits], gate=gate))
        return stack(parts)

    def _route(self, scenes: Scenes) -> Scenes:
        """Send the request that has completed its prefill to each pool with room."""
        finished = scenes.finished != NONE
        parts, scenes = [scenes.take(~finished)], scenes.take(finished)
        if not len(scenes):
            return parts[0]
        seen = self.route.number(scenes, scenes.finished)
        for p, pool in enumerate(self.layout.pools):
            where = room(self.layout, self.contents, scenes, pool) > 0
            sent = scenes.take(where, route=self.route.key(seen[where], p))
            parts += self._placed(sent, pool)
        done = stack(parts)
        return done.having(finished=np.full(len(done), NONE))

    def _placed(self, scenes: Scenes, pool: Pool) -> list[Scenes]:
        """The request in a pool that has room: on each of its GPUs with equal chance."""
        contents, request = self.contents, scenes.finished
        if pool.is_buffer:
            b = self.layout.buffers.index(pool)
            longer = contents.queue.plus[scenes.buffers[:, b], request]
            kept = np.where(longer == NONE, scenes.buffers[:, b], longer)
            return [scenes.having(buffers=put(scenes.buffers, b, kept))]
        if pool is Pool.SOLO:
            return [scenes.having(solo=contents.solo.plus[scenes.solo, request])]
        if pool is Pool.OWN:
            content = contents.gpu.place[scenes.gpus[:, 0], request]
            return [scenes.having(gpus=put(scenes.gpus, 0, content))]
        members = contents.in_pool(pool)[scenes.gpus]
        count, parts = members.sum(axis=1), []
        for g in range(self.layout.mixed_gpus):
            here = members[:, g]
            content = contents.gpu.place[scenes.gpus[here, g], request[here]]
            gpus, weight = put(scenes.gpus[here], g, content), scenes.weight[here] / count[here]
            parts.append(scenes.take(here, gpus=gpus, weight=weight))
        return parts

    def _admit(self, scenes: Scenes) -> Scenes:
        """Give the slot that was freed on the event's GPU, if still free, to each request that waits."""
        freed = scenes.freed & (scenes.buffers > 0).any(axis=1)
        if self.layout.mixed_gpus:
            freed &= self.contents.has_room[scenes.gpus[:, 0]]
        parts, scenes = [scenes.take(~freed)], scenes.take(freed)
        for i, where, changes in self._admissions(scenes, Pool.MIXED):
            content = self.contents.gpu.place[scenes.gpus[where, 0], i]
            parts.append(scenes.with_own(where, content, **changes))
        parts += self._unfilled(scenes, Pool.MIXED)
        return stack(parts)

    def _admit_solo(self, scenes: Scenes) -> Scenes:
        """Give the slot that was freed in the solo group to each request that waits."""
        freed = scenes.freed_solo & (scenes.buffers > 0).any(axis=1)
        parts, scenes = [scenes.take(~freed)], scenes.take(freed)
        for i, where, changes in self._admissions(scenes, Pool.SOLO):
            solo = self.contents.solo.plus[scenes.solo[where], i]
            parts.append(scenes.take(where, solo=solo, **changes))
        parts += self._unfilled(scenes, Pool.SOLO)
        return stack(parts)

    def _admissions(self, scenes: Scenes, group: Pool) -> list[tuple[int, np.ndarray, dict[str, np.ndarray]]]:
        """For each buffer and class: the class, the rows in which one waits, and their columns after it
        left."""
        if not len(scenes):
            return []
        seen, found = self.admit.number(scenes, GROUPS.index(group)), []
        for b in range(len(self.layout.buffers)):
            for i in range(self.layout.classes):
                shorter = self.contents.queue.minus[scenes.buffers[:, b], i]
                where = shorter != NONE
                buffers = put(scenes.buffers[where], b, shorter[where])
                key = self.admit.key(seen[where], b * self.layout.classes + i)
                found.append((i, where, {"buffers": buffers, "admit": key}))
        return found

    def _unfilled(self, scenes: Scenes, group: Pool) -> list[Scenes]:
        """The slot stays free although someone waits."""
        if not len(scenes):
            return []
        seen = self.admit.number(scenes, GROUPS.index(group))
        return [scenes.having(admit=self.admit.key(seen, self.admit.choices - 1))]
