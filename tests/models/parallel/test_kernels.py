"""The head of a GPU: padded tables, equal chunks, and the kernels of the loss. The parity tests
train with it in every mode."""

from __future__ import annotations

import os
import sys
from dataclasses import replace

import pytest
import torch

from engine.checkpoint.state_dict import model_tensors
from models.chunks import ModelChunks
from models.gpt import GPT
from models.parallel.context import ParallelContext
from models.parallel.kernels import DeviceKernels, LossKernels, add_product
from models.parallel.tuning import CHUNK_BYTES, chunk_rows
from tests.support.loss_kernels import LIKE_A_GPU, TorchLossKernels
from tests.support.training import TrainingCase

CPU = torch.device("cpu")


def model(kernels: DeviceKernels) -> ModelChunks:
    part = ParallelContext.single_device(CPU, dtype=torch.float32, compute=torch.float32)
    chunks = ModelChunks([GPT(TrainingCase().config, replace(part, kernels=kernels))])
    chunks.initialise(1)
    return chunks


def test_padding_is_zero_and_neither_saved_nor_a_logit() -> None:
    padded, plain = model(LIKE_A_GPU), model(DeviceKernels())
    words, width = plain[0].wte.weight.shape
    table = padded[0].wte.weight
    assert table.shape == (128, width)
    assert not table[words:].any()
    for name, saved in model_tensors(plain).items():
        other = model_tensors(padded)[name]
        assert torch.equal(other.fetch(), saved.fetch())  # type: ignore[attr-defined]
    x = torch.randn(3, width)
    torch.testing.assert_close(padded[0].logits(x), plain[0].logits(x))


@pytest.mark.parametrize("rows", [1, 100, 128, 1000, 65_536, 1_000_001])
@pytest.mark.parametrize("row_bytes", [2 * 128, 2 * 50_304, 4 * 262_144, 1 << 40])
def test_chunks_on_a_gpu_are_equal_multiples_within_the_budget(rows: int, row_bytes: int) -> None:
    size = chunk_rows(rows, row_bytes, "cuda", 128)
    number = -(-rows // size)
    assert size % 128 == 0
    assert (size - 128) * row_bytes < CHUNK_BYTES["cuda"], "rounding up adds less than a multiple"
    assert number * size - rows < 128 * number, "all chunks are as large, up to the rounding"
    assert number <= -(-rows // max(1, CHUNK_BYTES["cuda"] // row_bytes)), "chunks are few"


def test_a_cpu_has_no_kernels_of_its_own() -> None:
    assert DeviceKernels.of(CPU, torch.float32, torch.bfloat16) == DeviceKernels()


@pytest.mark.parametrize("transposed", [False, True])
def test_a_product_is_added_in_place(transposed: bool) -> None:
    a, b = torch.randn(5, 7, dtype=torch.float64), torch.randn(7, 3, dtype=torch.float64)
    memory = torch.ones((3, 5) if transposed else (5, 3), dtype=torch.float64)
    add_product(memory.t() if transposed else memory, a, b)
    torch.testing.assert_close(memory.t() if transposed else memory, 1 + a @ b)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def triton_kernels(request: pytest.FixtureRequest) -> tuple[LossKernels, torch.device]:
    """Return Triton's kernels and their device. Without a GPU Triton's interpreter runs them, for
    which the environment must be set before triton is imported."""
    if request.param == "cpu":
        if torch.cuda.is_available():
            pytest.skip("the GPU runs the kernels")
        if "triton" in sys.modules and "TRITON_INTERPRET" not in os.environ:
            pytest.skip("triton was imported without its interpreter")
        os.environ["TRITON_INTERPRET"] = "1"  # until the process ends
    pytest.importorskip("triton", reason="torch's build for CPUs comes without triton")
    from models.parallel import triton_loss

    return triton_loss, torch.device(request.param)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("width", "size"), [(128, 29), (128, 128), (5120, 5001), (256, 0)])
def test_triton_kernels_equal_torchs_operators(
    triton_kernels: tuple[LossKernels, torch.device], dtype: torch.dtype, width: int, size: int
) -> None:
    """The second row has large logits; the fourth, and a rank without columns, have no target."""
    ours, device = triton_kernels
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(6, width, generator=draw) * 4
    logits[1] *= 50
    columns = torch.tensor([3, size - 1, 7, -1, 0, 2]).clamp(max=size - 1)
    factors, theirs = torch.rand(6, generator=draw), TorchLossKernels()
    logits = logits.to(device, dtype)
    columns, factors = columns.to(device), factors.to(device)
    total, picked = ours.row_statistics(logits, columns, size)
    wanted = theirs.row_statistics(logits, columns, size)
    torch.testing.assert_close((total, picked), wanted, rtol=1e-5, atol=1e-5)
    if size == 0:
        total = torch.zeros_like(total)  # as another rank has it
    found, expected = logits.clone(), logits.clone()
    ours.write_gradient(found, columns, size, total, factors)
    theirs.write_gradient(expected, columns, size, total, factors)
    torch.testing.assert_close(found, expected)
    assert not found[:, size:].any()
