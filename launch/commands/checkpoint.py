"""List, verify or remove a run's checkpoints."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator, Mapping
from functools import cache

from engine.checkpoint.directory import CheckpointDirectory
from engine.checkpoint.manifest import CorruptCheckpointError, read_manifest, read_training
from engine.checkpoint.retention import checkpoints_to_delete
from engine.errors import UserError
from engine.formatting import format_bytes
from engine.runs.folder import RunFolder
from engine.runs.lookup import run_with_checkpoints
from launch.arguments import folder
from launch.number_types import positive

EXAMPLES = (
    "cuboid checkpoint ls",
    "cuboid checkpoint prune runs/gpt2_2d-20260101-120000 --keep 2",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the action, the run and --keep."""
    parser.add_argument(
        "action",
        choices=["ls", "verify", "prune"],
        help="ls: list; verify: compare with the recorded hashes; prune: delete old checkpoints",
    )
    parser.add_argument(
        "run",
        nargs="?",
        type=folder,
        help="run folder; default: the newest run that has checkpoints",
    )
    parser.add_argument(
        "--keep",
        type=positive,
        metavar="N",
        help="prune: number of latest checkpoints to keep, in addition to the one with the "
        "lowest loss; default: the run's checkpoint.keep",
    )


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """List, verify or delete checkpoints. Return the exit code: 1 if `verify` found a corrupt one.

    Raises UserError for a run that has no checkpoints, or none that is intact.
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
        corrupt = [step for step in checkpoints.steps() if not _verify(checkpoints, step)]
        return 1 if corrupt else 0
    with folder.lock():
        return _prune(checkpoints, args.keep or _configured_keep(folder))


def _configured_keep(folder: RunFolder) -> int:
    """Return the run's checkpoint.keep. Raises UserError where it recorded none."""
    try:
        return int(json.loads(folder.resolved.read_text())["checkpoint"]["keep"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{folder.path} records no checkpoint.keep; pass --keep N") from None


def _rows(checkpoints: CheckpointDirectory) -> Iterator[str]:
    """Yield the header of the table of checkpoints, then a line per checkpoint. The line of a
    corrupt checkpoint shows the problem."""
    row = "{:>8}  {:19}  {:>10}  {:>13}  {:>15}  {}".format
    yield row("step", "written", "size", "training loss", "validation loss", "layout")
    for step in checkpoints.steps():
        folder = checkpoints.folder(step)
        try:
            manifest, training = read_manifest(folder), read_training(folder)
        except CorruptCheckpointError as error:
            yield f"{step:8}  {error}"
            continue
        losses = [
            "" if loss is None else f"{loss:.4f}"
            for loss in (training.train_loss, training.val_loss)
        ]
        total = format_bytes(sum(file.bytes for file in manifest.files.values()))
        written = manifest.written[:19].replace("T", " ")
        yield row(step, written, total, *losses, manifest.layout)


def _verify(checkpoints: CheckpointDirectory, step: int) -> bool:
    """Verify every file of a checkpoint and print the result. Return whether it is intact."""
    from engine.checkpoint.load import SavedCheckpoint  # imports torch, which `ls` does not need

    problems = SavedCheckpoint(checkpoints.folder(step)).verify()
    print(f"{checkpoints.folder(step)}: {'; '.join(problems) or 'OK, all hashes match'}")
    return not problems


def _prune(checkpoints: CheckpointDirectory, keep: int) -> int:
    """Delete all checkpoints but the ``keep`` latest intact ones and the best intact one, and all
    leftovers. The kept checkpoints are verified before anything is deleted.

    Raises UserError if no checkpoint is intact.
    """
    losses = checkpoints.losses()
    is_intact = cache(lambda step: _verify(checkpoints, step))
    deleted = checkpoints_to_delete(losses, keep=keep, best=True, is_intact=is_intact)
    if len(deleted) == len(losses):
        raise UserError(
            f"{checkpoints.path}: all checkpoints are corrupt, so nothing was removed; restore "
            "one, or remove the folder by hand"
        )
    for step in deleted:
        checkpoints.remove(step)
        print(f"{checkpoints.folder(step)}: removed")
    for path in checkpoints.leftovers():
        shutil.rmtree(path)
        print(f"{path}: removed")
    return 0
