"""A saved checkpoint: verification, and loading of its tensors in any layout."""

from __future__ import annotations

import warnings
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
from engine.data.tokenizer import FILE_NAME, read_saved
from engine.errors import RunError
from engine.optim.optimizer import Optimizer
from models.chunks import ModelChunks


@dataclass(frozen=True)
class SavedCheckpoint:
    """A checkpoint folder, RUN/checkpoints/step-N.

    Loading never executes content of the files, but does not check their hashes: call ``verify``
    first to detect corruption. Properties raise CorruptCheckpointError.
    """

    path: Path

    @cached_property
    def manifest(self) -> Manifest:
        """The content of manifest.json."""
        return read_manifest(self.path)

    @cached_property
    def training(self) -> TrainingState:
        """The content of training.json."""
        return read_training(self.path)

    @cached_property
    def tokenizer(self) -> dict[str, Any] | None:
        """The tokenizer of the token ids, as ``engine.data.tokenizer.dump`` returns it. Older
        checkpoints have none and use the run's tokenizer. Raises UserError if the run's tokenizer
        is corrupt."""
        if "tokenizer" in self.training.model_fields_set:
            return self.training.tokenizer
        return read_saved(self.path.parent.parent / FILE_NAME)

    @property
    def trained_length(self) -> int | None:
        """The number of positions that were trained. For older checkpoints, which lack this number,
        the SEQ_LEN; None if the SEQ_LEN was not recorded either."""
        training = self.training
        return training.trained_length or training.settings.get("seq_len")

    @cached_property
    def metadata(self) -> Metadata:
        """DCP's metadata: the tensors and their places, unpickled through an allow-list."""
        try:
            data = (self.path / METADATA).read_bytes()
        except OSError as error:
            raise CorruptCheckpointError(f"{METADATA} cannot be read: {error.strerror}") from None
        return parse(data, set(self.manifest.files))

    def verify(self, share: int = 0, of: int = 1) -> list[str]:
        """Read the files, check sizes and hashes, and return a line per problem. Of the files with
        tensors only number ``share`` and every ``of``-th after it are read, so that ranks can
        divide them."""
        try:
            files = self.manifest.files
            small = [METADATA, TRAINING]
            large = sorted(files.keys() - small)
            problems = verify_files(self.path, files, [*small, *large[share::of]])
            if not problems and self.path.name != step_name(self.training.step):
                problems = [f"contains the checkpoint {step_name(self.training.step)}"]
            if not problems:
                _ = self.metadata  # reading it checks it
        except CorruptCheckpointError as error:
            return [str(error)]
        return problems

    def parameter(self, name: str) -> Tensor:
        """Read the parameter ``name``, a key of ``parameter_types``, unsharded on the CPU, without
        a process group. Memory: twice the size of the parameter."""
        return self._read_unsharded(MODEL + name)

    def parameter_types(self) -> dict[str, torch.dtype]:
        """Map each parameter to its dtype."""
        types = {}
        for path, about in self.metadata.state_dict_metadata.items():
            if path.startswith(MODEL):
                assert isinstance(about, TensorStorageMetadata)
                types[path.removeprefix(MODEL)] = about.properties.dtype
        return types

    @torch.no_grad()
    def load_model(self, model: ModelChunks) -> None:
        """Fill this rank's shards of the parameters from a checkpoint of any layout; padding is set
        to zero. Each rank reads independently.

        Raises RunError for a model of another architecture, or unreadable files.
        """
        shards = model.shards()
        for name, parameter in model.named_parameters():
            with model.parallel.overwrite(parameter) as local:
                local.zero_()
                self._read_into({MODEL + name: DCPShard.of_local(local, shards[name])})

    def load_optimizer(self, model: ModelChunks, optimizer: Optimizer) -> None:
        """Fill this rank's shards of the states of an optimizer that has not made a step yet."""
        saved = self._saved_states()
        parameters, shards = dict(model.named_parameters()), model.shards()

        def find_state(name: str) -> dict[str, Tensor]:
            parameter, states, targets = parameters[name], dict[str, Tensor](), Tensors()
            for key, about in saved.get(name, {}).items():
                if about.size:
                    shape, dtype, device = parameter.shape, parameter.dtype, parameter.device
                    states[key] = torch.zeros(shape, dtype=dtype, device=device)
                    target = DCPShard.of_local(states[key], shards[name])
                else:
                    states[key] = torch.zeros((), dtype=about.properties.dtype)
                    target = DCPShard.unsharded(states[key])
                targets[f"{OPTIMIZER}{name}.{key}"] = target
            self._read_into(targets)
            return states

        optimizer.load_states(find_state)

    def load_rng(self, rank: int, device: torch.device) -> None:
        """Set this process's random generators to the states that ``rank`` saved."""
        state_dict.restore_rng(self._read_unsharded(f"{RNG}{rank}"), device)

    def _saved_states(self) -> dict[str, dict[str, TensorStorageMetadata]]:
        """Map parameter and state name to the metadata of the saved optimizer state."""
        states: dict[str, dict[str, TensorStorageMetadata]] = {}
        for path, about in self.metadata.state_dict_metadata.items():
            if path.startswith(OPTIMIZER):
                assert isinstance(about, TensorStorageMetadata)
                name, _, key = path.removeprefix(OPTIMIZER).rpartition(".")
                states.setdefault(name, {})[key] = about
        return states

    def _read_unsharded(self, name: str) -> Tensor:
        """Read the tensor ``name``, with its prefix (model., optimizer. or rng.), unsharded."""
        about = self.metadata.state_dict_metadata[name]
        assert isinstance(about, TensorStorageMetadata)
        tensor = torch.empty(about.size, dtype=about.properties.dtype)
        self._read_into({name: tensor})
        return tensor

    def _read_into(self, targets: Tensors) -> None:
        """Fill each of ``targets`` from the checkpoint's tensor of the same name. Raises
        RunError."""
        reader, planner = DCPReader(self.path, self.metadata), _TensorsOnly()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
            try:
                dcp.load(targets, storage_reader=reader, planner=planner, no_dist=True)
            except CheckpointException as error:
                raise RunError(f"{self.path}: {failure_reason(error)}") from None


class _TensorsOnly(DefaultLoadPlanner):
    """A planner that rejects entries other than tensors, which torch would unpickle unchecked."""

    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)

    def load_bytes(self, read_item: ReadItem, value: BytesIO) -> None:
        raise CorruptCheckpointError(f"{read_item.dest_index.fqn} is not a tensor")
