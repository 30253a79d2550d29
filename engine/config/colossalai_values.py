"""What the values of Colossal-AI's, torch's and DeepSpeed's config files are called here.

A converter takes what the user wrote and says which settings it sets to what. A value that it does
not know it passes on, for the schema to refuse by its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

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


class UnsupportedValueError(Exception):
    """The rest of a sentence that begins with the setting and its value."""


def translate(mapping: ValueMap, value: object) -> object:
    """Our word for a symbol or a string; ``value`` itself where there is none."""
    name = last_name(value)
    return mapping[name] if isinstance(name, (str, bool)) and name in mapping else value


def last_name(value: object) -> object:
    """The last part of a symbol's dotted name; anything else as it is."""
    return value.name.rpartition(".")[2] if isinstance(value, Symbol) else value


def translates(setting: str, mapping: ValueMap) -> Converter:
    """For a setting whose values have other words elsewhere."""
    return lambda value: {setting: translate(mapping, value)}


def only_accepts(*names: str) -> Converter:
    """For a key that may only say what holds here in any case."""

    def convert(value: object) -> dict[str, object]:
        if value is not None and last_name(value) not in names:
            raise UnsupportedValueError(f"is not supported; supported: {', '.join(names)}")
        return {}

    return convert


def preset(value: object) -> dict[str, object]:
    """model.type. A symbol of titans means the sizes that titans gives the name."""
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
    """fp16.mode: AMP_TYPE.NAIVE or its value 'naive'; None for no mixed precision."""
    if value is None or value is False:
        return {}
    precision = translate(AMP_TYPES, value)
    if precision is value:
        raise UnsupportedValueError("must be AMP_TYPE.NAIVE, AMP_TYPE.TORCH, AMP_TYPE.APEX or None")
    return {"precision": precision}


def dtype(value: object) -> dict[str, object]:
    """model.dtype. float32 says nothing: weights are kept in it at every precision."""
    precision = translate(PRECISIONS, value)
    return {} if precision in (None, "float32") else {"precision": precision}


def mode(value: object) -> dict[str, object]:
    """MODE: None is Colossal-AI's word for serial."""
    return {"mode": "serial" if value is None else value}


def clip(value: object) -> dict[str, object]:
    """clip_grad_norm: 0 is Colossal-AI's word for none."""
    return {"clip_grad_norm": None if value == 0 and value is not False else value}


def placement(value: object) -> dict[str, object]:
    """zero.model_config.tensor_placement_policy. 'auto' leaves all on the device; whether that
    fits is what the estimate tells."""
    where = None if value == "auto" else translate(DEVICES, value)
    return {"zero.offload": where, "zero.offload_params": where}


def nvme_fraction(value: object) -> dict[str, object]:
    """optimizer.nvme_offload_fraction: all or nothing."""
    if value not in (0, 1):
        raise UnsupportedValueError(
            "must be 0 or 1: either all optimizer states are offloaded or none"
        )
    return {"zero.offload": "nvme"} if value else {}


def data(value: object) -> dict[str, object]:
    """DATA, a path. Its suffix names the source."""
    return {"data.path": value}
