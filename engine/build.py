"""From settings and axes to a model."""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch
from torch import Tensor

from engine.config.schema import Settings
from engine.optim.registry import Named
from models.chunks import Chunks
from models.gpt import GPT
from models.parallel.collectives import Axis
from models.parallel.mode import Mode
from models.parallel.partition import MatMul, Partition
from models.parallel.zero import Zero
from models.sizes import Sizes
from models.stages import chunks_of, virtual_stages

DTYPES = {  # precision -> (parameters and reductions, compute)
    "float32": (torch.float32, torch.float32),
    "float64": (torch.float64, torch.float64),
    "bf16": (torch.float32, torch.bfloat16),
    "fp16": (torch.float32, torch.float16),
}


def onednn(a: Tensor, b: Tensor) -> Tensor:
    """a [m, k] @ b [k, n] by oneDNN, which torch.mm leaves aside for float32 on a CPU."""
    y: Tensor = torch.ops.mkldnn._linear_pointwise(a, b.t(), None, "none", [], "")
    return y


MATMULS: dict[str, MatMul] = {"torch": torch.mm, "onednn": onednn}


def probe_matmul(precision: str, device: torch.device, size: int = 512) -> str:
    """The name of the faster matmul for float32 on this CPU: on AMD's, torch.mm takes the slow
    library (119 against 261 GFLOP/s). Some ten milliseconds; elsewhere torch's own."""
    float32 = DTYPES[precision][1] == torch.float32
    if device.type != "cpu" or not float32 or not torch.backends.mkldnn.is_available():
        return "torch"
    a, b = torch.ones(size, size), torch.ones(size, size)

    def seconds(name: str) -> float:
        times = []
        for _ in range(4):
            start = time.perf_counter()
            MATMULS[name](a, b)
            times.append(time.perf_counter() - start)
        return min(times)

    return min(MATMULS, key=seconds)


def partition(
    settings: Settings,
    mode: Mode,
    axes: Mapping[str, Axis],
    device: torch.device,
    matmul: str = "torch",
) -> Partition:
    """This rank's view of the cut."""
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
        zero=Zero(stage=zero.stage, axes=(axes["data"],) if zero.stage else ()),
        home=torch.device("cpu") if zero.offload else None,
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


def named_parameters(model: Chunks) -> list[Named]:
    """Parameters as optimizers want them; a matrix by its global shape."""
    boxes = model.boxes()
    return [
        Named(name, parameter, len(boxes[name].shape) == 2)
        for name, parameter in model.named_parameters()
    ]
