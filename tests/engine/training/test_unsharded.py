"""Unsharded weights: saved from any layout, loaded into any other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from engine.checkpoint.directory import CheckpointDirectory
from engine.checkpoint.load import SavedCheckpoint
from engine.errors import UserError
from engine.inout.open_model import open_saved_model
from engine.inout.save_weights import save_unsharded
from engine.inout.saved_model import metadata_of
from engine.training.unsharded import unshard, unsharded_parameters
from models.chunks import ModelChunks
from models.gpt import GPT
from models.parallel.context import ParallelContext
from models.parallel.shard import shard_of
from tests.support.checkpoints import parameters_of, write
from tests.support.training import TrainingCase, build, open_partition
from tests.support.training import gathered as by_boxes
from tests.support.worlds import run_world

LAYOUTS = [
    TrainingCase(gpu_head=True),
    TrainingCase(mode="2d", tensor=4, gpu_head=True),
    TrainingCase(mode="2.5d", tensor=2, depth=2, data=2, zero=1, zero_depth=True),
    TrainingCase(mode="1d", tensor=2, pipeline=2, tied=False),
    TrainingCase(data=3, zero=3),
]


def leave(rank: int, size: int, run: TrainingCase, path: Path) -> dict[str, Tensor]:
    """Return the result of ``unsharded_parameters`` on this rank. Rank 0 compares it with the
    shards and saves it."""
    model = build(run, open_partition(run, rank))
    held = by_boxes(model, dict(model.named_parameters()), size)
    found = {name: tensor.clone() for name, tensor in unsharded_parameters(model)}
    save_unsharded(model, path, metadata_of(model.config), writes=rank == 0)
    if rank == 0:
        assert found.keys() == held.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in held.items())
    return found


def enter(rank: int, size: int, run: TrainingCase, path: Path) -> dict[str, Tensor]:
    """Load ``path`` into a model with other weights, and return its unsharded parameters."""
    model = build(run, open_partition(run, rank), seed=2)
    open_saved_model(path).load(model)
    return by_boxes(model, dict(model.named_parameters()), size)


@pytest.mark.parametrize("run", LAYOUTS, ids=[run.name for run in LAYOUTS])
def test_weights_saved_in_a_layout_load_in_another(run: TrainingCase, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    expected = run_world(run.layout.gpus, leave, run, path)[0]
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    for other in (TrainingCase(tied=run.tied), TrainingCase(mode="1d", tensor=3, tied=run.tied)):
        for found in run_world(other.layout.gpus, enter, other, path):
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_file_of_another_model_is_rejected_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    run_world(1, leave, TrainingCase(), path)
    part = ParallelContext.single_device(
        torch.device("cpu"), dtype=torch.float32, compute=torch.float32
    )
    larger = ModelChunks([GPT(replace(TrainingCase().config, n_inner=32), part)])
    with pytest.raises(ValueError, match=r"^h.0.mlp.c_fc.weight is \[20, 28\], the model"):
        open_saved_model(path).load(larger)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(UserError, match=r"model.safetensors: Error while deserializing"):
        open_saved_model(path)


def test_ranks_share_the_verification_of_a_checkpoint(tmp_path: Path) -> None:
    """Rank i reads every n-th file, from number i on."""
    run = TrainingCase(data=2, zero=1)
    run_world(2, write, run, tmp_path)
    path = CheckpointDirectory(tmp_path).folder(2)
    part = ParallelContext.single_device(
        torch.device("cpu"), dtype=torch.float32, compute=torch.float32
    )
    model = ModelChunks([GPT(run.config, part)])
    trained = open_saved_model(path)
    trained.load(model)
    expected = parameters_of(SavedCheckpoint(path))
    assert all(torch.equal(p, expected[name]) for name, p in model.named_parameters())

    damaged = sorted(path.glob("*.distcp"))[0]
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    (problem,) = trained.verify(0, 2)
    assert damaged.name in problem
    assert trained.verify(1, 2) == []


def assemble(rank: int, size: int, shapes: list[tuple[int, int]]) -> None:
    part = open_partition(TrainingCase(mode="2d", tensor=4), rank)
    for shape in shapes:
        tensor = torch.arange(float(shape[0] * shape[1])).view(shape)
        for cut in ((("r",), ("c",)), (("c", "r"), ()), ((), ("r", "c")), ((), ())):
            for rows in (1, 4):
                box = shard_of(shape, cut, part.sizes, part.index, row_multiple=rows)
                piece = torch.full(box.local, torch.nan)
                piece[box.valid_slices] = tensor[box.slices]
                assert torch.equal(unshard(piece, box, part), tensor), (shape, cut, rows)


def test_padding_inside_nested_shards_is_dropped() -> None:
    run_world(4, assemble, [(4, 4), (5, 5), (7, 3), (1, 9), (6, 2)])
