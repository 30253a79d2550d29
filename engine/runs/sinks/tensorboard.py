"""TensorBoard: event files in the run's folder, for ``tensorboard --logdir``."""

from __future__ import annotations

import json
import threading
from shlex import quote
from typing import TYPE_CHECKING

from engine.files.full_disk import name_file_in_errors
from engine.runs.metrics import curves

if TYPE_CHECKING:
    from pathlib import Path

    from engine.runs.metrics import StepMetrics
    from engine.runs.sink import SinkRun

PACKAGE = "tensorboard"


def open_sink(run: SinkRun) -> TensorBoard:
    """Open the event files of the run, and show the settings in TensorBoard's tab Text."""
    settings = json.dumps(run.settings.model_dump(mode="json"), indent=2)
    return TensorBoard(run.folder.tensorboard, run.steps_done, settings)


class TensorBoard:
    """Curves for ``tensorboard --logdir``. The constructor imports tensorboard.

    Losses and validations are also drawn over the tokens, and over the seconds of a reference
    accelerator if log.tokens_per_second is set: TensorBoard's axes are in steps, so those curves
    have tags of their own. The numbers of an epoch are drawn over epochs. TensorBoard sorts the
    groups by name; the loss is first. The tab Custom Scalars shows the memory of all ranks in one
    chart and the parts of a step's time in another, the tab Text the ``config``.
    """

    def __init__(self, folder: Path, last_step: int = 0, config: str = "") -> None:
        from torch.utils.tensorboard import SummaryWriter

        # purge_step hides the later steps of the run that is resumed
        self._make_writer = SummaryWriter
        self._others: dict[str, SummaryWriter] = {}
        """Writers of curves that are not drawn over steps, by axis."""
        with name_file_in_errors(folder):
            self._writer = SummaryWriter(str(folder), purge_step=last_step + 1, flush_secs=10)
        self._folder, self._report = folder, threading.excepthook
        threading.excepthook = self._thread_failed
        with name_file_in_errors(folder):
            self._writer.add_custom_scalars(
                {
                    "memory": {"GiB by rank": ["Multiline", ["memory_GiB/rank_.*"]]},
                    "time": {"ms by kind of work": ["Multiline", ["time_ms/.*"]]},
                }
            )
            if config:
                fenced = f"```\n{config.rstrip()}\n```"
                self._writer.add_text("config", fenced, last_step)

    @property
    def view(self) -> tuple[str, str]:
        """The command that shows the curves."""
        return "TensorBoard", f"tensorboard --logdir {quote(str(self._folder))}"

    def step(self, row: StepMetrics) -> None:
        """Write the curves of a step. Raises OSError, also if the write of an earlier step
        failed."""
        axes = {"tokens": row.tokens, "gpuseconds": row.accelerator_seconds}
        with name_file_in_errors(self._folder):
            for tag, value in curves(row).items():
                self._writer.add_scalar(tag, value, row.step)
                if tag.startswith(("loss/", "validation/")):
                    for axis, x in axes.items():
                        self._draw_over(axis, x, f"{tag}_over_{axis}", value)
            if row.epoch is not None:
                for tag, value in row.epoch.curves().items():
                    self._draw_over("epochs", row.epoch.epoch, tag, value)

    def _draw_over(self, axis: str, x: float | None, tag: str, value: float) -> None:
        """Add a point to the curve ``tag``, which is drawn over ``axis`` instead of steps; none if
        ``x`` is None."""
        if x is None:
            return
        if axis not in self._others:
            # Files of their own: purge_step of the steps would hide all points at larger x.
            folder = str(self._folder / f"over_{axis}")
            self._others[axis] = self._make_writer(folder, purge_step=round(x), flush_secs=10)
        self._others[axis].add_scalar(tag, value, round(x))

    def close(self) -> None:
        """Flush and close the files. Raises OSError."""
        try:
            with name_file_in_errors(self._folder):
                for writer in (self._writer, *self._others.values()):
                    writer.close()
        finally:
            threading.excepthook = self._report

    def _thread_failed(self, failure: threading.ExceptHookArgs) -> None:
        """Suppress the report of an OSError in tensorboard's thread: the next call raises it."""
        theirs = type(failure.thread).__module__.startswith("tensorboard.")
        if not (theirs and isinstance(failure.exc_value, OSError)):
            self._report(failure)
