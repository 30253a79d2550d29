"""Which layers a pipeline rank holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

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
    worst[0][0] = 0.0
    for stage in range(1, stages + 1):
        for stop in range(stage, n - (stages - stage) + 1):
            for start in range(stage - 1, stop):
                here = max(worst[stage - 1][start], before[stop] - before[start])
                if here < worst[stage][stop] - 1e-9 * before[n]:
                    worst[stage][stop], cut[stage][stop] = here, start
    runs: list[range] = []
    stop = n
    for stage in range(stages, 0, -1):
        start = cut[stage][stop]
        runs.append(range(start, stop))
        stop = start
    return runs[::-1]


def balanced(layers: int, stages: int, *, embedding: float, head: float) -> list[range]:
    """``layers`` equal blocks over virtual stages, the embedding counted with the first and the
    head with the last, each in units of a block's cost."""
    costs = [1.0] * layers
    costs[0] += embedding
    costs[-1] += head
    return split(costs, stages)


def uniform(layers: int, stages: int) -> list[range]:
    """The same number of blocks in every virtual stage; ``layers`` is a multiple of ``stages``."""
    assert layers % stages == 0, f"{layers} layers over {stages} stages"
    each = layers // stages
    return [range(stage * each, (stage + 1) * each) for stage in range(stages)]


def chunks_of(stages: Sequence[T], rank: int, ranks: int) -> list[T]:
    """Those of the virtual stages that are a rank's: v lives on rank v % p."""
    return list(stages[rank::ranks])
