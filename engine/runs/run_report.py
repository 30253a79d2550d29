"""What a run has to tell, from what it is and from what its steps give."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import torch

from engine.formatting import plural
from engine.runs.folder import write_atomically
from engine.runs.metrics import StepMetrics
from engine.runs.reporter import Reporter, RunInfo, open_reporter
from engine.training.matmuls import cpu_capability
from engine.world.processor import this_processor, usable_cores
from models.parameters import parameter_count

if TYPE_CHECKING:
    from engine.runs.folder import RunFolder
    from engine.training.step import StepResult
    from engine.training.trainer import Trainer
    from engine.world.world import World


def step_metrics(
    trainer: Trainer, step: int, result: StepResult, *, seconds: float, val_loss: float | None
) -> StepMetrics:
    """A step that took so long."""
    scale, spikes, plan = trainer.stepper.loss_scale, trainer.stepper.spikes, trainer.plan
    skipped = [part.skipped for part in (scale, spikes) if part is not None]
    return StepMetrics(
        step=step,
        loss=result.loss,
        lr=trainer.lr(step),
        grad_norm=result.grad_norm,
        tokens=trainer.batches.consumed(step).tokens,
        tokens_per_second=plan.tokens_per_step / seconds,
        seconds=seconds,
        memory_by_rank=result.memory_bytes,
        val_loss=val_loss,
        loss_scale=scale.scale if scale else None,
        skipped=sum(skipped) if skipped else None,
        remark=result.remark or None,
    )


def open_report(trainer: Trainer, folder: RunFolder, first_step: int) -> Reporter:
    """What rank 0 tells; the other ranks' is silent."""
    plan, world = trainer.plan, trainer.world
    if not world.is_main:
        return Reporter()
    cuda = world.device.type == "cuda"
    info = RunInfo(
        device=torch.cuda.get_device_name(world.device) if cuda else "cpu",
        parameters=parameter_count(plan.settings.model),
        total_steps=trainer.steps,
        first_step=first_step,
        cores=None if cuda else cores(world),
        more={
            "data": trainer.batches.corpus.description,
            "validation": _validation_text(trainer),
            "matmul": _matmul_text(trainer, cuda=cuda),
        },
    )
    report = open_reporter(plan, info, folder)
    machine = {
        "torch": torch.__version__,
        "device": info.device,
        "processor": this_processor().name,
        "threads": torch.get_num_threads(),
        "matmul": trainer.matmul,
    }
    write_atomically(folder.environment, json.dumps(machine, indent=2) + "\n")
    if (tokenizer := trainer.tokenizer) is not None:
        write_atomically(folder.tokenizer, json.dumps(tokenizer))
    return report


def _validation_text(trainer: Trainer) -> str:
    """The samples of a validation, and when there is one."""
    every, eval_batches = trainer.plan.settings.eval.every, trainer.batches.validation
    if every == 0 or eval_batches.batches == 0:
        return "none"
    return f"{eval_batches}, " + (
        "at the end" if every is None else f"every {plural(every, 'step')}"
    )


def last_validation(trainer: Trainer, report: Reporter) -> str:
    """The last validation in words; "" where there was none."""
    last = report.validation
    if last is None or last.val_loss is None:
        return ""
    return f"loss {last.val_loss:.4f} after step {last.step:,}, over {trainer.batches.validation}"


def _matmul_text(trainer: Trainer, *, cuda: bool) -> str:
    """The library that multiplies, and the processor that it was chosen for."""
    if cuda:
        return trainer.matmul
    threads = plural(torch.get_num_threads(), "thread")
    return f"{trainer.matmul}, on {this_processor().name} ({cpu_capability()}), {threads} a rank"


def cores(world: World) -> int:
    """The CPU cores of all machines that the ranks compute on, taken to be alike."""
    machines = -(-world.size // world.local_size)
    return machines * min(usable_cores(), world.local_size * torch.get_num_threads())
