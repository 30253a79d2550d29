"""A GPT on the disk, in any format: its config, and its parameters read one at a time.

A format is a subclass of ``SavedModel``: ``open_model`` has the subclasses for cuboid's formats,
``hf_folder`` the subclass for Hugging Face.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import ValidationError
from torch import Tensor

from engine.checkpoint.manifest import first_problem
from engine.config.sections.model import ModelSettings
from engine.errors import UserError
from engine.inout.tensor_writers import Shapes
from models import load_state
from models.chunks import ModelChunks
from models.config import GPTConfig
from models.parallel.registry import modes
from models.parameters import parameters

if TYPE_CHECKING:
    from engine.world.world import World

TRAINING_ONLY = {"checkpoint"}
"""Fields of GPTConfig that only training uses; files do not store them."""


@dataclass(frozen=True, kw_only=True)
class SavedModel(ABC):
    """A model on the disk; each format has a subclass."""

    path: Path
    """The file, checkpoint or Hugging Face folder that the model is read from."""
    config: GPTConfig
    dtype: torch.dtype
    """The smallest dtype that represents the values of all its parameters."""
    tokenizer: dict[str, Any] | None = None
    """The tokenizer as ``engine.data.tokenizer.dump`` returns it; None if the format or the model
    has none."""
    step: int | None = None
    """The step after which the model was saved, if known."""
    trained_length: int | None = None
    """Number of positions that were trained; None: all."""

    @abstractmethod
    def read_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every parameter with its name, in the order of ``models.parameters``: unsharded,
        on the CPU.

        Raises UserError or RunError where a tensor cannot be read.
        """

    def verify(self, share: int = 0, of: int = 1) -> list[str]:
        """Compare the files with their recorded hashes and return a line per problem; none for
        formats without hashes. Each of ``of`` ranks verifies the files of its ``share`` (its
        rank)."""
        return []

    def require_intact(self, world: World | None = None) -> None:
        """Verify the files; the ranks of ``world``, which all call this, verify a share each.

        Raises UserError on all ranks if a file is corrupt.
        """
        if world is None:
            return self._reject(self.verify())
        problems = world.gather_problems(self.verify(world.rank, world.size))
        return world.run_on_all(lambda: self._reject(problems))

    def _reject(self, problems: Sequence[str]) -> None:
        if problems:
            raise UserError(
                f"{self.path} is corrupt: {', '.join(problems)}; restore it, or use other weights"
            )

    def load(self, model: ModelChunks, *, resize: Collection[str] = ()) -> None:
        """Fill this rank's shards of ``model``. Parameters named in ``resize`` may have another
        number of rows.

        Raises ValueError if other shapes differ; UserError and RunError as ``read_tensors`` does.
        """
        load_state.load_state(model, self.read_tensors(), resize=resize)

    @property
    def shapes(self) -> Shapes:
        return shapes_of(self.config)

    @property
    def length(self) -> int:
        """Number of usable positions: all of the model's positions, or the trained ones if
        fewer."""
        return min(self.trained_length or self.config.block_size, self.config.block_size)

    @property
    def metadata(self) -> dict[str, str]:
        """Metadata for the safetensors file that cuboid writes of this model."""
        return metadata_of(
            self.config, tokenizer=self.tokenizer, step=self.step, trained_length=self.length
        )


def shapes_of(config: GPTConfig) -> Shapes:
    """Return the shape of each unsharded parameter by its name."""
    return {p.name: p.shape for p in parameters(config, modes()["serial"])}


def metadata_of(
    config: GPTConfig,
    *,
    tokenizer: dict[str, Any] | None = None,
    step: int | None = None,
    trained_length: int | None = None,
) -> dict[str, str]:
    """Return the metadata of a safetensors file by cuboid, each value JSON: all that is needed to
    read the model. ``tokenizer`` is as ``engine.data.tokenizer.dump`` returns it."""
    metadata = {"format": "pt", "model": json.dumps(architecture_of(config))}
    if tokenizer is not None:
        metadata["tokenizer"] = json.dumps(tokenizer)
    if step is not None:
        metadata["step"] = str(step)
    if trained_length is not None:
        metadata["trained_length"] = str(trained_length)
    return metadata


def architecture_of(config: GPTConfig) -> dict[str, Any]:
    """Return the fields of a model config that are stored with the weights."""
    return {name: value for name, value in asdict(config).items() if name not in TRAINING_ONLY}


def config_from(section: Mapping[str, Any]) -> GPTConfig:
    """Make a model config from the fields that a file stores. Raises ValueError if they are
    illegal."""
    try:
        return GPTConfig.of(ModelSettings.model_validate(dict(section)))
    except ValidationError as error:
        raise ValueError(f"model.{first_problem(error)}") from None
