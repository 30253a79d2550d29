"""Which layers a pipeline rank holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from models.config import GPTConfig

T = TypeVar("T")


def split_balanced(costs: Sequence[float], stages: int) -> list[range]:
    """Items 0, 1, ... with ``costs``, cut into ``stages`` runs whose largest sum is as small as can
    be, every run holding at least one item.

    By dynamic programming over the last cut (the linear partition problem); of equal answers, the
    one with the earliest cuts.
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
    """The layers of each virtual stage: as many blocks in each, or, ``balanced``, as much work,
    the head counted with the last. Samples are ``length`` tokens long."""
    costs = [1.0] * config.n_layer
    if balanced:
        costs[-1] += head_cost(config, length)
    return split_balanced(costs, stages)


def head_cost(config: GPTConfig, length: int) -> float:
    """Matmuls of the head for a token, in units of a block's: n_embd x vocabulary against qkv,
    proj, fc, proj and attention's two products (Narayanan et al. 2021, appendix). Lookups are
    free."""
    width = config.n_head * config.head_dim
    block = 4 * config.n_embd * width + 2 * config.n_embd * config.n_inner + 2 * length * width
    return config.n_embd * config.vocab_size / block


def chunks_of(stages: Sequence[T], rank: int, ranks: int) -> list[T]:
    """Those of the virtual stages that are a rank's: v lives on rank v % p."""
    return list(stages[rank::ranks])
