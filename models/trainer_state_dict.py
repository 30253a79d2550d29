"""Conversion of a state dict that has torch's linear layers: weights are [out, in]; queries, keys
and values are in three layers or in one. A format is declared by the names of its tensors."""

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
"""Prefixes by DistributedDataParallel, torch.compile and Lightning."""

Pattern = tuple[str, str]
"""Regular expression of a name, and the name of cuboid's parameter (a template of ``re``)."""


@dataclass(frozen=True, kw_only=True)
class StateDictNames:
    """The tensor names of a state dict format, without PREFIXES."""

    patterns: tuple[Pattern, ...]
    """Of each parameter but the attention's first layer."""
    query_key_value: tuple[Pattern, ...]
    """Of the layers of the queries, of the keys and of the values."""
    key_query_value: Pattern | None = None
    """Of one layer of all, head by head: keys, queries and values of the first head first."""
    unused: str
    """Regular expression of the names of tensors that are no parameters, such as masks."""

    def sources(self, names: Mapping[str, object]) -> dict[str, list[str]]:
        """Return, for each of cuboid's parameters, the file's names of its tensors: one, or three
        in the order of queries, keys and values.

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
    """Return the name of a tensor without the prefixes that wrappers of the model add."""
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
        """Return the sizes of the model of ``state``. Raises ValueError where a tensor is missing
        that determines one."""

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
    """Yield the unsharded tensors with cuboid's names, one at a time; ``state`` may be lazy.

    Raises ValueError where parameters are missing, or a tensor has another size than ``config``.
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
