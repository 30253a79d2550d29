"""One rank's pieces of a micro-batch and of the weights, in entries; and how they are kept."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Literal

from models.parallel.box import Cut
from models.parallel.mode import Activation, Gather, Mode, Product

if TYPE_CHECKING:
    from engine.config.schema import Settings
    from engine.layout import Layout
    from engine.plan import Plan

Device = Literal["cpu", "cuda"]

ENTRY = {"float64": (8, 8), "float32": (4, 4), "bf16": (4, 2), "fp16": (4, 2)}
"""Bytes of an entry by precision: of parameters, gradients and optimizer states; of activations and
of weights as they are multiplied. Mixed precision keeps the former in float32 (Micikevicius et al.
2018, section 3.1)."""


@dataclass(frozen=True, kw_only=True)
class Over:
    """The ranks of an axis that a collective runs over; one rank: nothing is sent."""

    axis: str
    size: int


@dataclass(frozen=True, kw_only=True)
class Linear:
    """A matmul of models/parallel/matmul.py on one rank: entries of x, w, bias and y as they are
    held; x is gathered (on its hidden features or its tokens) and w too, partial y is scattered.
    ``summed``: the weight's gradient is summed over an axis, in a bucket."""

    x: int
    w: int
    bias: int
    y: int
    over_x: Over
    over_w: Over
    over_y: Over
    on_hidden: bool
    summed: bool

    @property
    def gathered_x(self) -> int:
        return self.x * self.over_x.size

    @property
    def gathered_w(self) -> int:
        return self.w * self.over_w.size

    @property
    def partial_y(self) -> int:
        return self.y * self.over_y.size


@dataclass(frozen=True, kw_only=True)
class Local:
    """What one rank holds of a micro-batch of ``tokens`` tokens."""

    settings: Settings
    layout: Layout
    tokens: int
    device: Device

    @classmethod
    def of(cls, plan: Plan, device: Device) -> Local:
        tokens = plan.padded_micro_batch * plan.settings.seq_len
        return cls(settings=plan.settings, layout=plan.layout, tokens=tokens, device=device)

    @property
    def mode(self) -> Mode:
        return self.layout.mode

    @property
    def direct(self) -> bool:
        """Whether collectives are gloo's on a CPU, which go by pairs (collectives.py)."""
        return self.device == "cpu"

    @cached_property
    def parameter(self) -> int:
        """Bytes of an entry of a parameter, its gradient or a state of its optimizer."""
        return ENTRY[self.settings.precision][0]

    @cached_property
    def compute(self) -> int:
        """Bytes of an entry of an activation."""
        return ENTRY[self.settings.precision][1]

    @property
    def casts(self) -> bool:
        return self.compute != self.parameter

    @property
    def data(self) -> int:
        return self.layout.data

    @property
    def zero(self) -> int:
        return self.settings.zero.stage

    def over(self, axis: str | None) -> Over:
        return Over(axis=axis or "", size=self.layout.axes[axis] if axis else 1)

    def pieces(self, axes: tuple[str, ...]) -> int:
        return prod(self.layout.axes[axis] for axis in axes)

    def rows(self, activation: Activation) -> int:
        """Tokens of an activation."""
        return self.tokens // self.pieces(activation.tokens)

    def width(self, features: int, axes: tuple[str, ...]) -> int:
        """Features of a piece, padding included."""
        return -(-features // self.pieces(axes))

    @cached_property
    def x(self) -> int:
        """An activation between blocks, [T, C] in the outer layout."""
        outer = self.mode.outer
        return self.rows(outer) * self.width(self.settings.model.n_embd, outer.hidden)

    @cached_property
    def cuts_norms(self) -> bool:
        """Whether a layer norm's features are on several ranks."""
        return self.pieces(self.mode.outer.hidden) > 1

    def summed(self, cut: Cut) -> tuple[str, ...]:
        """The axes that a gradient is summed over: those of two ranks or more that do not cut its
        parameter (engine/gradients.py)."""
        cutting = {axis for axes in cut for axis in axes}
        axes = (*self.mode.colossal, "data")
        return tuple(a for a in axes if self.layout.axes[a] > 1 and a not in cutting)

    def up(self, n_in: int, n_out: int) -> Linear:
        return self._linear(self.mode.up, self.mode.outer, self.mode.inner, n_in, n_out)

    def down(self, n_in: int, n_out: int) -> Linear:
        return self._linear(self.mode.down, self.mode.inner, self.mode.outer, n_in, n_out)

    def _linear(
        self, product: Product, source: Activation, target: Activation, n_in: int, n_out: int
    ) -> Linear:
        across: Gather | None = product.gather_x
        n_y = self.width(n_out, product.weight_out)
        return Linear(
            x=self.rows(source) * self.width(n_in, source.hidden),
            w=self.width(n_in, product.weight_in) * n_y,
            bias=n_y,
            y=self.rows(target) * n_y,
            over_x=self.over(across.axis if across else None),
            over_w=self.over(product.gather_w),
            over_y=self.over(product.scatter_y),
            on_hidden=across is not None and across.on == "H",
            summed=bool(self.summed((product.weight_in, product.weight_out))),
        )
