"""How many parameters a GPT has. Exact, from its sizes alone."""

from __future__ import annotations

from typing import Protocol


class HasSizes(Protocol):
    """What ``models.sizes.Sizes`` and the ``model`` section of a config share."""

    @property
    def n_layer(self) -> int: ...
    @property
    def n_head(self) -> int: ...
    @property
    def n_embd(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def n_inner(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def block_size(self) -> int: ...
    @property
    def tie_embeddings(self) -> bool: ...


def block_parameters(model: HasSizes) -> int:
    """Parameters of one block: two norms, qkv and projection, the MLP's two layers, all biased."""
    h, attention, inner = model.n_embd, model.n_head * model.head_dim, model.n_inner
    norms = 2 * 2 * h
    qkv = h * 3 * attention + 3 * attention
    projection = attention * h + h
    mlp = h * inner + inner + inner * h + h
    return norms + qkv + projection + mlp


def parameter_count(model: HasSizes) -> int:
    """Parameters of the whole model, unpadded; a tied head counts once.

    GPT-2 small has 124,439,808 (Radford et al. 2019; its table says 117M).
    """
    embeddings = (model.vocab_size + model.block_size) * model.n_embd
    final_norm = 2 * model.n_embd
    head = 0 if model.tie_embeddings else model.vocab_size * model.n_embd
    return embeddings + model.n_layer * block_parameters(model) + final_norm + head
