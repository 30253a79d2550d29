"""What a checkpoint says of itself, in JSON: its files and where training stood. No torch.

``manifest.json`` names every other file with its size and SHA-256, the layout that wrote them and
the versions it ran on; a digest of its own shows an edit. ``training.json`` is one of those files.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

MANIFEST, TRAINING = "manifest.json", "training.json"
BLOCK_BYTES = 1 << 22
READERS = 8

FileName = Annotated[str, Field(pattern=r"^[\w.-]+$")]  # nothing outside of the folder
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
NonNegative = Annotated[int, Field(ge=0)]


class CorruptCheckpointError(Exception):
    """A checkpoint is not what was written. One line: which file, and how it differs."""


class _ManifestModel(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class FileDigest(_ManifestModel):
    """Size and SHA-256 of a file."""

    bytes: NonNegative
    sha256: Digest


class SavedLayout(_ManifestModel):
    """Who wrote: what the layout of a run is made of, by the names of its settings."""

    mode: str
    tensor_parallel: NonNegative
    depth: NonNegative
    pipeline: NonNegative
    num_chunks: NonNegative
    data_parallel: NonNegative
    zero_stage: NonNegative

    @property
    def ranks(self) -> int:
        return self.tensor_parallel * self.pipeline * self.data_parallel

    def __str__(self) -> str:
        deep = f", depth {self.depth}" if self.depth > 1 else ""
        parts = [f"tensor {self.tensor_parallel} ({self.mode}{deep})", f"pipeline {self.pipeline}"]
        text = " x ".join([*parts, f"data {self.data_parallel}"])
        text += f", {self.num_chunks} chunks a stage" if self.num_chunks > 1 else ""
        return text + (f", ZeRO {self.zero_stage}" if self.zero_stage else "")


class LossScaleState(_ManifestModel):
    """Where the dynamic loss scale of fp16 stands."""

    scale: float
    quiet: NonNegative
    borne: NonNegative
    skipped: NonNegative


class LossSpikesState(_ManifestModel):
    """What the next losses are compared with, the latest last, and what was skipped so far."""

    recent: list[float]
    in_a_row: NonNegative
    skipped: NonNegative


class TrainingState(_ManifestModel):
    """Where training stood after ``step``, beside its tensors.

    ``samples``, ``tokens``, ``epochs``: as ``Consumed``; ``corpus``: the data's fingerprint.
    ``settings``: all of them, resolved. ``val_loss``: of a validation after this very step.
    ``threads``: that each rank computed with on a CPU; 0 where that was not recorded.
    ``tokenizer``: the one that the ids are by, as ``engine.data.tokenizer.dump`` gives it; None
    where ids stand for no text. ``trained_length``: the positions trained so far, which is the
    longest SEQ_LEN of the run and of the weights that it began with.
    """

    step: NonNegative
    samples: NonNegative
    tokens: NonNegative | None = None  # None: written before there was such a field, also below
    epochs: float | None = None
    val_loss: float | None
    loss_scale: LossScaleState | None
    matmul: str
    device: str
    corpus: str
    settings: dict[str, Any]
    loss_spikes: LossSpikesState | None = None
    threads: NonNegative = 0
    tokenizer: dict[str, Any] | None = None
    trained_length: NonNegative | None = None


class Manifest(_ManifestModel):
    """What ``manifest.json`` holds beside its own digest."""

    format: Literal[1] = 1
    step: NonNegative
    written: str
    layout: SavedLayout
    versions: dict[str, str]
    files: dict[FileName, FileDigest]

    def dump(self) -> bytes:
        """As JSON for the file, with the digest that ``read_manifest`` compares."""
        content = self.model_dump(mode="json")
        return (json.dumps({**content, "sha256": _digest(content)}, indent=1) + "\n").encode()


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a checkpoint. Raises CorruptCheckpointError."""
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise CorruptCheckpointError(f"{MANIFEST} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise CorruptCheckpointError(f"{MANIFEST} is not JSON") from None
    recorded = content.pop("sha256", None) if isinstance(content, dict) else None
    if recorded is None or recorded != _digest(content):
        raise CorruptCheckpointError(f"{MANIFEST} was changed: its own SHA-256 differs")
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        raise CorruptCheckpointError(f"{MANIFEST}: {first_problem(error)}") from None


def read_training(folder: Path) -> TrainingState:
    """Where training stood. Raises CorruptCheckpointError."""
    try:
        return TrainingState.model_validate_json((folder / TRAINING).read_bytes())
    except OSError as error:
        raise CorruptCheckpointError(f"{TRAINING} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        raise CorruptCheckpointError(f"{TRAINING}: {first_problem(error)}") from None


def verify_files(folder: Path, files: Mapping[str, FileDigest], names: Iterable[str]) -> list[str]:
    """How these of the files differ from what ``files`` says of them, a line each.

    They are read from the disk, where the system can be told to forget what it has in memory, and
    several at a time: a digest takes longer than many a disk.
    """
    with ThreadPoolExecutor(READERS) as readers:
        found = readers.map(partial(_difference, folder, files), names)
        return [difference for difference in found if difference]


def _difference(folder: Path, files: Mapping[str, FileDigest], name: str) -> str:
    recorded = files.get(name)
    if recorded is None:
        return f"{MANIFEST} does not name {name}"
    try:
        with (folder / name).open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            if size != recorded.bytes:
                return f"{name} has {size:,} of {recorded.bytes:,} bytes"
            return (
                ""
                if digest_of(file) == recorded.sha256
                else f"{name} was changed: its SHA-256 differs"
            )
    except FileNotFoundError:
        return f"{name} is missing"
    except OSError as error:
        return f"{name} cannot be read: {error.strerror}"


def digest_of(file: FileIO) -> str:
    """SHA-256 of an open file, hex."""
    with suppress(AttributeError, OSError):  # not on every system, not on every file system
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    digest, block = hashlib.sha256(), memoryview(bytearray(BLOCK_BYTES))
    while count := file.readinto(block):
        digest.update(block[:count])
    return digest.hexdigest()


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def first_problem(error: ValidationError) -> str:
    """Name the first field that is wrong, and how."""
    problem = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"
