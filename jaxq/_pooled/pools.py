"""Which policies can be simulated by counts of each class in each group."""

from __future__ import annotations

from .._errors import InputError
from .._policy.base import Policy, Pool

POOLS = (Pool.SOLO, Pool.MIXED, Pool.WAIT, Pool.WAIT_SOLO, Pool.WAIT_MIXED)
"""The pools whose room follows from counts by group."""


def check_pooled(policy: Policy, who: str, instead: str) -> None:
    """Refuse a policy whose law does not follow from counts by class and group.

    **Arguments:** `who` refuses it, and what to use `instead`, for the message.

    **Raises:** `InputError` for a policy without a partition, or with a router that tells GPUs of the mixed
    group apart.
    """
    if policy.partition is None:
        raise InputError(f"policy {policy.name!r}: {who} needs a partition; {instead}")
    wrong = [pool.name for pool in policy.router.pools if pool not in POOLS]
    if wrong:
        raise InputError(
            f"policy {policy.name!r}: {who} does not know which GPUs are in pool {wrong[0]}; {instead}"
        )
