"""List, verify or remove a run's checkpoints."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator, Mapping

from engine.checkpoint.directory import Shelf
from engine.checkpoint.manifest import Damaged, read_manifest, read_training
from engine.errors import Refused
from engine.runs.folder import RunFolder
from engine.runs.resolve import run_with_checkpoints
from engine.runs.terminal import size
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

    Raises Refused where there is no such run, or nothing that may be removed.
    """
    folder = run_with_checkpoints(args.run)
    shelf = Shelf(folder.checkpoints)
    if args.keep is not None and args.action != "prune":
        raise Refused(f"--keep is for prune, not for {args.action}")
    if args.action == "ls":
        status = folder.read_status()
        state = f" ({status['state']} at step {status['step']})" if "state" in status else ""
        print(f"{folder.path}{state}", *_rows(shelf), sep="\n")
        return 0
    if args.action == "verify":
        damaged = [step for step in shelf.steps() if not _is_good(shelf, step)]
        return 1 if damaged else 0
    with folder.hold():
        return _prune(shelf, args.keep or _own_keep(folder))


def _own_keep(folder: RunFolder) -> int:
    """What the run itself keeps."""
    try:
        return int(json.loads(folder.resolved.read_text())["checkpoint"]["keep"])
    except (OSError, ValueError, KeyError, TypeError):
        raise Refused(f"{folder.path} does not say how many it keeps: --keep N") from None


def _rows(shelf: Shelf) -> Iterator[str]:
    """A line a checkpoint, as far as it can be read, below their title."""
    row = "{:>8}  {:19}  {:>10}  {:>15}  {}".format
    yield row("step", "written", "size", "validation loss", "layout")
    for step in shelf.steps():
        folder = shelf.folder(step)
        try:
            manifest, training = read_manifest(folder), read_training(folder)
        except Damaged as damage:
            yield f"{step:8}  {damage}"
            continue
        loss = "" if training.val_loss is None else f"{training.val_loss:.4f}"
        total = size(sum(file.bytes for file in manifest.files.values()))
        written = manifest.written[:19].replace("T", " ")
        yield row(step, written, total, loss, manifest.layout)


def _is_good(shelf: Shelf, step: int) -> bool:
    """Read all of a checkpoint, and say how it is."""
    from engine.checkpoint.load import Stored  # imports torch, for which a list need not wait

    problems = Stored(shelf.folder(step)).problems()
    print(f"{shelf.folder(step)}: {'; '.join(problems) or 'as it was written'}")
    return not problems


def _prune(shelf: Shelf, keep: int) -> int:
    """Remove what is not needed, once it is certain that what stays is good."""
    kept: set[int] = set()
    for step in reversed(shelf.steps()):
        if len(kept) < keep and _is_good(shelf, step):
            kept.add(step)
    if not kept:
        raise Refused(f"{shelf.path}: none is as it was written, so none is removed")
    losses = [(loss, -step) for step, loss in shelf.losses().items() if loss is not None]
    for _, step in sorted(losses):
        if -step in kept or _is_good(shelf, -step):
            kept.add(-step)
            break
    for step in shelf.steps():
        if step not in kept:
            shelf.remove(step)
            print(f"{shelf.folder(step)}: removed")
    for path in shelf.leftovers():
        shutil.rmtree(path)
        print(f"{path}: removed")
    return 0
