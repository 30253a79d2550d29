"""The messages of a pipeline schedule: sends and receives between the actions of every rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from engine.pipeline.schedule import Action, Costs, PipelineShape, ScheduleSimulator, simulate


@dataclass(frozen=True, kw_only=True)
class P2POp:
    """One end of a message between virtual stages."""

    direction: Literal["send", "receive"]
    payload: Literal["forward", "backward_input"]
    """The pass whose result is sent: an activation or its gradient."""
    micro_batch: int
    chunk: int
    """The chunk of this rank that sends or receives."""
    peer: int
    """The rank at the other end of the message."""


def insert_p2p(
    orders: Sequence[Sequence[Action]], shape: PipelineShape
) -> list[list[Action | P2POp]]:
    """Insert the sends and receives into the actions of every rank, ``orders``, and return the
    lists.

    A simulated run appends the send to one rank's list and the receive to the other's at the same
    time. So both ranks of a pair issue their messages in the same order; otherwise NCCL deadlocks.
    A receive is placed before the action that needs it, as early as the message can be sent.
    """
    p, stages = shape.ranks, shape.virtual_stages
    timelines: list[list[Action | P2POp]] = [[] for _ in orders]

    def send(rank: int, action: Action) -> None:
        """If another virtual stage needs the result of ``action``, append the send and the receive
        to the lists of their ranks."""
        payload: Literal["forward", "backward_input"] = (
            "forward" if action.kind == "forward" else "backward_input"
        )
        sender = action.chunk * p + rank  # a virtual stage
        receiver = sender + (1 if payload == "forward" else -1)
        if action.kind == "backward_weight" or not 0 <= receiver < stages:
            return
        ends: list[tuple[Literal["send", "receive"], int, int]] = [
            ("send", sender, receiver),
            ("receive", receiver, sender),
        ]
        for direction, stage, other in ends:
            timelines[stage % p].append(
                P2POp(
                    direction=direction,
                    payload=payload,
                    micro_batch=action.micro_batch,
                    chunk=stage // p,
                    peer=other % p,
                )
            )

    for rank, action in simulate(orders, ScheduleSimulator(shape, [Costs()] * stages)):
        timelines[rank].append(action)
        send(rank, action)
    return timelines
