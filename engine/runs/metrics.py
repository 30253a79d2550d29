"""The metrics of a step, and log.jsonl, the record of all steps of a run."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from engine.data.text_loss.bits_per_byte import exponential
from engine.files.atomic_write import write_atomically
from engine.files.full_disk import name_file_in_errors

if TYPE_CHECKING:
    from engine.data.text_loss.bits_per_byte import TextLoss
    from engine.runs.epochs import EpochSummary
    from engine.training.step import StepResult
    from engine.training.step_times import StepTimes
    from engine.training.tensor_statistics import Statistics
    from engine.training.trainer import Trainer


@dataclass(frozen=True, kw_only=True)
class StepMetrics:
    """The measurements of one optimizer step."""

    step: int
    """Counted from 1."""
    loss: float
    """The mean over all targets of the global batch, before the update."""
    lr: float
    grad_norm: float
    """Unscaled, before clipping."""
    tokens: int
    """All tokens since the run began, over all ranks."""
    accelerator_seconds: float | None = None
    """The seconds that a reference accelerator takes for ``tokens``, at log.tokens_per_second."""
    tokens_per_second: float
    """Of this step, over all ranks."""
    seconds: float
    """The duration of this step."""
    memory_by_rank: tuple[int, ...]
    """The peak memory of each rank so far, bytes."""
    ended_epoch: int | None = None
    """The last epoch that ends in this step, from 1."""
    host_memory_bytes: int = 0
    """The peak host memory so far, mean over all ranks, if an epoch ends in this step."""
    val_loss: float | None = None
    """The loss of a validation right after this step."""
    val_loss_per_byte: float | None = None
    """The same in nats per UTF-8 byte of the targets; None if tokens have no text."""
    val_loss_per_character: float | None = None
    """The same in nats per character, as ``engine.data.text_loss.bits_per_byte`` counts them."""
    loss_scale: float | None = None
    """The loss scale of fp16 for the next step."""
    skipped: int | None = None
    """The steps skipped so far because of an overflow or a loss spike."""
    remark: str | None = None
    """The reason why this step was skipped."""
    statistics: Mapping[str, Statistics] | None = None
    """Statistics of the step's tensors by name, if log.statistics asks for them."""
    times: StepTimes | None = None
    """The seconds of rank 0 since the last row, by kind of work."""
    epoch: EpochSummary | None = None
    """The summary of ``ended_epoch``. The reporter sets it."""
    flops_per_second: float | None = None
    """FLOP/s of the model's matrix products, over all ranks. The reporter sets it."""
    mfu: float | None = None
    """Model FLOPs utilization: the share of the devices' peak FLOP/s. The reporter sets it."""

    @property
    def memory_bytes(self) -> int:
        """The largest of the ranks' peak memories."""
        return max(self.memory_by_rank)

    @property
    def mean_memory_bytes(self) -> int:
        """The mean of the ranks' peak memories."""
        return round(fmean(self.memory_by_rank))

    @property
    def val_perplexity(self) -> float | None:
        """e^val_loss."""
        return None if self.val_loss is None else exponential(self.val_loss)

    def seconds_by_part(self) -> dict[str, float]:
        """Return the seconds of the step and of its validation, by kind of work."""
        parts = {} if self.times is None else self.times.seconds()
        parts.pop("other", None)
        if self.val_loss is None:
            parts.pop("validation", None)
        return parts

    def record(self) -> dict[str, object]:
        """Return the step's line of log.jsonl as a dict. NaN and infinity, which JSON does not
        have, become null. Fields without a value are left out."""
        numbers = {
            "step": self.step,
            "loss": self.loss,
            "lr": self.lr,
            "grad_norm": self.grad_norm,
            "tokens": self.tokens,
            "tokens_per_second": self.tokens_per_second,
            "memory_bytes": self.memory_bytes,
        }
        optional = {
            "accelerator_seconds": self.accelerator_seconds,
            "val_loss": self.val_loss,
            "val_perplexity": self.val_perplexity,
            "val_loss_per_byte": self.val_loss_per_byte,
            "val_loss_per_character": self.val_loss_per_character,
            "loss_scale": self.loss_scale,
            "skipped": self.skipped,
        }
        numbers |= {name: value for name, value in optional.items() if value is not None}
        if self.times is not None:
            numbers["seconds"] = self.seconds
            numbers |= {f"seconds_{part}": spent for part, spent in self.seconds_by_part().items()}
        line: dict[str, object] = {
            name: x if math.isfinite(x) else None for name, x in numbers.items()
        }
        if self.epoch is not None:
            line["epoch"] = self.epoch.record()
        return line | ({"remark": self.remark} if self.remark else {})


def step_metrics(
    trainer: Trainer,
    step: int,
    result: StepResult,
    *,
    seconds: float,
    validation: TextLoss | None,
) -> StepMetrics:
    """Collect the measurements of a step that took ``seconds``, and of its validation."""
    scale, spikes, plan = trainer.stepper.loss_scale, trainer.stepper.spikes, trainer.plan
    skipped = [component.skipped for component in (scale, spikes) if component is not None]
    tokens, rate = trainer.batches.consumed(step).tokens, plan.settings.log.tokens_per_second
    return StepMetrics(
        step=step,
        loss=result.loss,
        lr=trainer.lr(step),
        grad_norm=result.grad_norm,
        tokens=tokens,
        accelerator_seconds=None if rate is None else tokens / rate,
        tokens_per_second=plan.tokens_per_step / seconds,
        seconds=seconds,
        memory_by_rank=result.memory_bytes,
        ended_epoch=trainer.batches.epoch_ended_by(step),
        host_memory_bytes=result.host_memory_bytes,
        statistics=result.statistics,
        times=trainer.step_times(),
        val_loss=validation.loss if validation else None,
        val_loss_per_byte=validation.loss_per_byte if validation else None,
        val_loss_per_character=validation.loss_per_character if validation else None,
        loss_scale=scale.scale if scale else None,
        skipped=sum(skipped) if skipped else None,
        remark=result.remark or None,
    )


def curves(row: StepMetrics) -> dict[str, float]:
    """Return the numbers of a step that sinks plot: GROUP/NAME -> number."""
    flops = row.flops_per_second
    numbers = {
        "loss/train": row.loss,
        "loss/validation": row.val_loss,
        "validation/perplexity": row.val_perplexity,
        "validation/loss_per_byte": row.val_loss_per_byte,
        "validation/loss_per_character": row.val_loss_per_character,
        "optimizer/learning_rate": row.lr,
        "optimizer/gradient_norm": row.grad_norm,
        "optimizer/loss_scale": row.loss_scale,
        "optimizer/skipped_steps": row.skipped,
        "speed/tokens_per_second": row.tokens_per_second,
        "speed/ms_per_step": 1000 * row.seconds,
        "speed/model_TFLOP_per_second": None if flops is None else flops / 1e12,
        "speed/MFU": row.mfu,
    }
    numbers |= {f"time_ms/{part}": 1000 * spent for part, spent in row.seconds_by_part().items()}
    for name, found in (row.statistics or {}).items():
        numbers |= {f"{name}/{kind}": x for kind, x in dataclasses.asdict(found).items()}
    for rank, peak in enumerate(row.memory_by_rank):
        numbers[f"memory_GiB/rank_{rank}"] = peak / 2**30
    return {name: value for name, value in numbers.items() if value is not None}


class JsonLinesLog:
    """log.jsonl: one object per step, written without buffering.

    ``last_step``: the step from which the run resumes; the lines of later steps are deleted.
    """

    def __init__(self, path: Path, last_step: int = 0) -> None:
        if path.exists():
            write_atomically(path, "".join(_rows_up_to(path, last_step)))
        self._path, self._file = path, path.open("ab", buffering=0)

    def step(self, row: StepMetrics) -> None:
        self.write(row.record())

    def write(self, record: Mapping[str, object]) -> None:
        """Append ``record``, which must have a ``step``, as a line."""
        line = json.dumps(record).encode() + b"\n"
        with name_file_in_errors(self._path):
            if self._file.write(line) < len(line):  # the disk is full
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self) -> None:
        self._file.close()


def _rows_up_to(path: Path, last_step: int) -> Iterator[str]:
    """Yield the lines of steps up to ``last_step``, without a line that a crash truncated."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            try:
                step = json.loads(line)["step"]
            except (ValueError, KeyError, TypeError):
                continue
            if step <= last_step:
                yield line
