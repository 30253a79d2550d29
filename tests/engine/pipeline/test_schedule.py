"""Schedules without processes: every action once, in a valid order, with the known bubble."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest

from engine.pipeline.p2p import P2POp, insert_p2p
from engine.pipeline.schedule import (
    SCHEDULES,
    Action,
    Costs,
    PipelineShape,
    actions,
    ideal_bubble,
    idle_fraction,
)

SHAPES = [
    PipelineShape(ranks=p, micro_batches=m) for p, m in product((1, 2, 3, 4, 8), (1, 2, 4, 8, 24))
]
CHUNKED = [
    PipelineShape(ranks=p, micro_batches=m * p, chunks=c)
    for p, m, c in product((2, 4), (1, 2, 3), (2, 3))
]


def orders(name: str, shape: PipelineShape) -> list[list[Action]]:
    return [actions(name, shape, rank) for rank in range(shape.ranks)]


def shapes(name: str) -> list[PipelineShape]:
    return CHUNKED if name == "interleaved" else SHAPES


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_micro_batch_runs_forward_and_backward_once_in_every_chunk(name: str) -> None:
    for shape in shapes(name):
        expected = {(n, c) for n in range(shape.micro_batches) for c in range(shape.chunks)}
        for order in orders(name, shape):
            for half in ("forward", "backward_input", "backward_weight"):
                kinds = {half, "backward"} - ({"backward"} if half == "forward" else set())
                did = [(a.micro_batch, a.chunk) for a in order if a.kind in kinds]
                assert sorted(did) == sorted(expected), (shape, half)


@pytest.mark.parametrize("name", SCHEDULES)
def test_no_schedule_deadlocks(name: str) -> None:
    """The simulation asserts that some rank can always continue."""
    for shape in shapes(name):
        costs = [Costs()] * (shape.ranks * shape.chunks)
        assert 0 <= idle_fraction(orders(name, shape), costs, shape) < 1


@pytest.mark.parametrize("name", ["gpipe", "1f1b"])
def test_the_bubble_equals_the_published_formula(name: str) -> None:
    for shape in SHAPES:
        p, m = shape.ranks, shape.micro_batches
        found = idle_fraction(orders(name, shape), [Costs()] * p, shape)
        assert found == pytest.approx((p - 1) / (m + p - 1))


def test_the_interleaved_bubble_shrinks_by_the_number_of_chunks() -> None:
    for shape in CHUNKED:
        p, m, c = shape.ranks, shape.micro_batches, shape.chunks
        found = idle_fraction(orders("interleaved", shape), [Costs()] * (p * c), shape)
        assert found == pytest.approx((p - 1) / (c * m + p - 1))


def test_zero_bubble_schedule_has_a_third_of_the_bubble() -> None:
    for shape in SHAPES:
        p, m = shape.ranks, shape.micro_batches
        if m >= p:
            found = idle_fraction(orders("zero_bubble", shape), [Costs()] * p, shape)
            assert found == pytest.approx((p - 1) / (3 * m + p - 1))


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_ideal_bubble_equals_the_simulated_bubble(name: str) -> None:
    for shape in shapes(name):
        if shape.micro_batches >= shape.ranks:
            costs = [Costs()] * (shape.ranks * shape.chunks)
            simulated = idle_fraction(orders(name, shape), costs, shape)
            assert ideal_bubble(name, shape) == pytest.approx(simulated)


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("gpipe", lambda shape, rank: 1 if shape.ranks == 1 else shape.micro_batches),
        ("1f1b", lambda shape, rank: min(shape.ranks - rank, shape.micro_batches)),
        ("zero_bubble", lambda shape, rank: min(shape.ranks, shape.micro_batches)),
    ],
)
def test_a_rank_stores_at_most_the_micro_batches_of_its_schedule(
    name: str, most: Callable[[PipelineShape, int], int]
) -> None:
    for shape in SHAPES:
        for rank, order in enumerate(orders(name, shape)):
            held = peak = 0
            for action in order:
                held += (action.kind == "forward") - (
                    action.kind in ("backward", "backward_weight")
                )
                peak = max(peak, held)
            assert peak == most(shape, rank), (shape, rank)


@pytest.mark.parametrize("name", SCHEDULES)
def test_two_ranks_issue_their_messages_in_the_same_order(name: str) -> None:
    for shape in shapes(name):
        lists = insert_p2p(orders(name, shape), shape)
        for a, b in product(range(shape.ranks), repeat=2):
            if a != b:
                assert messages(lists, shape, a, b) == messages(lists, shape, b, a)


@pytest.mark.parametrize("name", SCHEDULES)
def test_an_action_follows_its_receive_and_precedes_its_send(name: str) -> None:
    for shape in shapes(name):
        last = shape.ranks * shape.chunks - 1
        for rank, plan in enumerate(insert_p2p(orders(name, shape), shape)):
            received: set[tuple[str, int, int]] = set()
            made: set[tuple[str, int, int]] = set()
            for item in plan:
                if isinstance(item, P2POp):
                    key: tuple[str, int, int] = (item.payload, item.micro_batch, item.chunk)
                    assert item.direction == "receive" or key in made
                    received |= {key} if item.direction == "receive" else set()
                    continue
                stage = item.chunk * shape.ranks + rank
                kind = "forward" if item.kind == "forward" else "backward_input"
                key = (kind, item.micro_batch, item.chunk)
                first_of_all = stage == (0 if kind == "forward" else last)
                assert item.kind == "backward_weight" or first_of_all or key in received
                made.add(key)


def messages(
    lists: list[list[Action | P2POp]], shape: PipelineShape, rank: int, peer: int
) -> list[tuple[str, int, int, int]]:
    """(what, micro-batch, virtual stage of the sender, sending rank), as ``rank`` lists them."""
    found: list[tuple[str, int, int, int]] = []
    for item in lists[rank]:
        if isinstance(item, P2POp) and item.peer == peer:
            stage = item.chunk * shape.ranks + rank
            if item.direction == "receive":
                stage += -1 if item.payload == "forward" else 1
            found.append(
                (item.payload, item.micro_batch, stage, rank if item.direction == "send" else peer)
            )
    return found


def test_a_slow_stage_makes_the_other_ranks_idle() -> None:
    shape = PipelineShape(ranks=2, micro_batches=4)
    even = idle_fraction(orders("1f1b", shape), [Costs(), Costs()], shape)
    heavy = Costs(forward=2, backward_input=2, backward_weight=2)
    assert idle_fraction(orders("1f1b", shape), [Costs(), heavy], shape) > even
