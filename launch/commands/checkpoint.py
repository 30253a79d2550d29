"""List, verify or remove a run's checkpoints."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator, Mapping

from engine.checkpoint.directory import CheckpointDirectory
from engine.checkpoint.manifest import CorruptCheckpointError, read_manifest, read_training
from engine.errors import UserError
from engine.formatting import format_bytes
from engine.runs.folder import RunFolder
from engine.runs.resolve import run_with_checkpoints
from launch.arguments import folder, positive

EXAMPLES = (
    "cuboid checkpoint ls",
    "cuboid checkpoint prune runs/gpt2_2d-20260101-120000 --keep 2",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """ls|verify|prune [RUN], and how many to keep."""
    parser.add_argument("action", choices=["ls", "verify", "prune"])
    parser.add_argument("run", nargs="?", type=folder, help="a run's folder; default: the newest")
    parser.add_argument(
        "--keep",
        type=positive,
        metavar="N",
        help="prune: how many of the newest to keep, beside the one of the lowest validation loss; "
        "default: as many as the run itself",
    )


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Do it; 0, or 1 where a checkpoint is not what was written.

    Raises UserError where there is no such run, or nothing that may be removed.
    """
    folder = run_with_checkpoints(args.run)
    checkpoints = CheckpointDirectory(folder.checkpoints)
    if args.keep is not None and args.action != "prune":
        raise UserError(f"--keep is for prune, not for {args.action}")
    if args.action == "ls":
        status = folder.read_status()
        state = f" ({status['state']} at step {status['step']})" if "state" in status else ""
        print(f"{folder.path}{state}", *_rows(checkpoints), sep="\n")
        return 0
    if args.action == "verify":
        damaged = [step for step in checkpoints.steps() if not _verify(checkpoints, step)]
        return 1 if damaged else 0
    with folder.lock():
        return _prune(checkpoints, args.keep or _configured_keep(folder))


def _configured_keep(folder: RunFolder) -> int:
    """What the run itself keeps."""
    try:
        return int(json.loads(folder.resolved.read_text())["checkpoint"]["keep"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{folder.path} does not say how many it keeps: --keep N") from None


def _rows(checkpoints: CheckpointDirectory) -> Iterator[str]:
    """A line a checkpoint, as far as it can be read, below their title."""
    row = "{:>8}  {:19}  {:>10}  {:>15}  {}".format
    yield row("step", "written", "size", "validation loss", "layout")
    for step in checkpoints.steps():
        folder = checkpoints.folder(step)
        try:
            manifest, training = read_manifest(folder), read_training(folder)
        except CorruptCheckpointError as damage:
            yield f"{step:8}  {damage}"
            continue
        loss = "" if training.val_loss is None else f"{training.val_loss:.4f}"
        total = format_bytes(sum(file.bytes for file in manifest.files.values()))
        written = manifest.written[:19].replace("T", " ")
        yield row(step, written, total, loss, manifest.layout)


def _verify(checkpoints: CheckpointDirectory, step: int) -> bool:
    """Read all of a checkpoint, and say how it is."""
    from engine.checkpoint.load import (
        SavedCheckpoint,  # imports torch, for which a list need not wait
    )

    problems = SavedCheckpoint(checkpoints.folder(step)).verify()
    print(f"{checkpoints.folder(step)}: {'; '.join(problems) or 'as it was written'}")
    return not problems


def _prune(checkpoints: CheckpointDirectory, keep: int) -> int:
    """Remove what is not needed, once it is certain that what stays is good."""
    kept: set[int] = set()
    for step in reversed(checkpoints.steps()):
        if len(kept) < keep and _verify(checkpoints, step):
            kept.add(step)
    if not kept:
        raise UserError(f"{checkpoints.path}: none is as it was written, so none is removed")
    losses = [
        (loss, -step) for step, loss in checkpoints.validation_losses().items() if loss is not None
    ]
    for _, step in sorted(losses):
        if -step in kept or _verify(checkpoints, -step):
            kept.add(-step)
            break
    for step in checkpoints.steps():
        if step not in kept:
            checkpoints.remove(step)
            print(f"{checkpoints.folder(step)}: removed")
    for path in checkpoints.leftovers():
        shutil.rmtree(path)
        print(f"{path}: removed")
    return 0
