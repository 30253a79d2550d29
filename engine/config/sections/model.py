"""Settings of the model."""

from __future__ import annotations

from typing import Annotated, Literal

from engine.config.fields import OrWord, Section, setting
from engine.config.setting_types import Count, NotNegative, Positive, PresetName, RankCount, Share
from models.presets import GPT2_VOCABULARY

FROM_DATA = "data"
"""The value of model.vocab_size that stands for the number of ids of the data's tokenizer."""


class ModelSettings(Section):
    """The GPT. ``type`` names a preset; sizes that are set explicitly override the preset's."""

    preset: PresetName | None = setting(
        "preset of sizes; None: set n_layer, n_head and n_embd", None, name="type"
    )
    n_layer: Count = setting("transformer blocks", shown="the type's")
    n_head: Count = setting("attention heads per block", shown="the type's")
    n_embd: Count = setting(
        "width: features of a token between blocks", shown="the type's, else HIDDEN_SIZE"
    )
    head_dim: Count = setting(
        "features per head; n_head x head_dim may differ from n_embd",
        lambda given: max(1, given["n_embd"] // given["n_head"]),
        shown="n_embd / n_head",
    )
    n_inner: Count = setting(
        "width of the MLP", lambda given: 4 * given["n_embd"], shown="4 x n_embd"
    )
    vocab_size: Annotated[Count, OrWord(FROM_DATA)] = setting(
        "number of token ids; 'data': that of the data's tokenizer", GPT2_VOCABULARY
    )
    block_size: Count = setting(
        "maximum sequence length (positions)", shown="the type's, else SEQ_LEN"
    )
    embd_pdrop: Share = setting("dropout on the embeddings", 0.0)
    resid_pdrop: Share = setting("dropout on a layer's output, before the residual sum", 0.0)
    attn_pdrop: Share = setting("dropout on the attention weights", 0.0)
    tie_embeddings: bool = setting("the head is the token embedding, transposed", True)
    checkpoint: bool | Literal["selective"] = setting(
        "activation checkpointing: save only a block's input and recompute the rest; 'selective' "
        "also saves the outputs of matmuls (for checkpoints of a run see checkpoint.every)",
        False,
    )
    num_chunks: RankCount = setting("model chunks per pipeline rank (interleaved schedule)", 1)
    activation: Literal["gelu_tanh", "gelu"] = setting(
        "the MLP's GELU: GPT-2's tanh approximation, or exact", "gelu_tanh"
    )
    layer_norm_epsilon: Positive = setting("added to a layer norm's variance", 1e-5)
    init_std: NotNegative = setting("standard deviation of initial weights", 0.02)
    init_residual: Literal["both", "mlp", "none"] = setting(
        "projections onto the residual stream whose initial weights are divided by "
        "sqrt(2 x n_layer): of attention and MLP, of the MLP only, or neither",
        "both",
    )
    init_positions: Literal["normal", "zero"] = setting(
        "initial position embeddings: drawn like other weights, or zero", "normal"
    )
    scale_embedding: bool = setting(
        "multiply the token embedding's output by sqrt(n_embd), before positions are added", False
    )
