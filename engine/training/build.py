"""From settings and axes to a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from engine.config.schema import Settings
from engine.estimate.flops import smallest_product
from engine.optim.registry import Named
from engine.training.matmuls import MATMULS, choose_matmul
from models.chunks import Chunks
from models.config import Sizes
from models.gpt import GPT
from models.parallel.collectives import Axis
from models.parallel.context import Partition, WeightStore
from models.parallel.mode import Mode
from models.parallel.zero import Zero
from models.stage_split import chunks_of, virtual_stages

if TYPE_CHECKING:
    from engine.nvme.offload import Offload
    from engine.plan import Plan
    from engine.world.world import World

DTYPES = {  # precision -> (parameters and reductions, compute)
    "float32": (torch.float32, torch.float32),
    "float64": (torch.float64, torch.float64),
    "bf16": (torch.float32, torch.bfloat16),
    "fp16": (torch.float32, torch.float16),
}


def partition(
    settings: Settings,
    mode: Mode,
    axes: Mapping[str, Axis],
    device: torch.device,
    matmul: str = "torch",
    store: WeightStore | None = None,
) -> Partition:
    """This rank's view of the cut. ``store``: where weights are that stay on a disk."""
    dtype, compute = DTYPES[settings.precision]
    zero = settings.zero
    return Partition(
        mode=mode,
        axes=axes,
        device=device,
        dtype=dtype,
        compute=compute,
        matmul=MATMULS[matmul],
        keep_gathers=settings.keep_gathers,
        zero=Zero(
            stage=zero.stage,
            axes=tuple(axes[axis] for axis in mode.zero_axes(zero.stage, depth=zero.depth)),
            keeps_pieces=zero.offload_params is None,
        ),
        home=torch.device("cpu") if zero.offload or zero.offload_params else None,
        store=store,
    )


def build_model(settings: Settings, part: Partition) -> Chunks:
    """The rank's share of the GPT, initialised from the seed: it builds no other rank's layers."""
    sizes, pipeline = Sizes.of(settings.model), part.axes["pipeline"]
    chunks = settings.model.num_chunks if pipeline.size > 1 else 1
    stages = virtual_stages(
        sizes,
        settings.seq_len,
        pipeline.size * chunks,
        balanced=settings.stages == "balanced",
    )
    model = Chunks(
        [
            GPT(sizes, part, layers=layers, loss_chunk=settings.loss_chunk)
            for layers in chunks_of(stages, pipeline.index, pipeline.size)
        ],
        stages,
    )
    model.initialise(settings.seed)
    if settings.compile:
        for chunk in model:
            for block in chunk.h.values():
                block.compile()
    return model


def matmul_of(world: World) -> str:
    """The matmul library of a run, chosen on rank 0 for all ranks: processors may differ. Raises
    Refused where the setting asks for a library that is not there."""
    plan = world.plan
    settings, tokens = plan.settings, plan.padded_micro_batch * plan.settings.seq_len
    return world.share(
        lambda: choose_matmul(
            DTYPES[settings.precision][1],
            world.device,
            smallest_product(settings.model, tokens, plan.layout.tensor),
            asked=settings.matmul,
        )
    )


def build_on(world: World, plan: Plan, matmul: str, offload: Offload | None) -> Chunks:
    """The rank's share of the plan's GPT, on the devices and axes of a running world; ``offload``:
    where weights stay that go to a disk, if any. All ranks call it. Raises Refused."""
    store = offload.weights if offload else None
    part = partition(plan.settings, plan.layout.mode, world.axes, world.device, matmul, store)
    return world.agree(lambda: build_model(plan.settings, part))


def named_parameters(model: Chunks) -> list[Named]:
    """Parameters as optimizers want them; a matrix by its global shape."""
    boxes = model.boxes()
    return [
        Named(name, parameter, len(boxes[name].shape) == 2)
        for name, parameter in model.named_parameters()
    ]
