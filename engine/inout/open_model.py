"""Models on the disk by the path a user gives."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from engine.checkpoint.directory import CheckpointDirectory
from engine.checkpoint.load import SavedCheckpoint
from engine.checkpoint.manifest import MANIFEST, CorruptCheckpointError
from engine.data.tokenizer import read_saved
from engine.errors import UserError
from engine.inout import hf_folder
from engine.inout.saved_model import SavedModel, config_from, shapes_of
from engine.inout.tensor_readers import SafetensorsFile, common_type
from engine.runs.folder import RunFolder
from engine.runs.resolve import resolve_checkpoint


def open_saved_model(path: Path, which: str = "latest") -> SavedModel:
    """The model at ``path``: a run's folder, of whose checkpoints ``which`` is the 'latest', the
    'best' or that of a step (its final weights, where it has none); one of its checkpoints; a
    Hugging Face folder; or weights by our names, as a file or in a folder.

    Raises UserError where there is none, or it is not what it says.
    """
    folder = RunFolder(path)
    folder.mark_if_killed()
    if CheckpointDirectory(folder.checkpoints).steps():
        return _checkpoint(resolve_checkpoint(folder, which))
    if which != "latest":
        raise UserError(f"{path} has no checkpoints, of which to take {which}")
    if (path / MANIFEST).is_file():
        return _checkpoint(path)
    if (path / hf_folder.CONFIG).is_file():
        return hf_folder.read(path)
    if folder.weights.is_file():
        return _weights(folder.weights)
    if path.is_file():
        return _weights(path)
    raise UserError(
        f"{path} holds no model: it may be a run, one of its checkpoints, a Hugging Face folder, "
        "what cuboid import left, or a file of safetensors"
    )


def _checkpoint(path: Path) -> SavedModel:
    checkpoint = SavedCheckpoint(path)
    try:
        training, dtypes = checkpoint.training, checkpoint.parameter_types()
        config = config_from(training.settings.get("model", {}))
    except (CorruptCheckpointError, ValueError) as error:
        raise UserError(f"{path}: {error}") from None

    def read() -> Iterator[tuple[str, Tensor]]:
        return ((name, checkpoint.parameter(name)) for name in shapes_of(config))

    return SavedModel(
        path=path,
        config=config,
        dtype=common_type(dtypes),
        read_tensors=read,
        tokenizer=checkpoint.tokenizer,
        trained_length=checkpoint.trained_length,
        step=training.step,
        verify=checkpoint.verify,
        fill=checkpoint.load_model,
    )


def _weights(path: Path) -> SavedModel:
    """A file by our names; its tokenizer is told in it or lies beside it."""
    file = SafetensorsFile(path)
    metadata = file.metadata
    try:
        section = json.loads(metadata["model"])
        tokenizer = json.loads(metadata["tokenizer"]) if "tokenizer" in metadata else None
        step = int(metadata["step"]) if "step" in metadata else None
        length = int(metadata["trained_length"]) if "trained_length" in metadata else None
        config = config_from(section)
        shapes = shapes_of(config)
        if file.shapes != shapes:
            raise ValueError("its tensors are not those of the model that its metadata tells")
        dtype = common_type(file.dtypes)
    except KeyError:
        raise UserError(
            f"{path} does not say what model it is of: cuboid did not write it"
        ) from None
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: {error}") from None

    def read() -> Iterator[tuple[str, Tensor]]:
        return ((name, file[name]) for name in shapes)

    return SavedModel(
        path=path,
        config=config,
        dtype=dtype,
        read_tensors=read,
        tokenizer=tokenizer or read_saved(RunFolder(path.parent).tokenizer),
        step=step,
        trained_length=length,
    )
