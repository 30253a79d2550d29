"""Rows of a throughput measurement: the columns of the CSV file, and its reading and writing."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any

from engine.errors import UserError
from engine.estimate.flops import flops_per_token
from engine.plan import Plan
from models.parameters import parameter_count


@dataclass(frozen=True, kw_only=True)
class ThroughputRow:
    """One batch size of one config. The fields are the columns of the CSV file, in this order; a
    field that was not measured is None, an empty cell."""

    measured: str
    """Date and time, ISO 8601."""
    config: str
    device: str | None
    """Name of rank 0's device."""
    ranks: int
    mode: str
    tensor_parallel: int
    pipeline: int
    data_parallel: int
    zero_stage: int
    precision: str
    compiled: bool
    n_layer: int
    n_head: int
    head_dim: int
    n_embd: int
    n_inner: int
    vocab_size: int
    seq_len: int
    parameters: int
    non_embedding_parameters: int
    """Without the token embedding, which the head may share."""
    flops_per_token: int
    batch_size: int
    """BATCH_SIZE: samples per data-parallel rank and accumulation round."""
    num_micro_batches: int
    gradient_accumulation: int
    tokens_per_step: int
    """Of all ranks."""
    out_of_memory: bool
    measured_steps: int
    step_ms_mean: float | None = None
    step_ms_std: float | None = None
    """Sample standard deviation; None of a single step."""
    tokens_per_second: int | None = None
    """Of all ranks: tokens_per_step / step_ms_mean."""
    model_bytes: int | None = None
    """Memory of the fullest rank before its first step."""
    peak_bytes: int | None = None
    """Peak memory of the fullest rank."""

    @classmethod
    def of(cls, plan: Plan, result: Mapping[str, Any] | None) -> ThroughputRow:
        """Return the row of a plan. ``result``: the fields of ``Measurement``; None if a rank ran
        out of memory."""
        settings, model, layout = plan.settings, plan.settings.model, plan.layout
        parameters = parameter_count(model)
        row = cls(
            measured=datetime.now().astimezone().isoformat(timespec="seconds"),
            config=settings.source,
            device=result["device"] if result else None,
            ranks=layout.gpus,
            mode=layout.mode.name,
            tensor_parallel=layout.tensor,
            pipeline=layout.pipeline,
            data_parallel=layout.data,
            zero_stage=settings.zero.stage,
            precision=settings.precision,
            compiled=settings.compile,
            n_layer=model.n_layer,
            n_head=model.n_head,
            head_dim=model.head_dim,
            n_embd=model.n_embd,
            n_inner=model.n_inner,
            vocab_size=model.vocab_size,
            seq_len=settings.seq_len,
            parameters=parameters,
            non_embedding_parameters=parameters - model.vocab_size * model.n_embd,
            flops_per_token=flops_per_token(model, settings.seq_len),
            batch_size=settings.batch_size,
            num_micro_batches=settings.num_micro_batches,
            gradient_accumulation=settings.gradient_accumulation,
            tokens_per_step=plan.tokens_per_step,
            out_of_memory=result is None,
            measured_steps=len(result["step_seconds"]) if result else 0,
        )
        return row if result is None else row._with_times(result)

    def _with_times(self, result: Mapping[str, Any]) -> ThroughputRow:
        seconds = result["step_seconds"]
        mean = statistics.fmean(seconds)
        return ThroughputRow(
            **asdict(self)
            | {
                "step_ms_mean": round(1000 * mean, 3),
                "step_ms_std": round(1000 * statistics.stdev(seconds), 3) if seconds[1:] else None,
                "tokens_per_second": round(self.tokens_per_step / mean),
                "model_bytes": result["model_bytes"],
                "peak_bytes": result["peak_bytes"],
            }
        )


COLUMNS = [field.name for field in fields(ThroughputRow)]


def check_columns(path: Path) -> None:
    """Raise UserError if ``path`` exists and has other columns than ``COLUMNS``."""
    if not path.exists() or not path.stat().st_size:
        return
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        header = next(csv.reader(file), [])
    if header != COLUMNS:
        raise UserError(
            f"{path} has other columns than cuboid throughput writes; name another file by --csv"
        )


def append_row(path: Path, row: ThroughputRow) -> None:
    """Append ``row`` to the CSV file ``path``; a new file begins with a line of the column
    names."""
    with path.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if file.tell() == 0:
            writer.writeheader()
        writer.writerow(asdict(row))
