"""One rank's pieces of a micro-batch and of the weights, in entries; and how they are kept."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Literal

from models.parallel.mode import ActivationSharding, Gather, LinearSharding, Mode
from models.parallel.shard import PartitionSpec

if TYPE_CHECKING:
    from engine.config.schema import Settings
    from engine.layout import Layout
    from engine.plan import Plan

DeviceType = Literal["cpu", "cuda"]

ENTRY = {"float64": (8, 8), "float32": (4, 4), "bf16": (4, 2), "fp16": (4, 2)}
"""Bytes of an entry by precision: of parameters, gradients and optimizer states; of activations and
of weights as they are multiplied. Mixed precision keeps the former in float32 (Micikevicius et al.
2018, section 3.1)."""


@dataclass(frozen=True, kw_only=True)
class CollectiveAxis:
    """The ranks of an axis that a collective runs over; one rank: nothing is sent."""

    axis: str
    size: int


@dataclass(frozen=True, kw_only=True)
class LocalWeight:
    """A weight [inputs, outputs], or a table's transpose, as a rank would hold it without ZeRO.

    ``over`` gathers its inputs where it is used; ``columns``: they are columns (a table's), which
    a gather has to copy into place. ``summed_axes``: its gradient is summed in a bucket.
    """

    inputs: int
    outputs: int
    axis: CollectiveAxis
    columns: bool
    summed: bool

    @property
    def held_entries(self) -> int:
        """Entries."""
        return self.inputs * self.outputs

    @property
    def gathered_entries(self) -> int:
        """Entries where it is used."""
        return self.held_entries * self.axis.size

    def piece(self, ranks: int) -> int:
        """Entries of one of ``ranks`` pieces, padding included."""
        return -(-self.inputs // ranks) * self.outputs


@dataclass(frozen=True, kw_only=True)
class LocalLinear:
    """A matmul of models/parallel/matmul.py on one rank: entries of x and y as they are held; x is
    gathered on its hidden features or on its tokens, partial y is scattered."""

    x: int
    weight: LocalWeight
    y: int
    axis_x: CollectiveAxis
    axis_y: CollectiveAxis
    on_hidden: bool

    @property
    def gathered_x(self) -> int:
        return self.x * self.axis_x.size

    @property
    def partial_y(self) -> int:
        return self.y * self.axis_y.size


@dataclass(frozen=True, kw_only=True)
class LocalShapes:
    """What one rank holds of a micro-batch of ``tokens`` tokens."""

    settings: Settings
    layout: Layout
    tokens: int
    device: DeviceType

    @classmethod
    def of(cls, plan: Plan, device: DeviceType) -> LocalShapes:
        tokens = plan.padded_micro_batch * plan.settings.seq_len
        return cls(settings=plan.settings, layout=plan.layout, tokens=tokens, device=device)

    @property
    def mode(self) -> Mode:
        return self.layout.mode

    @property
    def uses_gloo_pairs(self) -> bool:
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

    @cached_property
    def casts(self) -> bool:
        return self.compute != self.parameter

    @cached_property
    def zero(self) -> int:
        """ZeRO's stage."""
        return self.settings.zero.stage

    @cached_property
    def zero_axes(self) -> tuple[str, ...]:
        """The axes that ZeRO cuts weights by, slowest first."""
        return self.mode.zero_axes(self.zero, depth=self.settings.zero.depth)

    @cached_property
    def zero_ranks(self) -> int:
        """Ranks that share out a weight by ZeRO."""
        return self.num_shards(self.zero_axes)

    def shares(self, weight: LocalWeight) -> list[tuple[CollectiveAxis, int]]:
        """ZeRO's axes of two ranks or more, slowest first, and entries of a weight that each
        leaves, padding included."""
        inputs, found = weight.inputs, list[tuple[CollectiveAxis, int]]()
        for axis in map(self.collective_axis, self.zero_axes):
            inputs = -(-inputs // axis.size)
            found.append((axis, inputs * weight.outputs))
        return [(axis, piece) for axis, piece in found if axis.size > 1]

    def gathered_entries(self, weight: LocalWeight) -> int:
        """Entries of a weight whose shares have come together, padding included."""
        return next((axis.size * piece for axis, piece in self.shares(weight)), weight.held_entries)

    @property
    def offloads(self) -> bool:
        """Whether weights stay in host memory, or on a disk."""
        zero = self.settings.zero
        return zero.offload is not None or zero.offload_params is not None

    @property
    def weights_on_host(self) -> bool:
        """Whether that is another device than the one that computes."""
        return self.offloads and self.device != "cpu"

    @property
    def reads_weights_from_disk(self) -> bool:
        """Whether a weight is read from a disk into the memory of the device that computes."""
        return self.settings.zero.offload_params == "nvme" and self.device == "cpu"

    @property
    def caches_shards(self) -> bool:
        """Whether stage 3 keeps the pieces of weights that have once been fetched."""
        return self.zero == 3 and self.offloads and self.settings.zero.offload_params is None

    @property
    def keeps_weights(self) -> bool:
        """Whether weights are kept, as they are multiplied, for a step: ZeRO's stages 1 and 2,
        where they are not the parameters themselves."""
        return self.zero in (1, 2) and (self.zero_ranks > 1 or self.casts or self.weights_on_host)

    def collective_axis(self, axis: str | None) -> CollectiveAxis:
        return CollectiveAxis(axis=axis or "", size=self.layout.axes[axis] if axis else 1)

    def num_shards(self, axes: tuple[str, ...]) -> int:
        return prod(self.layout.axes[axis] for axis in axes)

    def rows(self, activation: ActivationSharding) -> int:
        """Tokens of an activation."""
        return self.tokens // self.num_shards(activation.tokens)

    def width(self, features: int, axes: tuple[str, ...]) -> int:
        """Features of a piece, padding included."""
        return -(-features // self.num_shards(axes))

    @cached_property
    def x(self) -> int:
        """Entries of an activation between blocks, [T, C] in the outer layout."""
        outer = self.mode.outer
        return self.rows(outer) * self.width(self.settings.model.n_embd, outer.hidden)

    @cached_property
    def shards_norms(self) -> bool:
        """Whether a layer norm's features are on several ranks."""
        return self.num_shards(self.mode.outer.hidden) > 1

    def zero_spec(self, spec: PartitionSpec, inputs: int) -> PartitionSpec:
        """The cut of a weight whose dimension ``inputs`` ZeRO cuts too."""
        return (*spec[:inputs], (*spec[inputs], *self.zero_axes), *spec[inputs + 1 :])

    def summed_axes(self, spec: PartitionSpec) -> tuple[str, ...]:
        """The axes that a gradient is summed over: those of two ranks or more that do not cut its
        parameter (engine/training/gradients.py)."""
        cutting = {axis for axes in spec for axis in axes}
        axes = (*self.mode.colossal_groups, "data")
        return tuple(a for a in axes if self.layout.axes[a] > 1 and a not in cutting)

    def weight(
        self,
        product: LinearSharding,
        n_in: int,
        n_out: int,
        axis: str | None,
        *,
        columns: bool = False,
    ) -> LocalWeight:
        """w of a product; ``over`` gathers it."""
        return LocalWeight(
            inputs=self.width(n_in, product.weight_in),
            outputs=self.width(n_out, product.weight_out),
            axis=self.collective_axis(axis),
            columns=columns,
            summed=bool(
                self.summed_axes(self.zero_spec((product.weight_in, product.weight_out), 0))
            ),
        )

    def up(self, n_in: int, n_out: int) -> LocalLinear:
        return self._linear(self.mode.up, self.mode.outer, self.mode.inner, n_in, n_out)

    def down(self, n_in: int, n_out: int) -> LocalLinear:
        return self._linear(self.mode.down, self.mode.inner, self.mode.outer, n_in, n_out)

    def _linear(
        self,
        product: LinearSharding,
        source: ActivationSharding,
        target: ActivationSharding,
        n_in: int,
        n_out: int,
    ) -> LocalLinear:
        across: Gather | None = product.gather_x
        return LocalLinear(
            x=self.rows(source) * self.width(n_in, source.hidden),
            weight=self.weight(product, n_in, n_out, product.gather_w),
            y=self.rows(target) * self.width(n_out, product.weight_out),
            axis_x=self.collective_axis(across.axis if across else None),
            axis_y=self.collective_axis(product.scatter_y),
            on_hidden=across is not None and across.on == "H",
        )
