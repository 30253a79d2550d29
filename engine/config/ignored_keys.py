"""Keys of other frameworks' config files that have no effect here, and the reasons."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class IgnoredKey:
    """A key that is accepted and ignored."""

    reason: str
    only: tuple[object, ...] | None = None
    """Accepted values; another would change the training, so it is rejected. None: any value."""


_BUCKETS = IgnoredKey("cuboid chooses the size of buckets")
_OVERLAP = IgnoredKey("communication always overlaps computation where possible")
_PINNED = IgnoredKey("cuboid pins host memory where that is faster")
_BUFFERS = IgnoredKey("zero.nvme_buffer sets the size of the disk's buffers")
_PREFETCH = IgnoredKey("cuboid chooses when to prefetch parameters")
_VERBOSE = IgnoredKey("the log always has it")
_DYNAMIC = IgnoredKey("the loss scale of fp16 is always dynamic", only=(True,))
_FLOAT32 = IgnoredKey("gradients are always reduced in float32")
_PREDIVIDE = IgnoredKey("the loss is divided by the global number of targets before the cast")
_FUSED = IgnoredKey("torch's fused kernels are used where they exist")
_ONE_ADAM = IgnoredKey("Adam always has bias correction", only=(True,))
_LAUNCH = IgnoredKey("the launcher sets it")
_CUDNN = IgnoredKey("a GPT has no convolutions; use deterministic=True")

_READING = IgnoredKey("samples are read without worker processes")

_OFFLOAD = {"pin_memory": _PINNED, "fast_init": _BUFFERS, "buffer_count": _BUFFERS}

_SECTIONS: Mapping[str, Mapping[str, IgnoredKey]] = {
    "": {
        "loss_args": IgnoredKey("Colossal-AI does not read it either"),
        "gradient_handler": IgnoredKey(
            "every gradient is reduced over the axes that do not shard it"
        ),
        "torch_ddp": _BUCKETS,
        "cudnn_benchmark": _CUDNN,
        "cudnn_deterministic": _CUDNN,
        "LOG_PATH": IgnoredKey("log.dir or --output sets the folder of a run"),
        "logging": IgnoredKey("a run writes its log to its folder"),
        "host": _LAUNCH,
        "port": _LAUNCH,
        "rank": _LAUNCH,
        "world_size": _LAUNCH,
    },
    "model": {
        "fused": _FUSED,
        "fuse_scale_mask_softmax": _FUSED,
        "embed_split_hidden": IgnoredKey("MODE determines how the embedding is sharded"),
        "layer_partitions": IgnoredKey("the setting stages assigns layers to pipeline stages"),
        "padding_idx": IgnoredKey("the loss ignores targets of -100, not a token id"),
        "bias": IgnoredKey("layers have biases, as in GPT-2", only=(True,)),
        "apply_post_layernorm": IgnoredKey("blocks are pre-norm, as in GPT-2", only=(False,)),
        "activation_offload": IgnoredKey("activations are not offloaded", only=(False,)),
    },
    "optimizer": {
        "fused": _FUSED,
        "foreach": _FUSED,
        "capturable": _FUSED,
        "set_grad_none": IgnoredKey("gradients are freed after each step"),
        "simd_log": _VERBOSE,
        "bias_correction": _ONE_ADAM,
        "adamw_mode": IgnoredKey("for Adam without it, use optimizer.type='adam'", only=(True,)),
        "amsgrad": IgnoredKey("AMSGrad is not supported", only=(False,)),
        "maximize": IgnoredKey("the loss is minimised", only=(False,)),
        "nesterov": IgnoredKey("Nesterov momentum is not supported", only=(False,)),
        "dampening": IgnoredKey("dampening is not supported", only=(0,)),
    },
    "lr_scheduler": {
        "last_epoch": IgnoredKey("a resumed run restores its step", only=(-1,)),
    },
    "fp16": {
        "verbose": _VERBOSE,
        "log_num_zeros_in_grad": _VERBOSE,
        "dynamic_grad_scale": _DYNAMIC,
        "opt_level": IgnoredKey("precision='fp16' has float32 master weights at every level"),
        "enabled": IgnoredKey("without fp16, use precision='float32'", only=(True,)),
    },
    "zero": {
        "verbose": _VERBOSE,
        "dynamic_loss_scale": _DYNAMIC,
        "overlap_comm": _OVERLAP,
        "contiguous_gradients": _BUCKETS,
        "reduce_bucket_size": _BUCKETS,
        "allgather_bucket_size": _BUCKETS,
        "allgather_partitions": _BUCKETS,
        "reduce_scatter": _BUCKETS,
        "round_robin_gradients": _BUCKETS,
        "sub_group_size": _BUFFERS,
        "allreduce_always_fp32": _FLOAT32,
        "gradient_predivide_factor": _PREDIVIDE,
        "postscale_gradients": _PREDIVIDE,
        "prefetch_bucket_size": _PREFETCH,
        "max_reuse_distance": _PREFETCH,
        "max_live_parameters": _PREFETCH,
        "param_persistence_threshold": _PREFETCH,
        "aio_config": IgnoredKey("TensorNVMe chooses the size of its transfers"),
    },
    "trainer_config": {"num_workers": _READING, "data_loader_workers": _READING},
    "zero.offload_optimizer_config": _OFFLOAD | {"pipeline": _OVERLAP},
    "zero.offload_param_config": _OFFLOAD | {"buffer_size": _BUFFERS, "max_in_cpu": _BUFFERS},
    "zero.model_config": {
        "reuse_fp16_shard": _BUFFERS,
        "reduce_scatter_bucket_size_mb": _BUCKETS,
        "fp32_reduce_scatter": _FLOAT32,
        "gradient_predivide_factor": _PREDIVIDE,
    },
    "zero.optimizer_config": {
        "gpu_margin_mem_ratio": _BUFFERS,
        "verbose": _VERBOSE,
    },
}

IGNORED_KEYS: Mapping[str, IgnoredKey] = {
    f"{section}.{key}" if section else key: why
    for section, keys in {**_SECTIONS, "amp": _SECTIONS["fp16"]}.items()
    for key, why in keys.items()
}
