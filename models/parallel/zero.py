"""ZeRO (Rajbhandari et al. 2020): the data axis is one more axis that cuts a weight.

So may any axis be along which there are copies, as along 2.5d's depth (``Mode.zero_axes``). A
weight's input dimension is cut by the mode's axes and then by ZeRO's, so parameter, gradient and
optimizer state of a rank are one piece, and the one rule for gradients, norms, clipping, boxes and
checkpoints hold as they are. The stages differ in when the pieces come together:

    stage   weight gathered                  gradient scattered
    1       once a step, and kept            once a step
    2       once a step, and kept            with every micro-batch
    3       at every use                     with every micro-batch

Kept weights are in the compute type. Biases, norms and positions are not cut. A weight may stay at
another device between steps (ZeRO-Offload, Ren et al. 2021): its pieces come together where it is
used, and its gradient goes back.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from models.parallel.collectives import Axis, Dim, gather, scatter

if TYPE_CHECKING:
    from models.parallel.context import Partition


@dataclass(frozen=True, kw_only=True)
class Zero:
    """The stage, the axes that cut weights (slowest first), and what is held within a step.

    ``keeps_pieces``: in stage 3 a rank's own pieces, once fetched from where they stay between
    steps, are kept in the compute type; otherwise they are fetched at every use.
    """

    stage: int = 0
    axes: tuple[Axis, ...] = ()
    keeps_pieces: bool = False
    _kept: dict[int, Tensor] = field(default_factory=dict)
    _whole: dict[int, tuple[Tensor, Pieces, Tensor]] = field(default_factory=dict)

    def gather(self, weight: Tensor, pieces: Pieces, part: Partition) -> Tensor:
        """What the rank would hold without ZeRO, in the compute type."""
        if self.stage == 0:
            return part.read(weight).to(part.device, part.compute)
        kept = self._kept.get(id(weight))
        if kept is not None and self.stage < 3:
            return kept
        piece = part.read(weight).to(part.device, part.compute) if kept is None else kept
        whole = piece
        for axis, size in reversed(list(zip(self.axes, pieces.levels(self.axes), strict=True))):
            whole = gather(whole, axis, pieces.dim).narrow(pieces.number, 0, size)
        if self.stage < 3:
            self._kept[id(weight)] = whole
        elif self.keeps_pieces and part.home is not None:
            self._kept[id(weight)] = piece
        return whole

    def scatter(self, weight: Tensor, gradient: Tensor, pieces: Pieces) -> Tensor | None:
        """The rank's piece of the summed gradient; None where the sum waits for the step's end."""
        if self.stage == 1 and self.axes:
            kept = self._whole.get(id(weight))
            whole = gradient if kept is None else kept[2].add_(gradient)
            self._whole[id(weight)] = weight, pieces, whole
            return None
        return self._scatter(gradient, pieces).to(weight.device)

    def _scatter(self, gradient: Tensor, pieces: Pieces) -> Tensor:
        for axis, size in zip(self.axes, pieces.levels(self.axes), strict=True):
            if axis.size == 1:
                continue  # a view of all of it could not be added to in place
            missing = -size % axis.size
            if missing:
                after = (0, missing) if pieces.dim == "H" else (0, 0, 0, missing)
                gradient = F.pad(gradient, after)
            gradient = scatter(gradient, axis, pieces.dim)
        return gradient

    def holds(self, weight: Tensor) -> bool:
        """Whether a gradient of ``weight`` waits for the end of the step."""
        return id(weight) in self._whole

    def finish(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Weights and the pieces of their gradients that were left for the end of the step."""
        while self._whole:
            weight, pieces, gradient = self._whole.pop(next(iter(self._whole)))
            yield weight, self._scatter(gradient, pieces).to(weight.device)

    def forget(self) -> None:
        """Weights have changed: what was gathered of them is stale."""
        self._kept.clear()


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """How the pieces of a weight come together along its input dimension: the rows of w [in, out]
    (``T``) or the columns of a table [vocabulary, hidden] (``H``).

    ``inputs``: how many the rank would hold without ZeRO. ``axis``: the mode's own gather.
    """

    dim: Dim
    inputs: int
    axis: str | None

    @property
    def number(self) -> int:
        return 0 if self.dim == "T" else 1

    def levels(self, axes: tuple[Axis, ...]) -> list[int]:
        """The inputs that are cut by each of ``axes`` in turn."""
        sizes = [self.inputs]
        for axis in axes:
            sizes.append(-(-sizes[-1] // axis.size))
        return sizes[:-1]

    def together(self, weight: Tensor, part: Partition) -> bool:
        """Whether the rank holds all that it needs, where it needs it."""
        apart = part.zero.stage > 0 or part.axis(self.axis) is not None
        return not apart and weight.device == part.device

    def gather(self, weight: Tensor, part: Partition) -> Tensor:
        """all_gather_b(w), cast before it travels: half the bytes in bf16."""
        return gather(part.zero.gather(weight, self, part), part.axis(self.axis), self.dim)

    def scatter(self, weight: Tensor, gradient: Tensor, part: Partition) -> Tensor | None:
        """reduce_scatter_b(dw) in the parameter type; None where ZeRO puts it off."""
        gradient = scatter(gradient.to(weight.dtype), part.axis(self.axis), self.dim)
        return part.zero.scatter(weight, gradient, self)
