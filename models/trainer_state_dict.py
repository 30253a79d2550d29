"""Converts GPT state dicts with torch's linear layers: weights are [out, in]; queries, keys and
values have three layers or one. A format is defined by its tensor names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

import torch
from einops import rearrange
from torch import Tensor

from models.config import GPTConfig
from models.parallel.registry import modes
from models.parameters import Parameter, parameters

PREFIXES = ("module.", "_orig_mod.", "model.")
"""Prefixes of tensor names that DistributedDataParallel, torch.compile and Lightning add."""

Pattern = tuple[str, str]
"""A regular expression of a tensor's name, and the ``re`` template of cuboid's parameter name."""


@dataclass(frozen=True, kw_only=True)
class StateDictNames:
    """The tensor names of a state dict format, without ``PREFIXES``."""

    patterns: tuple[Pattern, ...]
    """Patterns of all parameters but the queries', keys' and values'."""
    query_key_value: tuple[Pattern, ...]
    """Patterns for separate layers of queries, keys and values."""
    key_query_value: Pattern | None = None
    """Pattern for one joint layer: keys, queries and values of the first head, then of the next."""
    unused: str
    """A regular expression of the names of tensors that are not parameters, such as masks."""

    def sources(self, names: Mapping[str, object]) -> dict[str, list[str]]:
        """Match the tensor ``names`` of a file; return those of each of cuboid's parameters: one
        name, or three in the order queries, keys, values.

        Raises ValueError for names that the format does not have.
        """
        patterns = [*self.patterns, *self.query_key_value]
        if self.key_query_value is not None:
            patterns.append(self.key_query_value)
        sources: dict[str, list[str]] = {}
        known = set()
        bare = {without_prefix(name): name for name in names}
        for pattern, template in patterns:
            for short, name in bare.items():
                if match := re.fullmatch(pattern, short):
                    sources.setdefault(match.expand(template), []).append(name)
                    known.add(short)
        unknown = [
            n for s, n in bare.items() if s not in known and not re.fullmatch(self.unused, s)
        ]
        if unknown:
            raise ValueError(f"unexpected: {', '.join(unknown)}")
        return sources


def without_prefix(name: str) -> str:
    """Return a tensor's ``name`` without ``PREFIXES``."""
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The sizes of a GPT that follow from the shapes of its tensors."""

    n_layer: int
    n_embd: int
    n_inner: int
    attention_width: int
    vocab_size: int
    block_size: int

    @classmethod
    def of(cls, state: Mapping[str, Tensor], sources: Mapping[str, list[str]]) -> Sizes:
        """Derive the model's sizes from the tensors in ``state``. Raises ValueError where a tensor
        is missing that determines a size."""

        def shape(name: str) -> tuple[int, ...]:
            if name not in sources:
                raise ValueError(f"the tensor of {name} is missing")
            return tuple(state[sources[name][0]].shape)

        vocabulary, width = shape("wte.weight")
        *_, positions, _ = shape("wpe.weight")
        return cls(
            n_layer=1
            + max((int(m[1]) for n in sources if (m := re.match(r"h\.(\d+)\.", n))), default=-1),
            n_embd=width,
            n_inner=shape("h.0.mlp.c_fc.weight")[0],
            attention_width=shape("h.0.attn.c_proj.weight")[1],
            vocab_size=vocabulary,
            block_size=positions,
        )


def convert(
    state: Mapping[str, Tensor], sources: Mapping[str, list[str]], config: GPTConfig
) -> Iterator[tuple[str, Tensor]]:
    """Yield the unsharded tensors under cuboid's names, one at a time; ``state`` may be lazy.

    Raises ValueError where a parameter is missing or a tensor's size differs from ``config``.
    """
    needed = {p.name: p for p in parameters(config, modes()["serial"])}
    missing = [name for name in needed if name not in sources]
    if missing:
        raise ValueError(f"the tensors of {', '.join(missing)} are missing")
    return (
        (name, _converted(parameter, state, sources[name], config))
        for name, parameter in needed.items()
    )


def _converted(
    parameter: Parameter, state: Mapping[str, Tensor], names: list[str], config: GPTConfig
) -> Tensor:
    parts = [state[name] for name in names]
    if sum(part.numel() for part in parts) != prod(parameter.shape):
        found = ", ".join(f"{n} {list(t.shape)}" for n, t in zip(names, parts, strict=True))
        raise ValueError(f"{found}; {parameter.name} has {list(parameter.shape)}")
    if len(parts) == 3:  # q, k, v
        stacked = torch.stack(parts)
        tensor = rearrange(stacked, "n (h d) ... -> (h n d) ...", h=config.n_head)
    elif ".c_attn." in parameter.name:  # one layer: k, q, v of each head
        by_head = rearrange(parts[0], "(h n d) ... -> h n d ...", h=config.n_head, n=3)
        tensor = rearrange(by_head[:, [1, 0, 2]], "h n d ... -> (h n d) ...")
    else:
        (tensor,) = parts
    is_linear = parameter.kind == "linear" and parameter.name != "lm_head.weight"
    return (tensor.T if is_linear else tensor).reshape(parameter.shape).contiguous()
