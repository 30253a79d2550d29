"""What a run has to tell, from what it is and from what its steps give."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import torch

from engine.runs.folder import write_atomically
from engine.runs.metrics import Row
from engine.runs.plan_summary import several
from engine.runs.reporter import Facts, Reporter, open_reporter
from engine.training.matmuls import cpu_capability
from engine.world.processor import this_processor, usable_cores
from models.parameters import parameter_count

if TYPE_CHECKING:
    from engine.runs.folder import RunFolder
    from engine.training.step import Outcome
    from engine.training.trainer import Run
    from engine.world.world import World


def row(run: Run, step: int, outcome: Outcome, *, seconds: float, val_loss: float | None) -> Row:
    """A step that took so long."""
    scale, spikes, plan = run.stepper.loss_scale, run.stepper.spikes, run.plan
    skipped = [part.skipped for part in (scale, spikes) if part is not None]
    return Row(
        step=step,
        loss=outcome.loss,
        lr=run.lr(step),
        grad_norm=outcome.grad_norm,
        tokens=run.batches.consumed(step).tokens,
        tokens_per_second=plan.tokens_per_step / seconds,
        seconds=seconds,
        memory_by_rank=outcome.memory_bytes,
        val_loss=val_loss,
        loss_scale=scale.scale if scale else None,
        skipped=sum(skipped) if skipped else None,
        remark=outcome.remark or None,
    )


def open_report(run: Run, folder: RunFolder, first_step: int) -> Reporter:
    """What rank 0 tells; the other ranks' is silent."""
    plan, world = run.plan, run.world
    if not world.is_main:
        return Reporter()
    cuda = world.device.type == "cuda"
    facts = Facts(
        device=torch.cuda.get_device_name(world.device) if cuda else "cpu",
        parameters=parameter_count(plan.settings.model),
        total_steps=run.steps,
        first_step=first_step,
        cores=None if cuda else cores(world),
        more={
            "data": run.batches.corpus.description,
            "validation": _validation(run),
            "matmul": _matmul(run, cuda=cuda),
        },
    )
    report = open_reporter(plan, facts, folder)
    machine = {
        "torch": torch.__version__,
        "device": facts.device,
        "processor": this_processor().name,
        "threads": torch.get_num_threads(),
        "matmul": run.matmul,
    }
    write_atomically(folder.environment, json.dumps(machine, indent=2) + "\n")
    if (tokenizer := run.tokenizer) is not None:
        write_atomically(folder.tokenizer, json.dumps(tokenizer))
    return report


def _validation(run: Run) -> str:
    """The samples of a validation, and when there is one."""
    every, sweep = run.plan.settings.eval.every, run.batches.validation
    if every == 0 or sweep.batches == 0:
        return "none"
    return f"{sweep}, " + ("at the end" if every is None else f"every {several(every, 'step')}")


def last_validation(run: Run, report: Reporter) -> str:
    """The last validation in words; "" where there was none."""
    last = report.validation
    if last is None or last.val_loss is None:
        return ""
    return f"loss {last.val_loss:.4f} after step {last.step:,}, over {run.batches.validation}"


def _matmul(run: Run, *, cuda: bool) -> str:
    """The library that multiplies, and the processor that it was chosen for."""
    if cuda:
        return run.matmul
    threads = several(torch.get_num_threads(), "thread")
    return f"{run.matmul}, on {this_processor().name} ({cpu_capability()}), {threads} a rank"


def cores(world: World) -> int:
    """The CPU cores of all machines that the ranks compute on, taken to be alike."""
    machines = -(-world.size // world.local_size)
    return machines * min(usable_cores(), world.local_size * torch.get_num_threads())
