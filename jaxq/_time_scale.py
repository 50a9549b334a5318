"""The longest time scale of an instance, by which warm-ups and horizons are chosen."""

from __future__ import annotations

import numpy as np

from ._instance import Instance


def slowest_time(instance: Instance) -> float:
    """The longest mean time of one stage of a request, s: a prefill, a decode beside one, or patience."""
    patience = np.asarray(instance.workload.patience_rate)
    rates = [np.asarray(instance.mu_prefill), np.asarray(instance.mu_mixed), np.asarray(instance.mu_solo)]
    return float(1.0 / min(np.min(rates), np.min(patience[patience > 0], initial=np.inf)))
