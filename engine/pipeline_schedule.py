"""The order in which a pipeline rank works on its micro-batches. Pure Python, no process needed.

A schedule is a list of actions for each rank; who sends what to whom follows from it. Virtual
stage v of p x chunks lives on rank v % p as its chunk v // p.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Literal

Kind = Literal["forward", "backward", "input", "weight"]


@dataclass(frozen=True, kw_only=True)
class Action:
    """One piece of work on a micro-batch (from 0) in a chunk (from 0) of the rank's layers.

    ``backward`` is both halves at once: ``input``, the gradient that the stage before waits for,
    and ``weight``, the gradients of the parameters, which nobody waits for.
    """

    kind: Kind
    micro_batch: int
    chunk: int = 0


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """One end of a message between virtual stages: the output of a ``forward`` or the gradient of
    an ``input``, of a micro-batch, to or from the chunk of this rank."""

    way: Literal["send", "receive"]
    of: Literal["forward", "input"]
    micro_batch: int
    chunk: int
    peer: int


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Seconds, or any unit, of a micro-batch's work in one virtual stage."""

    forward: float = 1.0
    input: float = 1.0
    weight: float = 1.0

    def of(self, kind: Kind) -> float:
        return self.input + self.weight if kind == "backward" else getattr(self, kind)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a schedule depends on: p ranks, m micro-batches a step, chunks a rank."""

    ranks: int
    micro_batches: int
    chunks: int = 1


def gpipe(shape: Shape, rank: int) -> list[Action]:
    """All forwards, then all backwards (Huang et al. 2019): m micro-batches are held at once."""
    every = range(shape.micro_batches)
    forward = [Action(kind="forward", micro_batch=n) for n in every]
    return forward + [Action(kind="backward", micro_batch=n) for n in every]


def one_f_one_b(shape: Shape, rank: int) -> list[Action]:
    """1F1B (Narayanan et al. 2019, PipeDream-Flush): at most p - rank micro-batches are held."""
    warm = min(shape.ranks - rank - 1, shape.micro_batches)
    return _alternate(
        [Action(kind="forward", micro_batch=n) for n in range(shape.micro_batches)],
        [Action(kind="backward", micro_batch=n) for n in range(shape.micro_batches)],
        warm,
    )


def interleaved(shape: Shape, rank: int) -> list[Action]:
    """Interleaved 1F1B (Narayanan et al. 2021, section 2.2): the bubble shrinks by ``chunks``.

    Micro-batches go in groups of p through all chunks; m is a multiple of p.
    """
    p, chunks, total = shape.ranks, shape.chunks, shape.micro_batches * shape.chunks
    assert shape.micro_batches % p == 0, f"{shape.micro_batches} micro-batches over {p} ranks"

    def action(kind: Kind, turn: int) -> Action:
        group, within = divmod(turn, p * chunks)
        chunk, place = divmod(within, p)
        if kind == "backward":
            chunk = chunks - 1 - chunk
        return Action(kind=kind, micro_batch=group * p + place, chunk=chunk)

    warm = min(2 * (p - rank - 1) + (chunks - 1) * p, total)
    return _alternate(
        [action("forward", turn) for turn in range(total)],
        [action("backward", turn) for turn in range(total)],
        warm,
    )


def zero_bubble(shape: Shape, rank: int) -> list[Action]:
    """ZB-H1 (Qi et al. 2023, section 2.3): 1F1B with weight gradients put off into its bubble.

    Rank r puts them off by r micro-batches, so that every rank holds p at most, as 1F1B's first
    does. For equal halves the idle fraction is (p - 1) / (3 m + p - 1), with m >= p.
    """
    m, warm = shape.micro_batches, min(shape.ranks - rank - 1, shape.micro_batches)
    order = [Action(kind="forward", micro_batch=n) for n in range(warm)]
    for n in range(m):
        if n + warm < m:
            order.append(Action(kind="forward", micro_batch=n + warm))
        order.append(Action(kind="input", micro_batch=n))
        if n >= rank:
            order.append(Action(kind="weight", micro_batch=n - rank))
    return order + [Action(kind="weight", micro_batch=n) for n in range(max(0, m - rank), m)]


SCHEDULES: dict[str, Callable[[Shape, int], list[Action]]] = {
    "gpipe": gpipe,
    "1f1b": one_f_one_b,
    "interleaved": interleaved,
    "zero_bubble": zero_bubble,
}


def actions(name: str, shape: Shape, rank: int) -> list[Action]:
    """What ``rank`` does in a step, in order. One that is alone waits for nobody: each micro-batch
    goes back as soon as it can."""
    return SCHEDULES["1f1b" if shape.ranks == 1 else name](shape, rank)


def with_transfers(
    orders: Sequence[Sequence[Action]], shape: Shape
) -> list[list[Action | Transfer]]:
    """Every rank's actions with its messages between them.

    A message is put into both ranks' lists at the same moment of a simulated run, so any two ranks
    see their messages in one order: what NCCL needs not to wait for itself. A receive stands before
    the action that waits for it, as early as its send can come.
    """
    p, stages = shape.ranks, shape.ranks * shape.chunks
    lists: list[list[Action | Transfer]] = [[] for _ in orders]

    def send(rank: int, action: Action) -> None:
        of: Literal["forward", "input"] = "forward" if action.kind == "forward" else "input"
        stage = action.chunk * p + rank
        to = stage + (1 if of == "forward" else -1)
        if action.kind == "weight" or not 0 <= to < stages:
            return
        for way, end, other in (("send", stage, to), ("receive", to, stage)):
            lists[end % p].append(
                Transfer(
                    way="send" if way == "send" else "receive",
                    of=of,
                    micro_batch=action.micro_batch,
                    chunk=end // p,
                    peer=other % p,
                )
            )

    for rank, action in simulate(orders, Clock(shape, [Costs()] * stages)):
        lists[rank].append(action)
        send(rank, action)
    return lists


def simulate(orders: Sequence[Sequence[Action]], clock: Clock) -> Iterator[tuple[int, Action]]:
    """Run all ranks' orders against ``clock``: (rank, action), by the time at which each starts."""
    queues = [deque(order) for order in orders]
    ready: list[tuple[float, int]] = []
    waiting = set(range(len(queues)))

    def look(rank: int) -> None:
        """Whether a rank can go on: nothing but its own work changes when."""
        if rank in waiting and queues[rank]:
            start = clock.starts(rank, queues[rank][0])
            if start is not None:
                heappush(ready, (start, rank))
                waiting.remove(rank)

    for rank in range(len(queues)):
        look(rank)
    while ready:
        start, rank = heappop(ready)
        action = queues[rank].popleft()
        clock.run(rank, action, start)
        yield rank, action
        waiting.add(rank)
        for near in (rank - 1, rank, rank + 1):  # who holds the stages beside
            look(near % len(queues))
    assert not any(queues), "the schedule waits for itself"


def idle_fraction(
    orders: Sequence[Sequence[Action]], costs: Sequence[Costs], shape: Shape
) -> float:
    """The bubble: the share of p x makespan in which ranks wait, for ``costs`` by virtual stage.

    For equal stages and 1F1B or GPipe it is (p - 1) / (m + p - 1), and with ``chunks`` c
    (p - 1) / (c m + p - 1) (Narayanan et al. 2021, section 2.2). Messages take no time.
    """
    clock = Clock(shape, costs)
    for _ in simulate(orders, clock):
        pass
    return 1 - sum(clock.busy) / (shape.ranks * max(clock.free))


class Clock:
    """When each action could end, as actions are run one after the other."""

    def __init__(self, shape: Shape, costs: Sequence[Costs]) -> None:
        self.shape, self.costs = shape, costs
        self.free = [0.0] * shape.ranks
        self.busy = [0.0] * shape.ranks
        self.done: dict[tuple[str, int, int], float] = {}

    def _needs(self, rank: int, action: Action) -> list[tuple[str, int, int]]:
        stage, last = self._stage(rank, action), self.shape.ranks * self.shape.chunks - 1
        micro = action.micro_batch
        if action.kind == "forward":
            return [("forward", stage - 1, micro)] if stage else []
        if action.kind == "weight":
            return [("input", stage, micro)]
        after = [("input", stage + 1, micro)] if stage < last else []
        return [("forward", stage, micro), *after]

    def _stage(self, rank: int, action: Action) -> int:
        return action.chunk * self.shape.ranks + rank

    def starts(self, rank: int, action: Action) -> float | None:
        """The earliest start; None while something it needs has not been run."""
        start = self.free[rank]
        for need in self._needs(rank, action):
            done = self.done.get(need)
            if done is None:
                return None
            start = max(start, done)
        return start

    def run(self, rank: int, action: Action, start: float) -> None:
        stage = self._stage(rank, action)
        cost = self.costs[stage].of(action.kind)
        end = start + cost
        kind = "input" if action.kind == "backward" else action.kind
        # The stage before waits for the input's gradient only, but a whole backward sends it last.
        self.done[kind, stage, action.micro_batch] = end
        self.free[rank], self.busy[rank] = end, self.busy[rank] + cost


def _alternate(forward: list[Action], backward: list[Action], warm: int) -> list[Action]:
    """``warm`` forwards, then one forward and one backward in turn, then what is left."""
    order = forward[:warm]
    for ahead, back in zip(forward[warm:], backward, strict=False):
        order += [ahead, back]
    return order + backward[len(forward) - warm :]
