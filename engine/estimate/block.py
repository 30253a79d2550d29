"""Allocations of a block (models/gpt.py), forward and backward, on one rank.

Korthikanti et al. (2022, section 4, equation 1) count the activations that a block saves for its
backward pass as s b h (34 + 5 a s / h) bytes in 16 bits, with dropout and all attention scores.
A cuboid block saves, in units of an activation x [T, C] and with n_inner = 4 C: both norms' inputs
and outputs (4), q, k and v (3), the attention's output (1), the GELU's input and output (8). That
is 16 activations, or 32 bytes per feature in 16 bits. It saves no scores, since SDPA saves a
log-sum-exp per row instead (Dao et al. 2022), and one byte per entry of each dropout mask. All
saved tensors are sharded over all tensor axes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from engine.estimate.attention import GroupAttentionMemory
from engine.estimate.ledger import Ledger, MemoryKind
from engine.estimate.linear import (
    ForwardMode,
    free_matmul_output,
    linear_backward,
    linear_forward,
    reduced_gradient_bytes,
    weight_later,
)
from engine.estimate.local_shapes import LocalLinear, LocalShapes

FLOAT32 = 4


@dataclass(frozen=True, kw_only=True)
class BlockMemory:
    """Simulates the allocations of a transformer block in a ledger.

    The caller allocates the block's input x, which remains until the end of the backward pass.
    """

    shapes: LocalShapes

    @cached_property
    def attention(self) -> tuple[LocalLinear, LocalLinear]:
        """The linear layers of attention: qkv and proj."""
        model, shapes = self.shapes.settings.model, self.shapes
        width = model.n_head * model.head_dim
        return shapes.up(model.n_embd, 3 * width), shapes.down(width, model.n_embd)

    @cached_property
    def mlp(self) -> tuple[LocalLinear, LocalLinear]:
        """The linear layers of the MLP: fc and proj."""
        model, shapes = self.shapes.settings.model, self.shapes
        return shapes.up(model.n_embd, model.n_inner), shapes.down(model.n_inner, model.n_embd)

    @cached_property
    def group(self) -> GroupAttentionMemory | None:
        """Simulation of models/parallel/attention.py, which computes attention if several ranks
        hold a sample, or with dropout on a CPU; None if SDPA computes attention."""
        drops = self.shapes.settings.model.attn_pdrop > 0 and self.shapes.device == "cpu"
        if self.shapes.order.is_whole and not drops:
            return None
        return GroupAttentionMemory.fullest(self.shapes)

    @cached_property
    def x(self) -> int:
        """Bytes of an activation x between blocks."""
        return self.shapes.x * self.shapes.compute

    @cached_property
    def mask(self) -> int:
        """Bytes of a dropout mask."""
        return self.shapes.x if self.shapes.settings.model.resid_pdrop else 0

    @cached_property
    def scores(self) -> int:
        """Bytes that SDPA saves instead of the scores: a float32 log-sum-exp per row and head."""
        inner = self.shapes.mode.inner
        heads = self.shapes.width(self.shapes.settings.model.n_head, inner.hidden)
        return heads * self.shapes.rows(inner) * FLOAT32

    @cached_property
    def attention_output(self) -> int:
        """Bytes of ``scores`` and of attention's output, which is saved as the projection's
        input."""
        if self.group:
            return self.group.saved
        return self.attention[1].x * self.shapes.compute + self.scores

    @property
    def _backward_scores(self) -> int:
        """Temporary bytes of attention's backward pass: FlashAttention-2 accumulates dq in float32
        on a GPU (Dao 2023, section 3.1)."""
        fused = self.shapes.device == "cuda" and self.shapes.casts
        return self.attention[1].x * FLOAT32 if fused else 0

    def keeps_dy(self, linear: LocalLinear) -> bool:
        """Return whether the deferred weight gradient of ``linear`` needs the dy of the residual
        stream itself (not a copy), so that dy remains allocated."""
        return linear.axis_y.size == 1 and not self.mask

    def forward(self, ledger: Ledger, run: ForwardMode) -> None:
        """Simulate the forward pass from x to y, which counts as a buffer. A recomputation does not
        make y."""
        shapes, kind = self.shapes, MemoryKind.ACTIVATIONS if run.keeps else MemoryKind.BUFFERS
        qkv, proj = self.attention
        fc, out = self.mlp

        norm_forward(ledger, shapes, kind)
        linear_forward(ledger, shapes, qkv, run, kind)
        if self.group:
            self.group.forward(ledger, run, kind)
        elif run != ForwardMode.RECOMPUTE_FROM_MATMULS:
            ledger.allocate(
                MemoryKind.ACTIVATIONS if run == ForwardMode.MATMULS else kind,
                self.attention_output,
            )
        linear_forward(ledger, shapes, proj, run)
        self._free_unneeded_x(ledger, kind, qkv, run)
        if not run.keeps:
            free_matmul_output(ledger, shapes, qkv, run)
        if run == ForwardMode.NOTHING or (self.group and run == ForwardMode.MATMULS):
            ledger.free(kind, self.attention_output)
        self._add(ledger, proj, run, to=kind)

        norm_forward(ledger, shapes, kind)
        linear_forward(ledger, shapes, fc, run, kind)
        ledger.allocate(kind, out.x * shapes.compute)
        if not run.keeps:
            free_matmul_output(ledger, shapes, fc, run)
        linear_forward(ledger, shapes, out, run)
        self._free_unneeded_x(ledger, kind, fc, run)
        self._free_unneeded_x(ledger, kind, out, run)
        if run.recomputes:
            draw_mask(ledger, self.mask, kind)
            ledger.free(MemoryKind.BUFFERS, self.x)
        else:
            self._add(ledger, out, run, to=MemoryKind.BUFFERS)
        if not run.keeps:
            ledger.free(kind, self.x + 2 * self.mask + 2 * norm_statistics(shapes))

    def backward(self, ledger: Ledger, *, first: bool, later: bool = False) -> None:
        """Simulate the backward pass from dy to dx, both counted as buffers. Free each saved
        tensor, x included, after its last use.

        ``first``: this is the first micro-batch, which allocates gradients. ``later``: weight
        gradients are deferred.
        """
        shapes, saved = self.shapes, MemoryKind.ACTIVATIONS
        qkv, proj = self.attention
        fc, out = self.mlp

        self._split(ledger, out, first=first, later=later)
        self._free(ledger, out, later=later)
        ledger.allocate(MemoryKind.BUFFERS, fc.y * shapes.compute)
        ledger.free(MemoryKind.BUFFERS, out.x * shapes.compute)
        ledger.free(saved, fc.y * shapes.compute)
        linear_backward(ledger, shapes, fc, first=first, later=later)
        self._free(ledger, fc, later=later)
        self._join(ledger, out, later=later)

        self._split(ledger, proj, first=first, later=later)
        self._attention_backward(ledger)
        if later and self._keeps_x(proj):
            ledger.allocate(saved, proj.x * shapes.compute)  # it was never freed
        linear_backward(ledger, shapes, qkv, first=first, later=later)
        self._free(ledger, qkv, later=later)
        self._join(ledger, proj, later=later)

    def _attention_backward(self, ledger: Ledger) -> None:
        """Simulate attention's backward pass from dy to dqkv, both counted as buffers. Free the
        tensors that attention saved."""
        qkv, proj = self.attention
        dqkv = qkv.y * self.shapes.compute
        if self.group:
            self.group.backward(ledger)
            ledger.free(MemoryKind.ACTIVATIONS, dqkv)
            return
        ledger.allocate(MemoryKind.BUFFERS, dqkv)
        ledger.transient(MemoryKind.BUFFERS, self._backward_scores)
        ledger.free(MemoryKind.BUFFERS, proj.x * self.shapes.compute)
        ledger.free(MemoryKind.ACTIVATIONS, dqkv + self.attention_output)
        ledger.transient(
            MemoryKind.BUFFERS, dqkv
        )  # dq, dk and dv are stacked, then laid out as qkv is

    def weights(self, ledger: Ledger, before: int, *, first: bool) -> tuple[int, int]:
        """Simulate the deferred weight gradients of the block's linear layers.

        Returns the bytes of saved x and dy, which the caller frees after all blocks, and the bytes
        of the last layer's dw, which is freed once the next layer's dw is complete. ``before``: the
        bytes of the previous block's last dw.
        """
        saved = 0
        for linear in (*reversed(self.mlp), *reversed(self.attention)):
            allocated = ledger.live[MemoryKind.GRADIENTS]
            saved += weight_later(ledger, self.shapes, linear, first=first)
            saved += linear.x * self.shapes.compute if self._keeps_x(linear) else 0
            added = ledger.live[MemoryKind.GRADIENTS] == allocated
            made = reduced_gradient_bytes(self.shapes, linear.weight) if added else 0
            ledger.allocate(MemoryKind.BUFFERS, made)
            ledger.free(MemoryKind.BUFFERS, before)
            before = made
        return saved, before

    def _add(
        self, ledger: Ledger, linear: LocalLinear, run: ForwardMode, *, to: MemoryKind
    ) -> None:
        """Simulate the residual addition x + dropout(linear(...)); the sum counts as ``to``."""
        if self.mask:
            draw_mask(
                ledger, self.mask, MemoryKind.ACTIVATIONS if run.keeps else MemoryKind.BUFFERS
            )
            ledger.allocate(MemoryKind.BUFFERS, self.x)
            free_matmul_output(ledger, self.shapes, linear, run)
            ledger.allocate(to, self.x)
            ledger.free(MemoryKind.BUFFERS, self.x)
        else:
            ledger.allocate(to, self.x)
            free_matmul_output(ledger, self.shapes, linear, run)

    def _split(self, ledger: Ledger, linear: LocalLinear, *, first: bool, later: bool) -> None:
        """Simulate the backward pass of dropout and linear layer in x + dropout(linear(...)). dy,
        which is also a term of dx, remains allocated."""
        if self.mask:
            ledger.chain(MemoryKind.BUFFERS, self.x, self.x)
            ledger.free(MemoryKind.ACTIVATIONS, self.mask)
        linear_backward(ledger, self.shapes, linear, first=first, later=later)
        if not self.mask and not (later and self.keeps_dy(linear)):
            ledger.allocate(MemoryKind.BUFFERS, self.x)  # it was never freed

    def _join(self, ledger: Ledger, linear: LocalLinear, *, later: bool) -> None:
        """Simulate the sum of x's two gradients: the norm's dx and the residual stream's dy."""
        norm_backward(ledger, self.shapes)
        if not (later and self.keeps_dy(linear)):
            ledger.free(MemoryKind.BUFFERS, self.x)
        ledger.free(MemoryKind.ACTIVATIONS, self.x)

    def _free(self, ledger: Ledger, linear: LocalLinear, *, later: bool) -> None:
        """Free the input x of ``linear`` after its backward pass, unless its dw is deferred."""
        if not later and self._keeps_x(linear):
            ledger.free(MemoryKind.ACTIVATIONS, linear.x * self.shapes.compute)

    def _free_unneeded_x(
        self, ledger: Ledger, kind: MemoryKind, linear: LocalLinear, run: ForwardMode
    ) -> None:
        """Free the input x of ``linear`` unless the backward pass needs x."""
        if not (run.keeps and self._keeps_x(linear)):
            ledger.free(kind, linear.x * self.shapes.compute)

    def _keeps_x(self, linear: LocalLinear) -> bool:
        return linear.axis_x.size == 1 or not self.shapes.settings.keep_gathers


def draw_mask(ledger: Ledger, mask: int, kind: MemoryKind) -> None:
    """Simulate drawing a dropout mask of ``mask`` bytes, one byte per entry. Each entry uses 16
    random bits, of which two copies are in memory (models/parallel/dropout.py)."""
    ledger.transient(MemoryKind.BUFFERS, 2 * 2 * mask)
    ledger.allocate(kind, mask)


def norm_statistics(shapes: LocalShapes) -> int:
    """Return the bytes of a layer norm's statistics: a mean and a scale per row."""
    return 2 * shapes.rows(shapes.mode.outer) * shapes.parameter


def norm_forward(ledger: Ledger, shapes: LocalShapes, kind: MemoryKind) -> None:
    """Simulate a layer norm, whose output and statistics count as ``kind``. A sharded norm computes
    in the parameters' type."""
    works = 2 * shapes.x * shapes.parameter if shapes.casts and shapes.shards_norms else 0
    with ledger.temporarily(MemoryKind.BUFFERS, works):
        ledger.allocate(kind, shapes.x * shapes.compute + norm_statistics(shapes))


def norm_backward(ledger: Ledger, shapes: LocalShapes) -> None:
    """Simulate a layer norm's backward pass from dy to dx, both counted as buffers. Free the
    statistics; the caller frees x."""
    if shapes.shards_norms:
        # normal, g, the three terms of dx; in mixed precision a cast dy
        ledger.transient(MemoryKind.BUFFERS, (5 + shapes.casts) * shapes.x * shapes.parameter)
    ledger.chain(MemoryKind.BUFFERS, shapes.x * shapes.compute)
    ledger.free(MemoryKind.BUFFERS, shapes.x * shapes.compute)
    ledger.free(MemoryKind.ACTIVATIONS, norm_statistics(shapes))
