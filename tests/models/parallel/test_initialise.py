"""Initial weights are a function of (seed, name, position): any sharding draws the same numbers."""

from __future__ import annotations

from itertools import product
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from engine.layout import Layout
from models.config import GPTConfig
from models.gpt import GPT
from models.parallel.context import ParallelContext
from models.parallel.initialise import BLOCK, init_normal_
from models.parallel.layers import initialise
from models.parallel.mode import Mode
from models.parallel.registry import modes
from models.parallel.shard import PartitionSpec, shard_of

WHOLE: PartitionSpec = ((), ())


def drawn(
    shape: tuple[int, ...],
    cut: PartitionSpec = WHOLE,
    sizes: dict[str, int] | None = None,
    index: dict[str, int] | None = None,
    *,
    seed: int = 1,
    name: str = "w",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    box = shard_of(shape, cut, sizes or {}, index or {})
    local = torch.full(box.local, torch.nan, dtype=dtype)
    init_normal_(local, box, std=0.5, seed=seed, name=name)
    return local


@pytest.mark.parametrize("shape", [(600, 270), (256, 256), (257, 3), (5, 1000)])
@pytest.mark.parametrize(
    "cut", [(("a",), ()), ((), ("a",)), (("a",), ("b",)), (("a", "b"), ()), ((), ("b", "a"))]
)
def test_shards_equal_slices_of_the_unsharded_tensor(
    shape: tuple[int, int], cut: PartitionSpec
) -> None:
    whole, sizes = drawn(shape), {"a": 3, "b": 2}
    for a, b in product(range(3), range(2)):
        index = {"a": a, "b": b}
        box = shard_of(shape, cut, sizes, index)
        local = drawn(shape, cut, sizes, index)
        assert torch.equal(local[box.valid_slices], whole[box.slices])
        local[box.valid_slices] = 0
        assert not local.count_nonzero(), "padding is zero"


def test_numbers_depend_on_seed_and_name() -> None:
    w = drawn((300, 300))
    assert torch.equal(w, drawn((300, 300)))
    others = [drawn((300, 300), seed=2), drawn((300, 300), name="v"), w.roll(256, 0)]
    for other in others:
        correlation = torch.corrcoef(torch.stack((w.flatten(), other.flatten())))[0, 1]
        assert abs(correlation) < 5 / 300  # five sigma of n = 90,000


def test_blocks_of_a_tensor_are_independent() -> None:
    w = drawn((512, 512))
    blocks = [w[r : r + 256, c : c + 256].flatten() for r in (0, 256) for c in (0, 256)]
    correlations = torch.corrcoef(torch.stack(blocks)) - torch.eye(4)
    assert correlations.abs().max() < 5 / 256


def test_numbers_are_normally_distributed() -> None:
    w = drawn((1000, 1000)) / 0.5
    assert abs(w.mean()) < 5e-3
    assert abs(w.std() - 1) < 4e-3
    within = [(w.abs() < z).double().mean().item() for z in (1, 2, 3)]
    assert within == pytest.approx([0.6827, 0.9545, 0.9973], abs=2.5e-3)


def test_each_dtype_rounds_the_same_numbers() -> None:
    w = drawn((40, 40))
    assert torch.equal(drawn((40, 40), dtype=torch.float64), w.double())
    assert torch.equal(drawn((40, 40), dtype=torch.bfloat16), w.bfloat16())


def test_initialisation_does_not_advance_the_global_generator() -> None:
    before = torch.get_rng_state()
    drawn((300, 300))
    assert torch.equal(torch.get_rng_state(), before)


def test_rank_draws_at_most_a_block_beyond_its_shard() -> None:
    """The limit is a block on each side of the shard."""
    shape, sizes = (4096, 64), {"a": 16}
    drew = []
    empty = torch.empty

    def noting(size: list[int]) -> Tensor:
        drew.append(size[0] * size[1])
        return empty(size)

    with patch.object(torch, "empty", noting):
        box = shard_of(shape, (("a",), ()), sizes, {"a": 5})
        local = torch.zeros(box.local)
        init_normal_(local, box, std=1.0, seed=1, name="w")
    assert 0 < sum(drew) <= (box.size[0] + 2 * BLOCK) * 64
    assert max(drew) <= BLOCK**2


SIZES = GPTConfig(
    n_layer=4, n_head=4, n_embd=128, head_dim=32, n_inner=512, vocab_size=300, block_size=200
)


def built(layers: range | None = None, *, seed: int = 1) -> dict[str, Tensor]:
    part = ParallelContext.single_device(
        torch.device("cpu"), dtype=torch.float32, compute=torch.float32
    )
    model = GPT(SIZES, part, layers=layers)
    for parameter in model.parameters():
        parameter.data.fill_(torch.nan)
    initialise(model, seed)
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def test_initial_distribution_equals_gpt2() -> None:
    """Radford et al. 2019: std 0.02, projections onto the residual stream smaller by
    sqrt(2 n_layer); biases 0, norms 1."""
    for name, w in built().items():
        if name.endswith("bias"):
            assert not w.count_nonzero(), name
        elif ".ln_" in name or name.startswith("ln_"):
            assert (w == 1).all(), name
        else:
            std = 0.02 / 8**0.5 if name.endswith("c_proj.weight") else 0.02
            assert float(w.std()) == pytest.approx(std, rel=0.03), name
            assert abs(float(w.mean())) < 5 * std / w.numel() ** 0.5, name


def test_initial_parameters_differ_from_each_other() -> None:
    weights = [w.flatten()[:4096] for name, w in built().items() if w.dim() == 2]
    correlations = torch.corrcoef(torch.stack(weights)) - torch.eye(len(weights))
    assert correlations.abs().max() < 6 / 64


@pytest.mark.parametrize("layers", [range(2), range(1, 3), range(2, 4)], ids=str)
def test_stage_parameters_equal_those_of_the_whole_model(layers: range) -> None:
    whole = built()
    stage = built(layers)
    assert {name.split(".")[1] for name in stage if name.startswith("h.")} == set(map(str, layers))
    assert all(torch.equal(w, whole[name]) for name, w in stage.items())


@pytest.mark.parametrize("mode", modes().values(), ids=list(modes()))
def test_embedding_shards_of_each_mode_equal_the_whole_table(mode: Mode) -> None:
    """The parity tests check whole models; this test, one large table without processes."""
    whole = drawn((300, 128), name="wte.weight")
    size = max(n for n in range(1, 9) if mode.axes(n, 1) is not None)
    layout = Layout(mode=mode, tensor=size)
    for rank in range(size):
        cut = (mode.up.weight_out, mode.up.weight_in)
        box = layout.shard((300, 128), cut, rank)
        local = torch.empty(box.local)
        init_normal_(local, box, std=0.5, seed=1, name="wte.weight")
        assert torch.equal(local[box.valid_slices], whole[box.slices])
