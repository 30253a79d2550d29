"""FLOPs compared with torch's counter on a plain GPT-2, and peak FLOP/s by CUDA's device names."""

from __future__ import annotations

from typing import Any

import pytest

from engine.config.sections.model import ModelSettings
from engine.estimate.flops import PEAK_FLOPS, flops_per_token, matmul_parameters, peak_flops


def model(**changes: Any) -> ModelSettings:
    sizes = {"n_layer": 3, "n_head": 4, "n_embd": 32, "vocab_size": 101, "block_size": 16}
    derived = {"head_dim": 8, "n_inner": 128}
    return ModelSettings(**sizes | derived | changes)


def test_flops_equal_torchs_count_for_a_step_of_gpt2():
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        n_layer=3, n_head=4, n_embd=32, vocab_size=101, n_positions=16, attn_implementation="eager"
    )
    ids = torch.zeros(2, 16, dtype=torch.int64)
    gpt2 = transformers.GPT2LMHeadModel(config)
    with FlopCounterMode(display=False) as counter:
        gpt2(ids, labels=ids).loss.backward()
    assert counter.get_total_flops() == ids.numel() * flops_per_token(model(), seq_len=16)


def test_matmul_parameters_of_gpt2_small_equal_the_published_count():
    small = model(n_layer=12, n_head=12, n_embd=768, head_dim=64, n_inner=3072, vocab_size=50257)
    everything = 124_439_808  # with positions, biases and norms, which no token is multiplied with
    others = 1024 * 768 + 12 * (4 * 768 + 9 * 768) + 2 * 768
    assert matmul_parameters(small) == everything - others


@pytest.mark.parametrize(
    ("device", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", PEAK_FLOPS["H100"][0]),
        ("NVIDIA H100 PCIe", PEAK_FLOPS["H100 PCIe"][0]),
        ("NVIDIA H100 NVL", PEAK_FLOPS["H100 NVL"][0]),
        ("NVIDIA H200", PEAK_FLOPS["H200"][0]),
        ("NVIDIA GH200 480GB", PEAK_FLOPS["GH200"][0]),
        ("NVIDIA A100-SXM4-80GB", PEAK_FLOPS["A100"][0]),
        ("NVIDIA A100-PCIE-40GB", PEAK_FLOPS["A100"][0]),
        ("NVIDIA A10", PEAK_FLOPS["A10"][0]),
        ("NVIDIA A10G", PEAK_FLOPS["A10G"][0]),
        ("NVIDIA L4", PEAK_FLOPS["L4"][0]),
        ("NVIDIA L40S", PEAK_FLOPS["L40S"][0]),
        ("NVIDIA GeForce RTX 4090", PEAK_FLOPS["RTX 4090"][0]),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 4080 SUPER", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("NVIDIA Unheard Of 9000", None),
        ("cpu", None),
    ],
)
def test_peak_flops_of_a_device_name(device, peak):
    assert peak_flops(device, "bf16") == peak


def test_peak_flops_depend_on_the_precision():
    assert peak_flops("NVIDIA H200", "fp16") == peak_flops("NVIDIA H200", "bf16")
    single = peak_flops("NVIDIA H200", "float32")
    assert single is not None
    assert single < 70e12  # outside tensor cores
    assert peak_flops("NVIDIA H200", "float64") is None
