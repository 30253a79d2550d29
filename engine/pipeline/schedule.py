"""Pipeline schedules: the order of a rank's work on its micro-batches. Pure Python, no processes.

A schedule is a list of actions per rank; engine/pipeline/p2p.py derives the messages between ranks
from it. Virtual stage v of p x chunks is chunk v // p of rank v % p.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Literal

ActionKind = Literal["forward", "backward", "backward_input", "backward_weight"]


@dataclass(frozen=True, kw_only=True)
class Action:
    """A pass of a micro-batch (from 0) through a chunk (from 0) of the rank's layers.

    ``backward`` is both halves at once: ``backward_input``, the gradient of the chunk's input,
    which the previous stage needs, and ``backward_weight``, the gradients of the parameters.
    """

    kind: ActionKind
    micro_batch: int
    chunk: int = 0


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Times of the passes of one micro-batch through one virtual stage, in any unit."""

    forward: float = 1.0
    backward_input: float = 1.0
    backward_weight: float = 1.0

    def of(self, kind: ActionKind) -> float:
        """Return the time of an action."""
        match kind:
            case "forward":
                return self.forward
            case "backward":
                return self.backward_input + self.backward_weight
            case "backward_input":
                return self.backward_input
            case "backward_weight":
                return self.backward_weight


@dataclass(frozen=True, kw_only=True)
class PipelineShape:
    """The sizes of a pipeline: p ranks, m micro-batches per step, chunks per rank."""

    ranks: int
    micro_batches: int
    chunks: int = 1

    @property
    def virtual_stages(self) -> int:
        return self.ranks * self.chunks


def gpipe(shape: PipelineShape, rank: int) -> list[Action]:
    """Return the GPipe order (Huang et al. 2019): all forwards, then all backwards. A rank stores
    the activations of m micro-batches.

    Timetable for p = 4, m = 4; a column is a unit of time.
    F0: forward of micro-batch 0, 1 unit. B0: backward, 2 units.
    Every rank is idle (.) in 9 of 21 units.

        rank 0  F0 F1 F2 F3  .  .  .  .  .  .  .  .  . B0 B0 B1 B1 B2 B2 B3 B3
        rank 1   . F0 F1 F2 F3  .  .  .  .  .  . B0 B0 B1 B1 B2 B2 B3 B3  .  .
        rank 2   .  . F0 F1 F2 F3  .  .  . B0 B0 B1 B1 B2 B2 B3 B3  .  .  .  .
        rank 3   .  .  . F0 F1 F2 F3 B0 B0 B1 B1 B2 B2 B3 B3  .  .  .  .  .  .
    """
    every = range(shape.micro_batches)
    forward = [Action(kind="forward", micro_batch=n) for n in every]
    return forward + [Action(kind="backward", micro_batch=n) for n in every]


def one_f_one_b(shape: PipelineShape, rank: int) -> list[Action]:
    """Return the 1F1B order (Narayanan et al. 2019, PipeDream-Flush). A rank stores the activations
    of at most p - rank micro-batches.

    Timetable for p = 4, m = 4; a column is a unit of time.
    F0: forward of micro-batch 0, 1 unit. B0: backward, 2 units.
    Every rank is idle (.) in 9 of 21 units.

        rank 0  F0 F1 F2 F3  .  .  .  .  .  . B0 B0  . B1 B1  . B2 B2  . B3 B3
        rank 1   . F0 F1 F2  .  .  .  . B0 B0 F3 B1 B1  . B2 B2  . B3 B3  .  .
        rank 2   .  . F0 F1  .  . B0 B0 F2 B1 B1 F3 B2 B2  . B3 B3  .  .  .  .
        rank 3   .  .  . F0 B0 B0 F1 B1 B1 F2 B2 B2 F3 B3 B3  .  .  .  .  .  .
    """
    num_warmup = min(shape.ranks - rank - 1, shape.micro_batches)
    return _alternate(
        [Action(kind="forward", micro_batch=n) for n in range(shape.micro_batches)],
        [Action(kind="backward", micro_batch=n) for n in range(shape.micro_batches)],
        num_warmup,
    )


def interleaved(shape: PipelineShape, rank: int) -> list[Action]:
    """Return the interleaved 1F1B order (Narayanan et al. 2021, section 2.2), whose bubble is
    smaller by the factor ``chunks``.

    Groups of p micro-batches run through all chunks; m is a multiple of p.

    Timetable for p = 2, m = 4, 2 chunks (the second in lower case); a column is a unit of time.
    F0: forward of micro-batch 0, 1 unit. B0: backward, 2 units.
    Every rank is idle (.) in 3 of 27 units.

        rank 0  F0 F1 f0 f1 F2  . b0 b0 F3 b1 b1 f2 B0 B0 f3 B1 B1  . b2 b2  . b3 b3 B2 B2 B3 B3
        rank 1   . F0 F1 f0 b0 b0 f1 b1 b1 F2 B0 B0 F3 B1 B1 f2 b2 b2 f3 b3 b3 B2 B2 B3 B3  .  .
    """
    p, chunks, total = shape.ranks, shape.chunks, shape.micro_batches * shape.chunks
    assert shape.micro_batches % p == 0, f"{shape.micro_batches} micro-batches over {p} ranks"

    def action(kind: ActionKind, virtual_microbatch: int) -> Action:
        group, within = divmod(virtual_microbatch, p * chunks)
        chunk, position = divmod(within, p)
        if kind == "backward":
            chunk = chunks - 1 - chunk
        return Action(kind=kind, micro_batch=group * p + position, chunk=chunk)

    num_warmup = min(2 * (p - rank - 1) + (chunks - 1) * p, total)
    return _alternate(
        [action("forward", virtual_microbatch) for virtual_microbatch in range(total)],
        [action("backward", virtual_microbatch) for virtual_microbatch in range(total)],
        num_warmup,
    )


def zero_bubble(shape: PipelineShape, rank: int) -> list[Action]:
    """Return the ZB-H1 order (Qi et al. 2023, section 2.3): 1F1B with weight gradients deferred
    into its bubble.

    Rank r defers weight gradients by r micro-batches, so that every rank stores the activations of
    at most p micro-batches, as rank 0 does in 1F1B. For equal halves and m >= p the bubble is
    (p - 1) / (3 m + p - 1).

    Timetable for p = 4, m = 4; a column is a unit of time.
    F0: forward of micro-batch 0. I0, W0: gradients of input and weights. 1 unit each.
    Every rank is idle (.) in 3 of 15 units.

        rank 0  F0 F1 F2 F3  .  .  . I0 W0 I1 W1 I2 W2 I3 W3
        rank 1   . F0 F1 F2  .  . I0 F3 I1 W0 I2 W1 I3 W2 W3
        rank 2   .  . F0 F1  . I0 F2 I1 F3 I2 W0 I3 W1 W2 W3
        rank 3   .  .  . F0 I0 F1 I1 F2 I2 F3 I3 W0 W1 W2 W3
    """
    m, num_warmup = shape.micro_batches, min(shape.ranks - rank - 1, shape.micro_batches)
    order = [Action(kind="forward", micro_batch=n) for n in range(num_warmup)]
    for n in range(m):
        if n + num_warmup < m:
            order.append(Action(kind="forward", micro_batch=n + num_warmup))
        order.append(Action(kind="backward_input", micro_batch=n))
        if n >= rank:
            order.append(Action(kind="backward_weight", micro_batch=n - rank))
    return order + [
        Action(kind="backward_weight", micro_batch=n) for n in range(max(0, m - rank), m)
    ]


SCHEDULES: dict[str, Callable[[PipelineShape, int], list[Action]]] = {
    "gpipe": gpipe,
    "1f1b": one_f_one_b,
    "interleaved": interleaved,
    "zero_bubble": zero_bubble,
}
"""Name -> schedule. A table rather than discovered modules: "1f1b" is no name of a module."""


def actions(name: str, shape: PipelineShape, rank: int) -> list[Action]:
    """Return the actions of ``rank`` in a step, in order. A single rank always uses 1F1B, which
    stores the fewest activations: it never waits for another rank."""
    return SCHEDULES["1f1b" if shape.ranks == 1 else name](shape, rank)


def simulate(
    orders: Sequence[Sequence[Action]], simulator: ScheduleSimulator
) -> Iterator[tuple[int, Action]]:
    """Run the actions of all ranks, ``orders``, in ``simulator``, and yield (rank, action) in the
    order in which the actions start."""
    queues = [deque(order) for order in orders]
    ready: list[tuple[float, int]] = []
    waiting = set(range(len(queues)))

    def update_ready(rank: int) -> None:
        """Move a waiting rank to ``ready`` if its next action can start."""
        if rank in waiting and queues[rank]:
            start = simulator.starts(rank, queues[rank][0])
            if start is not None:
                heappush(ready, (start, rank))
                waiting.remove(rank)

    for rank in range(len(queues)):
        update_ready(rank)
    while ready:
        start, rank = heappop(ready)
        action = queues[rank].popleft()
        simulator.run(rank, action, start)
        yield rank, action
        waiting.add(rank)
        for near in (rank - 1, rank, rank + 1):  # the ranks of the neighbouring stages
            update_ready(near % len(queues))
    assert not any(queues), "the schedule deadlocks"


def idle_fraction(
    orders: Sequence[Sequence[Action]], costs: Sequence[Costs], shape: PipelineShape
) -> float:
    """Simulate the schedule ``orders`` and return its bubble. ``costs``: of each virtual stage.

    Messages take no time.
    """
    simulator = ScheduleSimulator(shape, costs)
    for _ in simulate(orders, simulator):
        pass
    return simulator.idle_fraction


def ideal_bubble(schedule: str, shape: PipelineShape) -> float:
    """Return the bubble of a schedule of equal stages: (p - 1) / (v m + p - 1).

    v is the number of chunks (Narayanan et al. 2021, section 2.2). It is 3 for the zero-bubble
    schedule, which fills the bubble with weight gradients, a third of the work (Qi et al. 2023).
    """
    v = 3 if schedule == "zero_bubble" else shape.chunks
    return (shape.ranks - 1) / (v * shape.micro_batches + shape.ranks - 1)


class ScheduleSimulator:
    """Computes the times at which the actions of all ranks start and end."""

    def __init__(self, shape: PipelineShape, costs: Sequence[Costs]) -> None:
        self.shape, self.costs = shape, costs
        self.free = [0.0] * shape.ranks
        self.busy = [0.0] * shape.ranks
        self.done: dict[tuple[str, int, int], float] = {}

    @property
    def idle_fraction(self) -> float:
        """Return the bubble: the fraction of p x makespan in which ranks are idle."""
        return 1 - sum(self.busy) / (self.shape.ranks * max(self.free))

    def _needs(self, rank: int, action: Action) -> list[tuple[str, int, int]]:
        """Return the actions that must end before ``action`` starts, as (kind, virtual stage,
        micro-batch)."""
        stage, last = self._stage(rank, action), self.shape.virtual_stages - 1
        micro = action.micro_batch
        if action.kind == "forward":
            return [("forward", stage - 1, micro)] if stage else []
        if action.kind == "backward_weight":
            return [("backward_input", stage, micro)]
        next_stage = [("backward_input", stage + 1, micro)] if stage < last else []
        return [("forward", stage, micro), *next_stage]

    def _stage(self, rank: int, action: Action) -> int:
        return action.chunk * self.shape.ranks + rank

    def starts(self, rank: int, action: Action) -> float | None:
        """Return the earliest start of ``action``; None if another action that it needs has not
        run."""
        start = self.free[rank]
        for need in self._needs(rank, action):
            end = self.done.get(need)
            if end is None:
                return None
            start = max(start, end)
        return start

    def run(self, rank: int, action: Action, start: float) -> None:
        """Record that ``rank`` runs ``action`` from time ``start`` on."""
        stage = self._stage(rank, action)
        cost = self.costs[stage].of(action.kind)
        end = start + cost
        kind = "backward_input" if action.kind == "backward" else action.kind
        # The previous stage needs only the input's gradient, but a backward sends it at its end.
        self.done[kind, stage, action.micro_batch] = end
        self.free[rank], self.busy[rank] = end, self.busy[rank] + cost


def _alternate(forward: list[Action], backward: list[Action], num_warmup: int) -> list[Action]:
    """Return ``num_warmup`` forwards, then forwards and backwards in turn, then the remaining
    backwards."""
    order = forward[:num_warmup]
    for pair in zip(forward[num_warmup:], backward, strict=False):
        order += pair
    return order + backward[len(forward) - num_warmup :]
