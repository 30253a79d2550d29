"""The JSON files of a checkpoint: its manifest and the state of training. No torch.

``manifest.json`` has the size and SHA-256 of every other file, the layout and the versions that
saved it, and a digest of itself, which detects an edit. ``training.json`` is one of those files.

The field names here are the names on the disk. An alias gives the name on the disk where the code
has another one.
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
"""Files that are hashed concurrently."""

FileName = Annotated[str, Field(pattern=r"^[\w.-]+$")]  # no path out of the folder
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
NonNegative = Annotated[int, Field(ge=0)]


class CorruptCheckpointError(Exception):
    """A checkpoint is corrupt. The message is one line: the file, and how it differs."""


class _ManifestModel(BaseModel):
    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", validate_by_name=True, serialize_by_alias=True
    )


class FileDigest(_ManifestModel):
    """The size and SHA-256 of a file."""

    bytes: NonNegative
    sha256: Digest


class SavedLayout(_ManifestModel):
    """The layout of the run that saved a checkpoint, by the names of its settings."""

    mode: str
    tensor_parallel: NonNegative
    depth: NonNegative
    pipeline: NonNegative
    num_chunks: NonNegative
    data_parallel: NonNegative
    zero_stage: NonNegative

    @property
    def ranks(self) -> int:
        """The number of ranks."""
        return self.tensor_parallel * self.pipeline * self.data_parallel

    def __str__(self) -> str:
        deep = f", depth {self.depth}" if self.depth > 1 else ""
        parts = [f"tensor {self.tensor_parallel} ({self.mode}{deep})", f"pipeline {self.pipeline}"]
        text = " x ".join([*parts, f"data {self.data_parallel}"])
        text += f", {self.num_chunks} chunks a stage" if self.num_chunks > 1 else ""
        return text + (f", ZeRO {self.zero_stage}" if self.zero_stage else "")


class LossScaleState(_ManifestModel):
    """The state of the dynamic loss scale of fp16, ``engine.training.loss_scale.LossScale``."""

    scale: float
    steps_since_overflow: NonNegative = Field(alias="quiet")
    consecutive_overflows: NonNegative = Field(alias="borne")
    skipped: NonNegative


class LossSpikesState(_ManifestModel):
    """The state of the loss-spike detector, ``engine.training.loss_spikes.LossSpikes``."""

    recent: list[float]
    """The losses that the next loss is compared with, the latest last."""
    consecutive_skips: NonNegative = Field(alias="in_a_row")
    skipped: NonNegative


class TrainingState(_ManifestModel):
    """The state of training after ``step``, without its tensors: the content of training.json.

    A field with a default is missing in checkpoints of older versions.
    """

    step: NonNegative
    samples: NonNegative
    """The samples read so far, as in ``engine.data.batches.consumed.Consumed``."""
    tokens: NonNegative | None = None
    """The tokens read so far."""
    epochs: float | None = None
    """The epochs read so far."""
    val_loss: float | None
    """The loss of a validation right after ``step``; None if there was none."""
    train_loss: float | None = None
    """The mean training loss of the steps since the checkpoint before, or since the start or the
    resume of the run."""
    loss_scale: LossScaleState | None
    matmul: str
    """The library of matrix products, a key of ``engine.training.matmuls.MATMULS``."""
    device: str
    corpus: str
    """The fingerprint of the data."""
    settings: dict[str, Any]
    """All settings, resolved."""
    loss_spikes: LossSpikesState | None = None
    threads: NonNegative = 0
    """The threads per rank on a CPU."""
    tokenizer: dict[str, Any] | None = None
    """The tokenizer, as ``engine.data.tokenizer.dump`` returns it; None if ids encode no text."""
    trained_length: NonNegative | None = None
    """The positions trained so far: the longest SEQ_LEN of the run and its initial weights."""
    dropout_by: Literal["shard", "sample"] = "shard"
    """What dropout masks depend on: the shard, in older versions, or the sample, the position and
    the feature."""

    def vocab_size(self) -> int:
        """Return the model's number of token ids."""
        size: int = self.settings["model"]["vocab_size"]
        return size

    @property
    def best_by(self) -> str:
        """The run's checkpoint.best_by; older runs select by the validation."""
        section = self.settings.get("checkpoint")
        return str(section.get("best_by", "validation")) if section else "validation"

    def loss_by(self, best_by: str) -> float | None:
        """Return the loss that ``best_by`` names; None if the checkpoint has none."""
        return self.train_loss if best_by == "train" else self.val_loss

    def dump(self) -> bytes:
        """Return the content of training.json."""
        return (self.model_dump_json(indent=1) + "\n").encode()


class Manifest(_ManifestModel):
    """The content of manifest.json, except for the SHA-256 of the manifest itself."""

    format: Literal[1] = 1
    step: NonNegative
    written: str
    """The time of the save, ISO 8601."""
    layout: SavedLayout
    versions: dict[str, str]
    """Versions of cuboid, torch and Python."""
    files: dict[FileName, FileDigest]

    def dump(self) -> bytes:
        """Return the content of manifest.json, with the digest that ``read_manifest`` checks."""
        content = self.model_dump(mode="json")
        return (json.dumps({**content, "sha256": _digest(content)}, indent=1) + "\n").encode()


def read_manifest(folder: Path) -> Manifest:
    """Read and check the manifest of a checkpoint. Raises CorruptCheckpointError."""
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
    """Read the state of training of a checkpoint. Raises CorruptCheckpointError."""
    try:
        return TrainingState.model_validate_json((folder / TRAINING).read_bytes())
    except OSError as error:
        raise CorruptCheckpointError(f"{TRAINING} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        raise CorruptCheckpointError(f"{TRAINING}: {first_problem(error)}") from None


def verify_files(folder: Path, files: Mapping[str, FileDigest], names: Iterable[str]) -> list[str]:
    """Compare the files ``names`` in ``folder`` with the sizes and digests in ``files``; return a
    line per difference.

    The files are read from the disk, if the system can drop them from its page cache, and several
    concurrently, because a disk is often faster than SHA-256.
    """
    with ThreadPoolExecutor(READERS) as readers:
        differences = readers.map(partial(_difference, folder, files), names)
        return [difference for difference in differences if difference]


def _difference(folder: Path, files: Mapping[str, FileDigest], name: str) -> str:
    """Describe how a file differs from its digest; "" if it does not."""
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
    """Return the SHA-256 of an open file, hexadecimal, read from the disk rather than the cache."""
    with suppress(AttributeError, OSError):  # not every system and file system has it
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    digest, block = hashlib.sha256(), memoryview(bytearray(BLOCK_BYTES))
    while count := file.readinto(block):
        digest.update(block[:count])
    return digest.hexdigest()


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def first_problem(error: ValidationError) -> str:
    """Return the first invalid field and its problem."""
    problem = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"
