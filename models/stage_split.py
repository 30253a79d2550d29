"""The assignment of layers to pipeline stages and ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from models.config import GPTConfig

T = TypeVar("T")


def split_balanced(costs: Sequence[float], stages: int) -> list[range]:
    """Split items 0, 1, ... into ``stages`` ranges of at least one item, so that the largest sum of
    ``costs`` in a range is minimal.

    Solves the linear partition problem by dynamic programming over the last boundary. Of equal
    solutions it returns the one with the earliest boundaries.
    """
    n = len(costs)
    assert 1 <= stages <= n, f"{n} layers over {stages} stages"
    before = [0.0]
    for cost in costs:
        before.append(before[-1] + cost)
    worst = [[float("inf")] * (n + 1) for _ in range(stages + 1)]
    last_boundary = [[0] * (n + 1) for _ in range(stages + 1)]
    worst[0][0], slack = 0.0, 1e-9 * before[n]
    for stage in range(1, stages + 1):
        for stop in range(stage, n - (stages - stage) + 1):
            for start in range(stop - 1, stage - 2, -1):
                last = before[stop] - before[start]
                if last > worst[stage][stop] + slack:
                    break
                here = max(worst[stage - 1][start], last)
                if here <= worst[stage][stop] + slack:
                    worst[stage][stop], last_boundary[stage][stop] = here, start
    runs: list[range] = []
    stop = n
    for stage in range(stages, 0, -1):
        start = last_boundary[stage][stop]
        runs.append(range(start, stop))
        stop = start
    return runs[::-1]


def virtual_stages(config: GPTConfig, length: int, stages: int, *, balanced: bool) -> list[range]:
    """Return the layers of each virtual stage: equal numbers of blocks or, if ``balanced``, equal
    work, with the head counted on the last stage. Samples have ``length`` tokens."""
    costs = [1.0] * config.n_layer
    if balanced:
        costs[-1] += head_cost(config, length)
    return split_balanced(costs, stages)


def head_cost(config: GPTConfig, length: int) -> float:
    """Return the matmul FLOPs of the head for one token, as a multiple of a block's: n_embd x
    vocabulary over qkv, proj, fc, proj and attention's two products (Narayanan et al. 2021,
    appendix). Lookups cost nothing."""
    width = config.n_head * config.head_dim
    block = 4 * config.n_embd * width + 2 * config.n_embd * config.n_inner + 2 * length * width
    return config.n_embd * config.vocab_size / block


def chunks_of(stages: Sequence[T], rank: int, ranks: int) -> list[T]:
    """Return the virtual stages of ``rank``: stage v is on rank v % ``ranks``."""
    return list(stages[rank::ranks])
