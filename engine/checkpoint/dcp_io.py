"""Reads and writes the files of DCP (torch.distributed.checkpoint) with verification.

Every file is hashed while it is written, fsynced and read back from the disk; the checkpoint gets
its name when all files match. The reader unpickles only tensors.
"""

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
from engine.files.full_disk import require_free_bytes

ITEM_BYTES = 2048
"""An upper bound of a tensor's bytes on the disk beyond its elements."""
MIN_CONCURRENT_HASH_BYTES = 1 << 16
"""Blocks of at least this size are hashed concurrently with their write."""
OTHER_FILE_SYSTEM = "all ranks must share one file system; set --output to a folder on a shared one"
_DIGESTS = MetadataIndex("digests")  # the write result with a rank's digests; no tensor's name

Seal = Callable[[Mapping[str, FileDigest]], bytes]
"""Returns the content of the manifest for these files."""


class DCPWriter(FileSystemWriter):
    """Writes one checkpoint into a temporary folder, which is renamed once every file has been read
    back.

    DCP calls the methods in this order: local plan on all ranks, global plan on rank 0, data on
    all ranks, finish on rank 0. It raises the exceptions of one rank on all ranks.
    """

    def __init__(
        self,
        checkpoints: CheckpointDirectory,
        step: int,
        *,
        extra_files: Mapping[str, bytes],
        seal: Seal,
    ) -> None:
        """Prepare to write; ``extra_files``: name and content of further files, for rank 0."""
        super().__init__(checkpoints.temporary(step), sync_files=False, overwrite=False)
        self.fs = self._files = _Digesting()
        self._checkpoints, self._step = checkpoints, step
        self._extra_files, self._seal = extra_files, seal
        self._needed = 0

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Return ``plan`` unchanged: DCP's version would create the folder on every rank."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Create the temporary folder, if the disk has enough free space.

        Raises:
            RunError: the disk has too little free space, or a checkpoint of this step exists.
        """
        folder = self._checkpoints.folder(self._step)
        if folder.exists():
            raise RunError(
                f"{folder} already exists, and a checkpoint is never overwritten; move it away, "
                "then resume the run"
            )
        self.discard()
        self._checkpoints.path.mkdir(parents=True, exist_ok=True)
        self._needed = sum(map(_planned_bytes, plans))
        require_free_bytes(folder, self._needed)
        self._temporary.mkdir()
        prepared: list[SavePlan] = super().prepare_global_plan(plans)
        return prepared

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this rank's tensors to a file, read the file back, and return the write results and
        the file's digest. Tensors on a GPU or a disk are copied to memory one at a time (DCP would
        copy all of them first)."""
        name = f"{plan.storage_data.prefix}0{DEFAULT_SUFFIX}"
        without_sums = config.patch("save.compute_crc32", False)  # type: ignore[attr-defined]
        with (
            self._explaining_disk_errors("this rank's file", _planned_bytes(plan)),
            without_sums,
            self._files.create_stream(self._temporary / name, "wb") as stream,
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
        """Write the metadata, the extra files and the manifest, read them back, and rename the
        temporary folder to the checkpoint's name."""
        temporary = self._temporary
        files: dict[str, FileDigest] = {}
        for result in (result for of_rank in results for result in of_rank):
            if result.index == _DIGESTS:
                files |= result.storage_data
        tensors = [[one for one in of_rank if one.index != _DIGESTS] for of_rank in results]
        with self._explaining_disk_errors("the checkpoint", self._needed):
            super().finish(metadata, tensors)
            for name, data in self._extra_files.items():
                self._write(temporary / name, data)
            self._read_back(self._files.digests.keys() - files.keys())
            files |= self._files.digests
            self._write(temporary / MANIFEST, self._seal(files))
            self._read_back([MANIFEST])
            unseen = [name for name in files if not (temporary / name).is_file()]
            if unseen:
                raise RunError(
                    f"{temporary}/{unseen[0]} is not visible on rank 0: {OTHER_FILE_SYSTEM}"
                )
            self._checkpoints.commit(self._step)

    def storage_meta(self) -> StorageMeta:
        """Return an empty record: DCP's has the folder's path, which changes with the rename."""
        return StorageMeta()

    def discard(self) -> None:
        """Delete the temporary folder."""
        shutil.rmtree(self._temporary, ignore_errors=True)

    @property
    def _temporary(self) -> Path:
        return self._checkpoints.temporary(self._step)

    @contextmanager
    def _explaining_disk_errors(self, part: str, needed: int) -> Iterator[None]:
        """Turn a disk error in the block into a RunError with the reason, the needed and the free
        bytes."""
        try:
            yield
        except FileNotFoundError:
            raise RunError(f"{self.path} does not exist here: {OTHER_FILE_SYSTEM}") from None
        except (OSError, RuntimeError) as error:
            # torch may replace the error of a file by its own.
            cause = self._files.failure or error
            if not isinstance(cause, OSError):
                raise
            free = shutil.disk_usage(self._checkpoints.path).free
            raise RunError(
                f"{self._checkpoints.folder(self._step)} cannot be written: {cause.strerror} "
                f"({part} takes {needed:,} bytes, the disk has {free:,} free); free some space, "
                "then resume the run"
            ) from None

    def _write(self, path: Path, data: bytes) -> None:
        with self._files.create_stream(path, "wb") as stream:
            stream.write(data)

    def _read_back(self, names: Iterable[str]) -> None:
        for problem in verify_files(self._temporary, self._files.digests, names):
            raise RunError(
                f"{self._temporary}: {problem} right after it was written; check the disk"
            )


def _planned_bytes(plan: SavePlan) -> int:
    """Return an upper bound of the bytes that a rank will write."""
    total = 0
    for item in plan.items:
        assert item.tensor_data is not None
        entries = math.prod(item.tensor_data.chunk.sizes)
        total += entries * item.tensor_data.properties.dtype.itemsize + ITEM_BYTES
    return total


def _append(stream: io.IOBase, name: str, index: MetadataIndex, piece: Any) -> WriteResult:
    """Append the tensor ``piece`` to the file ``stream`` in the form that DCP reads."""
    assert isinstance(piece, Tensor)
    piece = piece.detach().cpu()
    if piece.untyped_storage().nbytes() != piece.nbytes:  # torch.save writes the whole storage
        piece = piece.clone()
    start = stream.tell()
    torch.save(piece, cast(IO[bytes], stream))
    length = stream.tell() - start
    return WriteResult(index, length, _StorageInfo(name, start, length))


class DCPReader(FileSystemReader):
    """Reads the tensors of a checkpoint by metadata that ``dcp_metadata.parse`` has checked."""

    def __init__(self, folder: Path, metadata: Metadata) -> None:
        super().__init__(folder)
        self._metadata = metadata

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return self._metadata


class _Digesting(FileSystem):
    """A DCP FileSystem that hashes every file while writing it and fsyncs it on close. (DCP's own
    fsync misses the data that is still in Python's buffer.)"""

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
    """A file that is written sequentially and hashed; ``close`` only flushes it."""

    def __init__(self, file: io.BufferedWriter, helper: Executor) -> None:
        """Write to ``file``; ``helper`` is a thread that hashes a large block during its write."""
        self._file, self._helper = file, helper
        self._hash, self._size = hashlib.sha256(), 0
        self.failure: OSError | None = None

    def write(self, data: bytes | memoryview) -> int:
        concurrent = len(data) >= MIN_CONCURRENT_HASH_BYTES
        done = self._helper.submit(self._hash.update, data) if concurrent else None
        try:
            count = self._file.write(data)
        except OSError as error:
            self.failure = error
            raise
        finally:
            if done is None:
                self._hash.update(data)
            else:
                done.result()  # the caller may overwrite the block afterwards
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
