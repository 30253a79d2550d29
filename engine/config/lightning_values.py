"""Translates values in configs of Lightning, minGPT and minGPT-ddp, as ``colossalai_values`` does
for Colossal-AI."""

from __future__ import annotations

from collections.abc import Mapping

from engine.config.colossalai_values import Converter, Implied, UnsupportedValueError

_BOTH_ON_THE_CPU = {"zero.offload": "cpu", "zero.offload_params": "cpu"}
_BOTH_ON_NVME = {
    "zero.offload": "nvme",
    "zero.offload_params": "nvme",
    "zero.nvme_path": Implied("/local_nvme"),
}

_SHARDING: Mapping[str, dict[str, object]] = {
    "ddp": {"zero.stage": 0},
    "ddp_find_unused_parameters_false": {"zero.stage": 0},
    "ddp_find_unused_parameters_true": {"zero.stage": 0},
    "ddp_fork": {"zero.stage": 0},
    "ddp_spawn": {"zero.stage": 0},
    "ddp_sharded": {"zero.stage": 2},
    "ddp_sharded_spawn": {"zero.stage": 2},
    "ddp_fully_sharded": {"zero.stage": 3},
    "fsdp": {"zero.stage": 3},
    "fsdp_cpu_offload": {"zero.stage": 3, **_BOTH_ON_THE_CPU},
}
_DEEPSPEED: Mapping[str, dict[str, object]] = {
    "deepspeed": {"zero.stage": 2},
    "deepspeed_stage_1": {"zero.stage": 1},
    "deepspeed_stage_2": {"zero.stage": 2},
    "deepspeed_stage_2_offload": {"zero.stage": 2, "zero.offload": "cpu"},
    "deepspeed_stage_3": {"zero.stage": 3},
    "deepspeed_stage_3_offload": {"zero.stage": 3, **_BOTH_ON_THE_CPU},
    "deepspeed_stage_3_offload_nvme": {"zero.stage": 3, **_BOTH_ON_NVME},
}
STRATEGIES: Mapping[str, dict[str, object]] = {
    **_SHARDING,
    **{
        # DeepSpeed's loss scale is reduced by the second overflow in succession, not by the first
        name: {**settings, "loss_scale.hysteresis": Implied(2)}
        for name, settings in _DEEPSPEED.items()
    },
}
"""Lightning's strategies, with the settings that do the same."""


def named(table: Mapping[str, Mapping[str, object]]) -> Converter:
    """Make a converter for a key whose values are the names in ``table``."""

    def convert(value: object) -> dict[str, object]:
        if not isinstance(value, str) or value not in table:
            raise UnsupportedValueError(f"must be {', '.join(map(repr, table))}")
        return dict(table[value])

    return convert


def switches(on: Mapping[str, object], off: Mapping[str, object]) -> Converter:
    """Make a converter for a key that is True or False."""

    def convert(value: object) -> dict[str, object]:
        if not isinstance(value, bool):
            raise UnsupportedValueError("must be True or False")
        return dict(on if value else off)

    return convert


def train_split(value: object) -> dict[str, object]:
    """Convert the fraction of the text to train on to data.validation, the rest."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise UnsupportedValueError("must be float > 0 and <= 1")
    return {"data.validation": round(1 - value, 12)}


def warmup_tokens(value: object) -> dict[str, object]:
    """Convert minGPT's warm-up, which is in tokens whatever the schedule counts."""
    return {"lr_scheduler.warmup": value, "lr_scheduler.warmup_by": "token"}


strategy = named(STRATEGIES)
distributed_method = named({name: _SHARDING[name] for name in ("ddp", "fsdp")})
use_amp = switches({"precision": "fp16"}, {"precision": "float32"})
cpu_offload = switches(_BOTH_ON_THE_CPU, {"zero.offload": None, "zero.offload_params": None})
lr_decay = switches(
    {
        "lr_scheduler.type": "cosine_clamped",
        "lr_scheduler.by": "token",
        "lr_scheduler.floor": Implied(0.1),
    },
    {"lr_scheduler.type": "constant"},
)
