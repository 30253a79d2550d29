"""Every setting: its type, bounds, default and description.

This is the resolved form that the rest of the code reads. Alternative spellings of settings are in
``aliases``, constraints between settings in ``rules``.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import Literal

from pydantic.fields import FieldInfo

from engine.config.fields import IsPath, Section, marks, setting
from engine.config.sections.data import DataSettings, EvalSettings
from engine.config.sections.loss import LossScaleSettings, LossSpikeSettings
from engine.config.sections.model import ModelSettings
from engine.config.sections.optimizer import LRScheduleSettings, OptimizerSettings
from engine.config.sections.outputs import CheckpointSettings, LogSettings
from engine.config.sections.zero import ZeroSettings
from engine.config.setting_types import (
    Count,
    ModeName,
    PipelineScheduleName,
    Positive,
    Precision,
    RankCount,
    Seed,
)


class Settings(Section):
    """All settings of a run."""

    name: str  # the file's stem
    source: str  # the file's path

    global_batch_size: Count | None = setting(
        "samples per update, over all data-parallel ranks and accumulation steps; "
        "gradient_accumulation follows from it and BATCH_SIZE, or BATCH_SIZE from it",
        None,
        name="GLOBAL_BATCH_SIZE",
    )
    batch_size: Count = setting(
        "samples per data-parallel rank and accumulation step", name="BATCH_SIZE"
    )
    seq_len: Count = setting("tokens per sample", name="SEQ_LEN")
    num_epochs: Count | None = setting("passes over the data", None, name="NUM_EPOCHS")
    max_steps: Count | None = setting(
        "optimizer steps; takes precedence over NUM_EPOCHS", None, name="MAX_STEPS"
    )
    num_micro_batches: Count = setting(
        "micro-batches that BATCH_SIZE is split into", 1, name="NUM_MICRO_BATCHES"
    )
    gradient_accumulation: Count = setting(
        "batches of BATCH_SIZE per optimizer step",
        1,
        shown="1; from GLOBAL_BATCH_SIZE and BATCH_SIZE if both are set",
    )

    tensor_parallel: RankCount = setting("tensor-parallel ranks", 1, name="TENSOR_PARALLEL")
    mode: ModeName = setting(
        "tensor-parallel algorithm: 1d (Megatron), 2d (SUMMA), 2.5d, 3d; 'sequence' shards tokens "
        "only; None is 'serial'",
        "serial",
        name="MODE",
    )
    depth: RankCount = setting("depth of the 2.5d grid", 1, name="DEPTH")
    pipeline: RankCount = setting("pipeline stages", 1, name="PIPELINE")
    hidden_size: Count | None = setting(
        "the model's width; must equal model.n_embd", None, name="HIDDEN_SIZE"
    )
    tensor_shape: tuple[Count, ...] | None = setting(
        "shape of pipeline messages, Colossal-AI's convention; only checked, never required",
        None,
        name="TENSOR_SHAPE",
    )

    model: ModelSettings
    schedule: PipelineScheduleName = setting(
        "pipeline schedule: the order of micro-batches",
        lambda given: "interleaved" if given["model"].num_chunks > 1 else "1f1b",
        shown="'1f1b'; 'interleaved' if model.num_chunks > 1",
    )
    stages: Literal["uniform", "balanced"] = setting(
        "layers per pipeline stage: equal numbers, or equal work including the head", "uniform"
    )
    optimizer: OptimizerSettings = OptimizerSettings()
    lr_scheduler: LRScheduleSettings = LRScheduleSettings()
    clip_grad_norm: Positive | None = setting(
        "maximum norm of the gradient; None: no clipping", None
    )
    precision: Precision = setting(
        "compute type; with bf16 and fp16, weights and gradients remain float32",
        "float32",
    )
    loss_scale: LossScaleSettings = LossScaleSettings()
    loss_spike: LossSpikeSettings = LossSpikeSettings()
    zero: ZeroSettings = ZeroSettings()
    data: DataSettings = DataSettings()
    eval: EvalSettings = EvalSettings()
    log: LogSettings = LogSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()

    seed: Seed = setting("of weights, sample order and dropout", 42)
    deterministic: bool = setting("bitwise reproducible results, on CUDA too; slower", False)
    matmul: Literal["torch", "onednn"] | None = setting(
        "library for float32 matmuls on a CPU; None: chosen by processor and shapes", None
    )
    compile: bool = setting("torch.compile the blocks before the first step", False)
    keep_gathers: bool = setting(
        "save gathered tensors for the backward pass instead of gathering them again", False
    )
    context: Literal["gather", "ring"] = setting(
        "exchange of keys and values of samples that several ranks hold: all at once, or those of "
        "one rank at a time, while the next are in transit",
        "gather",
    )
    loss_chunk: Count | None = setting("tokens per chunk of the loss; None: chosen by size", None)
    backend: Literal["nccl", "gloo"] | None = setting(
        "communication backend; None: nccl if each rank has a GPU, else gloo", None
    )
    timeout: Positive = setting("seconds a collective may take after the first step", 300.0)
    start_timeout: Positive = setting("seconds a collective may take before that", 1800.0)


@cache
def all_settings(section: type[Section] = Settings, prefix: str = "") -> Mapping[str, FieldInfo]:
    """Map the dotted name of each setting to pydantic's description of it, in schema order."""
    fields: dict[str, FieldInfo] = {}
    for name, field in section.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Section):
            fields |= all_settings(inner, f"{prefix}{name}.")
        elif field.description:
            fields[prefix + name] = field
    return MappingProxyType(fields)


@cache
def path_settings() -> Mapping[str, IsPath]:
    """Map each setting that is a path to the kind of file it needs."""
    return MappingProxyType(
        {
            name: mark
            for name, field in all_settings().items()
            for mark in marks(field)
            if isinstance(mark, IsPath)
        }
    )


def user_name(name: str) -> str:
    """Return the user's name of a setting or section: TENSOR_PARALLEL for tensor_parallel,
    model.type for model.preset."""
    section, _, last = name.rpartition(".")
    field = all_settings().get(name)
    title = field.title if field and field.title else last
    return f"{section}.{title}" if section else title
