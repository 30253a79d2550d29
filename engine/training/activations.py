"""Observes the activations of a forward pass by hooks, which exist only while it is observed.

Tokens whose target is ignored are not counted: such tokens pad samples and documents, and their
number depends on the layout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from models.config import GPTConfig
from models.gpt import GPT, Block
from models.parallel.mode import ActivationSharding
from models.parallel.norm import LayerNorm
from models.parallel.targets import IGNORED

LOGITS = "Logits"
IN_BLOCK = (
    *(f"ln{norm}.{side}" for norm in (1, 2) for side in ("preLN", "postLN")),
    *(f"CausalAttn.{name}" for name in "qkv"),
    "MLP.pre_act",
    "MLP.post_act",
    "attn_delta",
    "mlp_delta",
    "output",
)

Observe = Callable[[str, Tensor], None]
"""Receives a name and this rank's shard of the tensor: each entry is in the shard of one rank."""


def activation_names(config: GPTConfig) -> list[str]:
    """Return the names of all activations of a model. Blocks are counted from 1."""
    blocks = [f"GPT/Block{n + 1}.{site}" for n in range(config.n_layer) for site in IN_BLOCK]
    return [*blocks, "GPT/lnf.preLN", "GPT/lnf.postLN", LOGITS]


@contextmanager
def observed(chunk: GPT, targets: Tensor, observe: Observe) -> Iterator[None]:
    """Pass the activations and logits of one forward pass, which runs in the ``with`` block, to
    ``observe``. Later recomputation is not observed. ``targets`` [samples, seq_len]: of the
    micro-batch."""
    counted = (targets != IGNORED).flatten()
    counted = chunk.parallel.arrange(counted, targets.shape[1], padding=False)
    observer = _Observer(chunk, counted, observe)
    with ExitStack() as stack:
        for name, block in chunk.h.items():
            assert isinstance(block, Block)
            for handle in observer.hooks(block, f"GPT/Block{int(name) + 1}"):
                stack.callback(handle.remove)
        if chunk.last:
            stack.callback(observer.norm(chunk.ln_f, "GPT/lnf").remove)
            chunk.head.observers.append(observer.logits)
            stack.callback(chunk.head.observers.remove, observer.logits)
        yield


class _Observer:
    """Forward hooks that observe one micro-batch in one chunk of the model."""

    def __init__(self, chunk: GPT, counted: Tensor, observe: Observe) -> None:
        self.parallel, self.config, self.observe = chunk.parallel, chunk.config, observe
        self.vocabulary = chunk.head.shard.size[0] if chunk.last else 0
        mode = self.parallel.mode
        self.outer = self._rows(mode.outer, counted)
        self.inner = self._rows(mode.inner, counted)
        (inner,) = self.parallel.shard((self.config.n_inner,), (mode.up.weight_out,)).size
        self.features = slice(0, inner)  # without padding

    def _rows(self, sharding: ActivationSharding, counted: Tensor) -> Tensor:
        """Return the part of the token mask ``counted`` for this rank's rows of an activation with
        ``sharding``."""
        return counted[self.parallel.rows(len(counted), sharding.tokens)]

    def hooks(self, block: Block, name: str) -> Iterator[torch.utils.hooks.RemovableHandle]:
        """Register the forward hooks of ``block``, and yield the handles that remove the hooks."""
        attention, mlp, outer = block.attn, block.mlp, self.outer
        yield self.norm(block.ln_1, f"{name}.ln1")
        yield self.norm(block.ln_2, f"{name}.ln2")
        yield _after(attention.c_attn, lambda x, y: self.heads(f"{name}.CausalAttn", y))
        yield _after(mlp.c_fc, lambda x, y: self.inner_features(f"{name}.MLP.pre_act", y))
        yield _after(mlp.c_proj, lambda x, y: self.inner_features(f"{name}.MLP.post_act", x))
        yield _after(attention, lambda x, y: self.observe(f"{name}.attn_delta", y[outer]))
        yield _after(mlp, lambda x, y: self.observe(f"{name}.mlp_delta", y[outer]))
        yield _after(block, lambda x, y: self.observe(f"{name}.output", y[outer]))

    def norm(self, norm: LayerNorm, name: str) -> torch.utils.hooks.RemovableHandle:
        """Register a hook that observes input and output of the layer norm ``norm``; return its
        handle."""

        def both(x: Tensor, y: Tensor) -> None:
            self.observe(f"{name}.preLN", x[self.outer])
            self.observe(f"{name}.postLN", y[self.outer])

        return _after(norm, both)

    def heads(self, name: str, qkv: Tensor) -> None:
        """Observe the queries, keys and values in ``qkv`` [tokens, heads x 3 x head_dim]."""
        parts = rearrange(qkv[self.inner], "t (h n d) -> n t h d", n=3, d=self.config.head_dim)
        for letter, part in zip("qkv", parts, strict=True):
            self.observe(f"{name}.{letter}", part)

    def inner_features(self, name: str, x: Tensor) -> None:
        """Observe ``x`` [tokens, n_inner], an activation of the MLP."""
        self.observe(name, x[self.inner, self.features])

    def logits(self, logits: Tensor, targets: Tensor) -> None:
        """Observe ``logits`` [tokens, vocabulary], computed for some of the tokens at a time."""
        self.observe(LOGITS, logits[targets != IGNORED, : self.vocabulary])


def _after(
    module: nn.Module, see: Callable[[Tensor, Tensor], None]
) -> torch.utils.hooks.RemovableHandle:
    """Register a hook that calls ``see(first argument, result)`` after each call of ``module``;
    return its handle."""

    def hook(module: nn.Module, arguments: Any, result: Any) -> None:
        see(arguments[0].detach(), result.detach())

    return module.register_forward_hook(hook)
