"""Opens a saved model by the path that a user gives; reads cuboid's own formats."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from torch import Tensor

from engine.checkpoint.directory import CheckpointDirectory
from engine.checkpoint.load import SavedCheckpoint
from engine.checkpoint.manifest import MANIFEST, CorruptCheckpointError
from engine.data.tokenizer import read_saved
from engine.errors import UserError
from engine.inout.hf_folder import CONFIG, HFModel
from engine.inout.saved_model import SavedModel, config_from, shapes_of
from engine.inout.tensor_readers import SafetensorsFile, common_type
from engine.runs.folder import RunFolder
from engine.runs.lookup import resolve_checkpoint
from models.chunks import ModelChunks


def open_saved_model(path: Path, which: str = "latest") -> SavedModel:
    """Open the model at ``path``: a run's folder, a checkpoint, a Hugging Face folder, or a
    safetensors file by cuboid or a folder that contains one.

    ``which`` selects a checkpoint of a run: 'latest', 'best' or a step. A run without checkpoints
    gives its final weights.

    Raises UserError where there is no model, or it is corrupt.
    """
    folder = RunFolder(path)
    folder.mark_if_killed()
    if CheckpointDirectory(folder.checkpoints).steps():
        return CheckpointModel.open(resolve_checkpoint(folder, which))
    if which != "latest":
        raise UserError(
            f"{path} has no checkpoints, so there is no {which}; leave --step out, or name a run"
        )
    if (path / MANIFEST).is_file():
        return CheckpointModel.open(path)
    if (path / CONFIG).is_file():
        return HFModel.open(path)
    if folder.weights.is_file():
        return WeightsFileModel.open(folder.weights)
    if path.is_file():
        return WeightsFileModel.open(path)
    raise UserError(
        f"{path} contains no model; give a run, a checkpoint, a Hugging Face folder, a folder that "
        "cuboid import wrote, or a safetensors file"
    )


@dataclass(frozen=True, kw_only=True)
class CheckpointModel(SavedModel):
    """The model of a checkpoint."""

    checkpoint: SavedCheckpoint

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open the checkpoint RUN/checkpoints/step-N. Raises UserError if it is corrupt."""
        checkpoint = SavedCheckpoint(path)
        try:
            training, dtypes = checkpoint.training, checkpoint.parameter_types()
            config = config_from(training.settings.get("model", {}))
        except (CorruptCheckpointError, ValueError) as error:
            raise UserError(f"{path}: {error}") from None
        return cls(
            path=path,
            config=config,
            dtype=common_type(dtypes),
            tokenizer=checkpoint.tokenizer,
            step=training.step,
            trained_length=checkpoint.trained_length,
            checkpoint=checkpoint,
        )

    def read_tensors(self) -> Iterator[tuple[str, Tensor]]:
        return ((name, self.checkpoint.parameter(name)) for name in self.shapes)

    def verify(self, share: int = 0, of: int = 1) -> list[str]:
        return self.checkpoint.verify(share, of)

    def load(self, model: ModelChunks, *, resize: Collection[str] = ()) -> None:
        if self.shapes == shapes_of(model.config):
            self.checkpoint.load_model(model)  # reads this rank's shards
        else:
            super().load(model, resize=resize)


@dataclass(frozen=True, kw_only=True)
class WeightsFileModel(SavedModel):
    """The model of a safetensors file that cuboid wrote."""

    file: SafetensorsFile

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a safetensors file. The tokenizer is read from the file's metadata or from
        tokenizer.json of the same folder.

        Raises UserError for a file that cuboid did not write.
        """
        file = SafetensorsFile(path)
        metadata = file.metadata
        try:
            section = json.loads(metadata["model"])
            tokenizer = json.loads(metadata["tokenizer"]) if "tokenizer" in metadata else None
            step = int(metadata["step"]) if "step" in metadata else None
            length = int(metadata["trained_length"]) if "trained_length" in metadata else None
            config = config_from(section)
            if file.shapes != shapes_of(config):
                raise ValueError("its tensors do not match the model in its metadata")
            dtype = common_type(file.dtypes)
        except KeyError:
            raise UserError(
                f"{path} has no model config in its metadata: cuboid did not write it"
            ) from None
        except (ValueError, TypeError) as error:
            raise UserError(f"{path}: {error}") from None
        return cls(
            path=path,
            config=config,
            dtype=dtype,
            tokenizer=tokenizer or read_saved(RunFolder(path.parent).tokenizer),
            step=step,
            trained_length=length,
            file=file,
        )

    def read_tensors(self) -> Iterator[tuple[str, Tensor]]:
        return ((name, self.file[name]) for name in self.shapes)
