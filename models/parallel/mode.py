"""What a tensor-parallel mode is: a table that says how tensors are cut.

Activations are matrices ``x [tokens, hidden]``, weights ``w [in, out]``. Every mode computes

    y = reduce_scatter_c( all_gather_a(x) @ all_gather_b(w) )

    dx = reduce_scatter_a( all_gather_c(dy) @ all_gather_b(w)^T )
    dw = reduce_scatter_b( all_gather_a(x)^T @ all_gather_c(dy) )

and differs from the others in which axes a, b, c are, and which dimension each one cuts. Megatron's
1d with sequence parallelism (Korthikanti et al. 2022), SUMMA's 2d (Van de Geijn & Watts 1997; Xu et
al. 2021), Tesseract's 2.5d (Wang et al. 2021) and the 3d of Bian et al. (2021) are rows of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Axes = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ActivationSharding:
    """Axes that cut an activation's tokens (T) and hidden features (H), slowest first."""

    tokens: Axes = ()
    hidden: Axes = ()


@dataclass(frozen=True, kw_only=True)
class Gather:
    """An all-gather of x along one of its dimensions: tokens ``T`` or hidden ``H``."""

    axis: str
    on: Literal["T", "H"]


@dataclass(frozen=True, kw_only=True)
class LinearSharding:
    """One row of the table: how a linear layer multiplies.

    ``weight_in`` and ``weight_out`` cut w [in, out]; w is gathered on its input dimension, y is
    scattered on its tokens.
    """

    weight_in: Axes = ()
    weight_out: Axes = ()
    gather_x: Gather | None = None
    gather_w: str | None = None
    scatter_y: str | None = None


@dataclass(frozen=True, kw_only=True)
class EmbeddingSharding:
    """How token embeddings leave a table that is cut like an *up* weight [hidden, vocabulary].

    ``tokens`` cut the ids before the lookup, ``gather_w`` gathers the table's hidden dimension, the
    partial rows are reduce-scattered on tokens over ``scatter_y``. Where that leaves tokens cut by
    the column and hidden by the row, ``swap`` exchanges blocks with the transposed rank.
    """

    tokens: Axes = ()
    gather_w: str | None = None
    scatter_y: str | None = None
    swap: tuple[str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class Mode:
    """A tensor-parallel mode.

    ``axes(size, depth)`` gives the axes of a tensor group and their sizes, slowest-varying rank
    first, or None where ``size`` ranks cannot be cut so; ``size_rule`` says in words what ``size``
    must be. ``outer`` is the layout between blocks, ``inner`` the one inside attention and MLP;
    *up* layers go outer to inner, *down* layers inner to outer. ``colossal_groups`` names the
    ``ParallelMode`` whose groups are an axis', slowest first too.
    """

    name: str
    size_rule: str
    axes: Callable[[int, int], dict[str, int] | None]
    outer: ActivationSharding
    inner: ActivationSharding
    up: LinearSharding
    down: LinearSharding
    lookup: EmbeddingSharding
    colossal_groups: dict[str, str]
    whole_samples: bool = True
    uses_depth: bool = False

    @property
    def replicated(self) -> Axes:
        """The axes that cut activations and no weight: along them are copies of all weights."""
        cutting = {*self.up.weight_in, *self.up.weight_out}
        cutting |= {*self.down.weight_in, *self.down.weight_out}
        return tuple(axis for axis in self.colossal_groups if axis not in cutting)

    def zero_axes(self, stage: int, *, depth: bool) -> Axes:
        """The axes that ZeRO of ``stage`` cuts weights by beside the mode's own, slowest first:
        the data axis, and with ``depth`` those along which the mode itself has copies. The pieces
        come together over data first, so that most bytes go between neighbours."""
        if stage == 0:
            return ()
        return (*self.replicated, "data") if depth else ("data",)
