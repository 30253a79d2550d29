"""A tensor-parallel mode: a table of the axes that shard each tensor.

Activations are matrices ``x [tokens, hidden]``, weights ``w [in, out]``. Every mode computes

    y = reduce_scatter_c( all_gather_a(x) @ all_gather_b(w) )

    dx = reduce_scatter_a( all_gather_c(dy) @ all_gather_b(w)^T )
    dw = reduce_scatter_b( all_gather_a(x)^T @ all_gather_c(dy) )

where dx, dw and dy are gradients and a, b and c are axes, which may be absent. Modes differ in
these axes and in the dimension that each axis shards. Megatron's 1d with sequence parallelism
(Korthikanti et al. 2022), SUMMA's 2d (Van de Geijn & Watts 1997; Xu et al. 2021), Tesseract's 2.5d
(Wang et al. 2021), the 3d of Bian et al. (2021) and the sequence parallelism of Li et al. (2021),
which gathers keys and values only, are all such tables.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Axes = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ActivationSharding:
    """The axes that shard an activation's tokens (T) and hidden features (H), slowest first."""

    tokens: Axes = ()
    hidden: Axes = ()


@dataclass(frozen=True, kw_only=True)
class Gather:
    """An all-gather of x along ``axis``, on the dimension tokens ``T`` or hidden features ``H``."""

    axis: str
    on: Literal["T", "H"]


@dataclass(frozen=True, kw_only=True)
class LinearSharding:
    """The sharding and the collectives of a linear layer."""

    weight_in: Axes = ()
    """The axes that shard the input dimension of w [in, out]."""
    weight_out: Axes = ()
    """The axes that shard the output dimension of w."""
    gather_x: Gather | None = None
    """The all-gather of x: axis a."""
    gather_w: str | None = None
    """The axis of the all-gather of w on its input dimension: axis b."""
    scatter_y: str | None = None
    """The axis of the reduce-scatter of y on its tokens: axis c."""


@dataclass(frozen=True, kw_only=True)
class EmbeddingSharding:
    """The lookup in a token table that is sharded like an *up* weight [hidden, vocabulary]."""

    tokens: Axes = ()
    """The axes that shard the ids before the lookup."""
    gather_w: str | None = None
    """The axis of the all-gather of the table on its hidden dimension."""
    scatter_y: str | None = None
    """The axis of the reduce-scatter of the partial rows on their tokens."""
    swap: tuple[str, str] | None = None
    """Axes (row, column). Each rank of the grid exchanges its rows with the transposed rank; then
    the column axis shards tokens and the row axis shards hidden features."""


@dataclass(frozen=True, kw_only=True)
class Mode:
    """A tensor-parallel mode."""

    name: str
    size_rule: str
    """The legal values of TENSOR_PARALLEL, in words for error messages."""
    axes: Callable[[int, int], dict[str, int] | None]
    """A function of (TENSOR_PARALLEL, DEPTH) that returns the size of each axis of a tensor group,
    slowest-varying axis first; None if TENSOR_PARALLEL is not legal."""
    outer: ActivationSharding
    """The sharding of activations between blocks."""
    inner: ActivationSharding
    """The sharding of activations inside attention and MLP."""
    up: LinearSharding
    """Layers from the outer to the inner sharding (Megatron's column-parallel linear)."""
    down: LinearSharding
    """Layers from the inner to the outer sharding (Megatron's row-parallel linear)."""
    lookup: EmbeddingSharding
    colossal_groups: dict[str, str]
    """Axis, slowest first -> name of the Colossal-AI ``ParallelMode`` with the axis's groups."""
    uses_depth: bool = False
    """Whether the setting DEPTH applies to this mode."""

    @property
    def replicated(self) -> Axes:
        """The axes that shard activations but no weight: weights are replicated along them."""
        sharding = {*self.up.weight_in, *self.up.weight_out}
        sharding |= {*self.down.weight_in, *self.down.weight_out}
        return tuple(axis for axis in self.colossal_groups if axis not in sharding)

    def zero_axes(self, stage: int, *, depth: bool) -> Axes:
        """Return the axes by which ZeRO of ``stage`` shards weights in addition to the mode's axes,
        slowest first: the data axis and, with ``depth``, the axes along which the mode replicates
        weights. The data axis is gathered first, so that most bytes go between neighbours."""
        if stage == 0:
            return ()
        return (*self.replicated, "data") if depth else ("data",)
