"""Conversion to and from the state dict of Hugging Face's GPT2LMHeadModel.

Hugging Face's names are cuboid's with the prefix ``transformer.``, and its Conv1D weights are
[in, out] as in cuboid. Its qkv is part-major: the q of all heads, then k, then v. cuboid's qkv is
head-major: q, k and v of the first head, then of the next head.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

import torch
from einops import rearrange
from torch import Tensor

from models.config import GPTConfig
from models.parallel.registry import modes
from models.parameters import parameters

PREFIX = "transformer."
BUFFER = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")  # the causal mask in older states
QKV = re.compile(r"h\.\d+\.attn\.c_attn\.(weight|bias)")
EMBEDDING, HEAD = "wte.weight", "lm_head.weight"


def from_hf(state: Mapping[str, Tensor], config: GPTConfig) -> Iterator[tuple[str, Tensor]]:
    """Yield the unsharded tensors with cuboid's names, one at a time; ``state`` may be lazy.

    The state of a GPT2Model (without the prefix) is accepted too.

    Raises:
        ValueError: keys are missing or unexpected (raised before the first tensor, with all names);
            a tensor's shape differs from ``config``; a tied head differs from the embedding.
    """
    keys = {key.removeprefix(PREFIX): key for key in state}
    shapes = {p.name: p.shape for p in parameters(config, modes()["serial"])}
    tied_head = keys.pop(HEAD, None) if config.tie_embeddings else None
    missing = [name for name in shapes if name not in keys]
    unexpected = [keys[name] for name in keys if name not in shapes and not BUFFER.fullmatch(name)]
    problems = [
        f"{what}: {', '.join(names)}"
        for what, names in (("missing", missing), ("unexpected", unexpected))
        if names
    ]
    if problems:
        raise ValueError(f"not the state of this GPT-2; {'; '.join(problems)}")
    return _converted(state, keys, shapes, config, tied_head)


def _converted(
    state: Mapping[str, Tensor],
    keys: Mapping[str, str],
    shapes: Mapping[str, tuple[int, ...]],
    config: GPTConfig,
    tied_head: str | None,
) -> Iterator[tuple[str, Tensor]]:
    for name, shape in shapes.items():
        tensor = state[keys[name]]
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{keys[name]} is {list(tensor.shape)}, not {list(shape)}")
        if name == EMBEDDING and tied_head and not torch.equal(tensor, state[tied_head]):
            raise ValueError(
                f"{tied_head} differs from {keys[name]}; load both with model.tie_embeddings=False"
            )
        if QKV.fullmatch(name):
            tensor = rearrange(tensor, "... (n h d) -> ... (h n d)", n=3, h=config.n_head)
        yield name, tensor


def to_hf(tensors: Iterable[tuple[str, Tensor]], config: GPTConfig) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, unsharded tensor) with the names and in the form of GPT2LMHeadModel.

    A tied head, which is the embedding under a second name, is omitted, as in Hugging Face's files.

    Raises:
        ValueError: n_head x head_dim is not n_embd, or the embedding is scaled and also the head,
            which GPT-2's config cannot express.
    """
    width = config.n_head * config.head_dim
    if width != config.n_embd:
        raise ValueError(
            f"n_head={config.n_head} x head_dim={config.head_dim} is {width}, not "
            f"n_embd={config.n_embd}: Hugging Face's GPT-2 cannot hold this model"
        )
    if config.scale_embedding and config.tie_embeddings:
        raise ValueError(
            "model.scale_embedding=True with model.tie_embeddings=True: Hugging Face's GPT-2 "
            "cannot scale an embedding that is also the head; export to safetensors or pt"
        )
    return ((hf_name(name), _for_hf(name, tensor, config)) for name, tensor in tensors)


def is_mask(name: str) -> bool:
    """Return whether a tensor of a Hugging Face state dict is the causal mask of older versions."""
    return BUFFER.fullmatch(name.removeprefix(PREFIX)) is not None


def hf_name(name: str) -> str:
    """Return the name that GPT2LMHeadModel gives to cuboid's parameter ``name``."""
    return name if name == HEAD else PREFIX + name


def _for_hf(name: str, tensor: Tensor, config: GPTConfig) -> Tensor:
    """Return the tensor in the form of GPT2LMHeadModel, which scales no embedding: the factor is
    multiplied into the table."""
    if QKV.fullmatch(name):
        part_major: Tensor = rearrange(tensor, "... (h n d) -> ... (n h d)", n=3, h=config.n_head)
        return part_major
    return tensor * config.n_embd**0.5 if name == EMBEDDING and config.scale_embedding else tensor
