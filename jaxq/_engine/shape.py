"""The only numbers that a compiled program depends on."""

from __future__ import annotations

import dataclasses

from .._policy.base import Policy


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes of the arrays of a run; every other number is traced.

    - `gpus`: GPUs with state of their own, padded: those of the mixed group under a partition (the solo
      group needs only counts), all without one.
    - `batch`: batch size, padded.
    - `classes`: number of request classes.
    - `partitioned`: whether the policy has a partition.
    - `scores`: parameters whose scores are summed; 0: none are computed.
    """

    gpus: int
    batch: int
    classes: int
    partitioned: bool
    scores: int = 0

    @property
    def items(self) -> int:
        """Length of the item lists of the exact chain."""
        return self.classes * self.gpus * (self.batch + 1)


def padded(count: int) -> int:
    """The smallest size of at least `count` in 64, 96, 128, 192, 256, 384, 512, 768, ...

    Small clusters share one size, and so one compiled program.
    """
    size = 64
    while size < count:
        size = size * 3 // 2 if size & (size - 1) == 0 and size >= 64 else _next_power(size)
    return size


def _next_power(size: int) -> int:
    return 1 << size.bit_length() if size & (size - 1) else size * 2


def shape_of(policy: Policy, n_gpus: int, batch_size: int, classes: int) -> Shape:
    """The shape that a policy needs on a cluster."""
    return Shape(
        gpus=padded(policy.mixed_gpus(n_gpus)),
        batch=1 << max(1, (batch_size - 1).bit_length()),
        classes=classes,
        partitioned=policy.partition is not None,
    )
