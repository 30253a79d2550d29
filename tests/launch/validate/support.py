"""Layouts to draw, configs to inspect, and hand-made estimates."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from engine.estimate.result import CommVolume, Estimate, Memory, StageEstimate
from engine.layout import Layout
from engine.plan import Plan, make_plan
from launch.validate.alternatives import PlanRequest
from launch.validate.inspection import EstimatedPlan
from models.parallel.registry import modes

GIB = 2**30

CONFIG = """
BATCH_SIZE = 8
SEQ_LEN = 64
NUM_MICRO_BATCHES = 2
MAX_STEPS = 10
model = dict(n_layer=8, n_head=4, n_embd=64, vocab_size=1000)
data = dict(type='synthetic')
"""


def layout(mode: str = "serial", tensor: int = 1, **sizes: int) -> Layout:
    return Layout(mode=modes()[mode], tensor=tensor, **sizes)


LAYOUTS = {
    "serial": layout(),
    "data": layout(data=3),
    "many copies": layout(data=96),
    "stages": layout(pipeline=3, data=2),
    "1d": layout("1d", 2, pipeline=2, data=2),
    "1d, wide": layout("1d", 12),
    "1d, odd": layout("1d", 9),
    "2d": layout("2d", 4, pipeline=2),
    "2.5d, flat": layout("2.5d", 4, depth=1, data=2),
    "2.5d, line": layout("2.5d", 2, depth=2),
    "2.5d": layout("2.5d", 8, depth=2, data=2),
    "2.5d, deep": layout("2.5d", 12, depth=3),
    "3d": layout("3d", 8),
    "3d, all": layout("3d", 27, pipeline=2, data=2),
    "GPT-3": layout("1d", 4, pipeline=32),
}


def write(folder: Path, text: str = CONFIG, name: str = "gpt.py") -> Path:
    (folder / name).write_text(text)
    return folder / name


def request(path: Path, *overrides: str, gpus: int | None = None) -> PlanRequest:
    return PlanRequest(path=path, gpus=gpus, overrides=overrides, environ={})


def plan(path: Path, *overrides: str, gpus: int | None = None) -> Plan:
    return make_plan(path, gpus=gpus, overrides=overrides, environ={})


def made_up(*stages: Memory, sent: tuple[CommVolume, ...] = (), layers: int = 2) -> Estimate:
    """Create an estimate whose stages have this memory and ``layers`` layers each."""
    return Estimate(
        parameters=124_439_808,
        parameters_per_rank=62_219_904,
        flops_per_token=1000,
        flops_per_step=64_000,
        stages=tuple(
            StageEstimate(
                stage=stage,
                layers=(range(layers * stage, layers * (stage + 1)),),
                parameters=62_219_904,
                memory=memory,
                after_step=memory,
            )
            for stage, memory in enumerate(stages)
        ),
        traffic=sent,
        bubble=0.25,
    )


def case(
    path: Path, found: Estimate, *overrides: str, gpu_memory: int | None = None
) -> EstimatedPlan:
    return EstimatedPlan(plan=plan(path, *overrides), estimate=found, gpu_memory=gpu_memory)


def chunked(found: Estimate, *chunks: tuple[range, ...]) -> Estimate:
    """Replace the layers of an estimate's stages by these chunks."""
    pairs = zip(found.stages, chunks, strict=True)
    return replace(found, stages=tuple(replace(stage, layers=layers) for stage, layers in pairs))
