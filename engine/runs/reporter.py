"""Rank 0's reports of a run: terminal, log.jsonl, sinks, status.json, environment.json."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Self

import torch
from rich.console import Console

from engine.errors import RunError, UserError
from engine.estimate.flops import flops_per_token, peak_flops
from engine.files.atomic_write import write_atomically
from engine.files.full_disk import FREE_SPACE_REMEDY, full_disk_error
from engine.formatting import format_count, format_duration, plural
from engine.runs.epochs import EpochMeter, EpochSummary
from engine.runs.expected_time import GUESSED_RATE, guessed_seconds, smaller_run
from engine.runs.folder import RunFolder, RunStatus
from engine.runs.metrics import JsonLinesLog, StepMetrics
from engine.runs.plan_summary import plan_remarks, plan_summary, summary_table
from engine.runs.sink import OpenSinks, SinkRun
from engine.runs.terminal import StepTimer, Terminal, print_wrapped
from engine.training.matmuls import cpu_capability
from engine.training.step_times import StepTimes
from engine.world.processor import this_processor, usable_cores
from models.parameters import parameter_count

if TYPE_CHECKING:
    from engine.plan import Plan
    from engine.training.trainer import Trainer
    from engine.world.world import World


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """Facts for the table at the start of a run that are not in the plan."""

    device: str
    """'cpu', or the name of the GPU."""
    parameters: int
    """Number of parameters of the whole model, without padding."""
    total_steps: int
    steps_done: int = 0
    """The steps done before; 0 unless the run resumes."""
    cores: int | None = None
    """The CPU cores, on all machines, that the ranks compute on; None on GPUs."""
    more: Mapping[str, str] = field(default_factory=dict)
    """Further rows of the table."""

    @classmethod
    def of(cls, trainer: Trainer) -> Self:
        """Collect the facts of a run on this process's device."""
        world = trainer.world
        cuda = world.device.type == "cuda"
        return cls(
            device=torch.cuda.get_device_name(world.device) if cuda else "cpu",
            parameters=parameter_count(trainer.plan.settings.model),
            total_steps=trainer.steps,
            steps_done=trainer.done,
            cores=None if cuda else _cores(world),
            more={
                "data": trainer.batches.corpus.description,
                "validation": _validation_text(trainer),
                "matmul": _matmul_text(trainer, cuda=cuda),
            },
        )


class Reporter:
    """Reports each step to the terminal, log.jsonl and the sinks. As a context manager it records
    in status.json how the run ended.

    On ranks other than 0 it is constructed without arguments and reports nothing, but adds up the
    rank's times.
    """

    def __init__(
        self,
        folder: RunFolder | None = None,
        terminal: Terminal | None = None,
        log: JsonLinesLog | None = None,
        sinks: OpenSinks | None = None,
        *,
        flops_per_token: float = 0.0,
        peak_flops: float | None = None,
        steps_done: int = 0,
    ) -> None:
        self._folder, self._terminal, self._log, self._sinks = folder, terminal, log, sinks
        self._flops_per_token, self._peak_flops = flops_per_token, peak_flops
        self._step, self._epoch = steps_done, EpochMeter()
        self.validation: StepMetrics | None = None
        """The last step with a validation."""
        self.times, self.steps = StepTimes(), 0
        """The seconds of this rank in the steps reported so far, and the number of those steps."""

    def step(self, row: StepMetrics) -> None:
        """Report a step, and the validation and the epoch that end with it."""
        self._step = row.step
        self.steps += 1
        if row.times is not None:
            self.times += row.times
        if row.val_loss is not None:
            self.validation = row
        flops = self._flops_per_token * row.tokens_per_second
        mfu = None if self._peak_flops is None else flops / self._peak_flops
        row = replace(row, flops_per_second=flops, mfu=mfu, epoch=self._ended_epoch(row))
        if self._log is not None:
            self._log.step(row)
        if self._sinks is not None:
            self._sinks.step(row)
        if self._terminal is not None:
            self._terminal.step(row)

    def _ended_epoch(self, row: StepMetrics) -> EpochSummary | None:
        """Add a step to the present epoch. Return the epoch's summary if the step ends it."""
        seconds = 0.0 if row.times is None else row.times.total
        self._epoch.add(row.step, seconds=seconds, loss=row.loss, val_loss=row.val_loss)
        if row.ended_epoch is None:
            return None
        return self._epoch.end(
            row.ended_epoch,
            memory_bytes=row.mean_memory_bytes,
            host_memory_bytes=row.host_memory_bytes,
        )

    def print_line(self, text: str) -> None:
        """Print a line on the terminal."""
        if self._terminal is not None:
            self._terminal.print_text(text)

    @property
    def views(self) -> Sequence[tuple[str, str]]:
        """Pairs of a title and the command or address that shows the curves."""
        return () if self._sinks is None else self._sinks.views

    def finish(self, state: RunStatus, message: str = "") -> None:
        """Record the end of the run in status.json, close all files and remove the progress bar.
        Later calls do nothing.

        Raises OSError if a file could not be written, unless the run has already failed.
        """
        (log, self._log), (folder, self._folder) = (self._log, None), (self._folder, None)
        problem = None
        if self._sinks is not None:
            self._sinks.close()
        if log is not None:
            try:
                log.close()
            except OSError as error:
                problem = error
        if self._terminal is not None:
            self._terminal.close()
        if state == "failed":
            problem = None  # the run's own error is the one to report
        elif problem is not None:
            state, message = "failed", str(full_disk_error(problem, FREE_SPACE_REMEDY) or problem)
        if folder is not None:
            with suppress(OSError) if state == "failed" else nullcontext():
                folder.write_status(state, step=self._step, message=message)
        if problem is not None:
            raise problem

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Record that the run finished, was interrupted, or failed with ``error``."""
        if error is None:
            self.finish("finished")
        elif isinstance(error, KeyboardInterrupt):
            self.finish("interrupted", f"stopped by {error or 'SIGINT'}")
        else:
            has_message = isinstance(error, UserError | RunError)
            text = str(error) if has_message else f"{type(error).__name__}: {error}"
            self.finish("failed", text.partition("\n")[0])


def open_reporter(trainer: Trainer, folder: RunFolder) -> Reporter:
    """Open the reporter of this rank. Rank 0 also writes environment.json and tokenizer.json and
    prints the opening table; the reporters of other ranks report nothing."""
    if not trainer.world.is_main:
        return Reporter()
    info = RunInfo.of(trainer)
    reporter = open_rank_0_reporter(trainer.plan, info, folder)
    environment = {
        "torch": torch.__version__,
        "device": info.device,
        "processor": this_processor().name,
        "threads": torch.get_num_threads(),
        "matmul": trainer.matmul,
    }
    write_atomically(folder.environment, json.dumps(environment, indent=2) + "\n")
    if (tokenizer := trainer.tokenizer) is not None:
        write_atomically(folder.tokenizer, json.dumps(tokenizer))
    return reporter


def open_rank_0_reporter(
    plan: Plan, info: RunInfo, folder: RunFolder, console: Console | None = None
) -> Reporter:
    """Open the files of the run, print the plan's remarks and the opening table, and return the
    reporter."""
    settings = plan.settings
    console = console or Console()
    folder.write_status("running", step=info.steps_done)
    log = JsonLinesLog(folder.log, info.steps_done)
    sinks = OpenSinks.open(
        SinkRun(folder=folder, settings=settings, steps_done=info.steps_done),
        warn=partial(print_wrapped, console),
    )
    for line in plan_remarks(plan):
        print_wrapped(console, line)
    guess = None
    if info.cores is not None:
        guess = guessed_seconds(settings, plan.tokens_per_step, info.cores)
    lines = {
        "run": str(folder.path),
        **plan_summary(plan),
        "parameters": format_count(info.parameters),
        "device": info.device,
        "steps": f"{info.total_steps:,}"
        + (f", of which {info.steps_done:,} are done" if info.steps_done else ""),
        **_guessed_time(info, guess),
        **info.more,
    }
    console.print(summary_table(lines))
    advise = None
    if guess is not None:
        advise = partial(smaller_run, settings)
        if advice := advise(guess, info.total_steps - info.steps_done, guessed=True):
            print_wrapped(console, advice)
    peak = peak_flops(info.device, settings.precision)
    return Reporter(
        folder,
        Terminal(
            console,
            StepTimer(total_steps=info.total_steps),
            every=settings.log.every,
            steps_done=info.steps_done,
            advise=advise,
        ),
        log,
        sinks,
        flops_per_token=flops_per_token(settings.model, settings.seq_len),
        peak_flops=None if peak is None else peak * plan.layout.gpus,
        steps_done=info.steps_done,
    )


def _guessed_time(info: RunInfo, seconds: float | None) -> dict[str, str]:
    """Return the opening table's row on the expected time of a run on a CPU, at ``seconds`` per
    step. Return no row below a minute: measured steps follow soon, and the FLOPs of a small model
    do not determine its time."""
    total = 0.0 if seconds is None else seconds * (info.total_steps - info.steps_done)
    if total < 60 or info.cores is None:
        return {}
    rate = f"{format_count(GUESSED_RATE)}FLOP/s per core on {plural(info.cores, 'core')}"
    return {"time": f"about {format_duration(total)}, a guess at {rate}"}


def _validation_text(trainer: Trainer) -> str:
    """Return the opening table's row on validations: their samples and their interval."""
    settings, eval_batches = trainer.plan.settings.eval, trainer.batches.validation
    if settings.every == 0 or eval_batches.batches == 0:
        return "none"
    intervals = []
    if settings.every is not None:
        intervals.append(f"every {plural(settings.every, 'step')}")
    if settings.epochs is not None:
        intervals.append(
            f"every {settings.epochs:g} epochs" if settings.epochs != 1 else "every epoch"
        )
    return f"{eval_batches}, {' and '.join(intervals) or 'at the end'}"


def _matmul_text(trainer: Trainer, *, cuda: bool) -> str:
    """Describe the matmul library, with the loss kernel of a GPU or the processor and threads of a
    CPU, for the opening table."""
    if cuda:
        kernels = trainer.model.parallel.kernels
        return f"{trainer.matmul}; loss by {kernels.loss_text}"
    threads = plural(torch.get_num_threads(), "thread")
    return f"{trainer.matmul}, on {this_processor().name} ({cpu_capability()}), {threads} per rank"


def _cores(world: World) -> int:
    """Return the CPU cores that the ranks compute on, on all machines, assumed to be alike."""
    machines = -(-world.size // world.local_size)
    return machines * min(usable_cores(), world.local_size * torch.get_num_threads())
