"""Reads and writes a Hugging Face GPT-2 folder: config, weights and tokenizer.

``models.hf_config`` translates config.json, ``models.hf_state_dict`` the names and order of the
weights, ``engine.inout.hf_tokenizer`` the tokenizer. ``engine.inout.exports.hf`` registers the
folder as an export format; ``engine.inout.import_model`` imports such a folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from engine.errors import UserError
from engine.inout import hf_tokenizer
from engine.inout.saved_model import SavedModel
from engine.inout.tensor_readers import (
    SafetensorsFile,
    ShardedFiles,
    TensorFile,
    TorchFile,
    common_type,
)
from engine.inout.tensor_writers import SafetensorsWriter, Shapes
from models import hf_config, hf_state_dict

CONFIG = "config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
OLD_WEIGHTS, OLD_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
TRAINED_LENGTH = "trained_length"
"""Key that cuboid adds to config.json, which transformers preserves: trained positions."""
NAMES = (
    r"(generation_|tokenizer_)?config\.json|special_tokens_map\.json|vocab\.json|merges\.txt|"
    r"tokenizer\.json|codebook\.json|model(-\d+-of-\d+)?\.safetensors(\.index\.json)?"
)
"""Regular expression of the file names that transformers writes for a GPT-2."""


@dataclass(frozen=True, kw_only=True)
class HFModel(SavedModel):
    """The model of a Hugging Face folder."""

    tensors: TensorFile
    """The weights by the names that transformers uses."""

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open a Hugging Face folder. Raises UserError if it contains no GPT-2."""
        if not (folder / CONFIG).is_file():
            raise UserError(
                f"{folder} is not a Hugging Face folder: it has no {CONFIG}; name a folder that "
                "has one"
            )
        try:
            values = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
            config = hf_config.config_from_hf(values)
            tensors = _open_tensors(folder)
            dtypes = {n: t for n, t in tensors.dtypes.items() if not hf_state_dict.is_mask(n)}
            dtype = common_type(dtypes)
            hf_state_dict.from_hf(tensors, config)  # raises if a name is missing
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{folder}: {error}") from None
        length = values.get(TRAINED_LENGTH)
        return cls(
            path=folder,
            config=config,
            dtype=dtype,
            tokenizer=hf_tokenizer.read(folder),
            trained_length=length if type(length) is int and length > 0 else None,
            tensors=tensors,
        )

    def read_tensors(self) -> Iterator[tuple[str, Tensor]]:
        try:
            yield from hf_state_dict.from_hf(self.tensors, self.config)
        except ValueError as error:
            raise UserError(f"{self.path}: {error}") from None


def write(folder: Path, model: SavedModel, *, dtype: torch.dtype, shard_bytes: int) -> None:
    """Create ``folder`` and write ``model`` into it. Weights larger than ``shard_bytes`` are split
    into several files with an index.

    Raises ValueError for a model that GPT-2's config cannot represent, UserError, OSError.
    """
    folder.mkdir()
    shapes = {hf_state_dict.hf_name(name): shape for name, shape in model.shapes.items()}
    shards = name_shards(split_into_files(shapes, dtype.itemsize, shard_bytes))
    with ExitStack() as files:
        file_of: dict[str, SafetensorsWriter] = {}
        for name, part in shards.items():
            writer = SafetensorsWriter(folder / name, part, dtype, {"format": "pt"})
            file_of |= dict.fromkeys(part, files.enter_context(writer))
        for name, tensor in hf_state_dict.to_hf(model.read_tensors(), model.config):
            file_of[name].write(name, tensor)
    if len(shards) > 1:
        _write_json(folder / INDEX, _index(shards, dtype))
    special_ids = hf_tokenizer.special_ids(model.tokenizer)
    config = hf_config.hf_config(model.config) | {TRAINED_LENGTH: model.length} | special_ids
    _write_json(folder / CONFIG, config | {"torch_dtype": str(dtype).removeprefix("torch.")})
    _write_json(folder / "generation_config.json", {"_from_model_config": True} | special_ids)
    for name, content in hf_tokenizer.files(model.tokenizer, model.length).items():
        (folder / name).write_bytes(content)


def split_into_files(shapes: Shapes, itemsize: int, limit: int) -> list[Shapes]:
    """Assign tensors to files, as huggingface_hub does: a file ends before the tensor that would
    take it over ``limit`` bytes. A tensor larger than ``limit`` gets its own file."""
    shards: list[Shapes] = []
    current: dict[str, tuple[int, ...]] = {}
    current_bytes = 0
    for name, shape in shapes.items():
        size = itemsize * prod(shape)
        if size > limit:
            shards.append({name: shape})
            continue
        if current_bytes + size > limit:
            shards.append(current)
            current, current_bytes = {}, 0
        current[name] = shape
        current_bytes += size
    return [*shards, current] if current else shards


def name_shards(shards: list[Shapes]) -> Mapping[str, Shapes]:
    """Name the files as transformers does. Return the tensors of each file by the file's name."""
    if len(shards) == 1:
        return {WEIGHTS: shards[0]}
    stem = WEIGHTS.removesuffix(".safetensors")
    return {
        f"{stem}-{number:05}-of-{len(shards):05}.safetensors": shard
        for number, shard in enumerate(shards, 1)
    }


def _index(shards: Mapping[str, Shapes], dtype: torch.dtype) -> dict[str, Any]:
    total = sum(prod(shape) for shard in shards.values() for shape in shard.values())
    return {
        "metadata": {"total_parameters": total, "total_size": total * dtype.itemsize},
        "weight_map": {name: file for file, shard in shards.items() for name in shard},
    }


def _open_tensors(folder: Path) -> TensorFile:
    """Open the weights of a folder. Raises UserError where there are none."""
    if (folder / WEIGHTS).is_file():
        return SafetensorsFile(folder / WEIGHTS)
    if (folder / INDEX).is_file():
        return ShardedFiles(folder / INDEX, SafetensorsFile)
    if (folder / OLD_WEIGHTS).is_file():
        return TorchFile(folder / OLD_WEIGHTS)
    if (folder / OLD_INDEX).is_file():
        return ShardedFiles(folder / OLD_INDEX, TorchFile)
    raise UserError(
        f"{folder} has no weights; add one of {WEIGHTS}, {INDEX}, {OLD_WEIGHTS} or {OLD_INDEX}"
    )


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_bytes(hf_tokenizer.as_json(content))
