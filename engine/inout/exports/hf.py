"""A folder of Hugging Face's GPT-2, as transformers loads it."""

from __future__ import annotations

from pathlib import Path

from engine.inout import huggingface
from engine.inout.export import Export, Options
from engine.inout.trained import Trained


def write(path: Path, model: Trained, options: Options) -> None:
    huggingface.write(path, model, dtype=options.dtype, shard_bytes=options.shard_bytes)


EXPORT = Export(suffix="-hf", write=write, names=huggingface.NAMES)
