"""Legal layouts, drawn at random, for combinations that no other test has."""

from __future__ import annotations

import random

import torch

from engine.pipeline.schedule import SCHEDULES
from models.parallel.registry import modes
from tests.support.mode_sizes import mode_sizes
from tests.support.training import TrainingCase

LARGEST = 8
TYPES = [(torch.float64, None)] * 5 + [
    (torch.float32, None),
    (torch.float32, torch.bfloat16),
    (torch.float32, torch.float16),
]
"""Of parameters and of the computation; float64 most often, where nothing hides in rounding."""

GRIDS = [
    (cut, data, pipeline)
    for cut in mode_sizes(LARGEST)
    if cut.tensor > 1 or cut.mode == "serial"
    for data in (1, 2, 3, 4)
    for pipeline in (1, 2, 3, 4)
    if 1 < cut.tensor * data * pipeline <= LARGEST
]


def draw(number: int) -> TrainingCase:
    """Return layout ``number``: the same on every machine."""
    pick = random.Random(number).choice
    mode = pick(list(modes()))
    cut, data, pipeline = pick([grid for grid in GRIDS if grid[0].mode == mode])
    axes = modes()[mode].axes(cut.tensor, cut.depth) or {}
    is_replicated = any(axes[name] > 1 for name in modes()[mode].replicated)
    schedule = pick(list(SCHEDULES))
    chunks = pick((2, 3)) if schedule == "interleaved" and pipeline > 1 else 1
    accumulation, micro_batches = pick((1, 1, 2)), pick((1, 1, 2, 3))
    if chunks > 1:
        micro_batches = pick((1, 2)) * pipeline
    dtype, compute = pick(TYPES)
    samples = data * accumulation * micro_batches * pick((1, 1, 2, 3, 5))
    return TrainingCase(
        **cut._asdict(),
        data=data,
        pipeline=pipeline,
        chunks=chunks,
        schedule=schedule,
        zero=pick((0, 1, 2, 3)),
        offload=pick((False, True)),
        layers=pipeline * chunks + pick((0, 0, 1)),
        accumulation=accumulation,
        micro_batches=micro_batches,
        tied=pick((False, True)),
        checkpoint=pick((False, True, "selective")),
        keep_gathers=pick((False, True)),
        dtype=dtype,
        compute=compute,
        samples=samples,
        length=pick((6, 9, 13, 16)),
        ignored=pick((0, 1, 5)),
        steps=2,
        clip=pick((None, 0.5)),
        loss_chunk=pick((None, 1, 7)),
        gentle=True,
        zero_depth=is_replicated and pick((False, True)),
        context=pick(("gather", "ring")),
        dropout=pick((0.0, 0.3)) if dtype == torch.float64 else 0.0,
    )
