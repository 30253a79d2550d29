"""GPT-2 (Radford et al. 2019), written once for every sharding.

A micro-batch has B samples of S tokens, T = B S tokens in all. The activations between blocks are
x [T, C] with C = n_embd hidden features. Attention and MLP take x in the mode's outer sharding,
compute in its inner sharding and return x in the outer sharding (models/parallel/mode.py).

``models/parameters.py`` repeats the names and shapes of the parameters, and ``engine/estimate``
replays the allocations of each layer. Change them together with this file; tests compare them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from models.config import GPTConfig
from models.kv_cache import KVCache, LayerKVCache
from models.parallel.activation_checkpointing import recompute
from models.parallel.attention import AttentionDropout, GroupAttention
from models.parallel.compilation import untraced
from models.parallel.context import ParallelContext, derive_seed
from models.parallel.dropout import Dropout
from models.parallel.key_exchange import SampleGroup
from models.parallel.layers import Linear, PositionEmbedding, TokenEmbedding, initialise
from models.parallel.loss import Head, HeadLoss, loss_and_top_k
from models.parallel.micro_batch import MicroBatch
from models.parallel.norm import LayerNorm
from models.parallel.targets import IGNORED


class Attention(nn.Module):
    """Causal self-attention. qkv has its features ordered by head, so no shard splits a head."""

    def __init__(self, config: GPTConfig, parallel: ParallelContext, layer: int) -> None:
        super().__init__()
        up, down = parallel.mode.up, parallel.mode.down
        width = config.n_head * config.head_dim
        self.parallel, self.layer = parallel, layer
        self.n_head, self.head_dim = config.n_head, config.head_dim
        self.dropout = config.attn_pdrop
        self.c_attn = Linear(parallel, up, config.n_embd, 3 * width, std=config.init_std)
        std = residual_std(config, scaled=config.init_residual == "both")
        self.c_proj = Linear(parallel, down, width, config.n_embd, std=std)
        self.dropout_site = derive_seed("attention", layer)

    def forward(self, x: Tensor, batch: MicroBatch, past: LayerKVCache | None = None) -> Tensor:
        qkv: Tensor = self.c_attn(x)
        if not batch.shared and (qkv.is_cuda or not self.drops):
            s, d = batch.length, self.head_dim
            q, k, v = rearrange(qkv, "(b s) (h n d) -> n b h s d", s=s, n=3, d=d).unbind(0)
            if past is not None:
                k, v = past.extend(k, v)
            y = rearrange(self.attend(q, k, v, batch), "b h s d -> (b s) (h d)")
        else:
            y = self.attend_in_group(qkv, batch)
        out: Tensor = self.c_proj(y)
        return out

    @untraced
    def attend_in_group(self, qkv: Tensor, batch: MicroBatch) -> Tensor:
        """Compute attention for this rank's rows, of samples that several ranks may share."""
        assert batch.order is not None
        group = SampleGroup(batch.order, self.parallel)
        dropout = self.dropout_by_token(batch.seed)
        y: Tensor = GroupAttention.apply(qkv, self.head_dim, group, dropout)
        return y

    @property
    def drops(self) -> bool:
        """Return whether dropout applies to the attention probabilities."""
        return self.training and self.dropout > 0.0

    def dropout_by_token(self, seed: int) -> AttentionDropout | None:
        """Return the attention dropout of a micro-batch with ``seed``; None without dropout."""
        if not self.drops:
            return None
        parallel = self.parallel
        (first_head,) = parallel.shard((self.n_head,), (parallel.mode.inner.hidden,)).offset
        return AttentionDropout(
            p=self.dropout, seed=seed, site=self.dropout_site, first_head=first_head
        )

    def attend(self, q: Tensor, k: Tensor, v: Tensor, batch: MicroBatch) -> Tensor:
        """Return softmax(q k^T / sqrt(d)) v with a causal mask. q, k, v [B, heads, S, d]. If q has
        one position, k and v may include the positions before it.

        With dropout, which has a fused kernel on GPUs only, the kernel draws the mask from a seed
        of the micro-batch, the layer and the shard.
        """
        if not self.drops:
            return F.scaled_dot_product_attention(q, k, v, is_causal=q.shape[2] > 1)
        return self.attend_with_dropout(q, k, v, batch)

    @untraced
    def attend_with_dropout(self, q: Tensor, k: Tensor, v: Tensor, batch: MicroBatch) -> Tensor:
        """Compute ``attend`` with a dropout mask drawn from the micro-batch's seed."""
        # SDPA draws its mask from the global generator: seed it for the call, then restore it.
        key = self.parallel.activation_key(self.parallel.mode.inner)
        with torch.random.fork_rng([q.device] if q.is_cuda else [], device_type=q.device.type):
            torch.manual_seed(derive_seed(batch.seed, self.dropout_site, *key))
            return F.scaled_dot_product_attention(
                q, k, v, is_causal=q.shape[2] > 1, dropout_p=self.dropout
            )


class MLP(nn.Module):
    """gelu(x @ fc) @ proj"""

    def __init__(self, config: GPTConfig, parallel: ParallelContext) -> None:
        super().__init__()
        self.c_fc = Linear(
            parallel, parallel.mode.up, config.n_embd, config.n_inner, std=config.init_std
        )
        std = residual_std(config, scaled=config.init_residual != "none")
        self.c_proj = Linear(parallel, parallel.mode.down, config.n_inner, config.n_embd, std=std)
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

    def forward(self, x: Tensor, batch: MicroBatch, past: LayerKVCache | None = None) -> Tensor:
        x = x + self.drop_1(self.attn(self.ln_1(x), batch, past), batch)
        y: Tensor = x + self.drop_2(self.mlp(self.ln_2(x)), batch)
        return y


class GPT(nn.Module):
    """A range of a GPT's layers. The first layer includes the embedding, the last the head.

    A method's ``seed`` seeds the dropout masks of one micro-batch; it is a function of the step's
    seed and of the micro-batch's first sample (models/parallel/dropout.py). Parameter names
    number the layers from the start of the whole model.
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
        if self.first or (self.last and config.tie_embeddings):
            self.wte = TokenEmbedding(
                parallel, config.vocab_size, config.n_embd, std=config.init_std
            )
        if self.first:
            std = config.init_std if config.init_positions == "normal" else 0.0
            self.wpe = PositionEmbedding(parallel, config.block_size, config.n_embd, std=std)
            self.drop = Dropout(parallel, config.embd_pdrop, parallel.mode.outer, "embedding")
        self.h = nn.ModuleDict({str(n): Block(config, parallel, n) for n in layers})
        if self.last:
            self.ln_f = LayerNorm(parallel, config.n_embd, eps=config.layer_norm_epsilon)
            if not config.tie_embeddings:
                self.lm_head = TokenEmbedding(
                    parallel, config.vocab_size, config.n_embd, std=config.init_std
                )
            self.head = Head(
                parallel=parallel,
                shard=self.output.shards["weight"],
                weight_sharding=self.output.as_head,
                chunk=loss_chunk,
            )

    @property
    def output(self) -> TokenEmbedding:
        """The token table that the head multiplies by: ``wte`` if tied, else ``lm_head``."""
        return self.wte if self.config.tie_embeddings else self.lm_head

    def embed(self, ids: Tensor, seed: int = 0, start: int = 0) -> Tensor:
        """Embed token ids [B, S] at positions from ``start``; return x [T_local, C_local]."""
        rows = self.parallel.arrange(ids.flatten(), ids.shape[1], padding=0)
        tokens = self.wte(rows)
        scale = self.config.n_embd**0.5 if self.config.scale_embedding else 1
        x = torch.add(self.wpe(*ids.shape, start), tokens, alpha=scale)
        x = self.drop(x, MicroBatch(length=ids.shape[1], seed=seed))
        assert isinstance(x, Tensor)
        return x

    def forward(
        self, x: Tensor, length: int, seed: int = 0, cache: KVCache | None = None
    ) -> Tensor:
        """Apply this range of layers to x [T_local, C_local], samples of ``length`` tokens that
        follow the tokens in ``cache``."""
        parallel = self.parallel
        order = parallel.row_order(parallel.num_shards(parallel.mode.outer.tokens) * len(x), length)
        batch = MicroBatch(length=length, seed=seed, order=order, shared=not order.is_whole)
        for name, block in self.h.items():
            if self.config.checkpoint and torch.is_grad_enabled():
                x = recompute(block, x, batch, keep=self.config.checkpoint == "selective")
            else:
                x = block(x, batch, cache and cache[name])
        return self.ln_f(x) if self.last else x

    def compile_blocks(self, *, deferred: bool, backend: str = "inductor") -> None:
        """Have each block compiled at its first call; all blocks of the rank share the code.
        ``deferred``: whether the schedule defers weight gradients."""
        for block in self.h.values():
            for module in block.modules():
                if isinstance(module, Linear) and (deferred or not module.is_local):
                    module.exclude_from_tracing()
            block.compile(backend=backend, dynamic=False)

    def loss(self, x: Tensor, targets: Tensor, scale: float) -> Tensor:
        """Return this rank's share of ``scale`` x the summed cross-entropy of targets [B, S].
        Targets of -100 are ignored."""
        rows = self.parallel.arrange(targets.flatten(), targets.shape[1], padding=IGNORED)
        share: Tensor = HeadLoss.apply(x, self.output.weight, rows, scale, self.head)
        return share

    def loss_and_top_k(self, x: Tensor, targets: Tensor, tops: Sequence[int]) -> Tensor:
        """Return this rank's share of the summed cross-entropy and, for each k of ``tops``, of the
        number of targets among the k most likely tokens: float64 [1 + len(tops)]."""
        rows = self.parallel.arrange(targets.flatten(), targets.shape[1], padding=IGNORED)
        return loss_and_top_k(x, self.output.weight, rows, self.head, tops)

    def logits(self, x: Tensor) -> Tensor:
        """Return the logits [T, vocabulary] of x [T, C]; only for a model that is not sharded."""
        assert self.parallel.mode.name == "serial"
        table = self.output.weight[: self.config.vocab_size]
        return self.parallel.matmul(x, table.to(x.dtype).t())


def residual_std(config: GPTConfig, *, scaled: bool) -> float:
    """Return the initial standard deviation of a projection onto the residual stream: init_std,
    divided by the square root of the number of such projections if ``scaled`` (GPT-2, section
    2.3)."""
    return float(config.init_std / (2 * config.n_layer) ** 0.5) if scaled else config.init_std


def check_dummy_batch() -> None:
    """Pass a batch of random ids forward and backward through a small model on the CPU, and print
    the shape of the logits, the loss and the number of parameters with a gradient."""
    config = GPTConfig(
        n_layer=2, n_head=8, n_embd=128, head_dim=16, n_inner=256, vocab_size=666, block_size=512
    )
    parallel = ParallelContext.single_device(
        torch.device("cpu"), dtype=torch.float32, compute=torch.float32
    )
    model = GPT(config, parallel)
    initialise(model, seed=0)
    ids = torch.randint(config.vocab_size, (8, 513), generator=torch.Generator().manual_seed(0))
    ids, targets = ids[:, :-1], ids[:, 1:]
    y = model(model.embed(ids), ids.shape[1])
    loss = model.loss(y, targets, 1 / targets.numel())
    loss.backward()
    parameters = list(model.parameters())
    with_gradient = sum(bool(p.grad is not None and p.grad.any()) for p in parameters)
    logits = model.logits(y.detach()).view(*ids.shape, -1)
    print(f"logits {list(logits.shape)}")
    print(f"loss={loss.item():.4f} (log of the vocabulary: {math.log(config.vocab_size):.4f})")
    print(f"{with_gradient} of {len(parameters)} parameters have a gradient")


if __name__ == "__main__":
    check_dummy_batch()
