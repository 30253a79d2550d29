"""Every setting: its type, bounds, default and description.

This is the resolved form that the rest of the code reads. Alternative spellings of settings are in
``aliases``, constraints between settings in ``rules``.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic.fields import FieldInfo

from engine import discover
from engine.config.fields import LARGEST, IsPath, OneOf, Section, marks, setting
from engine.files import paths
from engine.pipeline.schedule import SCHEDULES
from models.parallel.registry import modes
from models.presets import GPT2_VOCABULARY, PRESETS

Count = Annotated[int, Ge(1), Le(LARGEST)]
CountOrNone = Annotated[int, Ge(0), Le(LARGEST)]
Bytes = Annotated[int, Ge(2**20), Le(2**40)]
RankCount = Annotated[int, Ge(1), Le(2**16)]
Positive = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]
Share = Annotated[float, Ge(0), Lt(1)]
Ratio = Annotated[float, Gt(0), Lt(1)]

ModeName = Annotated[str, OneOf(lambda: list(modes()))]
PresetName = Annotated[str, OneOf(lambda: list(PRESETS))]
PipelineScheduleName = Annotated[str, OneOf(lambda: list(SCHEDULES))]
OptimizerName = Annotated[str, OneOf(lambda: discover.module_names("engine.optim.optimizers"))]
LRScheduleName = Annotated[str, OneOf(lambda: discover.module_names("engine.optim.schedules"))]
SourceName = Annotated[str, OneOf(lambda: discover.module_names("engine.data.sources"))]
TokenizerName = Annotated[str, OneOf(lambda: discover.module_names("engine.data.tokenizers"))]

NewPath = Annotated[str, IsPath()]
DataPath = Annotated[str, IsPath((paths.FILE, paths.FOLDER))]
Folder = Annotated[str, IsPath((paths.FOLDER,))]

Precision = Literal["float32", "bf16", "fp16", "float64"]
OffloadTarget = Literal["cpu", "nvme"]


class ModelSettings(Section):
    """The GPT. ``type`` names a preset; sizes that are set explicitly override the preset's."""

    preset: PresetName | None = setting(
        "preset of sizes; None: set n_layer, n_head and n_embd", None, name="type"
    )
    n_layer: Count = setting("transformer blocks", shown="the type's")
    n_head: Count = setting("attention heads per block", shown="the type's")
    n_embd: Count = setting(
        "width: features of a token between blocks", shown="the type's, else HIDDEN_SIZE"
    )
    head_dim: Count = setting(
        "features per head; n_head x head_dim may differ from n_embd",
        lambda given: max(1, given["n_embd"] // given["n_head"]),
        shown="n_embd / n_head",
    )
    n_inner: Count = setting(
        "width of the MLP", lambda given: 4 * given["n_embd"], shown="4 x n_embd"
    )
    vocab_size: Count = setting("number of token ids", GPT2_VOCABULARY)
    block_size: Count = setting(
        "maximum sequence length (positions)", shown="the type's, else SEQ_LEN"
    )
    embd_pdrop: Share = setting("dropout on the embeddings", 0.0)
    resid_pdrop: Share = setting("dropout on a layer's output, before the residual sum", 0.0)
    attn_pdrop: Share = setting("dropout on the attention weights", 0.0)
    tie_embeddings: bool = setting("the head is the token embedding, transposed", True)
    checkpoint: bool | Literal["selective"] = setting(
        "activation checkpointing: save only a block's input and recompute the rest; 'selective' "
        "also saves the outputs of matmuls (for checkpoints of a run see checkpoint.every)",
        False,
    )
    num_chunks: RankCount = setting("model chunks per pipeline rank (interleaved schedule)", 1)
    activation: Literal["gelu_tanh", "gelu"] = setting(
        "the MLP's GELU: GPT-2's tanh approximation, or exact", "gelu_tanh"
    )
    layer_norm_epsilon: Positive = setting("added to a layer norm's variance", 1e-5)
    init_std: NotNegative = setting("standard deviation of initial weights", 0.02)


class OptimizerSettings(Section):
    """The optimizer."""

    type: OptimizerName = setting("the update rule", "adamw")
    lr: Positive = setting("peak learning rate", 1e-3)
    betas: tuple[Share, Share] = setting("decay of Adam's two moments", (0.9, 0.999))
    eps: NotNegative = setting("added to Adam's denominator", 1e-8)
    weight_decay: NotNegative = setting(
        "decay of the weights: decoupled in adamw, an L2 term in the others",
        lambda given: 0.01 if given["type"] == "adamw" else 0.0,
        shown="0.01 for adamw, else 0.0",
    )
    momentum: Share = setting("momentum of sgd", 0.0)
    decay: Literal["matrices", "all"] = setting(
        "parameters with weight decay: 'matrices' excludes biases and norms",
        lambda given: "matrices" if given["type"] == "adamw" else "all",
        shown="'matrices' for adamw, else 'all'",
    )


class LRScheduleSettings(Section):
    """The learning rate schedule."""

    type: LRScheduleName = setting("shape after the warm-up", "constant")
    warmup: NotNegative = setting("length of the linear warm-up, in units of by", 0)
    total: Count | None = setting("end of the decay, in units of by; None: end of the run", None)
    floor: Annotated[float, Ge(0), Le(1)] = setting(
        "minimum learning rate, as a fraction of optimizer.lr", 0.0
    )
    by: Literal["step", "epoch"] = setting("unit of warmup and total", "step")


class DataSettings(Section):
    """The training and validation data."""

    type: SourceName = setting(
        "source; 'auto' detects the format of files by content, 'text' reads them as plain text",
        "auto",
    )
    path: DataPath | Annotated[tuple[DataPath, ...], MinLen(1)] | None = setting(
        "files, folders (with all files below) and glob patterns; gzip, bzip2 and xz are "
        "decompressed; None: a text that comes with Python",
        None,
    )
    key: str = setting("key of the text in a JSON object", "text")
    tokenizer: TokenizerName = setting("tokenizer of the text", "gpt2")
    validation: Share = setting("fraction of the tokens used for validation", 0.1)
    cache: NewPath | None = setting("folder of tokenised text; None: the user's cache folder", None)


class EvalSettings(Section):
    """Validation."""

    every: CountOrNone | None = setting(
        "steps between validations; None: at the end; 0: never", None
    )
    batches: Count = setting("global batches per validation", 8)


class LogSettings(Section):
    """Logs of a run."""

    every: Count | None = setting(
        "steps between lines on the terminal; None: about thirty lines; log.jsonl has all steps",
        None,
    )
    dir: NewPath | None = setting("folder of the run; None: runs/NAME-TIME", None)
    tensorboard: bool = setting("write TensorBoard's files", True)


class CheckpointSettings(Section):
    """Checkpoints of a run."""

    every: Count | None = setting("steps between checkpoints; None: not by steps", None)
    minutes: Positive | None = setting("minutes between checkpoints; None: not by the clock", None)
    keep: Count = setting("number of newest checkpoints to keep", 3)
    best: bool = setting("also keep the checkpoint with the lowest validation loss", True)
    asynchronous: bool = setting("write in the background, from a copy in host memory", False)

    @property
    def is_enabled(self) -> bool:
        """True if a run saves periodically and at its end. If not, it only saves when it is
        stopped, and at the end of a run that was resumed."""
        return self.every is not None or self.minutes is not None


class ZeroSettings(Section):
    """ZeRO: training state sharded over the data-parallel ranks (Rajbhandari et al. 2020)."""

    stage: Annotated[int, Ge(0), Le(3)] = setting(
        "ZeRO stage: 1 shards optimizer states, 2 also gradients, 3 also parameters; 0: none", 0
    )
    depth: bool = setting("also shard over 2.5d's DEPTH, where weights are replicated", False)
    offload: OffloadTarget | None = setting(
        "location of optimizer states and master weights; None: on the device", None
    )
    offload_params: OffloadTarget | None = setting(
        "location of parameters between uses (stage 3); None: on the device", None
    )
    nvme_path: Folder | None = setting("folder on the NVMe disk, for offloading to 'nvme'", None)
    nvme_buffer: Bytes = setting(
        "bytes of memory per rank for prefetch and write-behind buffers", 2**28
    )
    nvme_store: Literal["tensornvme", "threads"] | None = setting(
        "library for optimizer state I/O; None: TensorNVMe if it is built, else threads", None
    )


class LossScaleSettings(Section):
    """The dynamic loss scale of fp16."""

    initial: Positive = setting("initial scale", 65536.0)
    growth_factor: Annotated[float, Gt(1)] = setting("factor after growth_interval steps", 2.0)
    backoff_factor: Ratio = setting("factor after an overflow", 0.5)
    growth_interval: Count = setting("steps without overflow before the scale grows", 1000)
    hysteresis: Count = setting("consecutive overflows before the scale is reduced", 1)
    min: Positive = setting("minimum scale", 1.0)
    max: Positive = setting("maximum scale", 2.0**32)


class LossSpikeSettings(Section):
    """Detection of loss spikes: optionally skips the update of a step whose loss jumps."""

    factor: Annotated[float, Gt(1)] | None = setting(
        "skip a step if its loss exceeds this times the median of previous losses; None: never",
        None,
    )
    window: Count = setting("number of previous losses in the median", 100)
    max_skips: Count = setting("consecutive steps that may be skipped; one more fails the run", 10)


class Settings(Section):
    """All settings of a run."""

    name: str  # the file's stem
    source: str  # the file's path

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
    gradient_accumulation: Count = setting("batches of BATCH_SIZE per optimizer step", 1)

    tensor_parallel: RankCount = setting("tensor-parallel ranks", 1, name="TENSOR_PARALLEL")
    mode: ModeName = setting(
        "tensor-parallel algorithm: 1d (Megatron), 2d (SUMMA), 2.5d, 3d; None is 'serial'",
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

    seed: Annotated[int, Ge(0), Lt(2**63)] = setting("of weights, sample order and dropout", 42)
    deterministic: bool = setting("bitwise reproducible results, on CUDA too; slower", False)
    matmul: Literal["torch", "onednn"] | None = setting(
        "library for float32 matmuls on a CPU; None: chosen by processor and shapes", None
    )
    compile: bool = setting("torch.compile the model", False)
    keep_gathers: bool = setting(
        "save gathered tensors for the backward pass instead of gathering them again", False
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


def path_settings() -> dict[str, IsPath]:
    """Map each setting that is a path to the kind of file it needs."""
    return {
        name: mark
        for name, field in all_settings().items()
        for mark in marks(field)
        if isinstance(mark, IsPath)
    }


def user_name(name: str) -> str:
    """Return the user's name of a setting or section: TENSOR_PARALLEL for tensor_parallel,
    model.type for model.preset."""
    section, _, last = name.rpartition(".")
    field = all_settings().get(name)
    title = field.title if field and field.title else last
    return f"{section}.{title}" if section else title
