"""Checkpoints of the small GPTs of tests.support.training, saved and loaded in any layout."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from engine.checkpoint import state_dict
from engine.checkpoint.directory import CheckpointDirectory
from engine.checkpoint.load import SavedCheckpoint
from engine.checkpoint.manifest import (
    MANIFEST,
    FileDigest,
    Manifest,
    SavedLayout,
    TrainingState,
    read_manifest,
)
from engine.checkpoint.save import save
from engine.optim.optimizer import ResidentOptimizer
from engine.training.step import Stepper
from models.chunks import ModelChunks
from tests.support.training import (
    LR,
    TrainingCase,
    build,
    gathered,
    make_stepper,
    open_partition,
    rounds,
)
from tests.support.training import samples as batch_of


def training_at(step: int, **more: Any) -> TrainingState:
    """Return the state of a training without data or settings."""
    fields: dict[str, Any] = {
        **dict.fromkeys(("val_loss", "loss_scale")),
        "samples": step,
        "matmul": "torch",
        "device": "cpu",
        "corpus": "",
        "settings": {},
    }
    return TrainingState(step=step, **{**fields, **more})


def layout_of(run: TrainingCase) -> SavedLayout:
    return SavedLayout(
        mode=run.mode,
        tensor_parallel=run.tensor,
        depth=run.depth,
        pipeline=run.pipeline,
        num_chunks=run.chunks,
        data_parallel=run.data,
        zero_stage=run.zero,
    )


@dataclass(frozen=True)
class Trainee:
    """A model and its optimizer on one rank."""

    run: TrainingCase
    model: ModelChunks
    stepper: Stepper

    @classmethod
    def make(cls, run: TrainingCase, rank: int, seed: int = 1) -> Trainee:
        parallel = open_partition(run, rank)
        model = build(run, parallel, seed)
        return cls(run, model, make_stepper(run, model, parallel.axes["world"]))

    def train(self, steps: Iterable[int]) -> list[float]:
        """Train the steps and return the loss of each."""
        losses = []
        for step in steps:
            batch = batch_of(self.run, step)
            shares = rounds(self.run, batch, self.model.parallel.axes["data"].index)
            count = int((batch[1] != -100).sum())
            losses.append(self.stepper.run(step, shares, targets=count, lr=LR).loss)
        return losses

    def save(self, directory: CheckpointDirectory, step: int, **more: Any) -> None:
        world = self.stepper.world
        state = {
            **state_dict.model_tensors(self.model),
            **state_dict.optimizer_tensors(self.model, self.stepper.optimizer),
            **state_dict.rng_tensors(world.index, torch.device("cpu")),
        }
        group = world.group or dist.group.WORLD
        training = training_at(step, **more)
        save(directory, state, training, layout=layout_of(self.run), group=group)

    def load(self, stored: SavedCheckpoint) -> None:
        stored.load_model(self.model)
        stored.load_optimizer(self.model, self.stepper.optimizer)

    def whole(self) -> dict[str, Tensor]:
        """Return parameters and optimizer states, gathered by their shards alone."""
        world = self.stepper.world.size
        parameters = dict(self.model.named_parameters())
        tensors = gathered(self.model, {name: p.detach() for name, p in parameters.items()}, world)
        optimizer = self.stepper.optimizer
        assert isinstance(optimizer, ResidentOptimizer)
        for key in ("exp_avg", "exp_avg_sq"):
            states = {name: optimizer.inner.state[p][key] for name, p in parameters.items()}
            tensors |= {
                f"{name}.{key}": t for name, t in gathered(self.model, states, world).items()
            }
        return tensors


def write(rank: int, size: int, run: TrainingCase, path: Path, steps: int = 2) -> None:
    """Train ``steps`` steps and save a checkpoint."""
    trainee = Trainee.make(run, rank)
    trainee.train(range(1, steps + 1))
    trainee.save(CheckpointDirectory(path), steps, settings={"model": asdict(run.config)})


def parameters_of(stored: SavedCheckpoint) -> dict[str, Tensor]:
    """Return the unsharded parameters of a checkpoint."""
    return {name: stored.parameter(name) for name in stored.parameter_types()}


def everything(stored: SavedCheckpoint) -> dict[str, Tensor]:
    """Return all tensors of a checkpoint, including the states of random generators."""
    assert stored.verify() == []
    return {name: stored._read_unsharded(name) for name in stored.metadata.state_dict_metadata}


def reseal(folder: Path) -> None:
    """Update the manifest to files that were tampered with, as an attacker would."""
    manifest = read_manifest(folder)
    files = {}
    for name in manifest.files:
        data = (folder / name).read_bytes()
        files[name] = FileDigest(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    fields = {**dict(manifest), "files": files}
    (folder / MANIFEST).write_bytes(Manifest(**fields).dump())
