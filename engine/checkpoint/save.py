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

from engine.checkpoint.dcp_io import Writer
from engine.checkpoint.directory import Shelf
from engine.checkpoint.manifest import TRAINING, File, Layout, Manifest, Training
from engine.checkpoint.state_dict import Tensors
from engine.config.schema import Settings
from engine.errors import Failed


def save(
    shelf: Shelf,
    tensors: Tensors,
    training: Training,
    *,
    layout: Layout,
    group: dist.ProcessGroup | None,
) -> None:
    """Write the checkpoint of ``training.step``. Every rank of ``group`` calls it with its own
    tensors; of equal boxes one is written.

    Raises:
        Failed: on all ranks alike, with nothing left of the draft.
    """

    def seal(files: Mapping[str, File]) -> bytes:
        return Manifest(
            step=training.step,
            written=datetime.now().astimezone().isoformat(timespec="seconds"),
            layout=layout,
            versions=versions(),
            files=dict(files),
        ).dump()

    beside = {TRAINING: (training.model_dump_json(indent=1) + "\n").encode()}
    writer = Writer(shelf, training.step, beside=beside, seal=seal)
    planner = DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    try:
        dcp.save(tensors, storage_writer=writer, planner=planner, process_group=group)
    except CheckpointException as error:  # derives from BaseException
        # All ranks are past their writing: DCP has gathered how it went.
        if dist.get_rank(group) == 0:
            writer.discard()
        raise Failed(f"checkpoint of step {training.step}: {reason(error)}") from None


def layout_of(settings: Settings, data_parallel: int) -> Layout:
    """The layout as a manifest tells it."""
    return Layout(
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


def reason(error: CheckpointException) -> str:
    """Why the first of the ranks that failed did, in a line."""
    rank, (cause, _) = min(error.failures.items())
    who = f"rank {rank}: " if rank else ""
    if isinstance(cause, Failed):
        return f"{who}{cause}"
    if isinstance(cause, OSError):
        return f"{who}{cause.filename}: {cause.strerror}"
    if isinstance(cause, pickle.UnpicklingError):  # torch's words for it advise to run it
        return f"{who}holds a pickle where a tensor was; nothing of it was run"
    return f"{who}{type(cause).__name__}: {str(cause).partition(chr(10))[0]}"
