"""A file of safetensors by our names, whose metadata says what model it is."""

from __future__ import annotations

from pathlib import Path

from engine.inout.export import Exporter, ExportOptions
from engine.inout.saved_model import SavedModel
from engine.inout.tensor_writers import write_safetensors


def write(path: Path, model: SavedModel, options: ExportOptions) -> None:
    write_safetensors(
        path, model.read_tensors(), model.shapes, dtype=options.dtype, metadata=model.metadata
    )


EXPORT = Exporter(suffix=".safetensors", write=write)
