"""GLOBAL_BATCH_SIZE: one rank in eight rounds makes the update of eight ranks in one round."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.testing import assert_close

from tests.support.runs import open_run
from tests.support.worlds import run_world

CONFIG = """
GLOBAL_BATCH_SIZE = 8
BATCH_SIZE = 1
SEQ_LEN = 8
MAX_STEPS = 3
precision = "float64"
model = dict(n_layer=1, n_head=2, n_embd=8, vocab_size=20)
data = dict(type="synthetic")
optimizer = dict(lr=0.05)
"""


def updates(rank: int, size: int, config: Path) -> tuple[int, list[float], list[torch.Tensor]]:
    """Train three steps; return the accumulation rounds, the losses and the weights."""
    run = open_run(rank, size, config, (), steps=3)
    losses = [run.step(step).loss for step in (1, 2, 3)]
    rounds = run.plan.settings.gradient_accumulation
    return rounds, losses, [parameter.detach().clone() for parameter in run.model.parameters()]


def test_eight_ranks_and_eight_rounds_make_the_same_update(tmp_path: Path) -> None:
    config = tmp_path / "config.py"
    config.write_text(CONFIG)
    rounds, losses, weights = updates(0, 1, config)
    assert rounds == 8
    for rank_rounds, rank_losses, rank_weights in run_world(8, updates, config):
        assert rank_rounds == 1
        assert_close(rank_losses, losses, rtol=1e-13, atol=0)
        for theirs, ours in zip(rank_weights, weights, strict=True):
            # Gradients of key biases are zero up to rounding, and Adam scales them up
            assert_close(theirs, ours, rtol=1e-10, atol=1e-11)
    assert losses[2] < losses[0]
