"""A Hugging Face GPT-2 folder, as ``save_pretrained`` of transformers writes it."""

from __future__ import annotations

from pathlib import Path

from engine.inout.hf_folder import HFModel
from engine.inout.import_model import Importer, ImportOptions
from engine.inout.saved_model import SavedModel


def open_model(path: Path, options: ImportOptions) -> SavedModel:
    """Open the Hugging Face folder ``path``. Raises UserError."""
    options.require_unused("hf")
    return HFModel.open(path)


IMPORT = Importer(open_model=open_model)
