"""Measures the time and memory of training steps, without a run folder."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from engine.config.sections.data import DataSettings, EvalSettings
from engine.config.sections.optimizer import LRScheduleSettings
from engine.errors import RunError
from engine.nvme.offload import open_offload
from engine.open_data import open_data
from engine.training.build import choose_run_matmul
from engine.training.compile_ahead import compile_ahead
from engine.training.memory import peak_bytes
from engine.training.trainer import Trainer
from engine.world.processor import this_processor

if TYPE_CHECKING:
    from engine.plan import Plan
    from engine.world.world import World


class OutOfDeviceMemoryError(RunError):
    """The model or a step does not fit into the memory of a device."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """The measured steps of a plan."""

    device: str
    """Name of rank 0's device."""
    step_seconds: tuple[float, ...]
    """Duration of each step after the warm-up."""
    model_bytes: int
    """Memory of the fullest rank before its first step."""
    peak_bytes: int
    """Peak memory of the fullest rank."""


def with_random_tokens(plan: Plan) -> Plan:
    """Return the plan with random token ids as data, default validation and a constant learning
    rate, which do not affect the time of a step."""
    update = {
        "data": DataSettings(type="synthetic"),
        "eval": EvalSettings(),
        "lr_scheduler": LRScheduleSettings(),
    }
    return replace(plan, settings=plan.settings.model_copy(update=update))


def measure(world: World, *, cache: Path, warmup: int, steps: int) -> Measurement:
    """Train ``warmup`` steps, then ``steps`` steps whose time is measured: forward, backward,
    communication, optimizer. All ranks call it.

    Raises:
        OutOfDeviceMemoryError: the model or a step does not fit into memory.
        UserError: the offload disk cannot be used.
    """
    try:
        return _measure(world, cache, warmup, steps)
    except RuntimeError as error:
        # torch raises a plain RuntimeError if a CPU has no memory left
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            size = world.plan.settings.batch_size
            raise OutOfDeviceMemoryError(f"out of memory with BATCH_SIZE={size}") from None
        raise


def _measure(world: World, cache: Path, warmup: int, steps: int) -> Measurement:
    device = world.device
    batches = open_data(world, cache=cache, notify=world.print_rank_0)
    with open_offload(world) as offload:
        trainer = Trainer(
            world,
            batches,
            steps=warmup + steps,
            matmul=choose_run_matmul(world),
            offload=offload,
        )
        built, seconds = peak_bytes(device), list[float]()
        if world.plan.settings.compile:
            compile_ahead(trainer)
        for step in range(1, warmup + steps + 1):
            world.begin_step(step)
            started = time.perf_counter()
            trainer.step(step)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if step > warmup:
                seconds.append(time.perf_counter() - started)
            if step == 1:
                world.first_step_done()
        memory = [int(text) for text in world.control_plane.all_gather(str(peak_bytes(device)))]
        models = [int(text) for text in world.control_plane.all_gather(str(built))]
    cuda = device.type == "cuda"
    return Measurement(
        device=torch.cuda.get_device_name(device) if cuda else this_processor().name,
        step_seconds=tuple(seconds),
        model_bytes=max(models),
        peak_bytes=max(memory),
    )
