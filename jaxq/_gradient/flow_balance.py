"""Flows and their balance ([Lin26] eq. 15-20): what takes noise out of averages and leaves their means."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from .._engine.record import Record
from .._instance import Instance

FREEDOM = 2.0
"""Deviations from means for each fitted weight, at least."""

FAR = 5.0
"""Standard errors by which steadied values may differ in the mean from those that they are made of."""


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


class FlowValues(NamedTuple):
    """Values of policies from integrals of rates, and the imbalances of their flows, which move with them."""

    values: Float64[np.ndarray, "rows replications"]
    imbalances: Float64[np.ndarray, "rows stages replications"]

    def half_differences(self) -> FlowValues:
        """Half of what each even row is above the odd one after it."""
        return FlowValues(*((rows[0::2] - rows[1::2]) / 2 for rows in self))

    def steadied_alone(self) -> Float64[np.ndarray, "rows replications"]:
        """`steadied`, with weights of its own in each row: for policies that may have little in common.

        A row stays as it is where that would move its mean far and yet leave most of its spread: its flows
        are out of balance by more than chance, as under a policy with which some replications come to a halt.
        """
        rows = []
        for value, balance in zip(self.values, self.imbalances, strict=True):
            steadied = FlowValues(value[None], balance[None]).steadied()[0]
            far = abs(steadied.mean() - value.mean()) > FAR * value.std() / np.sqrt(len(value))
            rows.append(value if far and steadied.std() > value.std() / 2 else steadied)
        return np.stack(rows)

    def steadied(self) -> Float64[np.ndarray, "rows replications"]:
        """The values less the combination of imbalances with which they vary least over the replications.

        The weights are the same in all rows, whose spread counts alike. What is subtracted is 0 in the long
        run: means stay, to the order of the reciprocal of the number of replications; and what a start from
        empty leaves in them falls. The spread that is left is widened for the weights that were fitted. With
        too few replications to fit any, the values are returned as they are.
        """
        values, balance = self
        freedom, stages = values.size - len(values), balance.shape[1]
        if stages == 0 or freedom < FREEDOM * stages:
            return values
        spread = values.std(axis=1, keepdims=True)
        spread = np.where(spread > 0, spread, 1.0)
        target = (values - values.mean(axis=1, keepdims=True)) / spread
        centred = (balance - balance.mean(axis=2, keepdims=True)) / spread[..., None]
        regressors = centred.swapaxes(1, 2).reshape(target.size, -1)
        weights = np.linalg.lstsq(regressors, target.ravel(), rcond=None)[0]
        left = values - np.einsum("mkr,k->mr", balance, weights)
        mean = left.mean(axis=1, keepdims=True)
        return mean + (left - mean) * np.sqrt(freedom / (freedom - stages))
