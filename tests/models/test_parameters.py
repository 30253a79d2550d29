"""The list of parameters against the built model, in every mode, and GPT-2's published size."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from engine.layout import Layout
from models.config import GPTConfig
from models.gpt import GPT
from models.parallel.collectives import Axis, Traffic
from models.parallel.context import ParallelContext
from models.parallel.layers import Linear, PositionEmbedding, named_shards
from models.parallel.mode import Mode
from models.parallel.norm import LayerNorm
from models.parallel.registry import modes
from models.parameters import parameters

SMALL = GPTConfig(
    n_layer=4, n_head=6, n_embd=36, head_dim=4, n_inner=72, vocab_size=29, block_size=16
)
GPT2 = GPTConfig(
    n_layer=12, n_head=12, n_embd=768, head_dim=64, n_inner=3072, vocab_size=50257, block_size=1024
)


@pytest.mark.parametrize("mode", modes().values(), ids=list(modes()))
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("layers", [range(4), range(2), range(1, 3), range(2, 4)], ids=str)
def test_parameter_list_equals_the_built_shards(mode: Mode, tied: bool, layers: range) -> None:
    sizes = dataclasses.replace(SMALL, tie_embeddings=tied)
    size, depth = next(
        (n, depth) for n in range(8, 0, -1) for depth in (2, 1) if mode.axes(n, depth) is not None
    )
    layout = Layout(mode=mode, tensor=size, depth=depth)
    rank = layout.gpus - 1
    index = layout.coordinates(rank)
    axes = {
        name: Axis(name=name, size=n, index=index[name], group=None, traffic=Traffic())
        for name, n in layout.axes.items()
    }
    axes["tensor"] = Axis(name="tensor", size=size, index=rank, group=None, traffic=Traffic())
    part = ParallelContext(mode=mode, axes=axes, device=torch.device("meta"))
    model = GPT(sizes, part, layers=layers)
    listed = {p.name: layout.shard(p.shape, p.spec, rank) for p in parameters(sizes, mode, layers)}
    assert listed == named_shards(model)
    built = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert built == {name: box.local for name, box in listed.items()}


@pytest.mark.parametrize("tied", [True, False])
def test_kind_of_a_parameter_is_that_of_its_layer(tied: bool) -> None:
    sizes = dataclasses.replace(SMALL, tie_embeddings=tied)
    part = ParallelContext.single_device(
        torch.device("meta"), dtype=torch.float32, compute=torch.float32
    )
    model, kinds = GPT(sizes, part), {p.name: p.kind for p in parameters(sizes, modes()["serial"])}
    of_layer = {Linear: "linear", LayerNorm: "norm", PositionEmbedding: "embedding"}
    for path, module in model.named_modules():
        for name, _ in module.named_parameters(path, recurse=False):
            table = "linear" if path == "lm_head" else "embedding"
            weight = of_layer.get(type(module), table)
            assert kinds.pop(name) == ("bias" if name.endswith(".bias") else weight), name
    assert not kinds


def test_gpt2_small_has_the_published_parameter_count() -> None:
    assert sum(p.count for p in parameters(GPT2, modes()["serial"])) == 124_439_808
