"""A file of safetensors by our names, whose metadata says what model it is."""

from __future__ import annotations

from pathlib import Path

from engine.inout.export import Export, Options
from engine.inout.saved_model import Trained
from engine.inout.tensor_writers import write_safetensors


def write(path: Path, model: Trained, options: Options) -> None:
    write_safetensors(
        path, model.read(), model.shapes, dtype=options.dtype, metadata=model.metadata
    )


EXPORT = Export(suffix=".safetensors", write=write)
