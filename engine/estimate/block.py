"""What a block (models/gpt.py) allocates, forward and backward, on one rank.

Korthikanti et al. (2022, section 4, equation 1) count what a block keeps for its backward pass as
s b h (34 + 5 a s / h) bytes in 16 bits, with dropout and all attention scores. Ours keeps, in units
of an activation x [T, C] and with n_inner = 4 C: both norms' inputs and outputs (4), q, k and v
(3), the attention's output (1), the GELU's input and output (8). That is 16, or 32 bytes a feature
in 16 bits; no scores, since SDPA keeps a log-sum-exp a row of them (Dao et al. 2022), and a mask in
the compute type for each dropout. All of it is cut over all tensor axes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from engine.estimate.ledger import Kind, Ledger
from engine.estimate.linear import (
    Pass,
    free_product,
    linear_backward,
    linear_forward,
    settled,
    weight_later,
)
from engine.estimate.local_shapes import Linear, Local

FLOAT32 = 4


@dataclass(frozen=True, kw_only=True)
class Block:
    """Plays a block's allocations to a ledger.

    The input x is there, and stays until the backward pass has ended.
    """

    local: Local

    @cached_property
    def attention(self) -> tuple[Linear, Linear]:
        """qkv and proj."""
        model, local = self.local.settings.model, self.local
        width = model.n_head * model.head_dim
        return local.up(model.n_embd, 3 * width), local.down(width, model.n_embd)

    @cached_property
    def mlp(self) -> tuple[Linear, Linear]:
        """fc and proj."""
        model, local = self.local.settings.model, self.local
        return local.up(model.n_embd, model.n_inner), local.down(model.n_inner, model.n_embd)

    @cached_property
    def x(self) -> int:
        """Bytes of an activation between blocks."""
        return self.local.x * self.local.compute

    @cached_property
    def mask(self) -> int:
        """Bytes of a dropout's mask."""
        return self.x if self.local.settings.model.resid_pdrop else 0

    @cached_property
    def scores(self) -> int:
        """Bytes of what SDPA keeps of the scores: a float32 log-sum-exp a row and head. With
        dropout a CPU has no fused kernel: it keeps them thrice, and q, k and v, in float32.
        """
        if self._spelt_out:
            c = self.local.compute
            return 3 * self._map + self.attention[0].y * (max(FLOAT32, c) - c)
        return self._heads * self.local.rows(self.local.mode.inner) * FLOAT32

    @property
    def _spelt_out(self) -> bool:
        return self.local.device == "cpu" and self.local.settings.model.attn_pdrop > 0

    @property
    def _heads(self) -> int:
        return self.local.width(self.local.settings.model.n_head, self.local.mode.inner.hidden)

    @property
    def _map(self) -> int:
        """Bytes of the scores of all samples and heads, where they are made."""
        local = self.local
        scores = self._heads * local.rows(local.mode.inner) * local.settings.seq_len
        return scores * max(FLOAT32, local.compute) if self._spelt_out else 0

    @cached_property
    def attended(self) -> int:
        """Bytes of the attention's output, which the projection keeps too, and ``scores``."""
        return self.attention[1].x * self.local.compute + self.scores

    @property
    def _backward_scores(self) -> int:
        """Bytes that attention's backward pass takes for itself: FlashAttention-2 sums dq in
        float32 on a GPU (Dao 2023, section 3.1)."""
        fused = self.local.device == "cuda" and self.local.casts
        return self._map + (self.attention[1].x * FLOAT32 if fused else 0)

    def keeps_dy(self, linear: Linear) -> bool:
        """Whether dw, where it comes later, comes of the very dy that half a block was given."""
        return linear.over_y.size == 1 and not self.mask

    def forward(self, ledger: Ledger, run: Pass) -> None:
        """x -> y among the buffers, which is not made where the pass is run again."""
        local, kind = self.local, Kind.ACTIVATIONS if run.keeps else Kind.BUFFERS
        qkv, proj = self.attention
        fc, out = self.mlp

        norm_forward(ledger, local, kind)
        linear_forward(ledger, local, qkv, run, kind)
        if run != Pass.AGAIN_FROM_PRODUCTS:
            ledger.hold(Kind.ACTIVATIONS if run == Pass.PRODUCTS else kind, self.attended)
            ledger.touch(Kind.BUFFERS, self._map)
        linear_forward(ledger, local, proj, run)
        self._forget(ledger, kind, qkv, run)
        if not run.keeps:
            free_product(ledger, local, qkv, run)
        if run == Pass.NOTHING:
            ledger.drop(kind, self.attended)
        self._add(ledger, proj, run, to=kind)

        norm_forward(ledger, local, kind)
        linear_forward(ledger, local, fc, run, kind)
        ledger.hold(kind, out.x * local.compute)
        if not run.keeps:
            free_product(ledger, local, fc, run)
        linear_forward(ledger, local, out, run)
        self._forget(ledger, kind, fc, run)
        self._forget(ledger, kind, out, run)
        if run.again:
            ledger.hold(kind, self.mask)
            ledger.drop(Kind.BUFFERS, self.x)
        else:
            self._add(ledger, out, run, to=Kind.BUFFERS)
        if not run.keeps:
            ledger.drop(kind, self.x + 2 * self.mask + 2 * norm_statistics(local))

    def backward(self, ledger: Ledger, *, first: bool, later: bool = False) -> None:
        """dy -> dx, among the buffers; what was kept is freed as it is used, x included. ``first``:
        no micro-batch has left gradients yet. Those of weights may come ``later``."""
        local, kept = self.local, Kind.ACTIVATIONS
        qkv, proj = self.attention
        fc, out = self.mlp

        self._split(ledger, out, first=first, later=later)
        self._free(ledger, out, later=later)
        ledger.hold(Kind.BUFFERS, fc.y * local.compute)
        ledger.drop(Kind.BUFFERS, out.x * local.compute)
        ledger.drop(kept, fc.y * local.compute)
        linear_backward(ledger, local, fc, first=first, later=later)
        self._free(ledger, fc, later=later)
        self._join(ledger, out, later=later)

        self._split(ledger, proj, first=first, later=later)
        dqkv = qkv.y * local.compute
        ledger.hold(Kind.BUFFERS, dqkv)
        ledger.touch(Kind.BUFFERS, self._backward_scores)
        ledger.drop(Kind.BUFFERS, proj.x * local.compute)
        ledger.drop(kept, dqkv + self.attended)
        if later and self._keeps_x(proj):
            ledger.hold(kept, proj.x * local.compute)  # it was never freed
        ledger.touch(Kind.BUFFERS, dqkv)  # dq, dk and dv are stacked, then laid out as qkv is
        linear_backward(ledger, local, qkv, first=first, later=later)
        self._free(ledger, qkv, later=later)
        self._join(ledger, proj, later=later)

    def weights(self, ledger: Ledger, before: int, *, first: bool) -> tuple[int, int]:
        """Gradients of weights that a backward pass put off. Bytes of what they were made from,
        which is freed when those of all blocks are done; and of the last one made, which is freed
        after the next, as is the one ``before``."""
        kept = 0
        for linear in (*reversed(self.mlp), *reversed(self.attention)):
            held = ledger.live[Kind.GRADIENTS]
            kept += weight_later(ledger, self.local, linear, first=first)
            kept += linear.x * self.local.compute if self._keeps_x(linear) else 0
            added = ledger.live[Kind.GRADIENTS] == held
            made = settled(self.local, linear.weight) if added else 0
            ledger.hold(Kind.BUFFERS, made)
            ledger.drop(Kind.BUFFERS, before)
            before = made
        return kept, before

    def _add(self, ledger: Ledger, linear: Linear, run: Pass, *, to: Kind) -> None:
        """x + dropout(y of a product), as ``to``."""
        if self.mask:
            ledger.hold(Kind.ACTIVATIONS if run.keeps else Kind.BUFFERS, self.mask)
            ledger.hold(Kind.BUFFERS, self.x)
            free_product(ledger, self.local, linear, run)
            ledger.hold(to, self.x)
            ledger.drop(Kind.BUFFERS, self.x)
        else:
            ledger.hold(to, self.x)
            free_product(ledger, self.local, linear, run)

    def _split(self, ledger: Ledger, linear: Linear, *, first: bool, later: bool) -> None:
        """dy of x + dropout(linear(...)): it stays, for x, beside what goes on."""
        if self.mask:
            ledger.hold(Kind.BUFFERS, self.x)
            ledger.drop(Kind.ACTIVATIONS, self.mask)
        linear_backward(ledger, self.local, linear, first=first, later=later)
        if not self.mask and not (later and self.keeps_dy(linear)):
            ledger.hold(Kind.BUFFERS, self.x)  # it was never freed

    def _join(self, ledger: Ledger, linear: Linear, *, later: bool) -> None:
        """The gradient of half a block's x: what comes through the norm, and the dy that stayed."""
        norm_backward(ledger, self.local)
        if not (later and self.keeps_dy(linear)):
            ledger.drop(Kind.BUFFERS, self.x)
        ledger.drop(Kind.ACTIVATIONS, self.x)

    def _free(self, ledger: Ledger, linear: Linear, *, later: bool) -> None:
        """x of a product whose backward pass has ended, unless its dw comes later."""
        if not later and self._keeps_x(linear):
            ledger.drop(Kind.ACTIVATIONS, linear.x * self.local.compute)

    def _forget(self, ledger: Ledger, kind: Kind, linear: Linear, run: Pass) -> None:
        """x of a product that does not need it for its backward pass."""
        if not (run.keeps and self._keeps_x(linear)):
            ledger.drop(kind, linear.x * self.local.compute)

    def _keeps_x(self, linear: Linear) -> bool:
        return linear.over_x.size == 1 or not self.local.settings.keep_gathers


def norm_statistics(local: Local) -> int:
    """Bytes of a mean and a scale a row."""
    return 2 * local.rows(local.mode.outer) * local.parameter


def norm_forward(ledger: Ledger, local: Local, kind: Kind) -> None:
    """x -> layer norm's output and statistics, as ``kind``. One that is cut works in the
    parameters' type."""
    works = 2 * local.x * local.parameter if local.casts and local.cuts_norms else 0
    with ledger.during(Kind.BUFFERS, works):
        ledger.hold(kind, local.x * local.compute + norm_statistics(local))


def norm_backward(ledger: Ledger, local: Local) -> None:
    """dy -> dx, among the buffers; the statistics are freed, x is the caller's to free."""
    if local.cuts_norms:
        # normal, g, the three terms of dx; in mixed precision a cast dy
        ledger.touch(Kind.BUFFERS, (5 + local.casts) * local.x * local.parameter)
    ledger.chain(Kind.BUFFERS, local.x * local.compute)
    ledger.drop(Kind.BUFFERS, local.x * local.compute)
    ledger.drop(Kind.ACTIVATIONS, norm_statistics(local))
