"""Which layers a pipeline rank holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from models.config import Sizes

T = TypeVar("T")


def split(costs: Sequence[float], stages: int) -> list[range]:
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
    cut = [[0] * (n + 1) for _ in range(stages + 1)]
    worst[0][0], slack = 0.0, 1e-9 * before[n]
    for stage in range(1, stages + 1):
        for stop in range(stage, n - (stages - stage) + 1):
            for start in range(stop - 1, stage - 2, -1):
                last = before[stop] - before[start]
                if last > worst[stage][stop] + slack:
                    break
                here = max(worst[stage - 1][start], last)
                if here <= worst[stage][stop] + slack:
                    worst[stage][stop], cut[stage][stop] = here, start
    runs: list[range] = []
    stop = n
    for stage in range(stages, 0, -1):
        start = cut[stage][stop]
        runs.append(range(start, stop))
        stop = start
    return runs[::-1]


def virtual_stages(sizes: Sizes, length: int, stages: int, *, balanced: bool) -> list[range]:
    """The layers of each virtual stage: as many blocks in each, or, ``balanced``, as much work,
    the head counted with the last. Samples are ``length`` tokens long."""
    costs = [1.0] * sizes.n_layer
    if balanced:
        costs[-1] += head_cost(sizes, length)
    return split(costs, stages)


def head_cost(sizes: Sizes, length: int) -> float:
    """Matmuls of the head for a token, in units of a block's: n_embd x vocabulary against qkv,
    proj, fc, proj and attention's two products (Narayanan et al. 2021, appendix). Lookups are
    free."""
    width = sizes.n_head * sizes.head_dim
    block = 4 * sizes.n_embd * width + 2 * sizes.n_embd * sizes.n_inner + 2 * length * width
    return sizes.n_embd * sizes.vocab_size / block


def chunks_of(stages: Sequence[T], rank: int, ranks: int) -> list[T]:
    """Those of the virtual stages that are a rank's: v lives on rank v % p."""
    return list(stages[rank::ranks])
