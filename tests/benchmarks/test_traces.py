"""Kernels of a trace by kind, from names of CUDA's libraries, and the time of nested spans."""

from __future__ import annotations

import pytest

from benchmarks.gpu_check.traces import busy_seconds, kind_of, kinds_of, name_backend, spans_of

Event = dict[str, object]

CUDNN = "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_6_64x128x64_kernel0_0"
FLASH = "void pytorch_flash::flash_fwd_kernel<pytorch_flash::Flash_fwd_kernel_traits<64, 128>>"
EFFICIENT = "fmha_cutlassF_bf16_aligned_64x64_rf_sm80(PyTorchMemEffAttention::AttentionKernel)"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (CUDNN, "attention"),
        (FLASH, "attention"),
        (EFFICIENT, "attention"),
        ("nvjet_hsh_256x128_64x4_1x2_h_bz_coopA_TNT", "matmul"),
        ("void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm_bf16_128x256>", "matmul"),
        ("void cublasLt::splitKreduce_kernel<32, 16, int, float, __nv_bfloat16>", "matmul"),
        ("aten::addmm", "matmul"),
        ("ncclDevKernel_AllReduce_Sum_f32_RING_LL(ncclDevKernelArgsStorage)", "communication"),
        (
            "void at::native::(anonymous namespace)::multi_tensor_apply_kernel<FusedAdamMath"
            "Functor<float, 4>>",
            "optimizer",
        ),
        ("triton_per_fused_native_layer_norm_0", "norm"),
        ("triton_poi_fused__to_copy_add_gelu_3", "pointwise"),
        ("void at::native::(anonymous namespace)::cunn_SoftMaxForward<8, float, float>", "loss"),
        (
            "void at::native::reduce_kernel<512, 1, ReduceOp<float, MaxOps<float>>>",
            "loss",
        ),
        ("void at::native::_scatter_gather_elementwise_kernel<128, 8>", "loss"),
        ("Memcpy DtoD (Device -> Device)", "copies"),
        ("Memset (Device)", "copies"),
        ("void at::native::unrolled_elementwise_kernel<direct_copy_kernel_cuda>", "copies"),
        ("void at::native::vectorized_elementwise_kernel<4, MulFunctor<float>>", "pointwise"),
        ("void at::native::(anonymous namespace)::compute_grad_weight<float>", "embedding"),
        ("something_new", "other"),
    ],
)
def test_kernel_name_gives_its_kind(name: str, kind: str) -> None:
    assert kind_of(name) == kind


def test_kernel_names_give_the_backend_of_attention() -> None:
    assert [name_backend([name]) for name in (CUDNN, FLASH, EFFICIENT)] == [
        "cudnn",
        "flash",
        "efficient",
    ]
    assert name_backend([]) == "math"


def test_overlapping_spans_are_counted_once() -> None:
    """The time of an operator excludes that of nested operators; concurrent streams count once."""

    def event(name: str, start: int, length: int, lane: int, category: str = "kernel") -> Event:
        position = {"pid": 0, "tid": lane, "ts": start, "dur": length}
        return {"ph": "X", "cat": category, "name": name, **position}

    spans = spans_of(
        [
            event("aten::linear", 0, 10, 1),
            event("aten::mm", 2, 6, 1),
            event("Memcpy DtoH", 5, 10, 2),
            event("aten::mm", 30, 5, 1),
            event("ProfilerStep#1", 0, 100, 1, "user_annotation"),
            {"ph": "i", "name": "a mark", "ts": 3, "pid": 0, "tid": 1},
        ],
        {"kernel"},
    )
    assert kinds_of(spans) == pytest.approx({"matmul": 11e-6, "copies": 10e-6, "other": 4e-6})
    assert list(kinds_of(spans)) == ["matmul", "copies", "other"]
    assert busy_seconds(spans) == pytest.approx(20e-6)
