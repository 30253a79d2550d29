"""The training loop."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from engine.build import DTYPES
from engine.data import tokenizer
from engine.data.loader import Batches, load
from engine.epilogue import epilogue
from engine.errors import Refused
from engine.matmuls import probe_matmul
from engine.metrics import Row
from engine.reporter import Facts, Reporter, open_reporter
from engine.run import Run
from engine.run_folder import RunFolder, claim, write_atomically
from engine.step import NotFinite
from models.parameters import parameter_count

if TYPE_CHECKING:
    from engine.context import World
    from engine.plan import Plan


def train(world: World, plan: Plan, *, output: Path | None, cache: Path) -> None:
    """Train as ``plan`` says; the run's folder holds all that is left of it.

    Raises:
        Refused: the data or the folder cannot be used.
        NotFinite: the loss or the gradient became NaN or infinite; weights are saved as they were
            before that step.
    """
    batches = world.agree(
        lambda: load(plan.settings, data_size=plan.layout.data, cache=cache, notify=world.say)
    )
    steps = world.agree(lambda: total_steps(plan, batches))
    matmul = world.share(lambda: probe_matmul(DTYPES[plan.settings.precision][1], world.device))
    folder = RunFolder(Path(world.share(lambda: str(open_folder(world, plan, output).path))))
    run = Run(plan, world, batches, steps=steps, matmul=matmul)
    with open_report(run, folder, matmul) as report:
        try:
            step = train_steps(run, report)
        except NotFinite:  # raised on all ranks alike, before the optimizer
            run.save(folder.weights)
            raise
        run.save(folder.weights)
        if world.is_main:
            epilogue(folder, world.device, report.say)
        if step < steps:
            report.finish("interrupted", f"asked to stop after step {step} of {steps}")


def train_steps(run: Run, report: Reporter) -> int:
    """All steps, or those until someone asked to stop; the number of the last one."""
    step, plan, world = 0, run.plan, run.world
    while step < run.steps:
        step, started = step + 1, time.perf_counter()
        outcome = run.step(step)
        seconds = time.perf_counter() - started
        if step == 1:
            world.first_step_done()
        last = outcome.stop or step == run.steps
        report.step(
            Row(
                step=step,
                loss=outcome.loss,
                lr=run.lr(step),
                grad_norm=outcome.grad_norm,
                tokens=step * plan.tokens_per_step,
                tokens_per_second=plan.tokens_per_step / seconds,
                memory_by_rank=outcome.memory_bytes,
                val_loss=run.validate() if run.validates(step, last=last) else None,
            )
        )
        if outcome.stop:
            break
    return step


def total_steps(plan: Plan, batches: Batches) -> int:
    """MAX_STEPS, or what NUM_EPOCHS makes of this data."""
    settings = plan.settings
    if settings.max_steps is not None:
        return settings.max_steps
    steps = batches.steps(settings.num_epochs or 1)
    if steps is None:
        raise Refused(f"{settings.source}: data.type={settings.data.type!r} never ends: MAX_STEPS")
    return steps


def open_folder(world: World, plan: Plan, output: Path | None) -> RunFolder:
    """Rank 0's claim on the folder of this run, the same again after a restart by torchrun."""
    chosen = output or (Path(plan.settings.log.dir) if plan.settings.log.dir else None)
    return claim(plan.settings.name, world.run_id, output=chosen)


def open_report(run: Run, folder: RunFolder, matmul: str) -> Reporter:
    """What rank 0 tells; the other ranks' is silent."""
    plan, world, words = run.plan, run.world, run.batches.corpus.tokenizer
    if not world.is_main:
        return Reporter()
    cuda = world.device.type == "cuda"
    facts = Facts(
        device=torch.cuda.get_device_name(world.device) if cuda else "cpu",
        parameters=parameter_count(plan.settings.model),
        total_steps=run.steps,
        more={"data": run.batches.corpus.description, "matmul": matmul},
    )
    report = open_reporter(plan, facts, folder)
    machine = {"torch": torch.__version__, "device": facts.device, "matmul": matmul}
    write_atomically(folder.environment, json.dumps(machine, indent=2) + "\n")
    if words is not None:
        saved = tokenizer.dump(plan.settings.data.tokenizer, words)
        write_atomically(folder.tokenizer, json.dumps(saved))
    return report
