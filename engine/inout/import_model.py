"""Imports a model of another project: writes its weights in cuboid's format and a config to train
it. Every module in ``engine/inout/imports`` is a format, named by its file.

A format is a module whose ``IMPORT`` is an ``Importer``.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

from engine import discover
from engine.data.tokenizer import IMAGES
from engine.errors import UserError
from engine.files.atomic_write import atomic_path
from engine.inout.saved_model import SavedModel, architecture_of
from engine.inout.tensor_writers import total_bytes, write_safetensors
from engine.runs.folder import RunFolder
from models.presets import GPT2_VOCABULARY

IMPORTERS_PACKAGE = "engine.inout.imports"


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """Parts of a model that the user states because the files of some formats do not store them."""

    n_head: int | None = None
    """Number of attention heads."""
    codebook: Path | None = None
    """Colours of the images that the model was trained on."""
    tokenizer: Path | None = None
    """SentencePiece model of the text that the model was trained on."""

    def require_unused(self, name: str) -> None:
        """Raise UserError if an option is set: the format ``name`` stores all parts of a model."""
        for option in fields(self):
            if getattr(self, option.name) is not None:
                flag = "--" + option.name.replace("_", "-")
                raise UserError(f"{flag}: the format {name} stores it; remove the option")


@dataclass(frozen=True, kw_only=True)
class Importer:
    """An import format."""

    open_model: Callable[[Path, ImportOptions], SavedModel]
    """Opens the model at a path. Raises UserError."""


def importer(name: str) -> Importer:
    """Load the import format ``name``."""
    entry: Importer = discover.load(IMPORTERS_PACKAGE, name).IMPORT
    return entry


def import_model(model: SavedModel, out: Path) -> str:
    """Write model.safetensors, a config and tokenizer.json (if the tokenizer is known) to the new
    folder ``out``. Parameters keep their dtype. Return the command that trains the model.

    Raises:
        UserError: ``out`` exists, or the weights do not match the config of the model.
        RunError: a file cannot be written.
    """
    with atomic_path(out, required_bytes=total_bytes(model.shapes, model.dtype)) as new:
        new.mkdir()
        folder = RunFolder(new)
        try:
            write_safetensors(
                folder.weights,
                model.read_tensors(),
                model.shapes,
                dtype=model.dtype,
                metadata=model.metadata,
            )
        except ValueError as error:
            raise UserError(f"{model.path}: {error}") from None
        (new / f"{out.name}.py").write_text(config_for(model, out), encoding="utf-8")
        if model.tokenizer is not None:
            folder.tokenizer.write_text(json.dumps(model.tokenizer), encoding="utf-8")
    return train_command(model, out)


def config_for(model: SavedModel, folder: Path) -> str:
    """Return the text of a config that trains the model, for the user to edit."""
    fields = [f"    {name}={value!r}," for name, value in architecture_of(model.config).items()]
    saved = model.tokenizer or {"type": "gpt2"}
    if saved["type"] == IMAGES:
        order = saved["pixel_order"]
        line = f'data = dict(type="images", codebook={str(folder)!r}, pixel_order={order!r})'
        data = ["NUM_EPOCHS = 1", "", line]
    elif _has_tokenizer(model):
        data = ["NUM_EPOCHS = 1", "", f'data = dict(tokenizer="{saved["type"]}")']
    else:
        data = ["MAX_STEPS = 100", "", 'data = dict(type="synthetic")  # its tokenizer is unknown']
    lines = [
        f"# The model of {model.path.name}. To train it further:",
        f"# {train_command(model, folder)}",
        "BATCH_SIZE = 8",
        f"SEQ_LEN = {model.length}",
        *data,
        'optimizer = dict(type="adamw", lr=3e-5)',
        "model = dict(",
        *fields,
        ")",
    ]
    return "\n".join(lines) + "\n"


def train_command(model: SavedModel, folder: Path) -> str:
    """Return the command that trains the model, on a text if the model's tokenizer is known."""
    command = ["cuboid", "train", f"{folder / folder.name}.py", "--init-from", f"{folder}"]
    if model.tokenizer is not None and model.tokenizer["type"] == IMAGES:
        return shlex.join([*command, "data.path=my-images"])
    return shlex.join([*command, "data.path=my.txt"] if _has_tokenizer(model) else command)


def _has_tokenizer(model: SavedModel) -> bool:
    """Return whether the tokenizer is known; a model whose vocabulary is at least as large as
    GPT-2's has GPT-2's tokenizer."""
    return model.tokenizer is not None or model.config.vocab_size >= GPT2_VOCABULARY
