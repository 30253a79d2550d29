"""Shapes of one rank's shards of a micro-batch and of the weights, in entries, and their types."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from models.parallel.mode import ActivationSharding, Gather, LinearSharding, Mode
from models.parallel.rows import RowOrder
from models.parallel.shard import PartitionSpec, round_up, shard_sizes
from models.parallel.tuning import ROW_MULTIPLE

if TYPE_CHECKING:
    from engine.config.schema import Settings
    from engine.layout import Layout
    from engine.plan import Plan

DeviceType = Literal["cpu", "cuda"]

ENTRY = {"float64": (8, 8), "float32": (4, 4), "bf16": (4, 2), "fp16": (4, 2)}
"""Bytes of an entry by precision: of parameters, gradients and optimizer states; of activations and
gathered weights. Mixed precision uses float32 for the former (Micikevicius et al. 2018, section
3.1)."""


@dataclass(frozen=True, kw_only=True)
class CollectiveAxis:
    """The axis of a collective and its number of ranks; one rank sends nothing."""

    axis: str
    size: int


@dataclass(frozen=True, kw_only=True)
class LocalWeight:
    """A weight [inputs, outputs], or a table's transpose, as one rank's shard without ZeRO."""

    inputs: int
    outputs: int
    axis: CollectiveAxis
    """Its inputs are gathered over this axis for a matmul."""
    columns: bool
    """The inputs are columns (of a table), which a gather must copy into place."""
    summed: bool
    """Its gradient is reduced in a bucket."""

    @property
    def held_entries(self) -> int:
        """Number of entries of this rank's shard without ZeRO."""
        return self.inputs * self.outputs

    @property
    def gathered_entries(self) -> int:
        """Number of entries of the weight once it is gathered over ``axis``."""
        return self.held_entries * self.axis.size

    def shard_entries(self, ranks: int) -> int:
        """Return the entries, padding included, of a shard if ``ranks`` ranks share the inputs."""
        return -(-self.inputs // ranks) * self.outputs


@dataclass(frozen=True, kw_only=True)
class LocalLinear:
    """A matmul of models/parallel/matmul.py on one rank, in entries of its sharded x and y."""

    x: int
    weight: LocalWeight
    y: int
    axis_x: CollectiveAxis
    """x is gathered over this axis, on features or tokens."""
    axis_y: CollectiveAxis
    """Partial y are reduce-scattered over this axis."""
    on_hidden: bool
    """x is gathered on features, not on tokens."""

    @property
    def gathered_x(self) -> int:
        return self.x * self.axis_x.size

    @property
    def partial_y(self) -> int:
        return self.y * self.axis_y.size


@dataclass(frozen=True, kw_only=True)
class LocalShapes:
    """Shapes on one rank for a micro-batch."""

    settings: Settings
    layout: Layout
    order: RowOrder
    device: DeviceType

    @classmethod
    def of(cls, plan: Plan, device: DeviceType) -> LocalShapes:
        """Return the shapes of a plan on a type of device."""
        return cls(settings=plan.settings, layout=plan.layout, order=plan.row_order, device=device)

    @property
    def tokens(self) -> int:
        """Rows of a micro-batch on all ranks of a tensor group, padding included."""
        return self.order.rows

    @property
    def mode(self) -> Mode:
        return self.layout.mode

    @property
    def uses_gloo_pairs(self) -> bool:
        """True if collectives are pairwise exchanges over gloo, on a CPU (collectives.py)."""
        return self.device == "cpu"

    @cached_property
    def parameter(self) -> int:
        """Bytes of an entry of a parameter, its gradient or an optimizer state."""
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
        """ZeRO stage."""
        return self.settings.zero.stage

    @cached_property
    def zero_axes(self) -> tuple[str, ...]:
        """The axes that ZeRO shards weights over, slowest first."""
        return self.mode.zero_axes(self.zero, depth=self.settings.zero.depth)

    @cached_property
    def zero_ranks(self) -> int:
        """Number of ranks that ZeRO shards a weight over."""
        return self.num_shards(self.zero_axes)

    def shares(self, weight: LocalWeight) -> list[tuple[CollectiveAxis, int]]:
        """List ZeRO's axes of more than one rank, slowest first, with the entries of a weight's
        shard after each, padding included."""
        axes = [self.collective_axis(name) for name in self.zero_axes]
        inputs = shard_sizes(weight.inputs, [axis.size for axis in axes])
        return [
            (axis, size * weight.outputs)
            for axis, size in zip(axes, inputs, strict=True)
            if axis.size > 1
        ]

    def gathered_entries(self, weight: LocalWeight) -> int:
        """Return the entries of a weight gathered over ZeRO's axes, padding included."""
        return next(
            (axis.size * entries for axis, entries in self.shares(weight)), weight.held_entries
        )

    @property
    def offloads(self) -> bool:
        """True if weights are offloaded to host memory or a disk."""
        zero = self.settings.zero
        return zero.offload is not None or zero.offload_params is not None

    @property
    def weights_on_host(self) -> bool:
        """True if weights are offloaded from a GPU, to host memory or a disk."""
        return self.offloads and self.device != "cpu"

    @property
    def reads_weights_from_disk(self) -> bool:
        """True if a weight is read from a disk into the memory of the device that computes."""
        return self.settings.zero.offload_params == "nvme" and self.device == "cpu"

    @property
    def caches_shards(self) -> bool:
        """True if stage 3 caches the shards of weights once they are fetched."""
        return self.zero == 3 and self.offloads and self.settings.zero.offload_params is None

    @property
    def keeps_weights(self) -> bool:
        """True if weights are cached for a step in the form used by matmuls: in ZeRO stages 1 and
        2, if that is not the parameters themselves."""
        return self.zero in (1, 2) and (self.zero_ranks > 1 or self.casts or self.weights_on_host)

    def collective_axis(self, axis: str | None) -> CollectiveAxis:
        """Return an axis with its size; None stands for an axis of one rank."""
        return CollectiveAxis(axis=axis or "", size=self.layout.axes[axis] if axis else 1)

    def num_shards(self, axes: tuple[str, ...]) -> int:
        """Return the number of shards of a dimension that is sharded over ``axes``."""
        return self.layout.num_shards(axes)

    def rows(self, activation: ActivationSharding) -> int:
        """Return the number of tokens in one shard of an activation."""
        return self.tokens // self.num_shards(activation.tokens)

    def width(self, features: int, axes: tuple[str, ...]) -> int:
        """Return the number of features, padding included, in a shard over ``axes``."""
        return -(-features // self.num_shards(axes))

    @cached_property
    def table_rows(self) -> int:
        """Rows of a token table on a rank, padding included."""
        rows = self.width(self.settings.model.vocab_size, self.mode.up.weight_out)
        return round_up(rows, ROW_MULTIPLE[self.device])

    @cached_property
    def x(self) -> int:
        """Entries of an activation between blocks, [T, C] in the outer sharding."""
        outer = self.mode.outer
        return self.rows(outer) * self.width(self.settings.model.n_embd, outer.hidden)

    @cached_property
    def shards_norms(self) -> bool:
        """True if a layer norm's features are sharded."""
        return self.num_shards(self.mode.outer.hidden) > 1

    def zero_spec(self, spec: PartitionSpec, inputs: int) -> PartitionSpec:
        """Return the sharding spec of a weight whose dimension ``inputs`` is also sharded
        by ZeRO."""
        return (*spec[:inputs], (*spec[inputs], *self.zero_axes), *spec[inputs + 1 :])

    def summed_axes(self, spec: PartitionSpec) -> tuple[str, ...]:
        """Return the axes that a gradient is reduced over: those of two ranks or more that do not
        shard its parameter (engine/training/gradients.py)."""
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
        """Return the shard of a matmul's w, which is gathered over ``axis``."""
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
        """Return a column-parallel linear layer."""
        return self._linear(self.mode.up, self.mode.outer, self.mode.inner, n_in, n_out)

    def down(self, n_in: int, n_out: int) -> LocalLinear:
        """Return a row-parallel linear layer."""
        return self._linear(self.mode.down, self.mode.inner, self.mode.outer, n_in, n_out)

    def _linear(
        self,
        product: LinearSharding,
        x_sharding: ActivationSharding,
        y_sharding: ActivationSharding,
        n_in: int,
        n_out: int,
    ) -> LocalLinear:
        across: Gather | None = product.gather_x
        return LocalLinear(
            x=self.rows(x_sharding) * self.width(n_in, x_sharding.hidden),
            weight=self.weight(product, n_in, n_out, product.gather_w),
            y=self.rows(y_sharding) * self.width(n_out, product.weight_out),
            axis_x=self.collective_axis(across.axis if across else None),
            axis_y=self.collective_axis(product.scatter_y),
            on_hidden=across is not None and across.on == "H",
        )
