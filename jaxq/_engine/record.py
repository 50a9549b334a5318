"""What an engine hands back: counts of events and time integrals of the state, window by window."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import equinox as eqx
import numpy as np
from jaxtyping import Float64, Int64

from .._errors import InputError

COUNTS = ("arrivals", "abandoned_prefill", "prefills_completed", "abandoned_decode", "completions")
"""Events that a record counts, by class."""

INTEGRALS = ("prefills", "decodes_mixed", "decodes_solo", "prefill_queue", "decode_queue")
"""Numbers in each stage that a record integrates over time, by class, in request-seconds."""

FINAL = ("prefills", "decodes", "prefill_queue", "decode_queue")
"""Numbers in each stage at the end of a run."""

PerWindow = Float64[np.ndarray, "windows classes replications"]


class Record(eqx.Module):
    """What happened in a run from an empty cluster, for the whole cluster, on the host in float64.

    In the fluid limit everything is per GPU, and counts are no whole numbers.

    - `durations`: length of each window of time, s.
    - `arrivals`, `abandoned_prefill`, `prefills_completed`, `abandoned_decode`, `completions`: events in each
      window ([Lin26] eq. 15-20).
    - `prefills`, `decodes_mixed`, `decodes_solo`, `prefill_queue`, `decode_queue`: integrals over each window
      of X, Y_m, Y_s, Q_p and Q_d, request-seconds.
    - `events`: steps of the chain that changed the state, for speed.
    - `final`: numbers in the system at the end, for each name in `FINAL`.
    - `warmup_windows`: how many of the first windows lie before the end of the warm-up.
    - `n_gpus`: GPUs in the cluster, n; None in the fluid limit.
    - `dt`: the time step of a time-stepped run, s; None for the exact chain.
    - `scores`: where they were asked for, the sum over the random decisions of each window of
      d/dtheta log(chance of the choice), for the parameters of a random gate, then of a random router.

    **Raises:** `InputError` when shapes disagree, a name of `final` is missing, or no window comes after the
    warm-up.
    """

    durations: Float64[np.ndarray, " windows"]
    arrivals: PerWindow
    abandoned_prefill: PerWindow
    prefills_completed: PerWindow
    abandoned_decode: PerWindow
    completions: PerWindow
    prefills: PerWindow
    decodes_mixed: PerWindow
    decodes_solo: PerWindow
    prefill_queue: PerWindow
    decode_queue: PerWindow
    events: Float64[np.ndarray, "windows replications"]
    final: dict[str, Int64[np.ndarray, "classes replications"] | Float64[np.ndarray, "classes replications"]]
    warmup_windows: int = eqx.field(static=True)
    n_gpus: int | None = eqx.field(static=True)
    dt: float | None = eqx.field(static=True, default=None)
    scores: Float64[np.ndarray, "windows parameters replications"] | None = None

    def __check_init__(self):
        shape = self.arrivals.shape
        wrong = [name for name in COUNTS + INTEGRALS if getattr(self, name).shape != shape]
        if wrong or len(shape) != 3:
            raise InputError(
                f"record.{(wrong or ['arrivals'])[0]}: expected shape {shape}, three axes in all"
            )
        windows, classes, replications = shape
        if self.durations.shape != (windows,) or self.events.shape != (windows, replications):
            raise InputError(f"record: expected durations and events of the same {windows} windows")
        if self.scores is not None and self.scores.shape[::2] != (windows, replications):
            raise InputError(f"record.scores: expected {windows} windows and {replications} replications")
        if set(self.final) != set(FINAL):
            raise InputError(f"record.final: expected {', '.join(FINAL)}, got {', '.join(self.final)}")
        if any(value.shape != (classes, replications) for value in self.final.values()):
            raise InputError(f"record.final: expected shape {(classes, replications)} for every stage")
        if not 0 <= self.warmup_windows < windows:
            raise InputError(f"record.warmup_windows: expected 0 to {windows - 1}, got {self.warmup_windows}")

    @property
    def is_fluid(self) -> bool:
        """Whether it is the fluid limit: per GPU, without chance."""
        return self.n_gpus is None

    @property
    def n_classes(self) -> int:
        """The number of request classes."""
        return self.arrivals.shape[1]

    @property
    def replications(self) -> int:
        """The number of replications."""
        return self.arrivals.shape[2]

    @property
    def measured_durations(self) -> Float64[np.ndarray, " measured"]:
        """Lengths of the windows after the warm-up, s."""
        return self.durations[self.warmup_windows :]

    def measured(self, name: str) -> Float64[np.ndarray, "measured classes replications"]:
        """The windows after the warm-up of one of `COUNTS` or `INTEGRALS`."""
        return getattr(self, name)[self.warmup_windows :]

    @property
    def imbalance(self) -> Float64[np.ndarray, "classes replications"]:
        """Arrivals less completions, abandonments and what is left at the end; 0 when nothing was lost.

        Exactly 0 in an engine that counts requests ([Lin26] eq. 15-20 summed over the run).
        """
        left = self.abandoned_prefill + self.abandoned_decode + self.completions
        return (self.arrivals - left).sum(axis=0) - sum(self.final.values())

    def parts(self) -> Iterator[Record]:
        """The record itself: all its replications are in memory."""
        yield self

    def load(self) -> Record:
        """The record itself."""
        return self

    def part(self, first: int, replications: int) -> Record:
        """`replications` of them, from the one at position `first` on."""
        return self._map(lambda arrays: arrays[0][..., first : first + replications], [self])

    @classmethod
    def concatenate(cls, records: Sequence[Record]) -> Record:
        """One record of the replications of all `records`, in their order.

        **Raises:** `InputError` when there is none, or they differ in anything else than replications.
        """
        if not records:
            raise InputError("records: expected at least one")
        first = records[0]
        for other in records[1:]:
            same = (other.warmup_windows, other.n_gpus, other.dt, other.n_classes, other.scores is None) == (
                first.warmup_windows,
                first.n_gpus,
                first.dt,
                first.n_classes,
                first.scores is None,
            )
            if not same or not np.array_equal(other.durations, first.durations):
                raise InputError(
                    "records: expected the same windows, warm-up, n_gpus, dt and classes in all, and scores "
                    "in all or none"
                )
        return first._map(lambda arrays: np.concatenate(arrays, axis=-1), records)

    def _map(self, join: Callable[[list[np.ndarray]], np.ndarray], records: Sequence[Record]) -> Record:
        """A record like this one whose arrays over replications are joined from those of `records`."""
        arrays = {
            name: join([getattr(record, name) for record in records])
            for name in (*COUNTS, *INTEGRALS, "events", *(() if self.scores is None else ("scores",)))
        }
        final = {name: join([record.final[name] for record in records]) for name in FINAL}
        return Record(
            durations=self.durations,
            final=final,
            warmup_windows=self.warmup_windows,
            n_gpus=self.n_gpus,
            dt=self.dt,
            **arrays,
        )
