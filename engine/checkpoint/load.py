"""A checkpoint on the disk: whether it is what was written, and its tensors in any layout."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import state_dict_loader as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import ReadItem

from engine.checkpoint import state_dict
from engine.checkpoint.dcp_io import DCPReader
from engine.checkpoint.dcp_metadata import METADATA, parse
from engine.checkpoint.dcp_shard import DCPShard
from engine.checkpoint.directory import step_name
from engine.checkpoint.manifest import (
    TRAINING,
    CorruptCheckpointError,
    Manifest,
    TrainingState,
    read_manifest,
    read_training,
    verify_files,
)
from engine.checkpoint.save import failure_reason
from engine.checkpoint.state_dict import MODEL, OPTIMIZER, RNG, Tensors
from engine.data.tokenizer import read_saved
from engine.errors import RunError
from engine.optim.optimizer import Optimizer
from engine.runs.folder import RunFolder
from models.chunks import ModelChunks


@dataclass(frozen=True)
class SavedCheckpoint:
    """RUN/checkpoints/step-N. Nothing here trusts its files, but only ``verify`` reads all of
    them: who has not asked for it may load what a disk has changed.

    Properties raise CorruptCheckpointError.
    """

    path: Path

    @cached_property
    def manifest(self) -> Manifest:
        return read_manifest(self.path)

    @cached_property
    def training(self) -> TrainingState:
        return read_training(self.path)

    @cached_property
    def tokenizer(self) -> dict[str, Any] | None:
        """The tokenizer of its ids, as ``engine.data.tokenizer.dump`` gives it; checkpoints that
        were written without one are of the run's. Raises UserError where that is damaged."""
        if "tokenizer" in self.training.model_fields_set:
            return self.training.tokenizer
        return read_saved(RunFolder(self.path.parent.parent).tokenizer)

    @property
    def trained_length(self) -> int | None:
        """The positions that were trained; those of its samples, in a checkpoint without the field.
        None where that is not told either."""
        training = self.training
        return training.trained_length or training.settings.get("seq_len")

    @cached_property
    def metadata(self) -> Metadata:
        """Which tensors there are and where; unpickled through an allow-list."""
        try:
            data = (self.path / METADATA).read_bytes()
        except OSError as error:
            raise CorruptCheckpointError(f"{METADATA} cannot be read: {error.strerror}") from None
        return parse(data, set(self.manifest.files))

    def verify(self, share: int = 0, of: int = 1) -> list[str]:
        """How the files differ from what was written, a line each. Of the tensors' files every
        ``of_local``-th is read, beginning with number ``share``, so that ranks can share them
        out."""
        try:
            files = self.manifest.files
            small = [METADATA, TRAINING]
            large = sorted(files.keys() - small)
            found = verify_files(self.path, files, [*small, *large[share::of]])
            if not found and self.path.name != step_name(self.training.step):
                found = [f"holds what was saved as {step_name(self.training.step)}"]
            if not found:
                _ = self.metadata  # read, and thereby checked
        except CorruptCheckpointError as error:
            return [str(error)]
        return found

    def parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Every parameter by its name, whole, on the CPU, one at a time; without any process
        group. Memory: the largest parameter, twice."""
        for name in self.parameter_types():
            yield name, self.parameter(name)

    def parameter(self, name: str) -> Tensor:
        """One of them, of those that ``parameter_types`` names."""
        return self._read_unsharded(MODEL + name)

    def parameter_types(self) -> dict[str, torch.dtype]:
        """Parameter -> the type of its numbers."""
        found = {}
        for path, about in self.metadata.state_dict_metadata.items():
            if path.startswith(MODEL):
                assert isinstance(about, TensorStorageMetadata)
                found[path.removeprefix(MODEL)] = about.properties.dtype
        return found

    @torch.no_grad()
    def load_model(self, model: ModelChunks) -> None:
        """Fill this rank's pieces of the parameters, whatever layout wrote them; padding is zero.

        Every rank reads for itself. Raises RunError for a model of another architecture or files
        that cannot be read.
        """
        shards = model.shards()
        for name, parameter in model.named_parameters():
            with model.parallel.overwrite(parameter) as local:
                local.zero_()
                self._read_into({MODEL + name: DCPShard.of_local(local, shards[name])})

    def load_optimizer(self, model: ModelChunks, optimizer: Optimizer) -> None:
        """The same for the states of an optimizer that has not stepped yet."""
        saved = self._saved_states()
        parameters, shards = dict(model.named_parameters()), model.shards()

        def find_state(name: str) -> dict[str, Tensor]:
            parameter, found, wanted = parameters[name], dict[str, Tensor](), Tensors()
            for key, about in saved.get(name, {}).items():
                if about.size:
                    shape, dtype, device = parameter.shape, parameter.dtype, parameter.device
                    found[key] = torch.zeros(shape, dtype=dtype, device=device)
                    boxed = DCPShard.of_local(found[key], shards[name])
                else:
                    found[key] = torch.zeros((), dtype=about.properties.dtype)
                    boxed = DCPShard.unsharded(found[key])
                wanted[f"{OPTIMIZER}{name}.{key}"] = boxed
            self._read_into(wanted)
            return found

        optimizer.load_states(find_state)

    def load_rng(self, rank: int, device: torch.device) -> None:
        """Set this process's random generators to those of a rank that wrote."""
        state_dict.restore_rng(self._read_unsharded(f"{RNG}{rank}"), device)

    def _saved_states(self) -> dict[str, dict[str, TensorStorageMetadata]]:
        """Parameter -> name of a state -> what is saved of it."""
        found: dict[str, dict[str, TensorStorageMetadata]] = {}
        for path, about in self.metadata.state_dict_metadata.items():
            if path.startswith(OPTIMIZER):
                assert isinstance(about, TensorStorageMetadata)
                name, _, key = path.removeprefix(OPTIMIZER).rpartition(".")
                found.setdefault(name, {})[key] = about
        return found

    def _read_unsharded(self, name: str) -> Tensor:
        about = self.metadata.state_dict_metadata[name]
        assert isinstance(about, TensorStorageMetadata)
        tensor = torch.empty(about.size, dtype=about.properties.dtype)
        self._read_into({name: tensor})
        return tensor

    def _read_into(self, wanted: Tensors) -> None:
        reader, planner = DCPReader(self.path, self.metadata), _TensorsOnly()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
            try:
                dcp.load(wanted, storage_reader=reader, planner=planner, no_dist=True)
            except CheckpointException as error:
                raise RunError(f"{self.path}: {failure_reason(error)}") from None


class _TensorsOnly(DefaultLoadPlanner):
    """Refuses what torch would unpickle without a look."""

    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)

    def load_bytes(self, read_item: ReadItem, value: BytesIO) -> None:
        raise CorruptCheckpointError(f"{read_item.dest_index.fqn} is no tensor")
