"""Translation of values of Colossal-AI's, torch's and DeepSpeed's config files.

A converter maps the user's value to settings. It returns an unknown value unchanged, for the schema
to reject under the setting's name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from engine.config.value_hints import closest_spelling
from engine.config.values import Symbol
from models.presets import PRESETS

ValueMap = Mapping[object, object]
Converter = Callable[[object], dict[str, object]]

# The Adams of Colossal-AI and DeepSpeed have decoupled weight decay by default.
OPTIMIZERS: ValueMap = {
    "Adam": "adam",
    "AdamW": "adamw",
    "CPUAdam": "adamw",
    "DeepSpeedCPUAdam": "adamw",
    "FusedAdam": "adamw",
    "HybridAdam": "adamw",
    "FusedSGD": "sgd",
    "SGD": "sgd",
}
SCHEDULES: ValueMap = {
    "CosineAnnealingLR": "cosine",
    "CosineAnnealingWarmupLR": "cosine",
    "LinearWarmupLR": "linear",
}
PRECISIONS: ValueMap = {
    16: "fp16",
    32: "float32",
    64: "float64",
    "16": "fp16",
    "16-mixed": "fp16",
    "32": "float32",
    "32-true": "float32",
    "64": "float64",
    "64-true": "float64",
    "bf16-mixed": "bf16",
    "bfloat16": "bf16",
    "double": "float64",
    "float": "float32",
    "float16": "fp16",
    "float32": "float32",
    "float64": "float64",
    "half": "fp16",
}
AMP_TYPES: ValueMap = {
    "APEX": "fp16",
    "NAIVE": "fp16",
    "TORCH": "fp16",
    "apex": "fp16",
    "naive": "fp16",
    "torch": "fp16",
    True: "fp16",
}
ACTIVATIONS: ValueMap = {"gelu": "gelu"}
DEVICES: ValueMap = {"none": None, "cuda": None, "gpu": None}
SWITCHES: ValueMap = {True: "cpu", False: None}
LOSSES = ("GPTLMLoss", "vocab_parallel_cross_entropy", "CrossEntropyLoss")
SHARD_STRATEGIES = ("TensorShardStrategy", "BucketTensorShardStrategy")
# Models: names that differ from our presets', and classes, which have no sizes.
MODELS: ValueMap = {
    "GPT2_exlarge": "gpt2_exlarge",
    "GPT2_exlarge_pipeline_1D": "gpt2_exlarge",
    "GPT2_exlarge_pipeline_hybrid": "gpt2_exlarge",
    "GPT2_small": "gpt2_small",
    "GPT2_small_pipeline_1D": "gpt2_small",
    "GPT2_small_pipeline_hybrid": "gpt2_small",
    "GPT3": "gpt3",
    "GPT3_pipeline_1D": "gpt3",
    "GPT3_pipeline_hybrid": "gpt3",
    "gpt2_8B_pipeline": "gpt2_8B",
    "gpt2_small_pipeline": "gpt2_small",
    "gpt3_pipeline": "gpt3",
}
MODEL_CLASSES = ("GPT", "PipelineGPT", "GPT2LMHeadModel")


@dataclass(frozen=True)
class Implied:
    """The value of a setting that a converter sets only if the user does not."""

    value: object


class UnsupportedValueError(Exception):
    """A value without a counterpart; the message continues after "SETTING=VALUE "."""


def translate(mapping: ValueMap, value: object) -> object:
    """Return the translation of a symbol or string; ``value`` itself if there is none."""
    name = last_name(value)
    same = (key for key in mapping if key == name and type(key) is type(name))  # 1 is not True
    key = next(same, None)
    return value if key is None else mapping[key]


def last_name(value: object) -> object:
    """Return the last part of a symbol's dotted name; any other value unchanged."""
    return value.name.rpartition(".")[2] if isinstance(value, Symbol) else value


def translates(setting: str, mapping: ValueMap) -> Converter:
    """Make a converter for ``setting``, which translates another trainer's values by
    ``mapping``."""
    return lambda value: {setting: translate(mapping, value)}


def only_accepts(*names: str) -> Converter:
    """Make a converter for a key that sets nothing and accepts only these names."""

    def convert(value: object) -> dict[str, object]:
        if value is not None and last_name(value) not in names:
            raise UnsupportedValueError(f"is not supported; supported: {', '.join(names)}")
        return {}

    return convert


def preset(value: object) -> dict[str, object]:
    """Convert model.type. A symbol of titans means the preset with titans' sizes for the model of
    that name."""
    name = last_name(value)
    if not isinstance(name, str):
        return {"model.preset": value}
    if name in MODEL_CLASSES:
        return {}
    if isinstance(value, Symbol) and f"titans_{name}" in PRESETS:
        return {"model.preset": f"titans_{name}"}
    if name in PRESETS or name in MODELS:
        return {"model.preset": MODELS.get(name, name)}
    meant = closest_spelling(name, PRESETS)
    remedy = f"did you mean {meant!r}?" if meant else "set n_layer, n_head and n_embd instead"
    raise UnsupportedValueError(
        f"is not one of the {len(PRESETS)} presets (cuboid settings model.type); {remedy}"
    )


def amp_type(value: object) -> dict[str, object]:
    """Convert fp16.mode: AMP_TYPE.NAIVE or its value 'naive'; None means no mixed precision."""
    if value is None or value is False:
        return {}
    precision = translate(AMP_TYPES, value)
    if precision is value:
        raise UnsupportedValueError("must be AMP_TYPE.NAIVE, AMP_TYPE.TORCH, AMP_TYPE.APEX or None")
    return {"precision": precision}


def dtype(value: object) -> dict[str, object]:
    """Convert model.dtype. float32 sets nothing, as weights are float32 in every precision."""
    precision = translate(PRECISIONS, value)
    return {} if precision in (None, "float32") else {"precision": precision}


def mode(value: object) -> dict[str, object]:
    """Convert MODE: None is Colossal-AI's name for serial."""
    return {"mode": "serial" if value is None else value}


def clip(value: object) -> dict[str, object]:
    """Convert clip_grad_norm: 0 is Colossal-AI's name for no clipping."""
    return {"clip_grad_norm": None if value == 0 and value is not False else value}


def placement(value: object) -> dict[str, object]:
    """Convert zero.model_config.tensor_placement_policy. 'auto' offloads nothing; the estimate
    reports whether that fits."""
    where = None if value == "auto" else translate(DEVICES, value)
    return {"zero.offload": where, "zero.offload_params": where}


def nvme_fraction(value: object) -> dict[str, object]:
    """Convert optimizer.nvme_offload_fraction, which must be 0 or 1."""
    if value not in (0, 1):
        raise UnsupportedValueError(
            "must be 0 or 1: either all optimizer states are offloaded or none"
        )
    return {"zero.offload": "nvme"} if value else {}


def data(value: object) -> dict[str, object]:
    """Convert DATA, a path, whose suffix determines the source."""
    return {"data.path": value}
