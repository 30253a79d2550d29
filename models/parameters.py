"""The parameters of a GPT: names, global shapes and sharding, without building the model.

The list repeats the declarations in ``models.gpt.GPT``; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Literal

from models.config import GPTConfig
from models.parallel.mode import LinearSharding, Mode
from models.parallel.registry import modes
from models.parallel.shard import PartitionSpec

ParameterKind = Literal["linear", "embedding", "norm", "bias"]
"""The weight of a linear layer (or of an untied head), the embedding of tokens (or a tied head) or
of positions, the weight of a norm, or the bias of a linear layer or norm."""


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """``shape`` is global and unpadded; ``spec`` has the axes that shard each dimension."""

    name: str
    kind: ParameterKind
    shape: tuple[int, ...]
    spec: PartitionSpec

    @property
    def count(self) -> int:
        return prod(self.shape)


def parameters(config: GPTConfig, mode: Mode, layers: range | None = None) -> Iterator[Parameter]:
    """Yield the parameters of ``layers``, by default all. The first layer includes the embedding,
    the last the head."""
    layers = range(config.n_layer) if layers is None else layers
    first, last = layers.start == 0, layers.stop == config.n_layer
    hidden = mode.outer.hidden
    table_spec = (mode.up.weight_out, mode.up.weight_in)
    vocabulary_shape = (config.vocab_size, config.n_embd)
    if first or (last and config.tie_embeddings):
        yield Parameter(
            name="wte.weight", kind="embedding", shape=vocabulary_shape, spec=table_spec
        )
    if first:
        positions = (config.block_size, config.n_embd)
        yield Parameter(name="wpe.weight", kind="embedding", shape=positions, spec=((), hidden))
    for layer in layers:
        yield from _block(f"h.{layer}", config, mode)
    if last:
        yield from _norm("ln_f", config, mode)
        if not config.tie_embeddings:
            yield Parameter(
                name="lm_head.weight", kind="linear", shape=vocabulary_shape, spec=table_spec
            )


def parameter_count(model: object) -> int:
    """Count the parameters of the whole model, unpadded; a tied head counts once. ``model`` has the
    fields of GPTConfig as attributes."""
    return sum(p.count for p in parameters(GPTConfig.of(model), modes()["serial"]))


def _block(path: str, config: GPTConfig, mode: Mode) -> Iterator[Parameter]:
    width = config.n_head * config.head_dim
    yield from _norm(f"{path}.ln_1", config, mode)
    yield from _linear(f"{path}.attn.c_attn", config.n_embd, 3 * width, mode.up)
    yield from _linear(f"{path}.attn.c_proj", width, config.n_embd, mode.down)
    yield from _norm(f"{path}.ln_2", config, mode)
    yield from _linear(f"{path}.mlp.c_fc", config.n_embd, config.n_inner, mode.up)
    yield from _linear(f"{path}.mlp.c_proj", config.n_inner, config.n_embd, mode.down)


def _linear(path: str, n_in: int, n_out: int, product: LinearSharding) -> Iterator[Parameter]:
    spec = (product.weight_in, product.weight_out)
    yield Parameter(name=f"{path}.weight", kind="linear", shape=(n_in, n_out), spec=spec)
    yield Parameter(name=f"{path}.bias", kind="bias", shape=(n_out,), spec=spec[1:])


def _norm(path: str, config: GPTConfig, mode: Mode) -> Iterator[Parameter]:
    shape, spec = (config.n_embd,), (mode.outer.hidden,)
    yield Parameter(name=f"{path}.weight", kind="norm", shape=shape, spec=spec)
    yield Parameter(name=f"{path}.bias", kind="bias", shape=shape, spec=spec)
