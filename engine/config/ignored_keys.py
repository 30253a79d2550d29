"""Keys of other frameworks' config files that have no meaning here, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class IgnoredKey:
    """``only``: the values that may be given; others would change the training, so are refused."""

    reason: str
    only: tuple[object, ...] | None = None


_BUCKETS = IgnoredKey("buckets are sized by cuboid")
_OVERLAP = IgnoredKey("communication overlaps the computation wherever it can")
_PINNED = IgnoredKey("host memory is pinned where it helps")
_BUFFERS = IgnoredKey("buffers for offloading to a disk are sized by zero.nvme_buffer")
_PREFETCH = IgnoredKey("how far parameters are gathered ahead is chosen by cuboid")
_VERBOSE = IgnoredKey("the log says it in any case")
_DYNAMIC = IgnoredKey("the loss scale of fp16 is always dynamic", only=(True,))
_FLOAT32 = IgnoredKey("gradients are always reduced in float32")
_PREDIVIDE = IgnoredKey("the loss is divided by the global number of targets before the cast")
_FUSED = IgnoredKey("fused kernels are used wherever torch has them")
_ONE_ADAM = IgnoredKey("Adam's moments are always corrected for their bias", only=(True,))
_LAUNCH = IgnoredKey("given by the launcher")
_CUDNN = IgnoredKey("a GPT has no convolutions; deterministic=True is the setting")

_OFFLOAD = {"pin_memory": _PINNED, "fast_init": _BUFFERS, "buffer_count": _BUFFERS}

_SECTIONS: Mapping[str, Mapping[str, IgnoredKey]] = {
    "": {
        "loss_args": IgnoredKey("nothing reads it in Colossal-AI either"),
        "gradient_handler": IgnoredKey("every gradient is summed over the axes that do not cut it"),
        "torch_ddp": _BUCKETS,
        "cudnn_benchmark": _CUDNN,
        "cudnn_deterministic": _CUDNN,
        "LOG_PATH": IgnoredKey("log.dir, or --output, is the folder of a run"),
        "logging": IgnoredKey("a run writes its log into its folder"),
        "host": _LAUNCH,
        "port": _LAUNCH,
        "rank": _LAUNCH,
        "world_size": _LAUNCH,
    },
    "model": {
        "fused": _FUSED,
        "fuse_scale_mask_softmax": _FUSED,
        "embed_split_hidden": IgnoredKey("MODE says how the embedding is cut"),
        "layer_partitions": IgnoredKey("layers are dealt out to the stages by cost"),
        "padding_idx": IgnoredKey("targets of -100 are ignored, whatever the token"),
        "bias": IgnoredKey("layers have biases, as published", only=(True,)),
        "apply_post_layernorm": IgnoredKey("blocks are pre-norm, as published", only=(False,)),
        "activation_offload": IgnoredKey("activations stay on the device", only=(False,)),
    },
    "optimizer": {
        "fused": _FUSED,
        "foreach": _FUSED,
        "capturable": _FUSED,
        "set_grad_none": IgnoredKey("gradients are freed after each step"),
        "simd_log": _VERBOSE,
        "bias_correction": _ONE_ADAM,
        "adamw_mode": IgnoredKey("optimizer.type='adam' is Adam without it", only=(True,)),
        "amsgrad": IgnoredKey("there is no AMSGrad", only=(False,)),
        "maximize": IgnoredKey("the loss is minimised", only=(False,)),
        "nesterov": IgnoredKey("momentum is the plain one", only=(False,)),
        "dampening": IgnoredKey("momentum is not damped", only=(0,)),
    },
    "lr_scheduler": {
        "last_epoch": IgnoredKey("a resumed run knows its step", only=(-1,)),
    },
    "fp16": {
        "verbose": _VERBOSE,
        "log_num_zeros_in_grad": _VERBOSE,
        "dynamic_grad_scale": _DYNAMIC,
        "opt_level": IgnoredKey("precision='fp16' keeps float32 master weights at every level"),
        "enabled": IgnoredKey("precision='float32' is without it", only=(True,)),
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
        "aio_config": IgnoredKey("TensorNVMe chooses its own transfers"),
    },
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
