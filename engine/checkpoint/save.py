"""Saves one checkpoint from all ranks, atomically and verified.

The files are written to ``step-N.tmp``, fsynced, read back from the disk and compared; then the
folder is renamed. Existing checkpoints are untouched until then.
"""

from __future__ import annotations

import pickle
import platform
from collections.abc import Mapping
from datetime import datetime
from importlib import metadata

import torch
import torch.distributed as dist
from torch.distributed.checkpoint import state_dict_saver as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner

from engine.checkpoint.dcp_io import DCPWriter
from engine.checkpoint.directory import CheckpointDirectory
from engine.checkpoint.manifest import TRAINING, FileDigest, Manifest, SavedLayout, TrainingState
from engine.checkpoint.state_dict import Tensors
from engine.config.schema import Settings
from engine.errors import RunError


def save(
    checkpoints: CheckpointDirectory,
    tensors: Tensors,
    training: TrainingState,
    *,
    layout: SavedLayout,
    group: dist.ProcessGroup | None,
) -> None:
    """Save the checkpoint of ``training.step``. Every rank of ``group`` calls this with its own
    shards ``tensors``; a shard that several ranks have is written once.

    Raises:
        RunError: on all ranks, if the checkpoint could not be written. The temporary folder is
            deleted.
    """

    def seal(files: Mapping[str, FileDigest]) -> bytes:
        return Manifest(
            step=training.step,
            written=datetime.now().astimezone().isoformat(timespec="seconds"),
            layout=layout,
            versions=versions(),
            files=dict(files),
        ).dump()

    extra_files = {TRAINING: training.dump()}
    writer = DCPWriter(checkpoints, training.step, extra_files=extra_files, seal=seal)
    planner = DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    try:
        dcp.save(tensors, storage_writer=writer, planner=planner, process_group=group)
    except CheckpointException as error:  # derives from BaseException
        # DCP has gathered the results, so no rank is still writing.
        if dist.get_rank(group) == 0:
            writer.discard()
        raise RunError(f"checkpoint of step {training.step}: {failure_reason(error)}") from None


def layout_of(settings: Settings, data_parallel: int) -> SavedLayout:
    """Return the layout of a run in the form of the manifest."""
    return SavedLayout(
        mode=settings.mode,
        tensor_parallel=settings.tensor_parallel,
        depth=settings.depth,
        pipeline=settings.pipeline,
        num_chunks=settings.model.num_chunks,
        data_parallel=data_parallel,
        zero_stage=settings.zero.stage,
    )


def versions() -> dict[str, str]:
    """Return the versions of cuboid, torch and Python, for the manifest."""
    try:
        cuboid = metadata.version("cuboid")
    except metadata.PackageNotFoundError:  # run from its sources
        cuboid = "unknown"
    return {"cuboid": cuboid, "torch": torch.__version__, "python": platform.python_version()}


def failure_reason(error: CheckpointException) -> str:
    """Return the error of the first rank that failed, in one line."""
    rank, (cause, _) = min(error.failures.items())
    prefix = f"rank {rank}: " if rank else ""
    if isinstance(cause, RunError):
        return f"{prefix}{cause}"
    if isinstance(cause, OSError):
        return f"{prefix}{cause.filename}: {cause.strerror}"
    if isinstance(cause, pickle.UnpicklingError):  # torch's own message advises to load it unsafely
        return f"{prefix}contains a pickle in place of a tensor; none of it was executed"
    return f"{prefix}{type(cause).__name__}: {str(cause).partition(chr(10))[0]}"
