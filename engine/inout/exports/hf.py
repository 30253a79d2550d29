"""A Hugging Face GPT-2 folder, for transformers; ``engine.inout.hf_folder`` writes it."""

from __future__ import annotations

from pathlib import Path

from engine.inout import hf_folder
from engine.inout.export import Exporter, ExportOptions
from engine.inout.saved_model import SavedModel


def write(path: Path, model: SavedModel, options: ExportOptions) -> None:
    """Write ``model`` as a Hugging Face folder at ``path``."""
    hf_folder.write(path, model, dtype=options.dtype, shard_bytes=options.shard_bytes)


EXPORT = Exporter(suffix="-hf", write=write, names=hf_folder.NAMES)
