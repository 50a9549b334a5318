"""Flows and their balance ([Lin26] eq. 15-20): what takes noise out of averages and leaves their means."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from jaxtyping import Float64

from .._engine.record import Record
from .._instance import Instance


def expected_counts(instance: Instance, record: Record) -> Record:
    """The record with every count of events replaced by the integral of its rate.

    Given the path up to any moment, the next events come at these rates: the means are the same, and so are
    the means of products with the scores of earlier decisions. Only the noise of the counts goes.
    """

    def rates(of: Float64[np.ndarray, " classes"]) -> Float64[np.ndarray, "classes 1"]:
        return np.asarray(of, np.float64)[:, None]

    workload = instance.workload
    arrivals = record.n_gpus * rates(workload.arrival_rate) * record.durations[:, None, None]
    mixed, solo = rates(instance.mu_mixed), rates(instance.mu_solo)
    return replace(
        record,
        arrivals=np.broadcast_to(arrivals, record.arrivals.shape),
        abandoned_prefill=rates(workload.patience_rate) * record.prefill_queue,
        prefills_completed=rates(instance.mu_prefill) * record.prefills,
        abandoned_decode=rates(workload.patience_rate) * record.decode_queue,
        completions=mixed * record.decodes_mixed + solo * record.decodes_solo,
    )


def imbalances(instance: Instance, record: Record) -> Float64[np.ndarray, "measured stages replications"]:
    """Flow into less flow out of the prefill and the decode stage of each class, per GPU and second.

    From the windows after the warm-up. In the long run each is 0 on average, under every policy; classes
    that wait without limit are left out, since their queues may grow.
    """
    patient = np.asarray(instance.workload.patience_rate) > 0
    flows = expected_counts(instance, record)
    prefilled = flows.measured("prefills_completed")
    stages = [
        flows.measured("arrivals") - flows.measured("abandoned_prefill") - prefilled,
        prefilled - flows.measured("abandoned_decode") - flows.measured("completions"),
    ]
    kept = np.concatenate([stage[:, patient] for stage in stages], axis=1)
    return kept / (record.n_gpus * record.measured_durations[:, None, None])
