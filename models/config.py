"""The configuration of a GPT: sizes, dropout rates, activation function."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, Self


@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """Configures ``models.gpt.GPT``. ``n_head x head_dim`` may differ from ``n_embd``."""

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
    init_residual: Literal["both", "mlp", "none"] = "both"
    init_positions: Literal["normal", "zero"] = "normal"
    scale_embedding: bool = False

    @classmethod
    def of(cls, model: object) -> Self:
        """Copy the fields from attributes of ``model``, such as a config's ``model`` section."""
        return cls(**{field.name: getattr(model, field.name) for field in fields(cls)})
