"""A model on the disk, wherever it came from: what it is, and its tensors one at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from engine.checkpoint.manifest import first_problem
from engine.config.schema import ModelSettings
from engine.inout.tensor_writers import Shapes
from models import load_state
from models.chunks import ModelChunks
from models.config import GPTConfig
from models.parallel.registry import modes
from models.parameters import parameters

TRAINING_ONLY = {"checkpoint"}
"""Among the sizes, what says how a model was trained and no more."""


def nothing_to_verify(share: int = 0, of: int = 1) -> list[str]:
    """Of files that carry no digests."""
    return []


@dataclass(frozen=True, kw_only=True)
class SavedModel:
    """``path`` is what it is read from: a file, a checkpoint or a folder of Hugging Face's.
    ``dtype`` holds the numbers of all its tensors. ``read_tensors`` yields every parameter by our
    name, whole, on the CPU, in the order of ``models.parameters``; it raises UserError or Failed
    where that cannot be. ``trained_length``: how many positions were trained; None: all.
    ``verify``: as ``SavedCheckpoint``'s, how the files differ from what was written. ``fill``,
    where there is one, loads a model of these shapes and reads only what the rank holds."""

    path: Path
    config: GPTConfig
    dtype: torch.dtype
    read_tensors: Callable[[], Iterator[tuple[str, Tensor]]]
    tokenizer: dict[str, Any] | None = None
    step: int | None = None
    trained_length: int | None = None
    verify: Callable[[int, int], list[str]] = nothing_to_verify
    fill: Callable[[ModelChunks], None] | None = None

    @property
    def shapes(self) -> Shapes:
        return shapes_of(self.config)

    @property
    def length(self) -> int:
        """The positions that can be used: those that there are, or fewer where fewer were
        trained."""
        return min(self.trained_length or self.config.block_size, self.config.block_size)

    @property
    def metadata(self) -> dict[str, str]:
        """What a file of ours says of it."""
        return metadata_of(
            self.config, tokenizer=self.tokenizer, step=self.step, trained_length=self.length
        )

    def load(self, model: ModelChunks, *, resize: Collection[str] = ()) -> None:
        """Each rank's boxes; tables of ``resize`` may have other numbers of rows.

        Raises ValueError for another model, UserError and Failed as ``read_tensors``.
        """
        if self.fill is not None and self.shapes == shapes_of(model.config):
            self.fill(model)
        else:
            load_state.load_state(model, self.read_tensors(), resize=resize)


def shapes_of(config: GPTConfig) -> Shapes:
    """Whole tensors by our names."""
    return {p.name: p.shape for p in parameters(config, modes()["serial"])}


def metadata_of(
    config: GPTConfig,
    *,
    tokenizer: dict[str, Any] | None = None,
    step: int | None = None,
    trained_length: int | None = None,
) -> dict[str, str]:
    """The metadata of a file of safetensors by our names, which tells in JSON all that its model is
    read with. ``tokenizer`` is as ``engine.data.tokenizer.dump`` gives it."""
    fields = {name: value for name, value in asdict(config).items() if name not in TRAINING_ONLY}
    found = {"format": "pt", "model": json.dumps(fields)}
    if tokenizer is not None:
        found["tokenizer"] = json.dumps(tokenizer)
    if step is not None:
        found["step"] = str(step)
    if trained_length is not None:
        found["trained_length"] = str(trained_length)
    return found


def config_from(section: Mapping[str, Any]) -> GPTConfig:
    """The sizes that a file tells. Raises ValueError."""
    try:
        return GPTConfig.of(ModelSettings.model_validate(dict(section)))
    except ValidationError as error:
        raise ValueError(f"model.{first_problem(error)}") from None
