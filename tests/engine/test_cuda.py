"""Code that differs between GPU and CPU. Each test also runs on the CPU if that is the same code,
so that it is tested without a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.checkpoint import rng
from engine.checkpoint.async_save import HostStaging
from engine.checkpoint.dcp_shard import DCPShard
from engine.plan import make_plan
from engine.training.trainer import Trainer
from models.parallel.collectives import Axis, Traffic
from models.parallel.context import ParallelContext
from models.parallel.dropout import Dropout
from models.parallel.micro_batch import MicroBatch
from models.parallel.mode import ActivationSharding
from tests.support.runs import StandInWorld, run_of
from tests.support.worlds import run_world

CONFIG = """
BATCH_SIZE = 4
SEQ_LEN = 16
MAX_STEPS = 4
NUM_MICRO_BATCHES = 2
model = dict(n_layer=2, n_head=2, n_embd=64, vocab_size=96)
optimizer = dict(type="adamw", lr=1e-2)
data = dict(type="synthetic")
"""
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
on_devices = pytest.mark.parametrize("device", DEVICES)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.py"
    path.write_text(CONFIG)
    return path


def opened(config: Path, device: str, *overrides: str) -> Trainer:
    """Return the trainer of a run on one rank, without a process group."""
    plan = make_plan(config, gpus=1, overrides=overrides, environ={})
    axes = dict(
        ParallelContext.single_device(
            torch.device("cpu"), dtype=torch.float32, compute=torch.float32
        ).axes
    )
    world = StandInWorld(
        plan=plan, axes=axes, traffic=Traffic(), is_main=True, device=torch.device(device)
    )
    return run_of(world, cache=config.parent / "cache")


def losses(run: Trainer, steps: int = 4) -> list[float]:
    return [run.step(number).loss for number in range(1, steps + 1)]


@on_devices
def test_losses_on_a_gpu_equal_those_on_the_cpu(config: Path, device: str) -> None:
    run = opened(config, device)
    assert {p.device.type for p in run.model.parameters()} == {device}
    assert losses(run) == pytest.approx(losses(opened(config, "cpu")), rel=1e-5)


@on_devices
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_losses_are_close_to_those_on_the_cpu(
    config: Path, device: str, precision: str
) -> None:
    run = opened(config, device, f"precision={precision}", "loss_scale.initial=256")
    assert losses(run) == pytest.approx(losses(opened(config, "cpu")), rel=2e-2)


@pytest.mark.gpu
def test_losses_of_a_compiled_step_are_close_to_the_eager_ones(config: Path) -> None:
    compiled = opened(config, "cuda", "precision=bf16", "compile=True")
    eager = opened(config, "cuda", "precision=bf16")
    assert losses(compiled) == pytest.approx(losses(eager), rel=1e-2)


@on_devices
@pytest.mark.parametrize("checkpoint", ["False", "True", "'selective'"])
def test_deterministic_runs_give_the_same_bits(config: Path, device: str, checkpoint: str) -> None:
    """The run has dropout. The gradients of the embedding, the target logits and attention are
    summed in an order that is not deterministic by default."""
    overrides = [
        "deterministic=True",
        "precision=bf16",
        f"model.checkpoint={checkpoint}",
        *(f"model.{name}_pdrop=0.1" for name in ("embd", "resid", "attn")),
    ]
    try:
        first, second = (opened(config, device, *overrides) for _ in range(2))
        assert losses(first) == losses(second)
        for (name, a), b in zip(
            first.model.named_parameters(), second.model.parameters(), strict=True
        ):
            assert torch.equal(a, b), name
    finally:
        torch.use_deterministic_algorithms(False)


@on_devices
def test_offloaded_weights_are_pinned_and_give_the_same_losses(config: Path, device: str) -> None:
    """On one rank ZeRO shards nothing, but weights are still offloaded to the host."""
    offloaded = opened(config, device, "zero.stage=3", "zero.offload=cpu")
    weights = [p for p in offloaded.model.parameters() if p.dim() == 2 and p.device.type == "cpu"]
    assert weights
    assert all(weight.is_pinned() == (device == "cuda") for weight in weights)
    assert losses(offloaded) == pytest.approx(losses(opened(config, "cpu")), rel=1e-5)


@on_devices
def test_staged_tensors_keep_their_values_after_a_step(device: str) -> None:
    kept = torch.arange(1000.0, device=device)
    (copied,) = HostStaging().stage({"w": DCPShard.unsharded(kept.view(10, 100))}).values()
    kept.zero_()
    assert isinstance(copied, DCPShard)
    held = copied.fetch()
    assert held.is_pinned() == (device == "cuda")
    assert torch.equal(held, torch.arange(1000.0).view(10, 100))


@on_devices
def test_random_generators_are_restored(device: str) -> None:
    where = torch.device(device, 0) if device == "cuda" else torch.device(device)
    saved = rng.rng_state(where)
    first = torch.rand(5, device=where)
    rng.restore_rng_state(saved, where)
    assert torch.equal(torch.rand(5, device=where), first)


@on_devices
def test_a_dropout_mask_depends_on_its_key_alone(device: str) -> None:
    part = ParallelContext.single_device(
        torch.device(device), dtype=torch.float32, compute=torch.float32
    )
    dropout = Dropout(part, 0.5, ActivationSharding(tokens=(), hidden=()), "here")
    x = torch.ones(64, 64, device=device)
    first = dropout(x, MicroBatch(length=16, seed=1))
    torch.rand(7, device=device)
    assert torch.equal(dropout(x, MicroBatch(length=16, seed=1)), first)
    assert not torch.equal(dropout(x, MicroBatch(length=16, seed=2)), first)
    assert 0.4 < float((first == 0).float().mean()) < 0.6


def exchanged(rank: int, size: int, device: str, dtype: torch.dtype) -> list[Tensor]:
    """Return the results of every collective of an axis over gloo."""
    import torch.distributed as dist

    axis = Axis(name="t", size=size, index=rank, group=dist.group.WORLD, traffic=Traffic())
    x = torch.arange(size * 6, dtype=dtype, device=device).view(size, 6) + rank
    results: list[Any] = [axis.all_gather(x), axis.reduce_scatter(x), axis.all_reduce(x.clone())]
    results.append(axis.swap(x, rank ^ 1))
    sent, arrived = axis.start_send(x, (rank + 1) % size), torch.empty_like(x)
    axis.start_receive(arrived, (rank - 1) % size).wait()
    sent.wait()
    results.append(arrived)
    late, host = x.clone(), x.cpu().clone()  # as gradients of offloaded weights are
    for handle in (axis.start_all_reduce(late), axis.start_all_reduce(host)):
        handle.wait()
    assert {one.device.type for one in (*results, late)} == {device}
    return [one.cpu() for one in (*results, late, host)]


@pytest.mark.parametrize(
    ("device", "dtype"),
    [
        ("cpu", torch.float32),
        pytest.param("cuda", torch.float32, marks=pytest.mark.gpu),
        pytest.param("cuda", torch.float64, marks=pytest.mark.gpu),
        pytest.param("cuda", torch.bfloat16, marks=pytest.mark.gpu),
        pytest.param("cuda", torch.float16, marks=pytest.mark.gpu),
    ],
)
def test_ranks_that_share_a_gpu_exchange_over_gloo(device: str, dtype: torch.dtype) -> None:
    """The results equal those on CPUs, which use pairwise exchanges."""
    ours = run_world(4, exchanged, device, dtype)
    for mine, theirs in zip(ours, run_world(4, exchanged, "cpu", dtype), strict=True):
        for one, other in zip(mine, theirs, strict=True):
            assert torch.equal(one, other)
