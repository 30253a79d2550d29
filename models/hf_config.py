"""Conversion to and from the config of Hugging Face's GPT-2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from models.config import GPTConfig

Activation = Literal["gelu_tanh", "gelu"]
ACTIVATIONS: Mapping[str, Activation] = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
}
HF_NAMES: Mapping[Activation, str] = {"gelu_tanh": "gelu_new", "gelu": "gelu"}
# Defaults of missing keys (transformers' configuration_gpt2.py)
HF_DEFAULTS: Mapping[str, Any] = {
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
# Variants that cuboid's GPT does not implement -> the value that it does implement
PLAIN: Mapping[str, bool] = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}


def config_from_hf(config: Mapping[str, Any]) -> GPTConfig:
    """Convert the content of a config.json.

    Raises:
        ValueError: the model is not a GPT-2, or is a variant that cuboid does not implement.
    """
    if config.get("model_type") != "gpt2":
        raise ValueError(f"model_type={config.get('model_type')!r}, but only 'gpt2' can be read")
    for name, value in PLAIN.items():
        if config.get(name, value) != value:
            raise ValueError(f"{name}={config[name]!r}; only {value!r} can be read")
    values = {name: config.get(name, default) for name, default in HF_DEFAULTS.items()}
    for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head"):
        if type(values[name]) is not int or values[name] < 1:
            raise ValueError(f"{name}={values[name]!r} is not 1 or more")
    activation = ACTIVATIONS.get(values["activation_function"])
    if activation is None:
        raise ValueError(
            f"activation_function={values['activation_function']!r}; supported: "
            f"{', '.join(ACTIVATIONS)}"
        )
    if values["n_embd"] % values["n_head"]:
        raise ValueError(
            f"n_embd={values['n_embd']} is not a multiple of n_head={values['n_head']}"
        )
    return GPTConfig(
        n_layer=values["n_layer"],
        n_head=values["n_head"],
        n_embd=values["n_embd"],
        head_dim=values["n_embd"] // values["n_head"],
        n_inner=values["n_inner"] or 4 * values["n_embd"],
        vocab_size=values["vocab_size"],
        block_size=values["n_positions"],
        embd_pdrop=float(values["embd_pdrop"]),
        resid_pdrop=float(values["resid_pdrop"]),
        attn_pdrop=float(values["attn_pdrop"]),
        tie_embeddings=bool(values["tie_word_embeddings"]),
        activation=activation,
        layer_norm_epsilon=float(values["layer_norm_epsilon"]),
        init_std=float(values["initializer_range"]),
    )


def hf_config(config: GPTConfig) -> dict[str, Any]:
    """Return the config of GPT2LMHeadModel for a model that ``to_hf`` accepts."""
    return {
        "activation_function": HF_NAMES[config.activation],
        "architectures": ["GPT2LMHeadModel"],
        "attn_pdrop": config.attn_pdrop,
        "embd_pdrop": config.embd_pdrop,
        "initializer_range": config.init_std,
        "layer_norm_epsilon": config.layer_norm_epsilon,
        "model_type": "gpt2",
        "n_embd": config.n_embd,
        "n_head": config.n_head,
        "n_inner": config.n_inner,
        "n_layer": config.n_layer,
        "n_positions": config.block_size,
        "resid_pdrop": config.resid_pdrop,
        "tie_word_embeddings": config.tie_embeddings,
        "vocab_size": config.vocab_size,
    }
