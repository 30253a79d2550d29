"""Reads the codebook of a run, of an export or of a file of colours, and saved tokenizers that may
be codebooks."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.data.images.codebook import Codebook
from engine.data.tokenizer import FILE_NAME, IMAGES, Tokenizer, load, read_saved
from engine.errors import UserError

HF_FILE_NAME = "codebook.json"
"""The file of a Hugging Face folder that has the codebook; transformers has no tokenizer for it."""
CHECKPOINT_FILE_NAME = "training.json"
"""The file of a checkpoint that has the codebook."""
SHAPES = "[size, 3] or [size, 1], of values from 0 to 255"


def load_any(saved: dict[str, Any]) -> Tokenizer | Codebook:
    """Return the tokenizer or the codebook of images that ``tokenizer.dump`` saved.

    Raises UserError if it is corrupt.
    """
    return Codebook.load(saved) if saved.get("type") == IMAGES else load(saved)


def load_colours(path: str) -> NDArray[np.float32]:
    """Return the colours [size, channels] of the codebook at ``path``: a run, a checkpoint, an
    export, the JSON file of a codebook, or a .npy or .pt file of an array [size, channels].

    Raises UserError where there is no codebook.
    """
    name, file = f"data.codebook={path!r}", Path(path)
    try:
        if file.is_dir():
            saved = _saved_in(file)
        elif file.suffix == ".npy":
            return _checked(np.load(file, allow_pickle=False), name)
        elif file.suffix in (".pt", ".pth"):
            import torch

            return _checked(torch.load(file, map_location="cpu", weights_only=True), name)
        elif file.suffix == ".safetensors":
            saved = _of_safetensors(file)
        else:
            saved = read_saved(file)
    except UserError:
        raise
    except Exception as error:  # a corrupt file of any of these formats
        raise UserError(f"{name} cannot be read: {error}") from None
    if saved is None or saved.get("type") != IMAGES:
        raise UserError(f"{name} has no codebook of images; set it to a run, an export or {SHAPES}")
    return Codebook.load(saved).colours


def _saved_in(folder: Path) -> dict[str, Any] | None:
    """Read the saved tokenizer of a run, a checkpoint or a Hugging Face folder."""
    if (folder / CHECKPOINT_FILE_NAME).is_file():
        state = json.loads((folder / CHECKPOINT_FILE_NAME).read_text(encoding="utf-8"))
        found: dict[str, Any] | None = state["tokenizer"]
        return found
    return read_saved(folder / FILE_NAME) or read_saved(folder / HF_FILE_NAME)


def _of_safetensors(file: Path) -> dict[str, Any] | None:
    """Read the saved tokenizer in the metadata of a safetensors file, without its tensors."""
    with file.open("rb") as handle:
        (length,) = struct.unpack("<Q", handle.read(8))
        metadata = json.loads(handle.read(min(length, 1 << 27))).get("__metadata__", {})
    found: dict[str, Any] | None = json.loads(metadata.get("tokenizer", "null"))
    return found


def _checked(values: Any, name: str) -> NDArray[np.float32]:
    colours = np.asarray(values)
    if colours.ndim != 2 or colours.shape[1] not in (1, 3) or not 2 <= len(colours) <= 1 << 16:
        raise UserError(f"{name} is {colours.dtype} {list(colours.shape)}, not {SHAPES}")
    colours = colours.astype(np.float32)
    if not (np.isfinite(colours).all() and colours.min() >= 0 and colours.max() <= 255):
        raise UserError(f"{name} has values outside 0 to 255, not {SHAPES}")
    return colours
