"""Layers to pipeline stages: against trying every way to cut."""

from __future__ import annotations

import random
from itertools import combinations, pairwise

import pytest

from models.stages import balanced, chunks_of, split, uniform


def test_split_is_as_even_as_any_cut_can_be() -> None:
    draw = random.Random(0)
    for _ in range(200):
        n = draw.randint(1, 9)
        stages = draw.randint(1, n)
        costs = [draw.choice([0.5, 1.0, 1.0, 3.0, 7.0]) for _ in range(n)]
        runs = split(costs, stages)
        assert [item for run in runs for item in run] == list(range(n))
        assert all(len(run) >= 1 for run in runs)
        assert heaviest(costs, [run.start for run in runs[1:]]) == pytest.approx(
            min(heaviest(costs, list(cuts)) for cuts in combinations(range(1, n), stages - 1))
        )


def heaviest(costs: list[float], cuts: list[int]) -> float:
    edges = [0, *cuts, len(costs)]
    return max(sum(costs[a:b]) for a, b in pairwise(edges))


def test_a_heavy_head_leaves_the_last_stage_fewer_layers() -> None:
    stages = balanced(12, 4, embedding=0.1, head=3.5)
    assert [len(stage) for stage in stages] == [4, 4, 3, 1] or len(stages[-1]) < 3
    assert max(len(s) + 3.5 * (s.stop == 12) for s in stages) <= 4.6


def test_uniform_stages_go_round_the_ranks() -> None:
    stages = uniform(12, 4)
    assert stages == [range(3), range(3, 6), range(6, 9), range(9, 12)]
    assert chunks_of(stages, 1, 2) == [range(3, 6), range(9, 12)]
