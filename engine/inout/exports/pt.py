"""A state dict by cuboid's parameter names, for torch.load with weights_only=True."""

from __future__ import annotations

from pathlib import Path

from engine.inout.export import Exporter, ExportOptions
from engine.inout.saved_model import SavedModel
from engine.inout.tensor_writers import write_pt


def write(path: Path, model: SavedModel, options: ExportOptions) -> None:
    """Write the state dict of ``model`` to the file ``path``."""
    write_pt(path, model.read_tensors(), model.shapes, dtype=options.dtype)


EXPORT = Exporter(suffix=".pt", write=write)
