"""FLOPs of training by the model's own maths, and peak FLOP/s of devices."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.config.sections.model import ModelSettings
    from models.config import GPTConfig

# Dense peaks from the vendors' datasheets, FLOP/s: (16-bit tensor cores, accumulating in float32;
# float32 outside tensor cores). Where variants share a name, it stands for SXM.
PEAK_FLOPS: dict[str, tuple[float, float]] = {
    "B200": (2250e12, 75e12),
    "GH200": (989.4e12, 66.9e12),
    "H200": (989.4e12, 66.9e12),
    "H200 NVL": (835.5e12, 60.3e12),
    "H100": (989.4e12, 66.9e12),
    "H100 NVL": (835.5e12, 60.3e12),
    "H100 PCIe": (756.4e12, 51.2e12),
    "H800": (989.4e12, 66.9e12),
    "H20": (148e12, 44e12),
    "A100": (312e12, 19.5e12),
    "A800": (312e12, 19.5e12),
    "A40": (149.7e12, 37.4e12),
    "A30": (165e12, 10.3e12),
    "A10": (125e12, 31.2e12),
    "A10G": (70e12, 35e12),
    "L40S": (362.05e12, 91.6e12),
    "L40": (181.05e12, 90.5e12),
    "L4": (121e12, 30.3e12),
    "RTX 6000 Ada": (364.2e12, 91.1e12),
    "RTX A6000": (154.8e12, 38.7e12),
    "RTX 5090": (209.5e12, 104.8e12),
    "RTX 4090": (165.2e12, 82.6e12),
    "RTX 4080": (97.5e12, 48.7e12),
    "RTX 3090": (71e12, 35.6e12),
    "RTX 3080": (59.5e12, 29.8e12),
}
# Devices with these words in their names are smaller than the device of that name.
OTHER_GPUS = {"MIG", "Laptop", "Mobile", "Max", "SUPER", "Ti"}


def matmul_parameters(model: ModelSettings | GPTConfig) -> int:
    """Count the weights in matmuls: qkv, proj, fc and proj of each block, and the head.

    An embedding lookup is no matmul; a tied table counts once, as the head.
    """
    attention = 4 * model.n_embd * model.n_head * model.head_dim
    mlp = 2 * model.n_embd * model.n_inner
    return model.n_layer * (attention + mlp) + model.n_embd * model.vocab_size


def flops_per_token(model: ModelSettings | GPTConfig, seq_len: int) -> int:
    """Return the FLOPs of training on one token, forward and backward: 6N + 12 L H Q T.

    PaLM, arXiv 2204.02311, appendix B: N weights in matmuls, L layers, H heads of size Q, T tokens
    per sample. As there, attention counts all T x T scores, although a causal mask needs half;
    activation checkpointing's recomputation does not count.
    """
    attention = 12 * model.n_layer * model.n_head * model.head_dim * seq_len
    return 6 * matmul_parameters(model) + attention


def smallest_matmul_flops(model: ModelSettings | GPTConfig, tokens: int, tensor: int) -> int:
    """Return the FLOPs that one of ``tensor`` tensor-parallel ranks spends on the smallest matmul
    of a block, for micro-batches of ``tokens``. Each mode divides a matmul's FLOPs evenly."""
    narrow = min(model.n_head * model.head_dim, model.n_inner)
    return 2 * tokens * model.n_embd * narrow // tensor


def peak_flops(device: str, precision: str) -> float | None:
    """Return the device's dense peak in FLOP/s for matmuls in ``precision``; None if it is unknown.

    ``device`` is CUDA's name, such as 'NVIDIA H100 80GB HBM3'.
    """
    name_parts = re.findall(r"\w+", device)
    if OTHER_GPUS & set(name_parts):
        return None
    fitting = [name for name in PEAK_FLOPS if set(name.split()) <= set(name_parts)]
    if not fitting:
        return None
    half, single = PEAK_FLOPS[max(fitting, key=len)]
    return {"bf16": half, "fp16": half, "float32": single}.get(precision)
