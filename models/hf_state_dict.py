"""To and from the state of Hugging Face's GPT2LMHeadModel.

Names are ours but for the prefix ``transformer.``, and its Conv1D weights are [in, out] like ours.
Its qkv is q | k | v, each head by head; ours is head-major, each head's q | k | v.
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
    """Whole tensors by our names, one at a time: ``state`` may read them as it is asked.

    Accepts the state of a GPT2Model (no prefix) too.

    Raises:
        ValueError: before the first tensor, and with all names: keys are missing or not GPT-2's.
            With the tensor: its shape is not that of ``config``, or a tied head has other numbers
            than the embedding.
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
            raise ValueError(f"{keys[name]} is {list(tensor.shape)}, wanted {list(shape)}")
        if name == EMBEDDING and tied_head and not torch.equal(tensor, state[tied_head]):
            raise ValueError(
                f"{tied_head} is not {keys[name]}: model.tie_embeddings=False loads both"
            )
        if QKV.fullmatch(name):
            tensor = rearrange(tensor, "... (n h d) -> ... (h n d)", n=3, h=config.n_head)
        yield name, tensor


def to_hf(tensors: Iterable[tuple[str, Tensor]], config: GPTConfig) -> Iterator[tuple[str, Tensor]]:
    """The reverse: (name, whole tensor) as GPT2LMHeadModel names and lays them out. A tied head,
    which is the embedding under a second name, is left out, as it is from their files.

    Raises:
        ValueError: n_head x head_dim is not n_embd, which GPT-2 has no words for.
    """
    width = config.n_head * config.head_dim
    if width != config.n_embd:
        raise ValueError(
            f"n_head={config.n_head} x head_dim={config.head_dim} is {width}, not "
            f"n_embd={config.n_embd}: Hugging Face's GPT-2 cannot hold this model"
        )
    return (
        (hf_name(name), _parts_first(tensor, config) if QKV.fullmatch(name) else tensor)
        for name, tensor in tensors
    )


def is_mask(name: str) -> bool:
    """Whether a tensor of a Hugging Face state is the causal mask that old ones hold."""
    return BUFFER.fullmatch(name.removeprefix(PREFIX)) is not None


def hf_name(name: str) -> str:
    """What GPT2LMHeadModel calls a parameter of ours."""
    return name if name == HEAD else PREFIX + name


def _parts_first(tensor: Tensor, config: GPTConfig) -> Tensor:
    theirs: Tensor = rearrange(tensor, "... (h n d) -> ... (n h d)", n=3, h=config.n_head)
    return theirs
