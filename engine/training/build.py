"""Builds a rank's share of the model from the settings and the axes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from engine.config.schema import Settings
from engine.config.virtual_stages import virtual_stages_of
from engine.estimate.flops import smallest_matmul_flops
from engine.optim.parameter_groups import NamedParameter
from engine.training.matmuls import MATMULS, choose_matmul
from models.chunks import ModelChunks
from models.config import GPTConfig
from models.gpt import GPT
from models.parallel.collectives import Axis
from models.parallel.context import ParallelContext, WeightStorage
from models.parallel.kernels import DeviceKernels
from models.parallel.mode import Mode
from models.parallel.zero import Zero
from models.parameters import parameters
from models.stage_split import chunks_of

if TYPE_CHECKING:
    from engine.nvme.offload import NvmeOffload
    from engine.world.world import World

DTYPES = {  # precision -> (parameters and reductions, compute)
    "float32": (torch.float32, torch.float32),
    "float64": (torch.float64, torch.float64),
    "bf16": (torch.float32, torch.bfloat16),
    "fp16": (torch.float32, torch.float16),
}


def parallel_context(
    settings: Settings,
    mode: Mode,
    axes: Mapping[str, Axis],
    device: torch.device,
    matmul: str = "torch",
    weight_storage: WeightStorage | None = None,
) -> ParallelContext:
    """Make this rank's parallel context. ``weight_storage``: stores the weights that are offloaded
    to a disk, if any."""
    dtype, compute = DTYPES[settings.precision]
    zero = settings.zero
    return ParallelContext(
        mode=mode,
        axes=axes,
        device=device,
        dtype=dtype,
        compute=compute,
        matmul=MATMULS[matmul],
        kernels=DeviceKernels.of(device, dtype, compute),
        keep_gathers=settings.keep_gathers,
        context=settings.context,
        zero=Zero(
            stage=zero.stage,
            axes=tuple(axes[axis] for axis in mode.zero_axes(zero.stage, depth=zero.depth)),
            caches_shards=zero.offload_params is None,
        ),
        offload_device=torch.device("cpu") if zero.offload or zero.offload_params else None,
        weight_storage=weight_storage,
    )


def build_model(settings: Settings, parallel: ParallelContext) -> ModelChunks:
    """Build the rank's share of the GPT, and initialise it from the seed. No other rank's layers
    are built."""
    config, pipeline = GPTConfig.of(settings.model), parallel.axes["pipeline"]
    stages = virtual_stages_of(settings, pipeline.size)
    model = ModelChunks(
        [
            GPT(config, parallel, layers=layers, loss_chunk=settings.loss_chunk)
            for layers in chunks_of(stages, pipeline.index, pipeline.size)
        ],
        stages,
    )
    model.initialise(settings.seed)
    if settings.compile:
        deferred = settings.schedule == "zero_bubble" and pipeline.size > 1
        for chunk in model:
            chunk.compile_blocks(deferred=deferred)
    return model


def choose_run_matmul(world: World) -> str:
    """Choose the matmul library of a run on rank 0 and return it on all ranks, whose processors
    may differ. Raises UserError if the setting names a library that does not work."""
    plan = world.plan
    settings, tokens = plan.settings, plan.row_order.rows
    return world.run_on_rank_0(
        lambda: choose_matmul(
            DTYPES[settings.precision][1],
            world.device,
            smallest_matmul_flops(settings.model, tokens, plan.layout.tensor),
            requested=settings.matmul,
        )
    )


def build_on_world(world: World, matmul: str, offload: NvmeOffload | None) -> ModelChunks:
    """Build this rank's share of the plan's GPT on the device and the axes of ``world``. All ranks
    call this. ``offload``: stores the weights that are offloaded to a disk. Raises UserError."""
    plan = world.plan
    weight_storage = offload.weights if offload else None
    parallel = parallel_context(
        plan.settings, plan.layout.mode, world.axes, world.device, matmul, weight_storage
    )
    return world.run_on_all(lambda: build_model(plan.settings, parallel))


def named_parameters(model: ModelChunks) -> list[NamedParameter]:
    """Return all parameters with their names and kinds."""
    kinds = {p.name: p.kind for p in parameters(model.config, model.parallel.mode)}
    return [NamedParameter(name, p, kinds[name]) for name, p in model.named_parameters()]
