"""All spellings of each setting: its own name, and its names in the config files of Colossal-AI,
Lightning and minGPT.

A key of ``ALIASES`` is the user's spelling, dotted. Its value is the schema's name of the setting,
or a converter from the value to settings.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from engine.config import colossalai_values, lightning_values
from engine.config.colossalai_values import Converter, translates
from engine.config.schema import all_settings, user_name

_OWN: dict[str, str | Converter] = {user_name(name): name for name in all_settings()}

_OWN_NAMES_WITH_THEIR_VALUES: dict[str, str | Converter] = {
    "MODE": colossalai_values.mode,
    "clip_grad_norm": colossalai_values.clip,
    "model.activation": translates("model.activation", colossalai_values.ACTIVATIONS),
    "model.type": colossalai_values.preset,
    "optimizer.type": translates("optimizer.type", colossalai_values.OPTIMIZERS),
    "lr_scheduler.type": translates("lr_scheduler.type", colossalai_values.SCHEDULES),
    "precision": translates("precision", colossalai_values.PRECISIONS),
    "zero.offload": translates("zero.offload", colossalai_values.DEVICES),
    "zero.offload_params": translates("zero.offload_params", colossalai_values.DEVICES),
}

_PARALLEL: dict[str, str | Converter] = {
    "parallel.pipeline": "pipeline",
    "parallel.pipeline.size": "pipeline",
    "parallel.tensor": "tensor_parallel",
    "parallel.tensor.size": "tensor_parallel",
    "parallel.tensor.mode": colossalai_values.mode,
    "parallel.tensor.depth": "depth",
}

_MODEL: dict[str, str | Converter] = {
    "model.depth": "model.n_layer",
    "model.num_layers": "model.n_layer",
    "model.num_heads": "model.n_head",
    "model.num_attention_heads": "model.n_head",
    "model.dim": "model.n_embd",
    "model.hidden_size": "model.n_embd",
    "model.max_position_embeddings": "model.block_size",
    "model.max_seq_len": "model.block_size",
    "model.n_positions": "model.block_size",
    "model.mlp_ratio": "model.mlp_ratio",
    "model.embedding_dropout": "model.embd_pdrop",
    "model.embed_drop_rate": "model.embd_pdrop",
    "model.dropout": "model.resid_pdrop",
    "model.drop_rate": "model.resid_pdrop",
    "model.attention_dropout": "model.attn_pdrop",
    "model.attn_drop_rate": "model.attn_pdrop",
    "model.layernorm_epsilon": "model.layer_norm_epsilon",
    "model.act_func": translates("model.activation", colossalai_values.ACTIVATIONS),
    "model.dtype": colossalai_values.dtype,
}

_OPTIMIZER: dict[str, str | Converter] = {
    "optimizer.nvme_offload_fraction": colossalai_values.nvme_fraction,
    "optimizer.nvme_offload_dir": "zero.nvme_path",
    "lr_scheduler.warmup_steps": "lr_scheduler.warmup",
    "lr_scheduler.total_steps": "lr_scheduler.total",
    "lr_scheduler.T_max": "lr_scheduler.total",
    "lr_scheduler.eta_min": "lr_scheduler.eta_min",
    "loss": colossalai_values.only_accepts(*colossalai_values.LOSSES),
    "loss.type": colossalai_values.only_accepts(*colossalai_values.LOSSES),
    "loss_fn": colossalai_values.only_accepts(*colossalai_values.LOSSES),
    "loss_fn.type": colossalai_values.only_accepts(*colossalai_values.LOSSES),
    "DATA": colossalai_values.data,
}

_LOSS_SCALE: dict[str, str | Converter] = {
    "init_scale": "loss_scale.initial",
    "initial_scale": "loss_scale.initial",
    "growth_factor": "loss_scale.growth_factor",
    "backoff_factor": "loss_scale.backoff_factor",
    "growth_interval": "loss_scale.growth_interval",
    "hysteresis": "loss_scale.hysteresis",
    "min_scale": "loss_scale.min",
    "max_scale": "loss_scale.max",
}

_FP16: dict[str, str | Converter] = {
    "mode": colossalai_values.amp_type,
    "clip_grad": colossalai_values.clip,
    "clip_grad_norm": colossalai_values.clip,
    **_LOSS_SCALE,
}

_ZERO: dict[str, str | Converter] = {
    "level": "zero.stage",
    "clip_grad": colossalai_values.clip,
    "cpu_offload": translates("zero.offload", colossalai_values.SWITCHES),
    "offload_optimizer_config.device": translates("zero.offload", colossalai_values.DEVICES),
    "offload_optimizer_config.nvme_path": "zero.nvme_path",
    "offload_param_config.device": translates("zero.offload_params", colossalai_values.DEVICES),
    "offload_param_config.nvme_path": "zero.nvme_path",
    "model_config.tensor_placement_policy": colossalai_values.placement,
    "model_config.offload_config.device": translates(
        "zero.offload_params", colossalai_values.DEVICES
    ),
    "model_config.shard_strategy": colossalai_values.only_accepts(
        *colossalai_values.SHARD_STRATEGIES
    ),
    "optimizer_config.cpu_offload": translates("zero.offload", colossalai_values.SWITCHES),
    **{f"optimizer_config.{key}": value for key, value in _LOSS_SCALE.items()},
}

_LIGHTNING: dict[str, str | Converter] = {
    "accumulate_grad_batches": "gradient_accumulation",
    "gradient_clip_val": colossalai_values.clip,
    "log_every_n_steps": "log.every",
    "max_epochs": "num_epochs",
    "strategy": lightning_values.strategy,
}

# minGPT's TrainerConfig, and the sections of minGPT-ddp's file
_TRAINER: dict[str, str | Converter] = {
    "max_epochs": "num_epochs",
    "grad_norm_clip": colossalai_values.clip,
    "save_every": "checkpoint.epochs",
    "use_amp": lightning_values.use_amp,
    "distributed_method": lightning_values.distributed_method,
    "cpu_offload": lightning_values.cpu_offload,
}
_MINGPT: dict[str, str | Converter] = {
    **_TRAINER,
    **{f"trainer_config.{key}": value for key, value in _TRAINER.items()},
    "trainer_config.lr_decay": lightning_values.lr_decay,
    "trainer_config.warmup_tokens": lightning_values.warmup_tokens,
    "trainer_config.final_tokens": "lr_scheduler.total",
    "trainer_config.batch_size": "batch_size",
    "trainer_config.learning_rate": "optimizer.lr",
    "trainer_config.betas": "optimizer.betas",
    "trainer_config.weight_decay": "optimizer.weight_decay",
    "data_config.path": "data.path",
    "data_config.block_size": "seq_len",
    "data_config.truncate": "data.truncate",
    "data_config.train_split": lightning_values.train_split,
    "gpt_config.model_type": colossalai_values.preset,
    **{
        f"gpt_config.{name}": f"model.{name}"
        for name in (
            *("n_layer", "n_head", "n_embd", "vocab_size", "block_size"),
            *("embd_pdrop", "resid_pdrop", "attn_pdrop"),
        )
    },
    "optimizer_config.learning_rate": "optimizer.lr",
    "optimizer_config.weight_decay": "optimizer.weight_decay",
}

ALIASES: Mapping[str, str | Converter] = MappingProxyType(
    {
        **_OWN,
        **_OWN_NAMES_WITH_THEIR_VALUES,
        **_PARALLEL,
        **_MODEL,
        **_OPTIMIZER,
        **_LIGHTNING,
        **_MINGPT,
        **{f"{name}.{key}": value for name in ("fp16", "amp") for key, value in _FP16.items()},
        "fp16": colossalai_values.amp_type,
        "amp": colossalai_values.amp_type,
        **{f"zero.{key}": value for key, value in _ZERO.items()},
    }
)

# Settings implied by the presence of a key or section, unless the file sets them. Both forms of
# Colossal-AI's ZeRO compute in fp16; the later one always shards everything.
IMPLIED: Mapping[str, Mapping[str, object]] = MappingProxyType(
    {
        "zero.level": {"precision": "fp16"},
        "zero.model_config": {"precision": "fp16", "zero.stage": 3},
        "zero.optimizer_config": {"precision": "fp16", "zero.stage": 3},
    }
)
