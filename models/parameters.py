"""The parameters of a GPT: names, global shapes and cuts, as data.

What ``models.gpt.GPT`` declares, told without building it (a test holds one against the other).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from models.config import Sizes
from models.parallel.mode import Mode, Product
from models.parallel.registry import modes
from models.parallel.shard import Cut


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """``shape`` is global and unpadded; ``cut`` names the axes that cut each dimension."""

    name: str
    shape: tuple[int, ...]
    cut: Cut

    @property
    def count(self) -> int:
        return prod(self.shape)


def parameters(sizes: Sizes, mode: Mode, layers: range | None = None) -> Iterator[Parameter]:
    """Those of layers [start, stop), the embedding with the first and the head with the last."""
    layers = range(sizes.n_layer) if layers is None else layers
    first, last = layers.start == 0, layers.stop == sizes.n_layer
    hidden = mode.outer.hidden
    table = (mode.up.weight_out, mode.up.weight_in)
    words = (sizes.vocab_size, sizes.n_embd)
    if first or (last and sizes.tie_embeddings):
        yield Parameter(name="wte.weight", shape=words, cut=table)
    if first:
        positions = (sizes.block_size, sizes.n_embd)
        yield Parameter(name="wpe.weight", shape=positions, cut=((), hidden))
    for layer in layers:
        yield from _block(f"h.{layer}", sizes, mode)
    if last:
        yield from _norm("ln_f", sizes, mode)
        if not sizes.tie_embeddings:
            yield Parameter(name="lm_head.weight", shape=words, cut=table)


def parameter_count(model: object) -> int:
    """Parameters of the whole model, unpadded; a tied head counts once. ``model`` has sizes."""
    return sum(p.count for p in parameters(Sizes.of(model), modes()["serial"]))


def _block(path: str, sizes: Sizes, mode: Mode) -> Iterator[Parameter]:
    width = sizes.n_head * sizes.head_dim
    yield from _norm(f"{path}.ln_1", sizes, mode)
    yield from _linear(f"{path}.attn.c_attn", sizes.n_embd, 3 * width, mode.up)
    yield from _linear(f"{path}.attn.c_proj", width, sizes.n_embd, mode.down)
    yield from _norm(f"{path}.ln_2", sizes, mode)
    yield from _linear(f"{path}.mlp.c_fc", sizes.n_embd, sizes.n_inner, mode.up)
    yield from _linear(f"{path}.mlp.c_proj", sizes.n_inner, sizes.n_embd, mode.down)


def _linear(path: str, n_in: int, n_out: int, product: Product) -> Iterator[Parameter]:
    cut = (product.weight_in, product.weight_out)
    yield Parameter(name=f"{path}.weight", shape=(n_in, n_out), cut=cut)
    yield Parameter(name=f"{path}.bias", shape=(n_out,), cut=cut[1:])


def _norm(path: str, sizes: Sizes, mode: Mode) -> Iterator[Parameter]:
    for name in ("weight", "bias"):
        cut = (mode.outer.hidden,)
        yield Parameter(name=f"{path}.{name}", shape=(sizes.n_embd,), cut=cut)
