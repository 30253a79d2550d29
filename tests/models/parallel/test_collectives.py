"""Collectives: their results against the definitions, and their counts of bytes sent."""

from __future__ import annotations

from functools import cache
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from models.parallel.collectives import Axis, Traffic, gather, scatter
from models.parallel.tuning import SMALL_BYTES
from tests.support.training import process_group
from tests.support.worlds import run_world

SHAPES = [(1,), (5,), (4, 3), (0, 4), (2, 0)]
LARGE = SMALL_BYTES // 8 + 7  # float64: above the limit, and not divisible by the ranks


def world_axis(rank: int, size: int) -> Axis:
    group = process_group(tuple(range(size)))
    return Axis(name="a", size=size, index=rank, group=group, traffic=Traffic())


def mine(rank: int, *shape: int) -> Tensor:
    """Draw the input of a rank; any rank can draw any other's."""
    generator = torch.Generator().manual_seed(100 + rank)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def check(rank: int, size: int) -> dict[str, Any]:
    """Check all collectives on this rank; return the traffic of calls on known sizes."""
    axis = world_axis(rank, size)
    for shape in SHAPES:
        everyone = torch.stack([mine(r, *shape) for r in range(size)])
        x = mine(rank, *shape)
        assert torch.equal(axis.all_gather(x), everyone)
        assert torch.equal(x, mine(rank, *shape)), "the input is not modified"
        blocks = torch.stack([mine(r, size, *shape) for r in range(size)])
        torch.testing.assert_close(
            axis.reduce_scatter(mine(rank, size, *shape)), blocks.sum(0)[rank]
        )
        total = axis.all_reduce(x)
        assert total is x
        torch.testing.assert_close(total, everyone.sum(0))
    for length in (1, size - 1, size, SMALL_BYTES // 8, LARGE, 3 * LARGE + 1):
        total = axis.all_reduce(mine(rank, length))
        torch.testing.assert_close(total, sum(mine(r, length) for r in range(size)))
        copies: list[Any] = [None] * size
        dist.all_gather_object(copies, total)
        assert all(torch.equal(copy, total) for copy in copies), "all ranks get the same bits"
    turned = mine(rank, 4, 6).t()
    assert torch.equal(axis.all_gather(turned)[rank], turned)
    overlapping(axis, rank, size)
    swapping(axis, rank, size)
    matrices(axis, rank, size)
    return counted(axis)


def overlapping(axis: Axis, rank: int, size: int) -> None:
    """Check that concurrent asynchronous sums, with a gather in between, do not mix."""
    sums = [mine(rank, n) for n in (3, LARGE, 5, LARGE + 1)]
    handles = [axis.start_all_reduce(x) for x in sums]
    assert torch.equal(
        axis.all_gather(mine(rank, 2)), torch.stack([mine(r, 2) for r in range(size)])
    )
    for handle in handles:
        handle.wait()
    for x in sums:
        torch.testing.assert_close(x, sum(mine(r, len(x)) for r in range(size)))


def swapping(axis: Axis, rank: int, size: int) -> None:
    """Check a swap of ranks 0 and 2; the others are their own peers."""
    peer = {0: 2, 2: 0}.get(rank, rank)
    assert torch.equal(axis.swap(mine(rank, 2, 3).t(), peer), mine(peer, 2, 3).t())


def matrices(axis: Axis, rank: int, size: int) -> None:
    """Check gather and scatter of [T, H] matrices: the blocks are in the order of the ranks."""
    xs = [mine(r, 2, 5) for r in range(size)]
    assert torch.equal(gather(xs[rank], axis, "T"), torch.cat(xs, 0))
    assert torch.equal(gather(xs[rank], axis, "H"), torch.cat(xs, 1))
    tall, wide = mine(rank, 2 * size, 5), mine(rank, 2, 5 * size)
    total = torch.stack([mine(r, 2 * size, 5) for r in range(size)]).sum(0)
    torch.testing.assert_close(scatter(tall, axis, "T"), total[2 * rank : 2 * rank + 2])
    total = torch.stack([mine(r, 2, 5 * size) for r in range(size)]).sum(0)
    torch.testing.assert_close(scatter(wide, axis, "H"), total[:, 5 * rank : 5 * rank + 5])


def counted(axis: Axis) -> dict[str, Any]:
    axis.traffic.reset()
    axis.all_gather(torch.ones(10))
    axis.all_gather(torch.ones(10, dtype=torch.bfloat16))
    axis.reduce_scatter(torch.ones(axis.size, 10))
    axis.all_reduce(torch.ones(10))
    axis.all_reduce(torch.ones(6 * SMALL_BYTES))
    return {"calls": dict(axis.traffic.calls), "bytes": dict(axis.traffic.bytes)}


@cache
def checked(size: int) -> list[dict[str, Any]]:
    return run_world(size, check)


@pytest.mark.parametrize("size", [3, 4])
def test_collectives_equal_their_definitions(size: int) -> None:
    assert len(checked(size)) == size


@pytest.mark.parametrize("size", [3, 4])
def test_bytes_sent_equal_those_of_the_optimal_algorithms(size: int) -> None:
    """all_gather and reduce_scatter send (n - 1) / n of the whole tensor, all_reduce twice that;
    a small all_reduce sends the whole tensor to every other rank (fewer messages)."""
    for traffic in checked(size):
        calls = {"all_gather": 2, "reduce_scatter": 1, "all_reduce": 2}
        assert traffic["calls"] == {("a", name): n for name, n in calls.items()}
        sent = traffic["bytes"]
        assert sent["a", "all_gather"] == (size - 1) * (40 + 20)
        assert sent["a", "reduce_scatter"] == (size - 1) * 40
        assert (
            sent["a", "all_reduce"] == (size - 1) * 40 + 2 * (size - 1) * 24 * SMALL_BYTES // size
        )


def reduce_and_swap_by_device(rank: int, size: int) -> None:
    """Check the copies to the GPU, with a clone in place of Tensor.cuda and gloo as NCCL."""
    axis = world_axis(rank, size)
    copies: list[Tensor] = []

    def copy(x: Tensor) -> Tensor:
        copies.append(x.clone())
        return copies[-1]

    with (
        patch.object(dist, "get_backend", lambda group: "nccl"),
        patch.object(Tensor, "cuda", copy),
    ):
        x = mine(rank, 5)
        assert axis.all_reduce(x) is x
        torch.testing.assert_close(x, sum(mine(r, 5) for r in range(size)))
        assert torch.equal(axis.swap(mine(rank, 3), 1 - rank), mine(1 - rank, 3))
    assert len(copies) == 2


def test_cpu_tensors_are_copied_to_the_gpu_for_nccl() -> None:
    """Gradients of offloaded weights are on the CPU: they are summed over the depth axis, and those
    of tied embeddings are swapped."""
    run_world(2, reduce_and_swap_by_device)


def test_collectives_of_one_rank_copy_and_count_nothing() -> None:
    axis = Axis(name="a", size=1, index=0, group=None, traffic=Traffic())
    x = torch.arange(6.0).view(1, 6)
    assert torch.equal(axis.all_gather(x), x.unsqueeze(0))
    assert torch.equal(axis.reduce_scatter(x), x[0])
    assert axis.all_reduce(x) is x
    assert axis.swap(x, 0) is x
    assert gather(x, None, "H") is x
    assert scatter(x, None, "T") is x
    assert not axis.traffic.calls
