"""The record of a run whose replications stand in files: never in memory all at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import jax
import numpy as np
from jaxtyping import Float64

from .._engine.record import Record
from .block_file import BlockFile


def head_of(record: Record) -> Record:
    """Its first replication, that does not keep the others in memory."""
    return jax.tree.map(np.copy, record.part(0, 1))


@dataclass(frozen=True, eq=False)
class StoredRecord:
    """The first replications of a run, in files; it has what a `Record` tells of all replications alike.

    - `blocks`: the files, in the order of the replications that they hold, without gaps.
    - `replications`: how many of them count; the last file may hold more.
    """

    blocks: tuple[BlockFile, ...]
    replications: int
    _head: Record = field(repr=False)

    @classmethod
    def of(cls, blocks: list[BlockFile], replications: int) -> StoredRecord:
        """Of files without gaps, of which at least one."""
        record, _ = blocks[0].read()
        return cls(tuple(blocks), replications, head_of(record))

    def parts(self) -> Iterator[Record]:
        """The replications, file after file, each checked as it is read."""
        left = self.replications
        for block in self.blocks:
            if left <= 0:
                return
            record, _ = block.read()
            yield record if record.replications <= left else record.part(0, left)
            left -= record.replications

    def load(self) -> Record:
        """All replications in memory."""
        return Record.concatenate(list(self.parts()))

    @property
    def n_gpus(self) -> int | None:
        """GPUs in the cluster, n; None in the fluid limit."""
        return self._head.n_gpus

    @property
    def is_fluid(self) -> bool:
        """Whether it is the fluid limit: per GPU, without chance."""
        return self._head.is_fluid

    @property
    def dt(self) -> float | None:
        """The time step of a time-stepped run, s; None for the exact chain."""
        return self._head.dt

    @property
    def warmup_windows(self) -> int:
        """How many of the first windows lie before the end of the warm-up."""
        return self._head.warmup_windows

    @property
    def n_classes(self) -> int:
        """The number of request classes."""
        return self._head.n_classes

    @property
    def measured_durations(self) -> Float64[np.ndarray, " measured"]:
        """Lengths of the windows after the warm-up, s."""
        return self._head.measured_durations
