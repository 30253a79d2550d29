"""What rank 0 tells of a run: terminal, log.jsonl, TensorBoard, status.json."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console

from engine.disk import FREE_SPACE_REMEDY, full_disk_error
from engine.errors import RunError, UserError
from engine.estimate.flops import flops_per_token, peak_flops
from engine.formatting import format_count, plural
from engine.runs.advice import GUESSED_RATE, guessed_seconds, smaller_run
from engine.runs.folder import RunFolder, RunStatus
from engine.runs.metrics import JsonLinesLog, Sink, StepMetrics, TensorBoard
from engine.runs.plan_summary import plan_remarks, plan_summary, summary_table
from engine.runs.terminal import StepTimer, Terminal, format_duration, print_wrapped

if TYPE_CHECKING:
    from engine.plan import Plan


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """What a run knows once it is up, and its plan did not.

    ``device`` is 'cpu' or the name CUDA gives; ``parameters`` counts the whole model, unpadded;
    ``first_step`` steps were done before; ``cores``: the CPU cores of all machines that the ranks
    compute on, if they do on a CPU; ``more`` are further rows of the opening table.
    """

    device: str
    parameters: int
    total_steps: int
    first_step: int = 0
    cores: int | None = None
    more: Mapping[str, str] = field(default_factory=dict)


class Reporter:
    """Passes each row on, and leaves word of how the run ended whichever way it is left.

    Ranks other than 0 make one of nothing, which is silent.
    """

    def __init__(
        self,
        folder: RunFolder | None = None,
        terminal: Terminal | None = None,
        files: Sequence[Sink] = (),
        *,
        flops_per_token: float = 0.0,
        peak_flops: float | None = None,
        first_step: int = 0,
    ) -> None:
        self._folder, self._terminal, self._files = folder, terminal, files
        self._flops_per_token, self._peak_flops = flops_per_token, peak_flops
        self._step = first_step
        self.validation: StepMetrics | None = None
        """The last step that a validation followed."""

    def step(self, row: StepMetrics) -> None:
        """Report a step; its validation, if it had one, comes with it."""
        self._step = row.step
        if row.val_loss is not None:
            self.validation = row
        flops = self._flops_per_token * row.tokens_per_second
        mfu = None if self._peak_flops is None else flops / self._peak_flops
        row = replace(row, flops_per_second=flops, mfu=mfu)
        for file in self._files:
            file.step(row)
        if self._terminal is not None:
            self._terminal.step(row)

    def print_line(self, text: str) -> None:
        """A line on rank 0's terminal."""
        if self._terminal is not None:
            self._terminal.print_text(text)

    def finish(self, state: RunStatus, message: str = "") -> None:
        """Write how the run ended, close every file and take the bar away. Only once.

        Raises OSError where the disk did not take all of a run that has not failed already.
        """
        (files, self._files), (folder, self._folder) = (self._files, ()), (self._folder, None)
        problem = None
        for file in files:
            try:
                file.close()
            except OSError as error:
                problem = problem or error
        if self._terminal is not None:
            self._terminal.close()
        if state == "failed":
            problem = None  # what is written last is why it did
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
        """What leaves by an error has failed; Ctrl-C interrupts; the rest has finished."""
        if error is None:
            self.finish("finished")
        elif isinstance(error, KeyboardInterrupt):
            self.finish("interrupted", f"stopped by {error or 'SIGINT'}")
        else:
            has_message = isinstance(error, UserError | RunError)
            text = str(error) if has_message else f"{type(error).__name__}: {error}"
            self.finish("failed", text.partition("\n")[0])


def open_reporter(
    plan: Plan, info: RunInfo, folder: RunFolder, console: Console | None = None
) -> Reporter:
    """Rank 0's reporter: opens the files of the run, prints remarks and the table."""
    settings = plan.settings
    console = console or Console()
    folder.write_status("running", step=info.first_step)
    files: list[Sink] = [JsonLinesLog(folder.log, info.first_step)]
    if settings.log.tensorboard:
        resolved = json.dumps(settings.model_dump(mode="json"), indent=2)
        files.append(TensorBoard(folder.tensorboard, info.first_step, resolved))
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
        + (f", of which {info.first_step:,} are done" if info.first_step else ""),
        **_guessed_time(info, guess),
        **info.more,
    }
    console.print(summary_table(lines))
    advise = None
    if guess is not None:
        advise = partial(smaller_run, settings)
        if advice := advise(guess, info.total_steps - info.first_step, guessed=True):
            print_wrapped(console, advice)
    peak = peak_flops(info.device, settings.precision)
    return Reporter(
        folder,
        Terminal(
            console,
            StepTimer(total_steps=info.total_steps),
            every=settings.log.every,
            first_step=info.first_step,
            advise=advise,
        ),
        files,
        flops_per_token=flops_per_token(settings.model, settings.seq_len),
        peak_flops=None if peak is None else peak * plan.layout.gpus,
        first_step=info.first_step,
    )


def _guessed_time(info: RunInfo, seconds: float | None) -> dict[str, str]:
    """The opening table's row on the time that a run on a CPU will take, at so many seconds a step;
    none where steps will soon tell, and small models spend their time on other things than
    FLOPs."""
    whole = 0.0 if seconds is None else seconds * (info.total_steps - info.first_step)
    if whole < 60 or info.cores is None:
        return {}
    rate = f"{format_count(GUESSED_RATE)}FLOP/s a core on {plural(info.cores, 'core')}"
    return {"time": f"about {format_duration(whole)}, a guess at {rate}"}
