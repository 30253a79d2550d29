"""The folder of a run's checkpoints: names, order, and which of them are kept. No torch.

RUN/checkpoints/step-00000100/ is complete: it got its name last of all. What ends in ``.tmp`` was
being written or removed when its job died. Checkpoints are ordered by their step, whatever the
clock said when they were written.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from engine.checkpoint.manifest import CorruptCheckpointError, read_training
from engine.disk import fsync_folder

_NAME = re.compile(r"step-(\d{8,})")


def step_name(step: int) -> str:
    """The name of a checkpoint's folder."""
    return f"step-{step:08}"


@dataclass(frozen=True)
class CheckpointDirectory:
    """RUN/checkpoints."""

    path: Path

    def folder(self, step: int) -> Path:
        return self.path / step_name(step)

    def temporary(self, step: int) -> Path:
        """Where the checkpoint is written before it has its name."""
        return self.path / f"{step_name(step)}.tmp"

    def steps(self) -> list[int]:
        """The steps there are checkpoints of, the latest last."""
        if not self.path.is_dir():
            return []
        names = (_NAME.fullmatch(path.name) for path in self.path.iterdir() if path.is_dir())
        return sorted(int(name[1]) for name in names if name)

    def commit(self, step: int) -> None:
        """Give a draft its name, once all of it is on the disk."""
        temporary, folder = self.temporary(step), self.folder(step)
        fsync_folder(temporary)
        temporary.rename(folder)  # refuses a folder that holds something
        fsync_folder(self.path)
        fsync_folder(self.path.parent)  # in which this folder may be new

    def remove(self, step: int) -> None:
        """Whatever interrupts this, no part of the checkpoint is taken for a whole one."""
        temporary = self.temporary(step)
        shutil.rmtree(temporary, ignore_errors=True)
        self.folder(step).rename(temporary)
        shutil.rmtree(temporary)

    def remove_temporaries(self) -> None:
        """Remove what a job that died had begun to write or to remove."""
        for temporary in self.path.glob("step-*.tmp"):
            shutil.rmtree(temporary, ignore_errors=True)

    def archive_after(self, after: int) -> list[Path]:
        """Take the checkpoints after a step out of the order, since training goes on from it; they
        are kept under another name."""
        moved = []
        for step in self.steps():
            if step > after:
                moved.append(_unused_path(self.path / f"{step_name(step)}.aside"))
                self.folder(step).rename(moved[-1])
        return moved

    def leftovers(self) -> list[Path]:
        """What is no checkpoint any more, or was none yet."""
        return sorted([*self.path.glob("step-*.aside*"), *self.path.glob("step-*.tmp")])

    def validation_losses(self) -> dict[int, float | None]:
        """Step -> the validation loss after it, where there was a validation; latest last."""
        found: dict[int, float | None] = {}
        for step in self.steps():
            try:
                found[step] = read_training(self.folder(step)).val_loss
            except CorruptCheckpointError:
                found[step] = None
        return found


def checkpoints_to_delete(
    losses: Mapping[int, float | None], *, keep: int, best: bool
) -> list[int]:
    """The steps whose checkpoints go: all but the ``keep`` latest and, where it counts, the one of
    the lowest validation loss (of equal ones the latest)."""
    kept = set(sorted(losses)[-keep:])
    validated = [(loss, -step) for step, loss in losses.items() if loss is not None]
    if best and validated:
        kept.add(-min(validated)[1])
    return sorted(set(losses) - kept)


def _unused_path(path: Path) -> Path:
    """The path, or the first of path-2, path-3 ... that is not taken."""
    taken, number = path, 2
    while taken.exists():
        taken, number = path.with_name(f"{path.name}-{number}"), number + 1
    return taken
