"""A state dict by our names, for torch.load with weights_only=True."""

from __future__ import annotations

from pathlib import Path

from engine.inout.export import Export, Options
from engine.inout.saved_model import Trained
from engine.inout.tensor_writers import write_pt


def write(path: Path, model: Trained, options: Options) -> None:
    write_pt(path, model.read(), model.shapes, dtype=options.dtype)


EXPORT = Export(suffix=".pt", write=write)
