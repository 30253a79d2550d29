"""GPT-3's configs on a laptop: ranks are built without memory, to compare shapes and counts, and a
micro-batch runs through a stage over process groups that send nothing."""

from __future__ import annotations

from functools import cache
from math import prod
from pathlib import Path

import pytest
import torch

from engine.estimate.estimate import estimate
from engine.plan import Plan, make_plan
from models.chunks import ModelChunks
from tests.support.runs import build_empty, pretended

CONFIGS = Path(__file__).parents[1] / "gpt_configs"
GPUS = {
    "gpt3_pp1d": 128,
    "gpt3_pp1d_min": 96,
    "gpt3_pp2d": 96,
    "gpt3_pp2p5d": 96,
    "gpt3_zero3": 96,
    "gpt3_zero3_min": 64,
}
PUBLISHED = 174.6e9
"""Brown et al. 2020, table 2.1 has 175.0 billion; 174.6 are what its sizes give."""
WIDTH, LENGTH = 12288, 2048
META = torch.device("meta")

WEIGHTS = {  # of a middle layer and of the table, on a rank: [in, out] and [vocabulary, hidden]
    "gpt3_pp1d": {"attn.c_attn": (12288, 9216), "mlp.c_proj": (12288, 12288)},
    "gpt3_pp1d_min": {"attn.c_proj": (3072, 12288), "mlp.c_fc": (12288, 12288)},
    "gpt3_pp2d": {"attn.c_attn": (6144, 18432), "mlp.c_proj": (24576, 6144)},
    "gpt3_pp2p5d": {"attn.c_proj": (6144, 6144), "mlp.c_fc": (6144, 24576)},
    "gpt3_zero3": {"attn.c_attn": (128, 36864), "mlp.c_proj": (512, 12288)},
    "gpt3_zero3_min": {"attn.c_attn": (192, 36864), "mlp.c_proj": (768, 12288)},
}
TABLES = {
    "gpt3_pp1d": (12565, 12288),  # 50,257 over 4, padded
    "gpt3_pp1d_min": (12565, 12288),
    "gpt3_pp2d": (25129, 6144),
    "gpt3_pp2p5d": (25129, 6144),
    "gpt3_zero3": (50257, 128),
    "gpt3_zero3_min": (50257, 192),
}
X = {  # an activation between blocks: [tokens, hidden]
    "gpt3_pp1d": (LENGTH // 4, WIDTH),  # a sample a micro-batch
    "gpt3_pp1d_min": (LENGTH // 4, WIDTH),
    "gpt3_pp2d": (2 * LENGTH // 2, WIDTH // 2),  # two samples
    "gpt3_pp2p5d": (2 * LENGTH // 2, WIDTH // 2),
    "gpt3_zero3": (2 * LENGTH, WIDTH),
    "gpt3_zero3_min": (3 * LENGTH, WIDTH),
}

each = pytest.mark.parametrize("name", GPUS)


@cache
def plan(name: str, *overrides: str) -> Plan:
    return make_plan(CONFIGS / f"{name}.py", gpus=GPUS[name], overrides=overrides, environ={})


def built(name: str, rank: int) -> ModelChunks:
    return build_empty(plan(name), rank)


def stage_of(name: str, stage: int) -> int:
    """Return the first rank of a pipeline stage."""
    layout = plan(name).layout
    return layout.rank({**dict.fromkeys(layout.axes, 0), "pipeline": stage})


@each
def test_rank_has_the_shards_of_its_coordinates(name: str) -> None:
    layout = plan(name).layout
    for stage in sorted({0, layout.pipeline // 2, layout.pipeline - 1}):
        model = built(name, stage_of(name, stage))
        held = dict(model.named_parameters())
        for parameter, box in model.shards().items():
            assert held[parameter].shape == box.local
        layers = 96 // layout.pipeline
        for weight, shape in WEIGHTS[name].items():
            shapes = [tuple(p.shape) for path, p in held.items() if f".{weight}.weight" in path]
            assert shapes == [shape] * layers
        ends = stage in (0, layout.pipeline - 1)
        assert ("wte.weight" in held) is ends
        assert not ends or tuple(held["wte.weight"].shape) == TABLES[name]


@each
def test_parameters_of_a_rank_equal_the_estimate(name: str) -> None:
    for stage in estimate(plan(name), device="cpu").stages:
        if stage.stage % 8 == 0 or stage.stage == plan(name).layout.pipeline - 1:
            model = built(name, stage_of(name, stage.stage))
            assert sum(p.numel() for p in model.parameters()) == stage.parameters


@each
def test_shards_of_all_ranks_add_up_to_the_published_model(name: str) -> None:
    """Every entry is on as many ranks as replicate it, not counting the tied copy. One middle stage
    represents all of them, and one ZeRO rank all ranks, whose shards have equal sizes."""
    layout = plan(name).layout
    stages = {0: 1, 1: layout.pipeline - 2, layout.pipeline - 1: 1}
    total = 0.0
    for stage, alike in stages.items() if layout.pipeline > 1 else [(0, layout.data)]:
        first = stage_of(name, stage)
        for rank in range(first, first + layout.tensor):
            model = built(name, rank)
            for parameter, box in model.shards().items():
                if parameter not in model.copies:
                    shared = {"data", *layout.tensor_axes} - box.sharded_axes
                    copies = prod(layout.axes[axis] for axis in shared)
                    total += alike * prod(box.size) / copies
    assert total == pytest.approx(174_604_259_328, rel=1e-12)
    assert total == pytest.approx(PUBLISHED, rel=1e-4)
    assert estimate(plan(name)).parameters == 174_604_259_328


STAGES = [
    (name, place)
    for name in GPUS
    for place in (("first", "middle", "last") if "pp" in name else ("first",))
]


@pytest.mark.filterwarnings("ignore:.*is deprecated. Please use:FutureWarning")
@pytest.mark.parametrize(("name", "place"), STAGES)
def test_micro_batch_runs_forward_and_backward_through_a_stage(name: str, place: str) -> None:
    """Of ZeRO's 96 layers one is enough."""
    found = plan(name, *([] if "pp" in name else ["model.n_layer=1"]))
    layout = found.layout
    stage = {"first": 0, "middle": layout.pipeline // 2, "last": layout.pipeline - 1}[place]
    rank = stage_of(name, stage)
    with pretended(rank, layout.gpus):
        model = build_empty(found, rank)
        (chunk,) = model
        ids = torch.empty(found.micro_batch, LENGTH, dtype=torch.int64, device=META)
        x = torch.empty(X[name], dtype=torch.float16, device=META, requires_grad=True)
        y = chunk(chunk.embed(ids) if chunk.first else x, LENGTH)
        assert (y.shape, y.dtype) == (x.shape, torch.float16)
        if chunk.last:
            loss = chunk.loss(y, ids, 1.0)
            assert loss.shape == ()
            loss.backward()
        else:
            y.backward(torch.empty_like(y))
    assert chunk.first or x.grad is not None
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32
