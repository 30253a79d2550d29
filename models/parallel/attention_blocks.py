"""Attention to one block of keys, and its backward pass from the output over all blocks.

q [B, heads, Q, d] attends to k, v [B, heads, K, d]. A forward pass returns the output and the
log-sum-exp [B, heads, Q] of the scores; the log-sum-exps weight the outputs of two blocks of keys
when they are merged (Milakov & Gimelshein 2018; Dao et al. 2022, section 3.1). A backward pass
takes the merged output and log-sum-exp, so that it normalizes the block's probabilities over all
keys. Fused kernels never allocate the scores.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

aten = torch.ops.aten

Gradients = tuple[Tensor, Tensor, Tensor]
"""The gradients dq, dk and dv of q, k and v."""


@dataclass(frozen=True, kw_only=True)
class ScoreBlock:
    """The block of the attention score matrix for the queries ``q`` and the keys ``k``."""

    q: Tensor
    k: Tensor
    v: Tensor
    causal: bool
    """Whether query i attends to keys 0 to i only, instead of all keys."""
    dropout: float = 0.0
    """The dropout rate of the probabilities."""
    dropped: Callable[[], Tensor] | None = None
    """Function that draws the mask [B, heads, Q, K] of dropped probabilities; None: no dropout."""

    def forward(self) -> tuple[Tensor, Tensor]:
        """Return the attention output and the log-sum-exp of this block's scores."""
        q, k, v, causal = self.q, self.k, self.v, self.causal
        match self.kernel:
            case "cpu":
                out, lse = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal)
            case "flash":
                out, lse, *_ = aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal)
            case "efficient":
                out, lse, *_ = aten._efficient_attention_forward(
                    *(x.transpose(1, 2) for x in (q, k, v)),
                    *(None, None, None, None, None, 0.0, int(causal), True),
                )
                out, lse = out.transpose(1, 2), lse[..., : q.shape[2]]
            case _:
                return self._forward_by_scores()
        return out, lse

    def backward(self, dout: Tensor, out: Tensor, lse: Tensor) -> Gradients:
        """Return what this block adds to dq, dk and dv. ``out`` and ``lse`` are merged over all
        blocks; ``dout`` is the gradient of ``out``."""
        q, k, v, causal = self.q, self.k, self.v, self.causal
        match self.kernel:
            case "cpu":
                dq, dk, dv = aten._scaled_dot_product_flash_attention_for_cpu_backward(
                    dout, q, k, v, out, lse, 0.0, causal
                )
            case "flash":
                none = torch.empty(0, dtype=torch.int64, device=q.device)
                sizes = (None, None, q.shape[2], k.shape[2])
                dq, dk, dv = aten._scaled_dot_product_flash_attention_backward(
                    dout, q, k, v, out, lse.contiguous(), *sizes, 0.0, causal, none, none
                )
            case "efficient":
                # The kernel reads the log-sum-exp in tiles of 32 rows.
                lse = F.pad(lse, (0, -lse.shape[2] % 32), value=torch.inf)
                none = torch.empty((), dtype=torch.int64, device=q.device)
                given = (x.transpose(1, 2) for x in (dout, q, k, v))
                dq, dk, dv, _ = aten._efficient_attention_backward(
                    *given,
                    None,
                    out.transpose(1, 2),
                    None,
                    None,
                    q.shape[2],
                    k.shape[2],
                    lse,
                    *(0.0, none, none, int(causal), False),
                )
                dq, dk, dv = (x.transpose(1, 2) for x in (dq, dk, dv))
            case _:
                return self._backward_by_scores(dout, out, lse)
        return dq, dk, dv

    @property
    def kernel(self) -> str:
        """The name of the fused kernel that computes the block; "" without one."""
        if self.dropped is not None:
            return ""
        if self.q.device.type == "cpu":
            return "cpu"
        if self.q.shape[3] % 8 or self.q.dtype == torch.float64:
            return ""
        return "efficient" if self.q.dtype == torch.float32 else "flash"

    def _scores(self) -> Tensor:
        wide = torch.promote_types(self.q.dtype, torch.float32)
        scale = self.q.shape[3] ** -0.5
        scores: Tensor = (self.q.to(wide) * scale) @ self.k.to(wide).transpose(2, 3)
        if self.causal:
            future = torch.ones(scores.shape[2:], dtype=torch.bool, device=scores.device).triu_(1)
            scores.masked_fill_(future, -torch.inf)
        return scores

    def _forward_by_scores(self) -> tuple[Tensor, Tensor]:
        scores = self._scores()
        lse = scores.logsumexp(3)
        p = scores.sub_(lse.unsqueeze(3)).exp_()
        if self.dropped is not None:
            self._drop(p, self.dropped())
        return (p @ self.v.to(p.dtype)).to(self.q.dtype), lse

    def _backward_by_scores(self, dout: Tensor, out: Tensor, lse: Tensor) -> Gradients:
        p = self._scores().sub_(lse.unsqueeze(3)).exp_()
        dout = dout.to(p.dtype)
        dp = dout @ self.v.to(p.dtype).transpose(2, 3)
        delta = (dout * out).sum(3, keepdim=True)
        if self.dropped is None:
            dv = p.transpose(2, 3) @ dout
        else:
            mask = self.dropped()
            self._drop(dp, mask)
            dv = self._drop(p.clone(), mask).transpose(2, 3) @ dout
        ds = dp.sub_(delta).mul_(p).mul_(self.q.shape[3] ** -0.5)
        dq, dk = ds @ self.k.to(p.dtype), ds.transpose(2, 3) @ self.q.to(p.dtype)
        kind = self.q.dtype
        return dq.to(kind), dk.to(kind), dv.to(kind)

    def _drop(self, x: Tensor, mask: Tensor) -> Tensor:
        return x.masked_fill_(mask, 0.0).mul_(1 / (1 - self.dropout))


def merge(out: Tensor, lse: Tensor, other: Tensor, other_lse: Tensor) -> tuple[Tensor, Tensor]:
    """Merge two blocks of keys; return output and log-sum-exp in the type of the log-sum-exp."""
    total = torch.logaddexp(lse, other_lse)
    mine, theirs = (lse - total).exp_(), (other_lse - total).exp_()
    merged = out * mine.unsqueeze(3)
    merged += other * theirs.unsqueeze(3)
    return merged, total
