"""Compilation of a run's model before its first step."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch

from engine.training.pipeline import scaled_loss
from engine.training.trainer import micro_batches
from models.parallel.targets import IGNORED

if TYPE_CHECKING:
    from engine.training.trainer import Trainer


def compile_ahead(trainer: Trainer) -> float:
    """Compile the code of all steps and validations, and return the seconds that this took. All
    ranks call this before the first step.

    Blocks are compiled when they are first called, so a batch without targets, whose gradients are
    zero, passes through them. So no rank waits for a compiler during a step: the speed of a step
    does not include compilation, and compilation is subject to the timeout of the start.
    """
    started = time.perf_counter()
    settings, model = trainer.plan.settings, trainer.model
    shape = settings.batch_size, settings.seq_len
    batch = torch.zeros(shape, dtype=torch.int64), torch.full(shape, IGNORED)
    batches = list(micro_batches(trainer.plan, batch, trainer.device))
    trainer.stepper.accumulate(0, batches, scale=0.0)
    if settings.eval.every and trainer.batches.validation.batches:
        model.train(False)
        total = torch.zeros((), dtype=torch.float64, device=trainer.device)
        trainer.pipeline.evaluate(batches, scaled_loss(0.0), total)
        model.train()
    return time.perf_counter() - started


def compiled_code_folder() -> str:
    """Return the folder in which torch keeps compiled code for later runs."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    return cache_dir()
