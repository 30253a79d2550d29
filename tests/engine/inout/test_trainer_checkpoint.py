"""Checkpoints of other trainers: the imported model has the logits of the trainer's forward pass,
which is written here from torch's functions, by the names of the state dict."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from engine.data.images.load_codebook import load_colours
from engine.inout.open_model import open_saved_model
from launch import cli
from models.chunks import ModelChunks
from models.config import GPTConfig
from models.gpt import GPT
from models.parallel.context import ParallelContext

LAYERS, HEADS, WIDTH, HIDDEN, IDS, LENGTH = 2, 3, 24, 40, 11, 15
"""The attention of Languini's model is 18 wide, the others' as the model."""


def draw(**shapes: tuple[int, ...]) -> dict[str, Tensor]:
    """Draw a tensor of each shape; ``__`` in a name is a dot."""
    generator = torch.Generator().manual_seed(len(shapes))
    return {
        name.replace("__", "."): torch.randn(shape, generator=generator) / 3
        for name, shape in shapes.items()
    }


def linear(name: str, n_out: int, n_in: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}__weight": (n_out, n_in), f"{name}__bias": (n_out,)}


def norm(name: str) -> dict[str, tuple[int, ...]]:
    return {f"{name}__weight": (WIDTH,), f"{name}__bias": (WIDTH,)}


def mingpt(parts: tuple[str, ...], second: int) -> dict[str, Tensor]:
    """Draw the state of a minGPT whose attention has these layers; ``second``: the place of the
    MLP's second layer."""
    shapes: dict[str, tuple[int, ...]] = {
        "tok_emb__weight": (IDS, WIDTH),
        "pos_emb": (1, LENGTH, WIDTH),
    }
    for layer in range(LAYERS):
        block = f"blocks__{layer}"
        shapes |= norm(f"{block}__ln1") | norm(f"{block}__ln2")
        for part in parts:
            shapes |= linear(f"{block}__attn__{part}", WIDTH * len(part.split("_")), WIDTH)
        shapes |= linear(f"{block}__attn__proj", WIDTH, WIDTH)
        shapes |= linear(f"{block}__mlp__0", HIDDEN, WIDTH)
        shapes |= linear(f"{block}__mlp__{second}", WIDTH, HIDDEN)
        shapes[f"{block}__attn__mask"] = (1, 1, LENGTH, LENGTH)
    return draw(**shapes, **norm("ln_f"), head__weight=(IDS, WIDTH))


def torchshard() -> dict[str, Tensor]:
    """Draw the state of TorchShard's image GPT, with one layer of keys, queries and values."""
    return {n.replace("k_q_v", "kqv"): t for n, t in mingpt(("k_q_v",), 3).items()}


def languini() -> dict[str, Tensor]:
    shapes: dict[str, tuple[int, ...]] = {
        "input_embedding__weight": (IDS, WIDTH),
        "position_embedding__weight": (LENGTH, WIDTH),
    }
    for layer in range(LAYERS):
        block = f"layers__{layer}"
        shapes |= norm(f"{block}__ln1") | norm(f"{block}__ln2")
        for part in "QKV":
            shapes |= linear(f"{block}__attn__linear_{part}", 18, WIDTH)
        shapes |= linear(f"{block}__attn__linear_O", WIDTH, 18)
        shapes |= linear(f"{block}__mlp__c_fc", HIDDEN, WIDTH)
        shapes |= linear(f"{block}__mlp__c_proj", WIDTH, HIDDEN)
        shapes[f"{block}__attn__mask"] = (1, 1, LENGTH, LENGTH)
    return draw(**shapes, **norm("ln_f"), linear__weight=(IDS, WIDTH))


def layer_of(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
    if ".ln" in f".{name}":
        return functional.layer_norm(x, x.shape[-1:], weight, bias)
    return functional.linear(x, weight, bias)


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return the causal attention of [batch, length, heads, head_dim], heads joined."""
    scores = torch.einsum("bqhd,bkhd->bhqk", query, key) / query.shape[-1] ** 0.5
    future = torch.ones(scores.shape[-2:]).triu(1).bool()
    weights = scores.masked_fill(future, -torch.inf).softmax(-1)
    return torch.einsum("bhqk,bkhd->bqhd", weights, value).flatten(2)


def mingpt_logits(state: dict[str, Tensor], ids: Tensor) -> Tensor:
    x = state["tok_emb.weight"][ids] + state["pos_emb"][:, : ids.shape[1]]
    for layer in range(LAYERS):
        block = f"blocks.{layer}"
        h = layer_of(state, f"{block}.ln1", x)
        if f"{block}.attn.kqv.weight" in state:
            by_head = layer_of(state, f"{block}.attn.kqv", h).unflatten(-1, (HEADS, 3, -1))
            key, query, value = by_head.unbind(-2)
        else:
            query, key, value = (
                layer_of(state, f"{block}.attn.{part}", h).unflatten(-1, (HEADS, -1))
                for part in ("query", "key", "value")
            )
        x = x + layer_of(state, f"{block}.attn.proj", attend(query, key, value))
        second = 2 if f"{block}.mlp.2.weight" in state else 3
        h = functional.gelu(layer_of(state, f"{block}.mlp.0", layer_of(state, f"{block}.ln2", x)))
        x = x + layer_of(state, f"{block}.mlp.{second}", h)
    return layer_of(state, "ln_f", x) @ state["head.weight"].T


def languini_logits(state: dict[str, Tensor], ids: Tensor) -> Tensor:
    x = state["input_embedding.weight"][ids] * WIDTH**0.5
    x = x + state["position_embedding.weight"][: ids.shape[1]]
    for layer in range(LAYERS):
        block = f"layers.{layer}"
        h = layer_of(state, f"{block}.ln1", x)
        query, key, value = (
            layer_of(state, f"{block}.attn.linear_{part}", h).unflatten(-1, (HEADS, -1))
            for part in "QKV"
        )
        x = x + layer_of(state, f"{block}.attn.linear_O", attend(query, key, value))
        h = layer_of(state, f"{block}.mlp.c_fc", layer_of(state, f"{block}.ln2", x))
        h = functional.gelu(h, approximate="tanh")
        x = x + layer_of(state, f"{block}.mlp.c_proj", h)
    return layer_of(state, "ln_f", x) @ state["linear.weight"].T


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


IMAGES, NOTEBOOK, BOOKS = torchshard(), mingpt(("query", "key", "value"), 2), languini()
HYPERPARAMETERS = {"n_head": HEADS, "n_layer": LAYERS, "attn_pdrop": 0.1}
FILES: dict[str, tuple[str, Any, Tensor]] = {
    "torchshard": ("mingpt", IMAGES, mingpt_logits(IMAGES, torch.arange(LENGTH)[None] % IDS)),
    "notebook": ("mingpt", NOTEBOOK, mingpt_logits(NOTEBOOK, torch.arange(LENGTH)[None] % IDS)),
    "lightning": (
        "mingpt",
        {"epoch": 3, "state_dict": NOTEBOOK, "hyper_parameters": HYPERPARAMETERS},
        mingpt_logits(NOTEBOOK, torch.arange(LENGTH)[None] % IDS),
    ),
    "languini": (
        "languini",
        {"step": 9, "model_state_dict": prefixed(BOOKS, "module._orig_mod."), "opt_state_dict": {}},
        languini_logits(BOOKS, torch.arange(LENGTH)[None] % IDS),
    ),
}


def imported_logits(folder: Path) -> tuple[GPTConfig, Tensor]:
    saved = open_saved_model(folder)
    part = ParallelContext.single_device(
        torch.device("cpu"), dtype=torch.float32, compute=torch.float32
    )
    model = GPT(saved.config, part).eval()
    saved.load(ModelChunks([model]))
    ids = torch.arange(LENGTH)[None] % IDS
    with torch.no_grad():
        return saved.config, model.logits(model(model.embed(ids), LENGTH))


@pytest.mark.parametrize("name", FILES)
def test_imported_checkpoint_has_the_logits_of_its_trainer(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source, content, expected = FILES[name]
    torch.save(content, "model.pt")
    heads = [] if name == "lightning" else ["--n-head", str(HEADS)]
    assert cli.main(["import", "model.pt", "--from", source, *heads]) == 0
    config, found = imported_logits(Path("imported/model"))
    assert float((found - expected[0]).norm() / expected.norm()) <= 1e-5
    assert config.attn_pdrop == (0.1 if name == "lightning" else 0)


def test_imported_image_gpt_has_the_colours_of_its_codebook(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(IMAGES, "cifar10_model.pt")
    colours = np.linspace(0, 255, IDS * 3, dtype=np.float32).reshape(IDS, 3)
    torch.save(torch.from_numpy(colours), "c.pt")
    options = ["--from", "mingpt", "--n-head", "3", "--codebook", "c.pt"]
    assert cli.main(["import", "cifar10_model.pt", *options]) == 0
    folder = Path("imported/cifar10_model")
    assert np.array_equal(load_colours(str(folder)), colours)
    assert cli.main(["generate", str(folder), "--num", "1", "--out", "image.png"]) == 0
    assert Path("image.png").is_file()


SNAPSHOT = {"model_state": {"blocks.0.attn.attn.in_proj_weight": torch.ones(3, 1)}}
REJECTED: dict[str, tuple[Any, str, str]] = {
    "no heads": (IMAGES, "", "does not store the number of attention heads; add --n-head N"),
    "wrong heads": (IMAGES, "--n-head 5", "--n-head=5 does not divide the attention's width of 24"),
    "not causal": (SNAPSHOT, "--n-head 1", "its attention is not causal"),
    "other names": ({**IMAGES, "rope": torch.ones(1)}, "--n-head 3", "unexpected: rope"),
    "missing": (
        {n: t for n, t in IMAGES.items() if n != "blocks.1.ln2.bias"},
        "--n-head 3",
        "the tensors of h.1.ln_2.bias are missing",
    ),
    "no layers": ({"tok_emb.weight": torch.ones(2, 2)}, "--n-head 3", "wpe.weight"),
    "other codebook": (IMAGES, "--n-head 3 --codebook c.npy", "has 2 ids, and the model 11"),
    "code": ({"state_dict": IMAGES, "args": argparse.Namespace()}, "--n-head 3", "not loaded"),
}


@pytest.mark.parametrize("name", REJECTED)
def test_checkpoint_that_cannot_be_imported_is_rejected_with_its_reason(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    content, options, message = REJECTED[name]
    np.save("c.npy", np.zeros((2, 3), np.float32))
    torch.save(content, "model.pt")
    assert cli.main(["import", "model.pt", "--from", "mingpt", *options.split()]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert not Path("imported").exists()
