"""The training loop."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from engine.checkpoint.directory import Shelf
from engine.checkpoint.saver import Saver
from engine.data.loader import Batches
from engine.data.remarks import remarks
from engine.end_of_run import epilogue, evaluate_options
from engine.errors import Refused
from engine.nvme.offload import open_offload
from engine.open_data import open_data
from engine.runs.invocation import cuboid
from engine.runs.reporter import Reporter
from engine.runs.resume_candidates import Asked
from engine.runs.run_report import last_validation, open_report, row
from engine.start import begin
from engine.training.build import matmul_of
from engine.training.step import Diverged
from engine.training.trainer import Run

if TYPE_CHECKING:
    from engine.faults import Fault
    from engine.plan import Plan
    from engine.runs.folder import RunFolder
    from engine.world.world import World


def train(
    world: World, plan: Plan, asked: Asked, *, cache: Path, fault: Fault | None = None
) -> bool:
    """Train as ``plan`` says, from the start or from a checkpoint; the run's folder holds all that
    is left of it. ``fault``: what goes wrong on this rank, in tests. Return whether all steps are
    done: False where a signal stopped the run.

    Raises:
        Refused: the data, the folder or the disk to offload to cannot be used.
        Failed: that disk failed.
        Diverged: the loss or the gradient became NaN or infinite, or jumped too often; weights are
            saved as they were before that step.
    """
    batches = open_data(world, cache=cache, notify=world.say)
    start = begin(world, plan, batches.corpus, asked)
    batches = start.batches(batches)
    for line in remarks(plan, batches, begins=start.step == 0):
        world.say(line)
    steps = world.agree(lambda: total_steps(plan, batches, start.step))
    matmul = start.matmul(world.device) or matmul_of(world)
    with open_offload(plan, world) as offload:
        run = Run(plan, world, batches, steps=steps, matmul=matmul, offload=offload, fault=fault)
        start.restore(run)
        folder = start.move_in()
        if fault is not None:
            fault.watch(Shelf(folder.checkpoints))
        with (
            open_report(run, folder, start.step) as report,
            Saver(run, folder, say=report.say) as saver,
            world.explained(folder),
        ):
            try:
                step = train_steps(run, report, saver, start.step)
            except Diverged:  # raised on all ranks alike, before the optimizer
                run.save(folder.weights)
                world.meet()  # who fails first ends the others
                raise
            with world.unbroken():
                run.save(folder.weights)
            ending = ""
            if step < steps:
                ending = f"stopped by {world.stopped_by()} after step {step} of {steps}"
            if world.is_main:
                if ending:
                    report.say(ending)
                _close(run, folder, report, finished=step == steps)
            if ending:
                report.finish("interrupted", ending)
    return step == steps


def _close(run: Run, folder: RunFolder, report: Reporter, *, finished: bool) -> None:
    """Print how the run can be continued and used."""
    epilogue(
        folder,
        run.world.device,
        report.say,
        command=cuboid(),
        sample=finished,
        steps=run.steps,
        evaluation=evaluate_options(run.plan.settings.data),
        validation=last_validation(run, report),
        several_machines=run.world.local_size < run.world.size,
    )


def train_steps(run: Run, report: Reporter, saver: Saver, first_step: int = 0) -> int:
    """All steps after ``first_step``, or those until someone asked to stop; the last one's
    number."""
    step = first_step
    while step < run.steps:
        step, started = step + 1, time.perf_counter()
        run.world.begin_step(step)
        outcome = run.step(step, save=saver.overdue)
        seconds = time.perf_counter() - started
        if step == first_step + 1:
            run.world.first_step_done()
        last = outcome.stop or step == run.steps
        stopped = outcome.stop and step < run.steps
        # Launchers give those that they stop half a minute, which is for saving
        validates = run.validates(step, last=last) and not stopped
        val_loss = run.validate() if validates else None
        report.step(row(run, step, outcome, seconds=seconds, val_loss=val_loss))
        if outcome.remark:
            report.say(f"step {step}: {outcome.remark}")
        with run.world.unbroken():
            saver.after(step, val_loss, asked=outcome.save, last=last, stopped=stopped)
        if outcome.stop:
            break
    return step


def total_steps(plan: Plan, batches: Batches, done: int = 0) -> int:
    """MAX_STEPS, or what NUM_EPOCHS makes of this data. Raises Refused for fewer than ``done``."""
    settings = plan.settings
    if settings.max_steps is not None:
        if settings.max_steps < done:
            raise Refused(
                f"{plan.cite('max_steps')}, and the checkpoint is of step {done} already: "
                f"MAX_STEPS=N, with N above {done}, continues"
            )
        return settings.max_steps
    steps = batches.steps(settings.num_epochs or 1)
    if steps is None:
        raise Refused(f"{settings.source}: data.type={settings.data.type!r} never ends: MAX_STEPS")
    return steps
