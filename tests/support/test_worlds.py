"""The helper run_world: results by rank, errors with rank and reason, no remaining process."""

import multiprocessing
import os
import time

import pytest
import torch
import torch.distributed as dist

from tests.support.worlds import WorldError, run_world


def _sum(rank: int, size: int, scale: float) -> tuple[int, torch.Tensor]:
    x = torch.full((2,), float(rank)) * scale
    dist.all_reduce(x)
    return rank, x


def _fail_on_one(rank: int, size: int) -> None:
    if rank == 1:
        raise ValueError("rank one's reason")
    dist.barrier()


def _die_on_one(rank: int, size: int) -> None:
    if rank == 1:
        os._exit(7)
    dist.barrier()


def _hang(rank: int, size: int) -> None:
    time.sleep(3600)


def _has_group(rank: int, size: int) -> bool:
    return dist.is_initialized()


def test_results_are_ordered_by_rank() -> None:
    results = run_world(3, _sum, 2.0)
    assert [rank for rank, _ in results] == [0, 1, 2]
    for _, x in results:
        torch.testing.assert_close(x, torch.tensor([6.0, 6.0]))


def test_error_names_the_first_failed_rank_and_its_reason() -> None:
    with pytest.raises(WorldError, match="rank one's reason") as caught:
        run_world(3, _fail_on_one)
    assert next(iter(caught.value.failures)) == 1


def test_dead_rank_is_named() -> None:
    with pytest.raises(WorldError) as caught:
        run_world(2, _die_on_one)
    assert caught.value.failures[1] == "died without a word"


def test_hanging_world_ends_at_the_timeout() -> None:
    with pytest.raises(WorldError, match="still running after 1 s"):
        run_world(2, _hang, timeout=1.0)
    assert not multiprocessing.active_children()


def test_world_without_a_group_has_no_process_group() -> None:
    assert run_world(2, _has_group, open_group=False) == [False, False]
