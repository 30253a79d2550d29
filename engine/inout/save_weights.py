"""Writes the unsharded weights of a model in training to one safetensors file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from engine.files.atomic_write import atomic_path
from engine.inout.saved_model import metadata_of, shapes_of
from engine.inout.tensor_writers import total_bytes, write_safetensors
from engine.training.unsharded import unsharded_parameters

if TYPE_CHECKING:
    from engine.training.trainer import Trainer
    from models.chunks import ModelChunks


def save_weights(trainer: Trainer, path: Path) -> None:
    """Gather the trainer's weights and write them on rank 0, with the model's settings and
    tokenizer as metadata. All ranks call it. Raises RunError if the disk is full or fails."""
    metadata = metadata_of(
        trainer.model.config,
        tokenizer=trainer.tokenizer,
        step=trainer.done,
        trained_length=trainer.trained_length,
    )
    save_unsharded(trainer.model, path, metadata, writes=trainer.world.is_main)


def save_unsharded(
    model: ModelChunks, path: Path, metadata: Mapping[str, str], *, writes: bool
) -> None:
    """Gather the model's weights, one tensor at a time, and write them on the rank where ``writes``
    is True, a rank of the first pipeline stage. All ranks call it. The file is written whole or not
    at all.

    Raises RunError if the disk is full or fails.
    """
    if not writes:
        for _ in unsharded_parameters(model):
            pass
        return
    shapes, dtype = shapes_of(model.config), model.parallel.dtype
    with atomic_path(path, required_bytes=total_bytes(shapes, dtype), replace=True) as temporary:
        write_safetensors(
            temporary, unsharded_parameters(model), shapes, dtype=dtype, metadata=metadata
        )
