"""The benchmark sets of other trainers: every way is legal, at an equal batch, and measured."""

from __future__ import annotations

import pytest

from benchmarks import trainers
from engine.plan import make_plan


@pytest.mark.parametrize("ranks", [4, 8])
def test_ways_to_train_have_an_equal_batch_without_padding(ranks: int) -> None:
    ways = trainers.image_ways(ranks)
    assert list(ways) == ["DDP", "TP", "DDP + AMP", "DDP + ZeRO", "TP + AMP", "TP + ZeRO"]
    plans = {}
    for name, way in ways.items():
        overrides = [f"GLOBAL_BATCH_SIZE={trainers.BATCH}", *way]
        plan = plans[name] = make_plan(trainers.CONFIG, gpus=ranks, overrides=overrides, environ={})
        assert plan.global_batch == 16
        assert plan.row_order.is_whole, name
        assert plan.row_order.rows == plan.micro_batch * plan.settings.seq_len, name
        assert plan.layout.gpus == ranks
        assert (plan.settings.precision == "fp16") == ("AMP" in name)
        assert (plan.settings.zero.stage == 1) == ("ZeRO" in name)
        assert (plan.layout.tensor > 1) == ("TP" in name)
    assert plans["TP + ZeRO"].layout.data == 2, "ZeRO has something to shard over"


@pytest.mark.slow
def test_table_has_time_memory_of_each_rank_and_loss(capsys: pytest.CaptureFixture[str]) -> None:
    small = ["model.n_layer=1", "model.n_embd=16", "model.n_head=8", "model.vocab_size=32"]
    trainers.main(["image", "--steps", "1", *small, "data.codes=32"])
    lines = capsys.readouterr().out.splitlines()[2:]
    rows = {line[:12].strip(): line[12:].split() for line in lines}
    assert list(rows) == list(trainers.image_ways(4))
    losses = [float(row[1]) for row in rows.values()]
    assert losses == pytest.approx([losses[0]] * 6, rel=5e-3), "equal samples, equal weights"
    assert all(line.count("iB") == 1 + 4 for line in lines)
