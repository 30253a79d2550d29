"""The layers of a GPT, each cut as its mode's table says. None of them knows which mode that is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.parallel.collectives import Axis, Dim, gather, scatter
from models.parallel.context import Partition, key
from models.parallel.initialise import draw_normal
from models.parallel.matmul import Matmul
from models.parallel.mode import Activation, Product
from models.parallel.shard import Box, Cut
from models.parallel.zero import Pieces


@dataclass(frozen=True, kw_only=True)
class Normal:
    """Initial values: normal, mean 0."""

    std: float


@dataclass(frozen=True, kw_only=True)
class Constant:
    """Initial values: all the same."""

    value: float


class CutModule(nn.Module):
    """A module whose parameters are pieces of global ones: ``boxes`` says where each belongs."""

    def __init__(self, part: Partition) -> None:
        super().__init__()
        self.part = part
        self.boxes: dict[str, Box] = {}
        self.initial: dict[str, Normal | Constant] = {}

    def declare(
        self,
        name: str,
        shape: tuple[int, ...],
        cut: Cut,
        initial: Normal | Constant,
        *,
        home: torch.device | None = None,
    ) -> nn.Parameter:
        """A parameter of global ``shape``, of which this rank makes only its own piece, where it
        computes or at ``home``; one with a home goes to the partition's store, if there is one."""
        box, part = self.part.box(shape, cut), self.part
        if home and part.store:  # a shape without memory: whoever takes it for the values gets NaN
            absent = torch.full((), torch.nan, dtype=part.dtype, device=home)
            parameter = nn.Parameter(absent.expand(box.local))
            part.store.add(parameter)
        else:
            device = home or part.device
            # Pinned memory: copies to and from a GPU take half the time.
            pin = device.type == "cpu" and part.device.type == "cuda"
            held = torch.empty(box.local, dtype=part.dtype, device=device, pin_memory=pin)
            parameter = nn.Parameter(held)
        self.register_parameter(name, parameter)
        self.boxes[name], self.initial[name] = box, initial
        return parameter


def named_boxes(model: nn.Module) -> dict[str, Box]:
    """The box of every parameter, by the names of ``model.named_parameters()``."""
    return {
        f"{path}.{name}".lstrip("."): box
        for path, module in model.named_modules()
        if isinstance(module, CutModule)
        for name, box in module.boxes.items()
    }


@torch.no_grad()
def initialise(model: nn.Module, seed: int) -> None:
    """Draw every parameter: the same numbers in every layout and on every pipeline stage."""
    for path, module in model.named_modules():
        if not isinstance(module, CutModule):
            continue
        for name, initial in module.initial.items():
            box = module.boxes[name]
            with module.part.rewrite(module.get_parameter(name)) as local:
                if isinstance(initial, Normal):
                    full = f"{path}.{name}".lstrip(".")
                    draw_normal(local, box, std=initial.std, seed=seed, name=full)
                else:
                    local.zero_()
                    local[box.valid] = initial.value


class Linear(CutModule):
    """y = x @ w + b, with w [in, out] cut as ``product`` says (``up`` or ``down``).

    x [T_local, in_local] -> y [T_local, out_local], from the outer layout to the inner one for
    *up*, back for *down*.
    """

    weight: nn.Parameter
    bias: nn.Parameter

    def __init__(
        self, part: Partition, product: Product, n_in: int, n_out: int, *, std: float
    ) -> None:
        super().__init__(part)
        self.product = product
        cut = (product.weight_in + part.zero_axes, product.weight_out)
        self.declare("weight", (n_in, n_out), cut, Normal(std=std), home=part.home)
        self.declare("bias", (n_out,), (product.weight_out,), Constant(value=0.0))
        (inputs,) = part.box((n_in,), (product.weight_in,)).local
        self.pieces = Pieces(dim="T", inputs=inputs, axis=product.gather_w)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = Matmul.apply(x, self.weight, self.bias, self.product, self.pieces, self.part)
        return y


class Table(CutModule):
    """Token embeddings w [vocabulary, hidden], cut like an *up* weight turned over, so that the
    head can share them: logits = x @ w^T."""

    weight: nn.Parameter

    def __init__(self, part: Partition, vocabulary: int, hidden: int, *, std: float) -> None:
        super().__init__(part)
        up, lookup = part.mode.up, part.mode.lookup
        cut = (up.weight_out, up.weight_in + part.zero_axes)
        self.declare("weight", (vocabulary, hidden), cut, Normal(std=std), home=part.home)
        (inputs,) = part.box((hidden,), (up.weight_in,)).local
        self.as_head = Pieces(dim="H", inputs=inputs, axis=up.gather_w)
        self.as_lookup = Pieces(dim="H", inputs=inputs, axis=lookup.gather_w)

    def forward(self, ids: Tensor) -> Tensor:
        """ids [T], all tokens of the micro-batch -> their rows [T_local, hidden_local], outer.

        Each rank looks up the ids that its part of the vocabulary holds; the others' rows are zero
        and come in with the reduce-scatter.
        """
        part, lookup, box = self.part, self.part.mode.lookup, self.boxes["weight"]
        ids = ids[part.rows(len(ids), lookup.tokens)]
        local = ids - box.offset[0]
        held = None
        if box.size[0] < box.shape[0]:
            held = (local >= 0) & (local < box.size[0])
            local = local.where(held, 0)
        rows: Tensor = Rows.apply(self.weight, local, held, self.as_lookup, part)
        rows = Collective.scatter(rows, part.axis(lookup.scatter_y), "T")
        if lookup.swap and part.axis(lookup.swap[0]):
            rows = Swap.apply(rows, part.axes["tensor"], self._transposed(*lookup.swap))
        return rows

    def _transposed(self, row: str, column: str) -> int:
        """The tensor-group index of the rank whose row is our column and column our row."""
        index = {**self.part.index, row: self.part.index[column], column: self.part.index[row]}
        peer = 0
        for axis in self.part.mode.colossal:
            peer = peer * self.part.sizes[axis] + index[axis]
        return peer


class Rows(torch.autograd.Function):
    """Rows of a table [T, hidden_local] in the compute type; where ``held`` is false, zeros.

    Gradients of rows add up in the parameter type: a frequent token's would vanish in bf16.
    """

    @staticmethod
    def forward(
        ctx: Any, w: Tensor, ids: Tensor, held: Tensor | None, pieces: Pieces, part: Partition
    ) -> Tensor:
        if pieces.together(w, part):  # a few rows are cast sooner than the table
            rows = F.embedding(ids, w).to(part.compute)
        else:
            rows = F.embedding(ids, pieces.gather(w, part))
        ctx.save_for_backward(ids, held)
        ctx.weight, ctx.pieces, ctx.part = w, pieces, part
        return rows if held is None else rows.mul_(held.unsqueeze(1))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        ids, held = ctx.saved_tensors
        rows = gradients[0].to(ctx.weight.dtype)
        if held is not None:
            rows = rows * held.unsqueeze(1)
        vocabulary = ctx.weight.shape[0]
        dw = torch.ops.aten.embedding_dense_backward(rows, ids, vocabulary, -1, False)
        return ctx.pieces.scatter(ctx.weight, dw, ctx.part), None, None, None, None


class Positions(CutModule):
    """Learned positions w [positions, hidden], looked up per row of x."""

    weight: nn.Parameter

    def __init__(self, part: Partition, positions: int, hidden: int, *, std: float) -> None:
        super().__init__(part)
        outer = part.mode.outer
        self.declare("weight", (positions, hidden), ((), outer.hidden), Normal(std=std))

    def forward(self, batch: int, length: int, start: int = 0) -> Tensor:
        """The rows [T_local, hidden_local] of a micro-batch of ``batch`` samples of ``length``,
        each from position ``start`` on."""
        rows = self.part.rows(batch * length, self.part.mode.outer.tokens)
        row = torch.arange(rows.start, rows.stop, device=self.weight.device)
        return F.embedding(start + row % length, self.weight).to(self.part.compute)


class Dropout(nn.Module):
    """Dropout with a keyed mask (Srivastava et al. 2014): a function of (seed, site, place of the
    piece), not of a stream. A recompute, another schedule or a resume draws the same mask."""

    def __init__(self, part: Partition, p: float, activation: Activation, *site: int | str) -> None:
        super().__init__()
        self.p, self.place = p, (*site, *part.salt(activation))

    def forward(self, x: Tensor, seed: int) -> Tensor:
        if not self.training or self.p == 0.0:
            return x
        generator = torch.Generator(x.device).manual_seed(key(seed, *self.place))
        kept = torch.empty_like(x).bernoulli_(1 - self.p, generator=generator)
        return x * kept.div_(1 - self.p)


class Collective(torch.autograd.Function):
    """A gather whose backward is the scatter of the sum, and the other way round."""

    @staticmethod
    def gather(x: Tensor, axis: Axis | None, dim: Dim) -> Tensor:
        y: Tensor = Collective.apply(x, axis, dim, gather, scatter) if axis else x
        return y

    @staticmethod
    def scatter(x: Tensor, axis: Axis | None, dim: Dim) -> Tensor:
        y: Tensor = Collective.apply(x, axis, dim, scatter, gather) if axis else x
        return y

    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis, dim: Dim, there: Any, back: Any) -> Tensor:
        ctx.axis, ctx.dim, ctx.back = axis, dim, back
        y: Tensor = there(x, axis, dim)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.back(gradients[0], ctx.axis, ctx.dim), None, None, None, None


class Swap(torch.autograd.Function):
    """Exchange blocks with a peer; its own inverse."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, tensor: Axis, peer: int) -> Tensor:
        ctx.tensor, ctx.peer = tensor, peer
        return tensor.swap(x, peer)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.tensor.swap(gradients[0], ctx.peer), None, None
