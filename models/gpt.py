"""GPT-2 (Radford et al. 2019), written once: nothing here knows how it is cut.

T tokens of a micro-batch (B samples of S), C = n_embd hidden features, x [T, C] between blocks.
Layers take x in the outer layout, work in the inner one and give x back in the outer one; in which
pieces, the partition knows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from models.config import GPTConfig
from models.kv_cache import KVCache, LayerKVCache
from models.parallel.activation_checkpointing import recompute
from models.parallel.context import ParallelContext, derive_seed
from models.parallel.layers import Dropout, Linear, PositionEmbedding, TokenEmbedding
from models.parallel.loss import Head, HeadLoss, loss_and_top_k
from models.parallel.norm import LayerNorm


class Attention(nn.Module):
    """Causal self-attention. qkv is laid out head-major, so that cuts fall between heads."""

    def __init__(self, config: GPTConfig, parallel: ParallelContext, layer: int) -> None:
        super().__init__()
        up, down = parallel.mode.up, parallel.mode.down
        width = config.n_head * config.head_dim
        self.head_dim, self.dropout = config.head_dim, config.attn_pdrop
        self.c_attn = Linear(parallel, up, config.n_embd, 3 * width, std=config.init_std)
        self.c_proj = Linear(parallel, down, width, config.n_embd, std=residual_std(config))
        self.dropout_site: tuple[int | str, ...] = (
            "attention",
            layer,
            *parallel.activation_key(parallel.mode.inner),
        )

    def forward(
        self, x: Tensor, length: int, seed: int, past: LayerKVCache | None = None
    ) -> Tensor:
        qkv = rearrange(
            self.c_attn(x), "(b s) (h n d) -> n b h s d", s=length, n=3, d=self.head_dim
        )
        q, k, v = qkv.unbind(0)
        if past is not None:
            k, v = past.extend(k, v)
        y = self.attend(q, k, v, seed=seed)
        out: Tensor = self.c_proj(rearrange(y, "b h s d -> (b s) (h d)"))
        return out

    def attend(self, q: Tensor, k: Tensor, v: Tensor, *, seed: int) -> Tensor:
        """softmax(q k^T / sqrt(d)) v, causal. q, k, v [B, heads, S, d]; a q of one position may
        come with the k and v of those before it, too."""
        causal = q.shape[2] > 1
        if not self.training or self.dropout == 0.0:
            return F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        # SDPA draws its mask from the global generator: key it for the call, then put it back.
        with torch.random.fork_rng([q.device] if q.is_cuda else [], device_type=q.device.type):
            torch.manual_seed(derive_seed(seed, *self.dropout_site))
            return F.scaled_dot_product_attention(q, k, v, is_causal=causal, dropout_p=self.dropout)


class MLP(nn.Module):
    """gelu(x @ fc) @ proj"""

    def __init__(self, config: GPTConfig, parallel: ParallelContext) -> None:
        super().__init__()
        self.c_fc = Linear(
            parallel, parallel.mode.up, config.n_embd, config.n_inner, std=config.init_std
        )
        self.c_proj = Linear(
            parallel, parallel.mode.down, config.n_inner, config.n_embd, std=residual_std(config)
        )
        self.approximate = "tanh" if config.activation == "gelu_tanh" else "none"

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.c_proj(F.gelu(self.c_fc(x), approximate=self.approximate))
        return y


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)): pre-norm."""

    def __init__(self, config: GPTConfig, parallel: ParallelContext, layer: int) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(parallel, config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = Attention(config, parallel, layer)
        self.ln_2 = LayerNorm(parallel, config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = MLP(config, parallel)
        outer = parallel.mode.outer
        self.drop_1 = Dropout(parallel, config.resid_pdrop, outer, "residual", layer, 1)
        self.drop_2 = Dropout(parallel, config.resid_pdrop, outer, "residual", layer, 2)

    def forward(
        self, x: Tensor, length: int, seed: int, past: LayerKVCache | None = None
    ) -> Tensor:
        x = x + self.drop_1(self.attn(self.ln_1(x), length, seed, past), seed)
        y: Tensor = x + self.drop_2(self.mlp(self.ln_2(x)), seed)
        return y


class GPT(nn.Module):
    """Layers [start, stop) of a GPT, the embedding with the first and the head with the last.

    ``seed`` of the calls keys the dropout masks of one micro-batch. Parameter names carry the
    global number of the layer, whatever the range.
    """

    def __init__(
        self,
        config: GPTConfig,
        parallel: ParallelContext,
        *,
        layers: range | None = None,
        loss_chunk: int | None = None,
    ) -> None:
        super().__init__()
        layers = range(config.n_layer) if layers is None else layers
        self.first, self.last = layers.start == 0, layers.stop == config.n_layer
        self.config, self.parallel = config, parallel
        self.drops = config.resid_pdrop > 0 or config.attn_pdrop > 0
        if self.first or (self.last and config.tie_embeddings):
            self.wte = TokenEmbedding(
                parallel, config.vocab_size, config.n_embd, std=config.init_std
            )
        if self.first:
            self.wpe = PositionEmbedding(
                parallel, config.block_size, config.n_embd, std=config.init_std
            )
            self.drop = Dropout(parallel, config.embd_pdrop, parallel.mode.outer, "embedding")
        self.h = nn.ModuleDict({str(n): Block(config, parallel, n) for n in layers})
        if self.last:
            self.ln_f = LayerNorm(parallel, config.n_embd, eps=config.layer_norm_epsilon)
            if not config.tie_embeddings:
                self.lm_head = TokenEmbedding(
                    parallel, config.vocab_size, config.n_embd, std=config.init_std
                )
            box, pieces = self.output.shards["weight"], self.output.as_head
            self.head = Head(parallel=parallel, shard=box, weight_sharding=pieces, chunk=loss_chunk)

    @property
    def output(self) -> TokenEmbedding:
        """The table that makes logits."""
        return self.wte if self.config.tie_embeddings else self.lm_head

    def embed(self, ids: Tensor, seed: int = 0, start: int = 0) -> Tensor:
        """ids [B, S] of the whole micro-batch, from position ``start`` -> x [T_local, C_local]."""
        x = self.wte(ids.flatten()) + self.wpe(*ids.shape, start)
        x = self.drop(x, seed)
        assert isinstance(x, Tensor)
        return x

    def forward(
        self, x: Tensor, length: int, seed: int = 0, cache: KVCache | None = None
    ) -> Tensor:
        """x [T_local, C_local] through this range's blocks; samples are ``length`` tokens long, and
        go on from those in the ``cache``."""
        if not self.drops:  # a compiler would make a block anew for every seed
            seed = 0
        for name, block in self.h.items():
            if self.config.checkpoint and torch.is_grad_enabled():
                x = recompute(block, x, length, seed, keep=self.config.checkpoint == "selective")
            else:
                x = block(x, length, seed, cache and cache[name])
        return self.ln_f(x) if self.last else x

    def loss(self, x: Tensor, targets: Tensor, scale: float) -> Tensor:
        """This rank's share of ``scale`` x the summed cross-entropy of targets [B, S], of which
        those that are -100 do not count."""
        share: Tensor = HeadLoss.apply(x, self.output.weight, targets.flatten(), scale, self.head)
        return share

    def loss_and_top_k(self, x: Tensor, targets: Tensor, tops: Sequence[int]) -> Tensor:
        """This rank's share of the summed cross-entropy of the same targets, and of how many are
        among so many likeliest, for each of ``tops``: float64 [1 + len(tops)]."""
        return loss_and_top_k(x, self.output.weight, targets.flatten(), self.head, tops)

    def logits(self, x: Tensor) -> Tensor:
        """x [T, C] -> logits [T, vocabulary], for a model that is not cut."""
        assert self.parallel.mode.name == "serial"
        return self.parallel.matmul(x, self.output.weight.to(x.dtype).t())


def residual_std(config: GPTConfig) -> float:
    """Projections onto the residual stream start smaller by sqrt of the number of them (GPT-2,
    section 2.3)."""
    return float(config.init_std / (2 * config.n_layer) ** 0.5)
