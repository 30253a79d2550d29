"""Activation checkpointing (Chen et al. 2016): keep a block's input and compute the rest again."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import (
    CheckpointPolicy,
    SelectiveCheckpointContext,
    checkpoint,
    create_selective_checkpoint_contexts,
)

KEPT = {
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.mkldnn._linear_pointwise.default,
}
"""What a selective checkpoint keeps: matmuls and attention. The rest is cheap to compute again."""


def recompute(block: Callable[..., Any], *args: Any, keep: bool) -> Tensor:
    """``block(*args)``, computed again in backward; where ``keep``, outputs of matmuls are kept.

    Dropout masks are keyed, so there is no generator state to restore.
    """
    contexts: dict[str, Any] = {"context_fn": selective} if keep else {}
    y: Tensor = checkpoint(block, *args, use_reentrant=False, preserve_rng_state=False, **contexts)
    return y


def _policy(
    context: SelectiveCheckpointContext, op: Any, *args: Any, **kw: Any
) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if op in KEPT else CheckpointPolicy.PREFER_RECOMPUTE


selective = partial(create_selective_checkpoint_contexts, _policy)
