"""The sizes of a GPT, as data."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, Self


@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """What ``models.gpt.GPT`` is built from. ``n_head x head_dim`` need not be ``n_embd``."""

    n_layer: int
    n_head: int
    n_embd: int
    head_dim: int
    n_inner: int
    vocab_size: int
    block_size: int
    embd_pdrop: float = 0.0
    resid_pdrop: float = 0.0
    attn_pdrop: float = 0.0
    tie_embeddings: bool = True
    checkpoint: bool | Literal["selective"] = False
    activation: Literal["gelu_tanh", "gelu"] = "gelu_tanh"
    layer_norm_epsilon: float = 1e-5
    init_std: float = 0.02

    @classmethod
    def of(cls, model: object) -> Self:
        """The sizes that ``model`` has as attributes, such as a config's section of settings."""
        return cls(**{field.name: getattr(model, field.name) for field in fields(cls)})
