"""Models on the disk by the path a user gives."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from engine.checkpoint.directory import Shelf
from engine.checkpoint.load import Stored
from engine.checkpoint.manifest import MANIFEST, Damaged
from engine.data.tokenizer import read_saved
from engine.errors import Refused
from engine.inout import hf_folder
from engine.inout.saved_model import Trained, shapes_of, sizes_from
from engine.inout.tensor_readers import SafetensorsFile, common_type
from engine.runs.folder import RunFolder
from engine.runs.resolve import pick


def open_trained(path: Path, which: str = "latest") -> Trained:
    """The model at ``path``: a run's folder, of whose checkpoints ``which`` is the 'latest', the
    'best' or that of a step (its final weights, where it has none); one of its checkpoints; a
    Hugging Face folder; or weights by our names, as a file or in a folder.

    Raises Refused where there is none, or it is not what it says.
    """
    folder = RunFolder(path)
    folder.settle()
    if Shelf(folder.checkpoints).steps():
        return _checkpoint(pick(folder, which))
    if which != "latest":
        raise Refused(f"{path} has no checkpoints, of which to take {which}")
    if (path / MANIFEST).is_file():
        return _checkpoint(path)
    if (path / hf_folder.CONFIG).is_file():
        return hf_folder.read(path)
    if folder.weights.is_file():
        return _weights(folder.weights)
    if path.is_file():
        return _weights(path)
    raise Refused(
        f"{path} holds no model: it may be a run, one of its checkpoints, a Hugging Face folder, "
        "what cuboid import left, or a file of safetensors"
    )


def _checkpoint(path: Path) -> Trained:
    stored = Stored(path)
    try:
        training, dtypes = stored.training, stored.parameter_types()
        sizes = sizes_from(training.settings.get("model", {}))
    except (Damaged, ValueError) as error:
        raise Refused(f"{path}: {error}") from None

    def read() -> Iterator[tuple[str, Tensor]]:
        return ((name, stored.parameter(name)) for name in shapes_of(sizes))

    return Trained(
        path=path,
        sizes=sizes,
        dtype=common_type(dtypes),
        read=read,
        tokenizer=stored.tokenizer,
        trained_length=stored.trained_length,
        step=training.step,
        problems=stored.problems,
        fill=stored.load_model,
    )


def _weights(path: Path) -> Trained:
    """A file by our names; its tokenizer is told in it or lies beside it."""
    file = SafetensorsFile(path)
    told = file.metadata
    try:
        section = json.loads(told["model"])
        tokenizer = json.loads(told["tokenizer"]) if "tokenizer" in told else None
        step = int(told["step"]) if "step" in told else None
        length = int(told["trained_length"]) if "trained_length" in told else None
        sizes = sizes_from(section)
        shapes = shapes_of(sizes)
        if file.shapes != shapes:
            raise ValueError("its tensors are not those of the model that its metadata tells")
        dtype = common_type(file.dtypes)
    except KeyError:
        raise Refused(f"{path} does not say what model it is of: cuboid did not write it") from None
    except (ValueError, TypeError) as error:
        raise Refused(f"{path}: {error}") from None

    def read() -> Iterator[tuple[str, Tensor]]:
        return ((name, file[name]) for name in shapes)

    return Trained(
        path=path,
        sizes=sizes,
        dtype=dtype,
        read=read,
        tokenizer=tokenizer or read_saved(RunFolder(path.parent).tokenizer),
        step=step,
        trained_length=length,
    )
