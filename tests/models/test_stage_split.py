"""The split of layers into pipeline stages, against an exhaustive search."""

from __future__ import annotations

import random
from itertools import combinations, pairwise

import pytest

from models.config import GPTConfig
from models.stage_split import chunks_of, head_cost, split_balanced, virtual_stages


def test_heaviest_stage_is_minimal_over_all_splits() -> None:
    draw = random.Random(0)
    for _ in range(200):
        n = draw.randint(1, 9)
        stages = draw.randint(1, n)
        costs = [draw.choice([0.5, 1.0, 1.0, 3.0, 7.0]) for _ in range(n)]
        runs = split_balanced(costs, stages)
        assert [item for run in runs for item in run] == list(range(n))
        assert all(len(run) >= 1 for run in runs)
        assert heaviest(costs, [run.start for run in runs[1:]]) == pytest.approx(
            min(heaviest(costs, list(cuts)) for cuts in combinations(range(1, n), stages - 1))
        )


def heaviest(costs: list[float], cuts: list[int]) -> float:
    edges = [0, *cuts, len(costs)]
    return max(sum(costs[a:b]) for a, b in pairwise(edges))


GPT2 = GPTConfig(
    n_layer=12, n_head=12, n_embd=768, head_dim=64, n_inner=3072, vocab_size=50257, block_size=1024
)


def test_balanced_split_counts_the_cost_of_the_head() -> None:
    even = virtual_stages(GPT2, 1024, 2, balanced=False)
    fair = virtual_stages(GPT2, 1024, 2, balanced=True)
    assert [len(stage) for stage in even] == [6, 6]
    head = head_cost(GPT2, 1024)
    assert head == pytest.approx(50257 * 768 / (12 * 768**2 + 2 * 1024 * 768))
    assert max(len(fair[0]), len(fair[1]) + head) == min(
        max(n, 12 - n + head) for n in range(1, 12)
    )


def test_virtual_stages_are_assigned_round_robin() -> None:
    stages = virtual_stages(GPT2, 1024, 4, balanced=False)
    assert stages == [range(3), range(3, 6), range(6, 9), range(9, 12)]
    assert chunks_of(stages, 1, 2) == [range(3, 6), range(9, 12)]
