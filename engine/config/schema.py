"""Every setting: its type, its bounds, its default and its meaning. Nothing else.

This is the resolved form that all rooms read. How a user may spell a setting is in ``spellings``,
what must hold between settings in ``rules``.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic.fields import FieldInfo

from engine import discover, paths
from engine.config.fields import LARGEST, IsPath, OneOf, Section, marks, setting
from engine.pipeline_schedule import SCHEDULES
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
    """The GPT. A type gives the sizes; sizes that are given beside it win."""

    preset: PresetName | None = setting(
        "named sizes; None: n_layer, n_head and n_embd are given", None, name="type"
    )
    n_layer: Count = setting("transformer blocks", shown="the type's")
    n_head: Count = setting("attention heads of a block", shown="the type's")
    n_embd: Count = setting(
        "width: features of a token between blocks", shown="the type's, else HIDDEN_SIZE"
    )
    head_dim: Count = setting(
        "features of a head; n_head x head_dim need not be n_embd",
        lambda given: max(1, given["n_embd"] // given["n_head"]),
        shown="n_embd / n_head",
    )
    n_inner: Count = setting(
        "width of the MLP", lambda given: 4 * given["n_embd"], shown="4 x n_embd"
    )
    vocab_size: Count = setting("token ids there are", GPT2_VOCABULARY)
    block_size: Count = setting("positions there are", shown="the type's, else SEQ_LEN")
    embd_pdrop: Share = setting("dropout on the embeddings", 0.0)
    resid_pdrop: Share = setting("dropout on what a layer adds to the residual", 0.0)
    attn_pdrop: Share = setting("dropout on the attention weights", 0.0)
    tie_embeddings: bool = setting("the head is the token embedding, transposed", True)
    checkpoint: bool | Literal["selective"] = setting(
        "activation checkpointing: keep a block's input only and compute the rest again; "
        "'selective' keeps the matmuls too",
        False,
    )
    num_chunks: RankCount = setting("model chunks of a pipeline rank (interleaved schedule)", 1)
    activation: Literal["gelu_tanh", "gelu"] = setting(
        "the MLP's GELU: GPT-2's tanh approximation, or exact", "gelu_tanh"
    )
    layer_norm_epsilon: Positive = setting("added to a layer norm's variance", 1e-5)
    init_std: NotNegative = setting("standard deviation of initial weights", 0.02)


class OptimizerSettings(Section):
    """How parameters are updated."""

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
        "which parameters weight_decay is for: 'matrices' spares biases and norms",
        lambda given: "matrices" if given["type"] == "adamw" else "all",
        shown="'matrices' for adamw, else 'all'",
    )


class LRScheduleSettings(Section):
    """The learning rate over the run."""

    type: LRScheduleName = setting("shape after the warm-up", "constant")
    warmup: NotNegative = setting("length of the linear warm-up, in units of by", 0)
    total: Count | None = setting("where the decay ends, in units of by; None: with the run", None)
    floor: Annotated[float, Ge(0), Le(1)] = setting(
        "lowest learning rate, as a share of optimizer.lr", 0.0
    )
    by: Literal["step", "epoch"] = setting("what warmup and total count", "step")


class DataSettings(Section):
    """What is learned."""

    type: SourceName = setting(
        "the source; 'auto': files by their content, 'text': as they are, whatever they look like",
        "auto",
    )
    path: DataPath | Annotated[tuple[DataPath, ...], MinLen(1)] | None = setting(
        "files, folders (all files below them) and glob patterns; gzip, bzip2 and xz are read; "
        "None: the text that comes with Python",
        None,
    )
    key: str = setting("where the text of a document is in a JSON object", "text")
    tokenizer: TokenizerName = setting("text to token ids", "gpt2")
    validation: Share = setting("share of the tokens kept for validation", 0.1)
    cache: NewPath | None = setting("folder of tokenised text; None: the user's cache folder", None)


class EvalSettings(Section):
    """Validation."""

    every: CountOrNone | None = setting(
        "steps between validations; None: at the end; 0: never", None
    )
    batches: Count = setting("global batches of a validation", 8)


class LogSettings(Section):
    """What a run leaves behind to look at."""

    every: Count | None = setting(
        "steps between lines on the terminal; None: some thirty in all; log.jsonl has every step",
        None,
    )
    dir: NewPath | None = setting("folder of the run; None: runs/NAME-TIME", None)
    tensorboard: bool = setting("write TensorBoard's files", True)


class CheckpointSettings(Section):
    """What a run leaves behind to go on from."""

    every: Count | None = setting("steps between checkpoints; None: not by steps", None)
    minutes: Positive | None = setting("minutes between checkpoints; None: not by the clock", None)
    keep: Count = setting("newest checkpoints that are kept", 3)
    best: bool = setting("keep the one of the lowest validation loss, too", True)
    asynchronous: bool = setting(
        "write while training goes on, from a copy in the host's memory", False
    )

    @property
    def is_enabled(self) -> bool:
        """Whether a run saves as it goes, and then at its end; if not, only where it is stopped,
        and at the end of a run that was resumed."""
        return self.every is not None or self.minutes is not None


class ZeroSettings(Section):
    """ZeRO: training state shared out over the data-parallel ranks (Rajbhandari et al. 2020)."""

    stage: Annotated[int, Ge(0), Le(3)] = setting(
        "what is shared out: 1 optimizer states, 2 gradients too, 3 parameters too", 0
    )
    depth: bool = setting("share out over 2.5d's DEPTH too, along which weights are copies", False)
    offload: OffloadTarget | None = setting(
        "where optimizer states and master weights stay; None: on the device", None
    )
    offload_params: OffloadTarget | None = setting(
        "where parameters stay between uses (stage 3); None: on the device", None
    )
    nvme_path: Folder | None = setting("folder on the NVMe disk, for offloading to 'nvme'", None)
    nvme_buffer: Bytes = setting(
        "bytes of a rank's memory for what is read ahead of its use and written behind it", 2**28
    )
    nvme_store: Literal["tensornvme", "threads"] | None = setting(
        "what moves optimizer states; None: TensorNVMe where it is built, else threads", None
    )


class LossScaleSettings(Section):
    """The dynamic loss scale of fp16."""

    initial: Positive = setting("the scale to begin with", 65536.0)
    growth_factor: Annotated[float, Gt(1)] = setting("times this after a quiet interval", 2.0)
    backoff_factor: Ratio = setting("times this after an overflow", 0.5)
    growth_interval: Count = setting("steps without overflow before it grows", 1000)
    hysteresis: Count = setting("overflows that are borne before it shrinks", 1)
    min: Positive = setting("never below", 1.0)
    max: Positive = setting("never above", 2.0**32)


class LossSpikeSettings(Section):
    """Steps whose loss jumps: optionally not learned from."""

    factor: Annotated[float, Gt(1)] | None = setting(
        "a step is skipped if its loss is over this times the median of those before; None: never",
        None,
    )
    window: Count = setting("how many steps before that is the median of", 100)
    max_skips: Count = setting("steps skipped in a row; at one more the run fails", 10)


class Settings(Section):
    """A run."""

    name: str  # the file's stem
    source: str  # the file's path

    batch_size: Count = setting(
        "samples of a data-parallel rank and accumulation round", name="BATCH_SIZE"
    )
    seq_len: Count = setting("tokens of a sample", name="SEQ_LEN")
    num_epochs: Count | None = setting("passes over the data", None, name="NUM_EPOCHS")
    max_steps: Count | None = setting(
        "optimizer steps; wins over NUM_EPOCHS", None, name="MAX_STEPS"
    )
    num_micro_batches: Count = setting(
        "parts that BATCH_SIZE is worked through in", 1, name="NUM_MICRO_BATCHES"
    )
    gradient_accumulation: Count = setting("rounds of BATCH_SIZE before an update", 1)

    tensor_parallel: RankCount = setting("ranks that share every tensor", 1, name="TENSOR_PARALLEL")
    mode: ModeName = setting(
        "how they cut it; None is 'serial', for TENSOR_PARALLEL=1", "serial", name="MODE"
    )
    depth: RankCount = setting("layers of the 2.5d grid", 1, name="DEPTH")
    pipeline: RankCount = setting("pipeline stages", 1, name="PIPELINE")
    hidden_size: Count | None = setting(
        "the model's width; compared with model.n_embd", None, name="HIDDEN_SIZE"
    )
    tensor_shape: tuple[Count, ...] | None = setting(
        "what a stage sends, as Colossal-AI reckons it; compared, not needed",
        None,
        name="TENSOR_SHAPE",
    )

    model: ModelSettings
    schedule: PipelineScheduleName = setting(
        "order of the micro-batches in the pipeline",
        lambda given: "interleaved" if given["model"].num_chunks > 1 else "1f1b",
        shown="'1f1b'; 'interleaved' if model.num_chunks > 1",
    )
    stages: Literal["uniform", "balanced"] = setting(
        "layers of a stage: as many in each, or as much work, the head counted", "uniform"
    )
    optimizer: OptimizerSettings = OptimizerSettings()
    lr_scheduler: LRScheduleSettings = LRScheduleSettings()
    clip_grad_norm: Positive | None = setting("largest norm of the whole gradient; None: any", None)
    precision: Precision = setting(
        "type of the computation; beside bf16 and fp16, weights and gradients stay float32",
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
    deterministic: bool = setting("the same bits every time, on CUDA too; slower", False)
    matmul: Literal["torch", "onednn"] | None = setting(
        "library of float32 matmuls on a CPU; None: chosen by the processor and the shapes", None
    )
    compile: bool = setting("torch.compile the model", False)
    keep_gathers: bool = setting(
        "keep what was gathered for the backward pass instead of gathering it again", False
    )
    loss_chunk: Count | None = setting("tokens of a chunk of the loss; None: chosen by size", None)
    backend: Literal["nccl", "gloo"] | None = setting(
        "communication; None: nccl where each rank has a GPU, else gloo", None
    )
    timeout: Positive = setting("seconds a collective may take after the first step", 300.0)
    start_timeout: Positive = setting("seconds it may take until then", 1800.0)


@cache
def all_settings(section: type[Section] = Settings, prefix: str = "") -> Mapping[str, FieldInfo]:
    """Dotted field name -> pydantic's description of the field, in the order above."""
    found: dict[str, FieldInfo] = {}
    for name, field in section.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Section):
            found |= all_settings(inner, f"{prefix}{name}.")
        elif field.description:
            found[prefix + name] = field
    return MappingProxyType(found)


def path_settings() -> dict[str, IsPath]:
    """The settings that are paths, and which kind of files each is of."""
    return {
        name: mark
        for name, field in all_settings().items()
        for mark in marks(field)
        if isinstance(mark, IsPath)
    }


def user_name(name: str) -> str:
    """How the user spells a setting: tensor_parallel -> TENSOR_PARALLEL, model.preset ->
    model.type; a section is itself."""
    section, _, last = name.rpartition(".")
    field = all_settings().get(name)
    title = field.title if field and field.title else last
    return f"{section}.{title}" if section else title
