"""The layers of a GPT, sharded as the mode's table says; no layer tests which mode it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.parallel.collectives import Axis, gather, scatter
from models.parallel.compilation import untraced
from models.parallel.context import ParallelContext
from models.parallel.initialise import init_normal_
from models.parallel.matmul import ShardedMatmul
from models.parallel.mode import LinearSharding
from models.parallel.shard import PartitionSpec, Shard
from models.parallel.weight_sharding import WeightSharding


@dataclass(frozen=True, kw_only=True)
class Normal:
    """Initial values from a normal distribution of mean 0."""

    std: float


@dataclass(frozen=True, kw_only=True)
class Constant:
    """The initial value of every entry."""

    value: float


class ShardedModule(nn.Module):
    """A module whose parameters are shards of global tensors; ``shards`` has the positions."""

    def __init__(self, parallel: ParallelContext) -> None:
        super().__init__()
        self.parallel = parallel
        self.shards: dict[str, Shard] = {}
        self.initial: dict[str, Normal | Constant] = {}

    def register_sharded(
        self,
        name: str,
        shape: tuple[int, ...],
        spec: PartitionSpec,
        initial: Normal | Constant,
        *,
        storage_device: torch.device | None = None,
        row_multiple: int = 1,
    ) -> nn.Parameter:
        """Register this rank's shard of a parameter of global ``shape``, on the computing device or
        on ``storage_device``; with the latter, in the context's weight storage if it has one."""
        parallel = self.parallel
        shard = parallel.shard(shape, spec, row_multiple=row_multiple)
        if storage_device and parallel.weight_storage:
            # A shape without memory, NaN if read by mistake
            absent = torch.full((), torch.nan, dtype=parallel.dtype, device=storage_device)
            parameter = nn.Parameter(absent.expand(shard.local))
            parallel.weight_storage.add(parameter)
        else:
            device = storage_device or parallel.device
            # Pinned memory: copies to and from a GPU take half the time.
            pin = device.type == "cpu" and parallel.device.type == "cuda"
            values = torch.empty(shard.local, dtype=parallel.dtype, device=device, pin_memory=pin)
            parameter = nn.Parameter(values)
        self.register_parameter(name, parameter)
        self.shards[name], self.initial[name] = shard, initial
        return parameter


def named_shards(model: nn.Module) -> dict[str, Shard]:
    """Return the shard of every parameter by its name in ``model.named_parameters()``."""
    return {
        f"{path}.{name}".lstrip("."): shard
        for path, module in model.named_modules()
        if isinstance(module, ShardedModule)
        for name, shard in module.shards.items()
    }


@torch.no_grad()
def initialise(model: nn.Module, seed: int) -> None:
    """Draw the initial values of every parameter, equal in every parallel layout."""
    for path, module in model.named_modules():
        if not isinstance(module, ShardedModule):
            continue
        for name, initial in module.initial.items():
            shard = module.shards[name]
            with module.parallel.overwrite(module.get_parameter(name)) as local:
                if isinstance(initial, Normal):
                    full = f"{path}.{name}".lstrip(".")
                    init_normal_(local, shard, std=initial.std, seed=seed, name=full)
                else:
                    local.zero_()
                    local[shard.valid_slices] = initial.value


class Linear(ShardedModule):
    """y = x @ w + b, with w [in, out] sharded by ``sharding``, the mode's ``up`` or ``down``.

    x [T_local, in_local] -> y [T_local, out_local]: from the outer to the inner sharding for *up*,
    from the inner to the outer sharding for *down*.
    """

    weight: nn.Parameter
    bias: nn.Parameter

    def __init__(
        self,
        parallel: ParallelContext,
        sharding: LinearSharding,
        n_in: int,
        n_out: int,
        *,
        std: float,
    ) -> None:
        super().__init__(parallel)
        self.sharding = sharding
        spec = (sharding.weight_in + parallel.zero_axes, sharding.weight_out)
        self.register_sharded(
            "weight", (n_in, n_out), spec, Normal(std=std), storage_device=parallel.offload_device
        )
        self.register_sharded("bias", (n_out,), (sharding.weight_out,), Constant(value=0.0))
        (inputs,) = parallel.shard((n_in,), (sharding.weight_in,)).local
        self.weight_sharding = WeightSharding(dim="T", inputs=inputs, axis=sharding.gather_w)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = ShardedMatmul.apply(
            x, self.weight, self.bias, self.sharding, self.weight_sharding, self.parallel
        )
        return y

    @property
    def is_local(self) -> bool:
        """Return whether the layer needs no communication, and its weight no copy to the device."""
        gathered, parallel = self.sharding.gather_x, self.parallel
        axes = gathered.axis if gathered else None, self.sharding.scatter_y
        local = self.weight_sharding.is_local(self.weight, parallel)
        return local and not any(parallel.axis(axis) for axis in axes)

    def exclude_from_tracing(self) -> None:
        """Make torch.compile leave this layer uncompiled."""
        self.forward = untraced(self.forward)  # type: ignore[method-assign]


class TokenEmbedding(ShardedModule):
    """Token embeddings w [vocabulary, hidden], sharded like a transposed *up* weight, so that the
    head can use w too: logits = x @ w^T."""

    weight: nn.Parameter

    def __init__(
        self, parallel: ParallelContext, vocabulary: int, hidden: int, *, std: float
    ) -> None:
        super().__init__(parallel)
        up, lookup = parallel.mode.up, parallel.mode.lookup
        spec = (up.weight_out, up.weight_in + parallel.zero_axes)
        self.register_sharded(
            "weight",
            (vocabulary, hidden),
            spec,
            Normal(std=std),
            storage_device=parallel.offload_device,
            row_multiple=parallel.kernels.row_multiple,
        )
        (inputs,) = parallel.shard((hidden,), (up.weight_in,)).local
        self.as_head = WeightSharding(dim="H", inputs=inputs, axis=up.gather_w)
        self.as_lookup = WeightSharding(dim="H", inputs=inputs, axis=lookup.gather_w)

    def forward(self, ids: Tensor) -> Tensor:
        """Look up the ids [T] of all rows of the micro-batch; return embeddings [T_local,
        hidden_local] in the outer sharding.

        Each rank looks up the ids that its shard of the vocabulary has, and sets the embeddings of
        other ids to zero; a reduce-scatter adds the embeddings of all ranks.
        """
        parallel, lookup, shard = self.parallel, self.parallel.mode.lookup, self.shards["weight"]
        ids = ids[parallel.rows(len(ids), lookup.tokens)]
        local = ids - shard.offset[0]
        held = None
        if shard.size[0] < shard.shape[0]:
            held = (local >= 0) & (local < shard.size[0])
            local = local.where(held, 0)
        rows: Tensor = EmbeddingLookup.apply(self.weight, local, held, self.as_lookup, parallel)
        if over := parallel.axis(lookup.scatter_y):
            rows = TokenScatter.apply(rows, over)
        if lookup.swap and parallel.axis(lookup.swap[0]):
            row, column = lookup.swap
            index = parallel.index  # of the rank at the transposed place
            peer = parallel.tensor_index(**{row: index[column], column: index[row]})
            rows = Swap.apply(rows, parallel.axes["tensor"], peer)
        return rows


class EmbeddingLookup(torch.autograd.Function):
    """Looks up rows of a table: [T, hidden_local] in the compute type, zero where ``held`` is
    false.

    The gradients of a token's row are summed in the parameter type: in bf16 a frequent token's
    sum would lose small addends.
    """

    @staticmethod
    def forward(
        ctx: Any,
        w: Tensor,
        ids: Tensor,
        held: Tensor | None,
        sharding: WeightSharding,
        parallel: ParallelContext,
    ) -> Tensor:
        if sharding.is_local(w, parallel):  # casting the rows is cheaper than casting the table
            rows = F.embedding(ids, w).to(parallel.compute)
        else:
            rows = F.embedding(ids, sharding.gather(w, parallel))
        ctx.save_for_backward(ids, held)
        ctx.weight, ctx.weight_sharding, ctx.parallel = w, sharding, parallel
        return rows if held is None else rows.mul_(held.unsqueeze(1))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        ids, held = ctx.saved_tensors
        rows = gradients[0].to(ctx.weight.dtype)
        if held is not None:
            rows = rows * held.unsqueeze(1)
        vocabulary = ctx.weight.shape[0]
        dw = torch.ops.aten.embedding_dense_backward(rows, ids, vocabulary, -1, False)
        return ctx.weight_sharding.scatter(ctx.weight, dw, ctx.parallel), None, None, None, None


class PositionEmbedding(ShardedModule):
    """Learned position embeddings w [positions, hidden]."""

    weight: nn.Parameter

    def __init__(
        self, parallel: ParallelContext, positions: int, hidden: int, *, std: float
    ) -> None:
        super().__init__(parallel)
        outer = parallel.mode.outer
        self.register_sharded("weight", (positions, hidden), ((), outer.hidden), Normal(std=std))

    def forward(self, batch: int, length: int, start: int = 0) -> Tensor:
        """Return the position embeddings [T_local, hidden_local] of a micro-batch: ``batch``
        samples of ``length`` tokens, each sample from position ``start``."""
        order = self.parallel.row_order(batch * length, length)
        axes = self.parallel.mode.outer.tokens
        rows = order.rows // self.parallel.num_shards(axes)
        token = self.parallel.tokens_of_rows(rows, length, axes)
        return F.embedding(start + token % length, self.weight).to(self.parallel.compute)


class TokenScatter(torch.autograd.Function):
    """Reduce-scatters along tokens; the backward pass all-gathers."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis) -> Tensor:
        ctx.axis = axis
        return scatter(x, axis, "T")

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return gather(gradients[0], ctx.axis, "T"), None


class Swap(torch.autograd.Function):
    """Exchanges a tensor with a peer rank; the backward pass exchanges the gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, tensor: Axis, peer: int) -> Tensor:
        ctx.tensor, ctx.peer = tensor, peer
        return tensor.swap(x, peer)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.tensor.swap(gradients[0], ctx.peer), None, None
