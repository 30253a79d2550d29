"""DCP's files with every byte accounted for: digests as they are written, read back from the disk,
and a name only when all is there; and a reader that unpickles tensors and nothing else."""

from __future__ import annotations

import hashlib
import io
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import (
    DEFAULT_SUFFIX,
    FileSystem,
    FileSystemReader,
    FileSystemWriter,
    _StorageInfo,
)
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, StorageMeta
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future
from torch.utils.serialization import config

from engine.checkpoint.directory import CheckpointDirectory
from engine.checkpoint.manifest import MANIFEST, FileDigest, verify_files
from engine.errors import RunError

ITEM_BYTES = 2048
"""What a tensor takes on the disk beside its numbers, at most."""
EXTRA_BYTES = 1 << 16
"""Of blocks of this size on, digests are computed beside the writing."""
_DIGESTS = MetadataIndex("digests")  # the result that carries them; no tensor has this name

Seal = Callable[[Mapping[str, FileDigest]], bytes]
"""The manifest of a checkpoint with these files."""


class DCPWriter(FileSystemWriter):
    """One checkpoint, written as a draft that gets its name once every file was read back.

    DCP calls the methods in their order: local plan on all ranks, global plan on the first, data
    on all, finish on the first. What one rank raises, DCP raises on all.
    """

    def __init__(
        self,
        checkpoints: CheckpointDirectory,
        step: int,
        *,
        extra_files: Mapping[str, bytes],
        seal: Seal,
    ) -> None:
        """``beside``: further files and what they hold, for the first rank to write."""
        super().__init__(checkpoints.temporary(step), sync_files=False, overwrite=False)
        self.fs = self._files = _Digesting()
        self._checkpoints, self._step, self._extra_files, self._seal = (
            checkpoints,
            step,
            extra_files,
            seal,
        )
        self._needed = 0

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Make the draft's folder, on a disk that has the space.

        Raises:
            RunError: it has not, or there is a checkpoint of this step.
        """
        folder = self._checkpoints.folder(self._step)
        if folder.exists():
            raise RunError(f"{folder} is there already, and no checkpoint is written over")
        self.discard()
        self._checkpoints.path.mkdir(parents=True, exist_ok=True)
        self._needed = sum(map(_planned_bytes, plans))
        free = shutil.disk_usage(self._checkpoints.path).free
        if free < self._needed:
            raise RunError(f"{folder} needs {self._needed:,} bytes, and its disk has {free:,} free")
        self._checkpoints.temporary(self._step).mkdir()
        prepared: list[SavePlan] = super().prepare_global_plan(plans)
        return prepared

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this rank's tensors and read them back; the digests go with the results. Of what
        comes from a GPU or a disk, one is in memory at a time (DCP would keep them all)."""
        name = f"{plan.storage_data.prefix}0{DEFAULT_SUFFIX}"
        without_sums = config.patch("save.compute_crc32", False)  # type: ignore[attr-defined]
        with (
            self._explaining_disk_errors("this rank's part", _planned_bytes(plan)),
            without_sums,
            self._files.create_stream(
                self._checkpoints.temporary(self._step) / name, "wb"
            ) as stream,
        ):
            results = [
                _append(stream, name, item.index, planner.resolve_data(item)) for item in plan.items
            ]
        self._read_back(self._files.digests)
        carrier = WriteResult(_DIGESTS, size_in_bytes=0, storage_data=self._files.digests)
        done: Future[list[WriteResult]] = Future()
        done.set_result([*results, carrier])
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Write what describes the tensors, read it back, and give the draft its name."""
        temporary = self._checkpoints.temporary(self._step)
        files: dict[str, FileDigest] = {}
        for result in (result for of_rank in results for result in of_rank):
            if result.index == _DIGESTS:
                files |= result.storage_data
        tensors = [[one for one in of_rank if one.index != _DIGESTS] for of_rank in results]
        with self._explaining_disk_errors("all of it", self._needed):
            super().finish(metadata, tensors)
            for name, data in self._extra_files.items():
                self._write(temporary / name, data)
            self._read_back(self._files.digests.keys() - files.keys())
            files |= self._files.digests
            self._write(temporary / MANIFEST, self._seal(files))
            self._read_back([MANIFEST])
            unseen = [name for name in files if not (temporary / name).is_file()]
            if unseen:
                raise RunError(f"{temporary}: no {unseen[0]} here: all ranks must see one folder")
            self._checkpoints.commit(self._step)

    def storage_meta(self) -> StorageMeta:
        """Nothing: a path of this machine would not stay true."""
        return StorageMeta()

    def discard(self) -> None:
        """Leave nothing of the draft."""
        shutil.rmtree(self._checkpoints.temporary(self._step), ignore_errors=True)

    @contextmanager
    def _explaining_disk_errors(self, what: str, needed: int) -> Iterator[None]:
        """Where the disk fails: why, and what it would have taken."""
        try:
            yield
        except FileNotFoundError:
            raise RunError(f"{self.path} is not there: all ranks must see one folder") from None
        except (OSError, RuntimeError) as error:
            # What a file raises, torch may raise as an error of its own.
            cause = self._files.failure or error
            if not isinstance(cause, OSError):
                raise
            free = shutil.disk_usage(self._checkpoints.path).free
            raise RunError(
                f"{self._checkpoints.folder(self._step)} cannot be written: {cause.strerror}; "
                f"{what} "
                f"takes {needed:,} bytes, and the disk has {free:,} free"
            ) from None

    def _write(self, path: Path, data: bytes) -> None:
        with self._files.create_stream(path, "wb") as stream:
            stream.write(data)

    def _read_back(self, names: Iterable[str]) -> None:
        temporary = self._checkpoints.temporary(self._step)
        for problem in verify_files(temporary, self._files.digests, names):
            raise RunError(f"{temporary}: {problem} right after it was written")


def _planned_bytes(plan: SavePlan) -> int:
    """What a rank will write, at most."""
    total = 0
    for item in plan.items:
        assert item.tensor_data is not None
        entries = math.prod(item.tensor_data.chunk.sizes)
        total += entries * item.tensor_data.properties.dtype.itemsize + ITEM_BYTES
    return total


def _append(stream: io.IOBase, name: str, index: MetadataIndex, piece: Any) -> WriteResult:
    """Write a tensor at the end of a file, as DCP reads it."""
    assert isinstance(piece, Tensor)
    piece = piece.detach().cpu()
    if piece.untyped_storage().nbytes() != piece.nbytes:  # all of a storage would be written
        piece = piece.clone()
    start = stream.tell()
    torch.save(piece, cast(IO[bytes], stream))
    length = stream.tell() - start
    return WriteResult(index, length, _StorageInfo(name, start, length))


class DCPReader(FileSystemReader):
    """Tensors of a checkpoint whose metadata has been read and checked."""

    def __init__(self, folder: Path, metadata: Metadata) -> None:
        super().__init__(folder)
        self._metadata = metadata

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return self._metadata


class _Digesting(FileSystem):
    """Files whose digests are those of what was meant to be written, and that are on the disk once
    they are closed. (DCP would sync them, but not what Python still has in its buffer.)"""

    def __init__(self) -> None:
        self.digests: dict[str, FileDigest] = {}
        self.failure: OSError | None = None

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[io.IOBase]:
        assert mode == "wb", mode
        with Path(path).open("xb") as file, ThreadPoolExecutor(1) as helper:
            stream = _DigestingStream(file, helper)
            try:
                yield cast(io.IOBase, stream)
                stream.sync()
            finally:
                self.failure = stream.failure
            self.digests[Path(path).name] = stream.digest()

    def rename(self, path: str | os.PathLike[str], new_path: str | os.PathLike[str]) -> None:
        super().rename(path, new_path)
        self.digests[Path(new_path).name] = self.digests.pop(Path(path).name)


class _DigestingStream:
    """A file that is written from its start to its end, by whom it is not closed."""

    def __init__(self, file: io.BufferedWriter, helper: Executor) -> None:
        """``helper`` computes the digest of a large block while it is written."""
        self._file, self._helper = file, helper
        self._hash, self._size = hashlib.sha256(), 0
        self.failure: OSError | None = None

    def write(self, data: bytes | memoryview) -> int:
        in_background = len(data) >= EXTRA_BYTES
        done = self._helper.submit(self._hash.update, data) if in_background else None
        try:
            count = self._file.write(data)
        except OSError as error:
            self.failure = error
            raise
        finally:
            if done is None:
                self._hash.update(data)
            else:
                done.result()  # the block is not ours for longer
        self._size += count
        return count

    def flush(self) -> None:
        try:
            self._file.flush()
        except OSError as error:
            self.failure = error
            raise

    def close(self) -> None:
        self.flush()

    def sync(self) -> None:
        self.flush()
        os.fsync(self._file.fileno())

    def tell(self) -> int:
        return self._size

    def digest(self) -> FileDigest:
        return FileDigest(bytes=self._size, sha256=self._hash.hexdigest())
