"""Initial values: which weights are scaled, and the factor on the embedding's output."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from models.config import GPTConfig
from models.gpt import GPT
from models.parallel.context import ParallelContext
from models.parallel.layers import initialise

CONFIG = GPTConfig(
    n_layer=3, n_head=4, n_embd=32, head_dim=8, n_inner=80, vocab_size=67, block_size=24
)
PROJECTIONS = {"both": {"attn", "mlp"}, "mlp": {"mlp"}, "none": set[str]()}
"""The modules whose projections are scaled."""


def built(**changes: Any) -> GPT:
    part = ParallelContext.single_device(
        torch.device("cpu"), dtype=torch.float64, compute=torch.float64
    )
    model = GPT(replace(CONFIG, **changes), part).eval()
    initialise(model, seed=3)
    return model


@pytest.mark.parametrize("scaled", PROJECTIONS)
def test_only_the_chosen_residual_projections_are_scaled(scaled: str) -> None:
    for name, weight in built(init_residual=scaled).named_parameters():
        *_, module, layer, kind = ("", "", *name.split("."))
        if kind == "bias" or "ln_" in name:
            continue
        divided = layer == "c_proj" and module in PROJECTIONS[scaled]
        std = 0.02 / (6**0.5 if divided else 1)
        assert weight.std().item() == pytest.approx(std, rel=5 / (2 * weight.numel()) ** 0.5), name


def test_other_initial_values_are_unchanged_by_the_scaling() -> None:
    both, none = (dict(built(init_residual=kind).named_parameters()) for kind in ("both", "none"))
    for name, weight in both.items():
        factor = 6**0.5 if name.endswith("c_proj.weight") else 1.0
        torch.testing.assert_close(weight * factor, none[name], rtol=1e-6, atol=0.0)


def test_positions_start_at_zero_if_chosen() -> None:
    normal, zero = (
        dict(built(init_positions=kind).named_parameters()) for kind in ("normal", "zero")
    )
    assert not zero.pop("wpe.weight").any()
    assert normal.pop("wpe.weight").all()
    assert all(torch.equal(weight, normal[name]) for name, weight in zero.items())


@pytest.mark.parametrize("tied", [True, False])
def test_scaled_embedding_multiplies_the_tokens_and_not_the_positions(tied: bool) -> None:
    model = built(scale_embedding=True, tie_embeddings=tied)
    ids = torch.tensor([[5, 66, 0], [1, 5, 5]])
    wanted = model.wte.weight[ids] * 32**0.5 + model.wpe.weight[:3]
    torch.testing.assert_close(model.embed(ids), wanted.flatten(0, 1), rtol=1e-12, atol=0.0)
    plain = built(tie_embeddings=tied)
    x = torch.randn(4, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert torch.equal(model.logits(x), plain.logits(x)), "the head is not scaled"
