"""The exact long-run revenue of any policy on a tiny cluster."""

from __future__ import annotations

from .._instance import Instance
from .._policy.base import Policy
from .optimum import checked_scheme
from .policy_chain import PolicyChain
from .scenes import Layout
from .space import Size, Whole


class PolicyEvaluator:
    """Exact values of many policies on one tiny cluster: their states are enumerated once.

    **Arguments:**

    - `instance`: numbers on the host.
    - `n_gpus`: 1 or 2, or a few with small batches.
    - `queue_limit`: the prefill queue and each decode buffer of the router hold at most this many requests
      (all classes together); one too many is lost.

    **Raises:** `InputError` for numbers out of range.
    """

    def __init__(self, instance: Instance, n_gpus: Whole, *, queue_limit: Whole = 5):
        self.instance = instance
        self._size = Size.of(instance, n_gpus, queue_limit)
        self._chains: dict[Layout, PolicyChain] = {}

    def value(self, policy: Policy, *, scheme: str | None = None) -> float:
        """Long-run revenue of a policy, money per GPU and second, from an empty cluster.

        Its gate, router and admission are asked in every state, as engines ask them; what it draws at random
        is integrated over. The first policy of a structure (pools, order of decisions, size of the mixed
        group) takes seconds; later ones reuse its states.

        **Arguments:** `scheme`: `"bundled"` or `"separate"`; the instance's own when None.

        **Raises:** `InputError` for an unknown scheme, too many states, a router that leaves a request
        without a place, or a policy under which the cluster can end up in several sets of states.
        """
        size, scheme = self._size, checked_scheme(self.instance, scheme)
        layout = Layout.of(policy, size.n_gpus, size.batch_size, size.classes, size.queue_limit)
        if layout not in self._chains:
            self._chains[layout] = PolicyChain(self.instance, layout)
        return self._chains[layout].revenue(policy, scheme)


def policy_value(
    instance: Instance,
    policy: Policy,
    n_gpus: Whole,
    *,
    queue_limit: Whole = 5,
    scheme: str | None = None,
) -> float:
    """Exact long-run revenue of one policy on a tiny cluster, money per GPU and second.

    For several policies on one cluster, `PolicyEvaluator` enumerates the states once.

    **Arguments, Raises:** as `PolicyEvaluator` and its `value`.
    """
    return PolicyEvaluator(instance, n_gpus, queue_limit=queue_limit).value(policy, scheme=scheme)
