"""Saved models for tests: random ones of cuboid, and models of transformers."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.inout.saved_model import SavedModel, shapes_of
from models import hf_config
from models.config import GPTConfig

SIZES = GPTConfig(
    n_layer=3, n_head=4, n_embd=32, head_dim=8, n_inner=80, vocab_size=67, block_size=24
)


def drawn(sizes: GPTConfig, seed: int = 1, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Return random parameters by name, none of them small, so that a misplaced one is noticed."""
    draw = torch.Generator().manual_seed(seed)
    return {
        name: (torch.randn(shape, generator=draw) / 3).to(dtype)
        for name, shape in shapes_of(sizes).items()
    }


@dataclass(frozen=True, kw_only=True)
class GivenModel(SavedModel):
    """A saved model whose tensors a function yields."""

    read: Callable[[], Iterator[tuple[str, Tensor]]]

    def read_tensors(self) -> Iterator[tuple[str, Tensor]]:
        return self.read()


def trained(sizes: GPTConfig = SIZES, seed: int = 1, **more: Any) -> SavedModel:
    """Return a model of random parameters that are made as they are read."""
    dtype = more.pop("dtype", torch.float32)

    def read() -> Iterator[tuple[str, Tensor]]:
        return iter(drawn(sizes, seed, dtype).items())

    return GivenModel(path=Path("made/up"), config=sizes, dtype=dtype, read=read, **more)


def with_tensors(
    model: SavedModel, read: Callable[[], Iterator[tuple[str, Tensor]]], **changes: Any
) -> SavedModel:
    """Return ``model`` with the tensors that ``read`` yields, and other ``changes``."""
    same = {field.name: getattr(model, field.name) for field in fields(SavedModel)}
    return GivenModel(**(same | changes), read=read)


def theirs(sizes: GPTConfig = SIZES, seed: int = 0) -> Any:
    """Return a GPT2LMHeadModel in which biases and norms are random, too."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(**hf_config.hf_config(sizes))
    model = transformers.GPT2LMHeadModel(config).eval()
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw), alpha=0.1)
    return model


UNTIED = replace(SIZES, tie_embeddings=False, activation="gelu")


class MaliciousPickle:
    """Pickles to a call that creates the file canary when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("touch canary",)


def torch_file_of(pickled: bytes) -> bytes:
    """Return a file in torch's format that contains this pickle."""
    buffer = io.BytesIO()
    torch.save({"wte.weight": torch.ones(2)}, buffer)
    old, new = zipfile.ZipFile(buffer), io.BytesIO()
    with zipfile.ZipFile(new, "w") as archive:
        for name in old.namelist():
            data = pickled if name.endswith("data.pkl") else old.read(name)
            archive.writestr(name, data)
    return new.getvalue()
