"""The best that any controller can do with a tiny cluster: an average-reward Markov decision process."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float64, Int, Int32
from scipy import sparse

from .._errors import InputError
from .._instance import Instance
from .._pricing import SCHEMES
from .balance import stationary_law
from .control import DROP, Control, Move, control_of
from .gpu import NONE
from .space import Size, Space, Whole, space_of
from .value_iteration import solve


@dataclasses.dataclass(frozen=True, eq=False)
class Optimum:
    """The largest long-run revenue of a tiny cluster with cut queues, and decisions that earn it.

    - `value`: long-run revenue of `decisions`, money per GPU and second, exactly.
    - `lower`, `upper`: bounds of the largest revenue that any decisions could earn, in the same unit.
    - `states`: states of the cluster in which time passes.
    - `sweeps`: sweeps of value iteration.
    - `lost`: requests of each class that the cut turns away under `decisions`, per GPU and second: it sizes
      the effect of the cut.
    """

    value: float
    lower: float
    upper: float
    states: int
    sweeps: int
    lost: Float64[np.ndarray, " classes"]
    _space: Space = dataclasses.field(repr=False)
    _moves: tuple[Move, ...] = dataclasses.field(repr=False)
    _choice: Int32[np.ndarray, "clusters waiting buffered"] = dataclasses.field(repr=False)

    def decisions(
        self,
        gpus: Sequence[tuple[int | None, Sequence[int]]],
        prefill_queue: Sequence[int],
        decode_queue: Sequence[int],
    ) -> list[Move]:
        """What to do right after an event, in order; an empty list when nothing should be done.

        **Arguments:**

        - `gpus`: for each GPU the class of its running prefill (None: it runs none) and its decodes by class.
        - `prefill_queue`: requests of each class that wait for prefill.
        - `decode_queue`: requests of each class that wait for a decode slot, one that has just completed its
          prefill included.

        **Raises:** `InputError` for what is not a state of the cluster.
        """
        space, gpu = self._space, self._space.gpu
        contents = np.array([self._content(*held) for held in gpus])
        queue = _row(space.waiting.vectors, prefill_queue, "prefill_queue")
        buffer = _row(space.buffered.vectors, decode_queue, "decode_queue")
        if len(contents) != space.clusters.shape[1]:
            raise InputError(f"gpus: expected {space.clusters.shape[1]} GPUs, got {len(contents)}")
        found = []
        while True:
            order = np.argsort(contents, kind="stable")
            move = self._choice[space.cluster_number(contents), queue, buffer]
            if move == len(self._moves):
                return found
            kind, i = self._moves[move].kind, self._moves[move].request_class
            here = NONE if kind == DROP else int(order[self._moves[move].gpu])
            if kind == "start":
                contents[here], queue = gpu.start[contents[here], i], space.waiting.minus[queue, i]
            else:
                buffer = space.buffered.minus[buffer, i]
                contents[here] = contents[here] if kind == DROP else gpu.place[contents[here], i]
            found.append(Move(kind, here, i))

    def _content(self, prefill: int | None, decodes: Sequence[int]) -> int:
        """The number of a GPU's content."""
        gpu = self._space.gpu
        running = gpu.prefill == (NONE if prefill is None else prefill)
        table = np.where(running[:, None], gpu.decodes, NONE)
        return _row(table, decodes, "gpus")


def _row(table: Int[np.ndarray, "rows classes"], counts: Sequence[int], field: str) -> int:
    """Which row has these counts."""
    counts = list(counts)
    found = np.flatnonzero((table == counts).all(axis=1)) if len(counts) == table.shape[1] else []
    if not len(found):
        raise InputError(f"{field}: {counts} is not in the states of this cluster")
    return int(found[0])


def optimal_control(
    instance: Instance,
    n_gpus: Whole,
    *,
    queue_limit: Whole = 5,
    scheme: str | None = None,
    tolerance: float = 1e-5,
) -> Optimum:
    """The best non-preemptive control of a tiny cluster, exactly, by relative value iteration.

    After every event, abandonments included, the controller may start prefills of any waiting class on any
    GPU that runs none and has a free slot, and place requests that have completed their prefill on any GPU
    with a free slot or leave them in the decode buffer; as many in a row as it likes. It knows the whole
    state. A `Policy` decides less often and with less: none earns more.

    The prefill queue and the decode buffer are cut at `queue_limit` requests each (all classes together): an
    arrival to a full queue is lost, and a request that finds the buffer full must be placed, or one dropped.
    A controller of the true cluster can ignore as many, so the optimum grows with the limit to that of the
    true cluster; `Optimum.lost` shows whether it is near.

    **Arguments:**

    - `instance`: numbers on the host.
    - `n_gpus`: 1 or 2, or a few with small batches: the number of states grows fast.
    - `queue_limit`: see above; 5 loses little when patience rates are of the order of service rates.
    - `scheme`: the revenue, `"bundled"` or `"separate"`; the instance's own when None.
    - `tolerance`: relative distance between `lower` and `upper`.

    **Raises:** `InputError` for numbers out of range, an unknown scheme, or too many states.
    """
    size, scheme = Size.of(instance, n_gpus, queue_limit), checked_scheme(instance, scheme)
    if not tolerance > 0:
        raise InputError(f"tolerance: expected a positive number, got {tolerance:g}")
    space = space_of(size)
    control = control_of(instance, size, space, scheme)
    solution = solve(control, tolerance)
    rest, dropped = _settle(control, solution.choice, size)
    law = stationary_law(_rates(control, rest), "instance")
    # An event that leads to a drop turns that request away, like an arrival to a full queue.
    drops = np.array([(control.rate * gone[control.target]).sum(axis=0) for gone in dropped])
    return Optimum(
        value=float(law @ control.reward) / n_gpus,
        lower=solution.lower / n_gpus,
        upper=solution.upper / n_gpus,
        states=control.sizes[0],
        sweeps=solution.ticks,
        lost=(control.lost + drops) @ law / n_gpus,
        _space=space,
        _moves=control.moves,
        _choice=solution.choice.reshape(len(space.clusters), space.waiting.size, space.buffered.size),
    )


def checked_scheme(instance: Instance, scheme: str | None) -> str:
    """The scheme, or the instance's own.

    **Raises:** `InputError` for an unknown one.
    """
    scheme = instance.pricing.scheme if scheme is None else scheme
    if scheme not in SCHEMES:
        raise InputError(f"scheme: expected one of {', '.join(SCHEMES)}, got {scheme!r}")
    return scheme


def _settle(
    control: Control, choice: np.ndarray, size: Size
) -> tuple[Int[np.ndarray, " decisions"], Bool[np.ndarray, "classes decisions"]]:
    """The resting state to which the chosen moves lead from each state, and the classes of which they drop
    a request."""
    table = np.concatenate([control.after, control.drop])
    state = np.arange(control.sizes[1])
    dropped = np.zeros((size.classes, control.sizes[1]), bool)
    # Every move but a drop fills a slot, and one drop at most brings the buffer back to its limit.
    for _ in range(size.n_gpus * size.batch_size + 1):
        move = choice[state]
        dropped |= move - len(control.after) == np.arange(size.classes)[:, None]
        state = np.where(move < len(table), table[np.minimum(move, len(table) - 1), state], state)
    return control.rest[state], dropped


def _rates(control: Control, rest: np.ndarray) -> sparse.csr_array:
    """Transition rates among resting states when events are followed by the chosen moves."""
    states = control.sizes[0]
    source = np.broadcast_to(np.arange(states), control.rate.shape)
    entries = (control.rate.ravel(), (source.ravel(), rest[control.target].ravel()))
    rates = sparse.csr_array(entries, shape=(states, states))
    rates.eliminate_zeros()
    return rates
