"""Any change to a saved checkpoint is detected, and none of its content is executed."""

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
from tests.support.checkpoints import parameters_of, reseal, write
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
    """A copy of the checkpoint, to corrupt."""
    return Path(shutil.copytree(written, tmp_path / written.name))


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """The file that a planted pickle creates if it is executed."""
    return tmp_path / "canary"


class Bomb:
    """An object that runs a command when it is unpickled without a check."""

    def __init__(self, canary: Path) -> None:
        self.command = f"touch {canary}"

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


def test_an_unchanged_checkpoint_verifies(folder):
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


def remove_digest(path: Path) -> None:
    content = json.loads(path.read_text())
    del content["sha256"]
    path.write_text(json.dumps(content))


def add_a_file_of_another_folder(path: Path) -> None:
    """Add an entry with a correct digest for a file outside of the folder."""
    found = read_manifest(path.parent)
    files = {**found.files, "../secret": found.files[SHARD]}
    path.write_bytes(found.model_copy(update={"files": files}).dump())


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        (SHARD, truncate, r"__1_0.distcp has [\d,]+ of [\d,]+ bytes"),
        (SHARD, empty, r"__1_0.distcp has 0 of [\d,]+ bytes"),
        (SHARD, flip_a_bit, "__1_0.distcp was changed: its SHA-256 differs"),
        (SHARD, Path.unlink, "__1_0.distcp is missing"),
        (METADATA, flip_a_bit, ".metadata was changed: its SHA-256 differs"),
        (TRAINING, edit, "training.json was changed: its SHA-256 differs"),
        (MANIFEST, edit, "manifest.json was changed: its own SHA-256 differs"),
        (MANIFEST, remove_digest, "manifest.json was changed: its own SHA-256 differs"),
        (
            MANIFEST,
            add_a_file_of_another_folder,
            r"manifest.json: files\.\.\./secret.*: .*pattern.*",
        ),
        (MANIFEST, truncate, "manifest.json is not JSON"),
        (MANIFEST, Path.unlink, "manifest.json cannot be read: No such file or directory"),
    ],
)
def test_corruption_is_detected_and_named(folder, name, damage, message):
    damage(folder / name)
    (problem,) = SavedCheckpoint(folder).verify()
    assert re.fullmatch(message, problem), problem


@pytest.mark.parametrize("at", [0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, 2 * BLOCK_BYTES + 4])
def test_a_changed_byte_at_any_position_is_detected(tmp_path, at):
    """The positions include the edges of the blocks in which the file is read."""
    file, data = tmp_path / "file", bytearray(2 * BLOCK_BYTES + 5)
    digests = {"file": FileDigest(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())}
    file.write_bytes(data)
    assert verify_files(tmp_path, digests, digests) == []
    data[at] ^= 128
    file.write_bytes(data)
    assert verify_files(tmp_path, digests, digests) == ["file was changed: its SHA-256 differs"]


def test_a_checkpoint_renamed_to_another_step_is_corrupt(folder):
    moved = folder.rename(folder.with_name("step-00000003"))
    assert SavedCheckpoint(moved).verify() == ["contains the checkpoint step-00000002"]


def test_each_file_is_verified_by_exactly_one_rank(folder):
    flip_a_bit(folder / SHARD)
    found = [SavedCheckpoint(folder).verify(share, 3) for share in range(3)]
    assert sorted(map(len, found)) == [0, 0, 1]


# Pickles. The manifest is made true of them, so that nothing but the check itself stands there.


def test_a_malicious_pickle_as_metadata_is_not_executed(folder, canary):
    (folder / METADATA).write_bytes(pickle.dumps(Bomb(canary)))
    reseal(folder)
    (problem,) = SavedCheckpoint(folder).verify()
    assert problem == ".metadata names posix.system, which DCP metadata never contains"
    assert not canary.exists()


def test_a_malicious_pickle_inside_the_metadata_is_not_executed(folder, canary):
    metadata = SavedCheckpoint(folder).metadata
    metadata.planner_data = Bomb(canary)
    (folder / METADATA).write_bytes(pickle.dumps(metadata))
    reseal(folder)
    assert "posix.system" in SavedCheckpoint(folder).verify()[0]
    assert not canary.exists()


@pytest.mark.parametrize("kind", [_MEM_FORMAT_ENCODING, torch.Size])
def test_getattr_in_metadata_is_allowed_only_for_the_memory_format(folder, kind):
    """Python 3.11.0 to 3.11.3 pickle enum members by getattr."""
    stream = io.BytesIO()
    pickler = pickle.Pickler(stream)
    name = "TORCH_CONTIGUOUS_FORMAT" if kind is _MEM_FORMAT_ENCODING else "__class__"
    asked: dict[type, Any] = {_MEM_FORMAT_ENCODING: lambda member: (getattr, (kind, name))}
    pickler.dispatch_table = {**copyreg.dispatch_table, **asked}
    pickler.dump(SavedCheckpoint(folder).metadata)
    assert b"getattr" in stream.getvalue()
    (folder / METADATA).write_bytes(stream.getvalue())
    reseal(folder)
    problems = SavedCheckpoint(folder).verify()
    if kind is _MEM_FORMAT_ENCODING:
        assert problems == []
    else:
        what = "asks for __class__ of <class 'torch.Size'>, which DCP metadata never contains"
        assert problems == [f".metadata {what}"]


def test_an_entry_of_pickled_bytes_is_rejected(folder, canary):
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
    """Replace each pickled tensor in a file of shards by a bomb of equal length."""
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


def test_a_malicious_pickle_in_place_of_a_tensor_is_not_executed(folder, canary):
    plant_in_shard(folder, canary)
    assert SavedCheckpoint(folder).verify() == [], "planted well"
    with pytest.raises(
        RunError, match="contains a pickle in place of a tensor; none of it was executed"
    ):
        parameters_of(SavedCheckpoint(folder))
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
def test_metadata_that_refers_to_another_folder_is_rejected(folder, change):
    metadata = SavedCheckpoint(folder).metadata
    change(metadata)
    (folder / METADATA).write_bytes(pickle.dumps(metadata))
    reseal(folder)
    (problem,) = SavedCheckpoint(folder).verify()
    assert problem.startswith(METADATA)


def first_place(metadata: Metadata) -> Any:
    return next(iter(metadata.storage_data.values()))


@pytest.mark.parametrize("data", [b"", b"\x80\x04", pickle.dumps([1]), b"\x80\x04N.", b"garbage"])
def test_metadata_of_another_form_is_rejected(data: bytes) -> None:
    with pytest.raises(Exception, match=r"\.metadata") as caught:
        parse(data, set())
    assert type(caught.value).__name__ == "CorruptCheckpointError"
