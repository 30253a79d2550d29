"""To and from the config of Hugging Face's GPT-2, as data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from models.config import Sizes

Activation = Literal["gelu_tanh", "gelu"]
ACTIVATIONS: Mapping[str, Activation] = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
}
THEIRS: Mapping[Activation, str] = {"gelu_tanh": "gelu_new", "gelu": "gelu"}
# What is meant where a config is silent (transformers' configuration_gpt2.py)
SILENT: Mapping[str, Any] = {
    "vocab_size": 50257,
    "n_positions": 1024,
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "n_inner": None,
    "activation_function": "gelu_new",
    "resid_pdrop": 0.1,
    "embd_pdrop": 0.1,
    "attn_pdrop": 0.1,
    "layer_norm_epsilon": 1e-5,
    "initializer_range": 0.02,
    "tie_word_embeddings": True,
}
# Variants that our GPT has no words for -> the value that it does have
PLAIN: Mapping[str, bool] = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}


def sizes_of(config: Mapping[str, Any]) -> Sizes:
    """The sizes that a config.json tells.

    Raises:
        ValueError: it is not of a GPT-2, or of a variant that our GPT cannot be.
    """
    if config.get("model_type") != "gpt2":
        raise ValueError(f"model_type={config.get('model_type')!r}, wanted 'gpt2'")
    for name, value in PLAIN.items():
        if config.get(name, value) != value:
            raise ValueError(f"{name}={config[name]!r}; only {value!r} can be read")
    told = {name: config.get(name, default) for name, default in SILENT.items()}
    for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head"):
        if type(told[name]) is not int or told[name] < 1:
            raise ValueError(f"{name}={told[name]!r} is not 1 or more")
    activation = ACTIVATIONS.get(told["activation_function"])
    if activation is None:
        raise ValueError(
            f"activation_function={told['activation_function']!r}; there are: "
            f"{', '.join(ACTIVATIONS)}"
        )
    if told["n_embd"] % told["n_head"]:
        raise ValueError(f"n_embd={told['n_embd']} is not a multiple of n_head={told['n_head']}")
    return Sizes(
        n_layer=told["n_layer"],
        n_head=told["n_head"],
        n_embd=told["n_embd"],
        head_dim=told["n_embd"] // told["n_head"],
        n_inner=told["n_inner"] or 4 * told["n_embd"],
        vocab_size=told["vocab_size"],
        block_size=told["n_positions"],
        embd_pdrop=float(told["embd_pdrop"]),
        resid_pdrop=float(told["resid_pdrop"]),
        attn_pdrop=float(told["attn_pdrop"]),
        tie_embeddings=bool(told["tie_word_embeddings"]),
        activation=activation,
        layer_norm_epsilon=float(told["layer_norm_epsilon"]),
        init_std=float(told["initializer_range"]),
    )


def config_of(sizes: Sizes) -> dict[str, Any]:
    """The config of GPT2LMHeadModel for a model that ``models.hf_state_dict.to_hf`` takes."""
    return {
        "activation_function": THEIRS[sizes.activation],
        "architectures": ["GPT2LMHeadModel"],
        "attn_pdrop": sizes.attn_pdrop,
        "embd_pdrop": sizes.embd_pdrop,
        "initializer_range": sizes.init_std,
        "layer_norm_epsilon": sizes.layer_norm_epsilon,
        "model_type": "gpt2",
        "n_embd": sizes.n_embd,
        "n_head": sizes.n_head,
        "n_inner": sizes.n_inner,
        "n_layer": sizes.n_layer,
        "n_positions": sizes.block_size,
        "resid_pdrop": sizes.resid_pdrop,
        "tie_word_embeddings": sizes.tie_embeddings,
        "vocab_size": sizes.vocab_size,
    }
