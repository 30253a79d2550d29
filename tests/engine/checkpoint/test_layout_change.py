"""A checkpoint of any layout resumes in any other: identical tensors, equal losses afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.checkpoint.directory import CheckpointDirectory
from engine.checkpoint.load import SavedCheckpoint
from tests.support.checkpoints import Trainee
from tests.support.training import TrainingCase
from tests.support.worlds import run_world

WRITTEN, MORE = 2, 2  # steps before and after
SERIAL = "serial"
LAYOUTS: dict[str, dict[str, Any]] = {
    SERIAL: {},
    "1d": {"mode": "1d", "tensor": 4},
    "sequence zero3": {"mode": "sequence", "tensor": 4, "zero": 3, "zero_depth": True},
    "2d": {"mode": "2d", "tensor": 4},
    "2.5d": {"mode": "2.5d", "tensor": 2, "depth": 2, "data": 2},
    "3d": {"mode": "3d", "tensor": 8},
    "pp": {"pipeline": 2, "chunks": 2, "schedule": "interleaved", "data": 2, "micro_batches": 2},
    "zero1": {"data": 4, "zero": 1},
    "zero2": {"data": 4, "zero": 2},
    "zero3 offloaded": {"data": 4, "zero": 3, "offload": True},
    "2.5d zero3 over depth": {
        "mode": "2.5d",
        "tensor": 2,
        "depth": 2,
        "data": 2,
        "zero": 3,
        "zero_depth": True,
    },
    "pp1d zero2": {"mode": "1d", "tensor": 2, "pipeline": 2, "data": 2, "zero": 2},
}
NAMES = list(LAYOUTS)
# Each layout writes for the next one in the list, and the last for the first: files have no trace
# of a layout, so that a fault of a writer or of a reader shows in every pair that it is part of.
RING = {(NAMES[i - 1], NAMES[i]) for i in range(len(NAMES))}
Pair = tuple[str, str]


def run_of(name: str) -> TrainingCase:
    return TrainingCase(**LAYOUTS[name], layers=4, heads=12, dtype=torch.float64)


def by_size() -> dict[int, list[str]]:
    sizes: dict[int, list[str]] = {}
    for name in LAYOUTS:
        sizes.setdefault(run_of(name).layout.gpus, []).append(name)
    return sizes


@dataclass(frozen=True, kw_only=True)
class CheckpointState:
    """Parameters and optimizer states at the checkpoint, and the losses of the steps after it. The
    reference is the serial layout."""

    tensors: dict[str, Tensor]
    losses: list[float]


def write_all(rank: int, size: int, names: list[str], path: Path) -> dict[str, CheckpointState]:
    """Save a checkpoint of each layout."""
    written = {}
    for name in names:
        trainee = Trainee.make(run_of(name), rank)
        trainee.train(range(1, WRITTEN + 1))
        trainee.save(CheckpointDirectory(path / name), WRITTEN)
        written[name] = state_of(trainee, more=MORE if name == SERIAL else 0)
    return written if rank == 0 else {}


def read_all(rank: int, size: int, pairs: list[Pair], path: Path) -> dict[Pair, CheckpointState]:
    """Load the checkpoint of each writer and return the reader's state."""
    found = {}
    for writer, reader in pairs:
        trainee = Trainee.make(run_of(reader), rank, seed=2)
        trainee.load(SavedCheckpoint(CheckpointDirectory(path / writer).folder(WRITTEN)))
        found[writer, reader] = state_of(trainee)
    return found if rank == 0 else {}


def state_of(trainee: Trainee, more: int = MORE) -> CheckpointState:
    tensors = {name: tensor.clone() for name, tensor in trainee.whole().items()}
    return CheckpointState(
        tensors=tensors, losses=trainee.train(range(WRITTEN + 1, WRITTEN + more + 1))
    )


class LayoutWorlds:
    """Starts one world per size that saves, and one that loads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.written, self.read = cache(self._written), cache(self._read)

    def _written(self) -> dict[str, CheckpointState]:
        found: dict[str, CheckpointState] = {}
        for size, names in by_size().items():
            found |= run_world(size, write_all, names, self.path)[0]
        return found

    def _read(self, size: int, everything: bool) -> dict[Pair, CheckpointState]:
        pairs = product(NAMES, by_size()[size]) if everything else sorted(RING)
        mine = [pair for pair in pairs if pair[1] in by_size()[size]]
        found: dict[Pair, CheckpointState] = run_world(size, read_all, mine, self.path)[0]
        return found


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> LayoutWorlds:
    return LayoutWorlds(tmp_path_factory.mktemp("layouts"))


@pytest.mark.parametrize(
    "pair",
    [
        pytest.param(pair, marks=[] if pair in RING else pytest.mark.slow, id=" to ".join(pair))
        for pair in product(NAMES, NAMES)
    ],
)
def test_a_checkpoint_of_one_layout_resumes_in_another(worlds: LayoutWorlds, pair: Pair) -> None:
    writer, reader = pair
    written, serial = worlds.written()[writer], worlds.written()[SERIAL]
    size = run_of(reader).layout.gpus
    found = worlds.read(size, everything=pair not in RING)[pair]
    assert found.tensors.keys() == written.tensors.keys() == serial.tensors.keys()
    different = [
        name
        for name, tensor in written.tensors.items()
        if not torch.equal(found.tensors[name], tensor)
    ]
    assert different == []
    for loss, expected in zip(found.losses, serial.losses, strict=True):
        assert abs(loss - expected) <= 1e-12


def test_ring_of_resumes_contains_each_layout() -> None:
    assert len(RING) == len(NAMES)
    assert {writer for writer, _ in RING} == {reader for _, reader in RING} == {*NAMES}
