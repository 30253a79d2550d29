"""Whatever was done to a checkpoint since it was written is found, and nothing in it is run."""

from __future__ import annotations

import copyreg
import hashlib
import io
import json
import os
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.metadata import (
    _MEM_FORMAT_ENCODING,
    BytesStorageMetadata,
    Metadata,
)

from engine.checkpoint.dcp_metadata import METADATA, parse
from engine.checkpoint.directory import CheckpointDirectory
from engine.checkpoint.load import SavedCheckpoint
from engine.checkpoint.manifest import (
    BLOCK_BYTES,
    MANIFEST,
    TRAINING,
    FileDigest,
    read_manifest,
    verify_files,
)
from engine.errors import RunError
from tests.support.checkpoints import reseal, write
from tests.support.training import TrainingCase
from tests.support.worlds import run_world

RUN = TrainingCase(mode="1d", tensor=2)
SHARD = "__1_0.distcp"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("damage") / "checkpoints"
    run_world(2, write, RUN, path)
    return CheckpointDirectory(path).folder(2)


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(written, tmp_path / written.name))


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """Made by whatever a planted pickle runs."""
    return tmp_path / "canary"


class Bomb:
    """Unpickled without a check it runs a command."""

    def __init__(self, canary: Path) -> None:
        self.command = f"touch {canary}"

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


def test_what_was_written_is_whole(folder):
    assert SavedCheckpoint(folder).verify() == []
    assert SavedCheckpoint(folder).manifest.layout.tensor_parallel == 2
    assert not list(folder.parent.glob("*.tmp"))


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 10)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def edit(path: Path) -> None:
    text = path.read_text()
    assert '"step": 2' in text
    path.write_text(text.replace('"step": 2', '"step": 3'))


def forget_its_digest(path: Path) -> None:
    content = json.loads(path.read_text())
    del content["sha256"]
    path.write_text(json.dumps(content))


def name_a_file_elsewhere(path: Path) -> None:
    """With a digest that is true of that."""
    found = read_manifest(path.parent)
    files = {**found.files, "../secret": found.files[SHARD]}
    path.write_bytes(found.model_copy(update={"files": files}).dump())


@pytest.mark.parametrize(
    ("name", "damage", "told"),
    [
        (SHARD, truncate, r"__1_0.distcp has [\d,]+ of [\d,]+ bytes"),
        (SHARD, empty, r"__1_0.distcp has 0 of [\d,]+ bytes"),
        (SHARD, flip_a_bit, "__1_0.distcp was changed: its SHA-256 differs"),
        (SHARD, Path.unlink, "__1_0.distcp is missing"),
        (METADATA, flip_a_bit, ".metadata was changed: its SHA-256 differs"),
        (TRAINING, edit, "training.json was changed: its SHA-256 differs"),
        (MANIFEST, edit, "manifest.json was changed: its own SHA-256 differs"),
        (MANIFEST, forget_its_digest, "manifest.json was changed: its own SHA-256 differs"),
        (MANIFEST, name_a_file_elsewhere, r"manifest.json: files\.\.\./secret.*: .*pattern.*"),
        (MANIFEST, truncate, "manifest.json is not JSON"),
        (MANIFEST, Path.unlink, "manifest.json cannot be read: No such file or directory"),
    ],
)
def test_damage_is_found_and_named(folder, name, damage, told):
    damage(folder / name)
    (problem,) = SavedCheckpoint(folder).verify()
    assert re.fullmatch(told, problem), problem


@pytest.mark.parametrize("at", [0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, 2 * BLOCK_BYTES + 4])
def test_a_digest_is_of_all_of_a_file(tmp_path, at):
    """Of every block that it is read in."""
    file, data = tmp_path / "file", bytearray(2 * BLOCK_BYTES + 5)
    told = {"file": FileDigest(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())}
    file.write_bytes(data)
    assert verify_files(tmp_path, told, told) == []
    data[at] ^= 128
    file.write_bytes(data)
    assert verify_files(tmp_path, told, told) == ["file was changed: its SHA-256 differs"]


def test_a_folder_under_another_step_is_no_checkpoint_of_it(folder):
    moved = folder.rename(folder.with_name("step-00000003"))
    assert SavedCheckpoint(moved).verify() == ["contains the checkpoint step-00000002"]


def test_every_file_is_in_the_share_of_one_rank(folder):
    flip_a_bit(folder / SHARD)
    found = [SavedCheckpoint(folder).verify(share, 3) for share in range(3)]
    assert sorted(map(len, found)) == [0, 0, 1]


# Pickles. The manifest is made true of them, so that nothing but the check itself stands there.


def test_a_pickle_in_the_metadata_is_not_run(folder, canary):
    (folder / METADATA).write_bytes(pickle.dumps(Bomb(canary)))
    reseal(folder)
    (problem,) = SavedCheckpoint(folder).verify()
    assert problem == ".metadata names posix.system, which DCP metadata never contains"
    assert not canary.exists()


def test_nor_where_it_hides_in_metadata(folder, canary):
    metadata = SavedCheckpoint(folder).metadata
    metadata.planner_data = Bomb(canary)
    (folder / METADATA).write_bytes(pickle.dumps(metadata))
    reseal(folder)
    assert "posix.system" in SavedCheckpoint(folder).verify()[0]
    assert not canary.exists()


@pytest.mark.parametrize("kind", [_MEM_FORMAT_ENCODING, torch.Size])
def test_getattr_is_for_members_of_the_one_enum(folder, kind):
    """As Python 3.11.0 to 3.11.3 pickle them."""
    told = io.BytesIO()
    pickler = pickle.Pickler(told)
    name = "TORCH_CONTIGUOUS_FORMAT" if kind is _MEM_FORMAT_ENCODING else "__class__"
    asked: dict[type, Any] = {_MEM_FORMAT_ENCODING: lambda member: (getattr, (kind, name))}
    pickler.dispatch_table = {**copyreg.dispatch_table, **asked}
    pickler.dump(SavedCheckpoint(folder).metadata)
    assert b"getattr" in told.getvalue()
    (folder / METADATA).write_bytes(told.getvalue())
    reseal(folder)
    problems = SavedCheckpoint(folder).verify()
    if kind is _MEM_FORMAT_ENCODING:
        assert problems == []
    else:
        what = "asks for __class__ of <class 'torch.Size'>, which DCP metadata never contains"
        assert problems == [f".metadata {what}"]


def test_bytes_that_torch_would_unpickle_are_no_tensor(folder, canary):
    """DCP reads an entry of this kind with torch.load(weights_only=False)."""
    metadata = SavedCheckpoint(folder).metadata
    name = "model.wpe.weight"
    metadata.state_dict_metadata[name] = BytesStorageMetadata()
    (folder / METADATA).write_bytes(pickle.dumps(metadata))
    reseal(folder)
    assert "BytesStorageMetadata" in SavedCheckpoint(folder).verify()[0]
    assert not canary.exists()


def bomb_of(canary: Path) -> bytes:
    file = io.BytesIO()
    torch.save(Bomb(canary), file)
    return file.getvalue()


def plant_in_shard(folder: Path, canary: Path) -> None:
    """Every tensor of a .pt inside a shard becomes a bomb of the same length."""
    stored = SavedCheckpoint(folder)
    bomb = bomb_of(canary)
    for name in stored.manifest.files:
        if name.endswith(".distcp"):
            places = [p for p in stored.metadata.storage_data.values() if p.relative_path == name]
            data = bytearray((folder / name).read_bytes())
            for place in places:
                assert place.length >= len(bomb)
                data[place.offset : place.offset + len(bomb)] = bomb
                place.length = len(bomb)
            (folder / name).write_bytes(data)
    (folder / METADATA).write_bytes(pickle.dumps(stored.metadata))
    reseal(folder)


def test_a_pickle_in_a_tensor_is_not_run(folder, canary):
    plant_in_shard(folder, canary)
    assert SavedCheckpoint(folder).verify() == [], "planted well"
    with pytest.raises(
        RunError, match="contains a pickle in place of a tensor; none of it was executed"
    ):
        list(SavedCheckpoint(folder).parameters())
    assert not canary.exists()
    torch.load(io.BytesIO(bomb_of(canary)), weights_only=False)
    assert canary.exists(), "the bomb works"


@pytest.mark.parametrize(
    "change",
    [
        lambda m: setattr(first_place(m), "relative_path", "../../secret"),
        lambda m: setattr(first_place(m), "transform_descriptors", ["zstd"]),
        lambda m: m.storage_data.clear(),
        lambda m: setattr(m, "state_dict_metadata", [1]),
        lambda m: setattr(next(iter(m.state_dict_metadata.values())), "properties", None),
    ],
)
def test_metadata_that_points_elsewhere_is_refused(folder, change):
    metadata = SavedCheckpoint(folder).metadata
    change(metadata)
    (folder / METADATA).write_bytes(pickle.dumps(metadata))
    reseal(folder)
    (problem,) = SavedCheckpoint(folder).verify()
    assert problem.startswith(METADATA)


def first_place(metadata: Metadata) -> Any:
    return next(iter(metadata.storage_data.values()))


@pytest.mark.parametrize("data", [b"", b"\x80\x04", pickle.dumps([1]), b"\x80\x04N.", b"garbage"])
def test_what_is_no_metadata_is_refused(data: bytes) -> None:
    with pytest.raises(Exception, match=r"\.metadata") as caught:
        parse(data, set())
    assert type(caught.value).__name__ == "CorruptCheckpointError"
