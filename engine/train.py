"""The training loop."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from engine.checkpoint.directory import CheckpointDirectory
from engine.checkpoint.saver import Saver
from engine.data.batches.loader import TrainBatches
from engine.end_of_run import print_end_of_run
from engine.errors import UserError
from engine.formatting import format_duration
from engine.inout.save_weights import save_weights
from engine.nvme.offload import open_offload
from engine.open_data import open_data
from engine.runs.data_remarks import data_remarks
from engine.runs.metrics import step_metrics
from engine.runs.reporter import Reporter, open_reporter
from engine.runs.start_candidates import StartOptions
from engine.runs.time_table import mean_over_ranks, time_table
from engine.start import find_start
from engine.training.build import choose_run_matmul
from engine.training.compile_ahead import compile_ahead, compiled_code_folder
from engine.training.step import DivergedError, unchanged_loss
from engine.training.trainer import Trainer

if TYPE_CHECKING:
    from engine.faults import Fault
    from engine.plan import Plan
    from engine.runs.folder import RunFolder
    from engine.world.world import World


def train(world: World, options: StartOptions, *, cache: Path, fault: Fault | None = None) -> bool:
    """Train the world's plan from the start or from a checkpoint. Write logs, checkpoints and
    weights to the run's folder. All ranks call it. Return True if all steps are done, False if a
    signal stopped the run.

    Args:
        options: where to start from and where to write.
        cache: folder for tokens, unless data.cache names one.
        fault: failure to inject on this rank, for tests.

    Raises:
        UserError: the data, the folder or the offload disk cannot be used.
        RunError: the offload disk failed.
        DivergedError: the loss or the gradient became NaN or infinite, or the loss spiked in too
            many consecutive steps. The weights before that step are saved.
    """
    batches = open_data(world, cache=cache, notify=world.print_rank_0)
    start = find_start(world, batches.corpus, options)
    world = start.world
    batches = start.remaining_batches(batches)
    if world.is_main:  # reads the data files
        for line in data_remarks(world.plan, batches, begins=start.step == 0):
            world.print_rank_0(line)
    steps = world.run_on_all(lambda: total_steps(world.plan, batches, start.step))
    matmul = start.matmul() or choose_run_matmul(world)
    with open_offload(world) as offload:
        trainer = Trainer(
            world,
            batches,
            steps=steps,
            matmul=matmul,
            offload=offload,
            loss_hook=fault.apply_to_step if fault else unchanged_loss,
        )
        start.restore(trainer)
        return _train_in(start.claim_folder(), trainer, fault)


def _train_in(folder: RunFolder, trainer: Trainer, fault: Fault | None) -> bool:
    """Train the remaining steps and write logs, checkpoints and weights to ``folder``. Return
    whether all steps are done."""
    world, steps = trainer.world, trainer.steps
    checkpoints = CheckpointDirectory(folder.checkpoints)
    if fault is not None:
        fault.watch_saves(checkpoints.path, checkpoints.temporary(fault.step))
    with (
        open_reporter(trainer, folder) as report,
        Saver(trainer, checkpoints, print_line=report.print_line) as saver,
        world.naming_lost_ranks(
            lambda step, message: folder.write_status("failed", step=step, message=message)
        ),
    ):
        try:
            step = train_steps(trainer, report, saver)
        except DivergedError:  # raised on all ranks, before the optimizer step
            save_weights(trainer, folder.weights)
            world.barrier()  # the first rank to exit makes the launcher kill the others
            raise
        with world.uninterruptible():
            save_weights(trainer, folder.weights)
        times = mean_over_ranks(report.times, world.control_plane.all_gather)
        ending = ""
        if step < steps:
            ending = f"stopped by {world.stopped_by()} after step {step} of {steps}"
        if world.is_main:
            if ending:
                report.print_line(ending)
            for line in time_table(times, report.steps):
                report.print_line(line)
            print_end_of_run(trainer, folder, report, finished=step == steps)
        if ending:
            report.finish("interrupted", ending)
    return step == steps


def train_steps(trainer: Trainer, report: Reporter, saver: Saver) -> int:
    """Train the steps that are not done yet, up to the last step or until a stop is requested.
    Return the number of the last step done."""
    step, first = trainer.done, trainer.done + 1
    if trainer.plan.settings.compile:
        report.print_line(f"compiling the model; torch keeps the code in {compiled_code_folder()}")
        report.print_line(f"compiled in {format_duration(compile_ahead(trainer))}")
    trainer.world.barrier()  # rank 0 has opened the logs; others would count that as communication
    trainer.clock.restart()
    while step < trainer.steps:
        step, started = step + 1, time.perf_counter()
        trainer.world.begin_step(step)
        outcome = trainer.step(step, save=saver.is_due)
        seconds = time.perf_counter() - started
        if step == first:
            trainer.world.first_step_done()
        last = outcome.stop or step == trainer.steps
        stopped = outcome.stop and step < trainer.steps
        # Launchers kill a stopped process after about 30 s: that time is for saving
        validates = trainer.validates_after(step, last=last) and not stopped
        validation = trainer.validate() if validates else None
        report.step(step_metrics(trainer, step, outcome, seconds=seconds, validation=validation))
        if outcome.remark:
            report.print_line(f"step {step}: {outcome.remark}")
        with trainer.world.uninterruptible():
            saver.on_step_end(
                step,
                outcome.loss,
                validation.loss if validation else None,
                requested=outcome.save,
                last=last,
                stopped=stopped,
            )
        if outcome.stop:
            break
    return step


def total_steps(plan: Plan, batches: TrainBatches, done: int = 0) -> int:
    """Return the number of steps of the run: MAX_STEPS, or the steps of NUM_EPOCHS epochs of the
    data. Raises UserError if MAX_STEPS is less than ``done``, or NUM_EPOCHS is set for endless
    data."""
    settings = plan.settings
    for epochs in (settings.eval.epochs, settings.checkpoint.epochs):
        if epochs is not None:
            batches.ends_interval(done + 1, epochs)  # raises for endless data
    if settings.max_steps is not None:
        if settings.max_steps < done:
            raise UserError(
                f"{plan.cite('max_steps')}, but the checkpoint is already at step {done}: nothing "
                f"left to train; set MAX_STEPS above {done}"
            )
        return settings.max_steps
    steps = batches.steps(settings.num_epochs or 1)
    if steps is None:
        raise UserError(
            f"{settings.source}: data.type={settings.data.type!r} is endless; set MAX_STEPS"
        )
    return steps
