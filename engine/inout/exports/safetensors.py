"""A safetensors file by cuboid's parameter names, with the model's config in its metadata."""

from __future__ import annotations

from pathlib import Path

from engine.inout.export import Exporter, ExportOptions
from engine.inout.saved_model import SavedModel
from engine.inout.tensor_writers import write_safetensors


def write(path: Path, model: SavedModel, options: ExportOptions) -> None:
    """Write ``model`` to the safetensors file ``path``."""
    write_safetensors(
        path, model.read_tensors(), model.shapes, dtype=options.dtype, metadata=model.metadata
    )


EXPORT = Exporter(suffix=".safetensors", write=write)
