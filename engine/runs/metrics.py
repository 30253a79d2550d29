"""What a step measured, and the files it is written to: log.jsonl and TensorBoard's events."""

from __future__ import annotations

import errno
import json
import math
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from engine.disk import name_file_in_errors
from engine.runs.folder import write_atomically


@dataclass(frozen=True, kw_only=True)
class StepMetrics:
    """One optimizer step, counted from 1.

    ``loss`` is the mean over all targets of the global batch, before the update; ``grad_norm`` is
    unscaled and before clipping; ``tokens`` are all since the run began, ``tokens_per_second``
    those of this step, both over all ranks; it took ``seconds``. ``memory_by_rank`` is each rank's
    peak so far, bytes. ``val_loss`` is there where the step was followed by a validation.
    ``flops_per_second`` (by the model's maths, over all ranks) and ``mfu``, their share of the
    devices' peak where that is known, are filled in by the reporter. fp16 has the ``loss_scale``
    that the next step begins with. ``skipped`` counts steps so far, for an overflow or a spike of
    the loss; ``remark`` says why this one was.
    """

    step: int
    loss: float
    lr: float
    grad_norm: float
    tokens: int
    tokens_per_second: float
    seconds: float
    memory_by_rank: tuple[int, ...]
    val_loss: float | None = None
    loss_scale: float | None = None
    skipped: int | None = None
    remark: str | None = None
    flops_per_second: float | None = None
    mfu: float | None = None

    @property
    def memory_bytes(self) -> int:
        """The largest of the ranks' peaks."""
        return max(self.memory_by_rank)

    def record(self) -> dict[str, int | float | str | None]:
        """The object of log.jsonl. JSON has no NaN and no infinity: null stands for them."""
        names = ["step", "loss", "lr", "grad_norm", "tokens", "tokens_per_second", "memory_bytes"]
        values = {name: getattr(self, name) for name in names}
        optional = {name: getattr(self, name) for name in ("val_loss", "loss_scale", "skipped")}
        values |= {name: value for name, value in optional.items() if value is not None}
        finite = {name: x if math.isfinite(x) else None for name, x in values.items()}
        return finite | ({"remark": self.remark} if self.remark else {})


class Sink(Protocol):
    """Something that takes every row of a run, in order."""

    def step(self, row: StepMetrics) -> None: ...

    def close(self) -> None: ...


class JsonLinesLog:
    """log.jsonl: an object a step, on disk as soon as it is there.

    Rows that an earlier, interrupted try of this run wrote past ``last_step``, the step that this
    try goes on from, are cut.
    """

    def __init__(self, path: Path, last_step: int = 0) -> None:
        if path.exists():
            write_atomically(path, "".join(_rows_up_to(path, last_step)))
        self._path, self._file = path, path.open("ab", buffering=0)

    def step(self, row: StepMetrics) -> None:
        line = json.dumps(row.record()).encode() + b"\n"
        with name_file_in_errors(self._path):
            if self._file.write(line) < len(line):  # the disk took a part, and has no more
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self) -> None:
        self._file.close()


def _rows_up_to(path: Path, last_step: int) -> Iterator[str]:
    """The lines of steps up to ``last_step``; a line torn by a crash is left out."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            try:
                step = json.loads(line)["step"]
            except (ValueError, KeyError, TypeError):
                continue
            if step <= last_step:
                yield line


class TensorBoard:
    """Curves for ``tensorboard --logdir``; imports tensorboard when it is made.

    Groups are in the order of their names, the loss first. The tab Custom Scalars has the memory of
    all ranks in one chart, the tab Text the ``config``.
    """

    def __init__(self, folder: Path, last_step: int = 0, config: str = "") -> None:
        from torch.utils.tensorboard import SummaryWriter

        # purge_step hides what an earlier try of this run wrote past the step it goes on from
        with name_file_in_errors(folder):
            self._writer = SummaryWriter(str(folder), purge_step=last_step + 1, flush_secs=10)
        self._folder, self._report = folder, threading.excepthook
        threading.excepthook = self._thread_failed
        with name_file_in_errors(folder):
            self._writer.add_custom_scalars(
                {"memory": {"GiB by rank": ["Multiline", ["memory_GiB/rank_.*"]]}}
            )
            if config:
                fenced = f"```\n{config.rstrip()}\n```"
                self._writer.add_text("config", fenced, last_step)

    def step(self, row: StepMetrics) -> None:
        scalars = {
            "loss/train": row.loss,
            "optimizer/learning_rate": row.lr,
            "optimizer/gradient_norm": row.grad_norm,
            "speed/tokens_per_second": row.tokens_per_second,
            "speed/ms_per_step": 1000 * row.seconds,
        }
        flops = row.flops_per_second
        optional = {
            "loss/validation": row.val_loss,
            "optimizer/loss_scale": row.loss_scale,
            "optimizer/skipped_steps": row.skipped,
            "speed/model_TFLOP_per_second": None if flops is None else flops / 1e12,
            "speed/MFU": row.mfu,
        }
        scalars |= {tag: value for tag, value in optional.items() if value is not None}
        for rank, peak in enumerate(row.memory_by_rank):
            scalars[f"memory_GiB/rank_{rank}"] = peak / 2**30
        with name_file_in_errors(self._folder):
            for tag, value in scalars.items():
                self._writer.add_scalar(tag, value, row.step)

    def close(self) -> None:
        try:
            with name_file_in_errors(self._folder):
                self._writer.close()
        finally:
            threading.excepthook = self._report

    def _thread_failed(self, failure: threading.ExceptHookArgs) -> None:
        """Say nothing of tensorboard's thread that could not write: the next call raises its error
        again."""
        theirs = type(failure.thread).__module__.startswith("tensorboard.")
        if not (theirs and isinstance(failure.exc_value, OSError)):
            self._report(failure)
