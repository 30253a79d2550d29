"""One checkpoint, written by all ranks: complete and verified, or not there.

Written to ``step-N.tmp``, synced, read back from the disk and compared with what was meant, then
renamed. Until then nothing is taken from the checkpoints there are.
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
    """Write the checkpoint of ``training.step``. Every rank of ``group`` calls it with its own
    tensors; of equal boxes one is written.

    Raises:
        RunError: on all ranks alike, with nothing left of the draft.
    """

    def seal(files: Mapping[str, FileDigest]) -> bytes:
        return Manifest(
            step=training.step,
            written=datetime.now().astimezone().isoformat(timespec="seconds"),
            layout=layout,
            versions=versions(),
            files=dict(files),
        ).dump()

    extra_files = {TRAINING: (training.model_dump_json(indent=1) + "\n").encode()}
    writer = DCPWriter(checkpoints, training.step, extra_files=extra_files, seal=seal)
    planner = DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    try:
        dcp.save(tensors, storage_writer=writer, planner=planner, process_group=group)
    except CheckpointException as error:  # derives from BaseException
        # All ranks are past their writing: DCP has gathered how it went.
        if dist.get_rank(group) == 0:
            writer.discard()
        raise RunError(f"checkpoint of step {training.step}: {failure_reason(error)}") from None


def layout_of(settings: Settings, data_parallel: int) -> SavedLayout:
    """The layout as a manifest tells it."""
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
    """What wrote a checkpoint."""
    try:
        ours = metadata.version("cuboid")
    except metadata.PackageNotFoundError:  # run from its sources
        ours = "unknown"
    return {"cuboid": ours, "torch": torch.__version__, "python": platform.python_version()}


def failure_reason(error: CheckpointException) -> str:
    """Why the first of the ranks that failed did, in a line."""
    rank, (cause, _) = min(error.failures.items())
    prefix = f"rank {rank}: " if rank else ""
    if isinstance(cause, RunError):
        return f"{prefix}{cause}"
    if isinstance(cause, OSError):
        return f"{prefix}{cause.filename}: {cause.strerror}"
    if isinstance(cause, pickle.UnpicklingError):  # torch's words for it advise to run it
        return f"{prefix}holds a pickle where a tensor was; nothing of it was run"
    return f"{prefix}{type(cause).__name__}: {str(cause).partition(chr(10))[0]}"
