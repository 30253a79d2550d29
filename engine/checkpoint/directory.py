"""The folder of a run's checkpoints: their names and their order. No torch.

RUN/checkpoints/step-00000100/ is a complete checkpoint: it is renamed to that name when all of it
is on the disk. A name that ends in ``.tmp`` belongs to a checkpoint that a killed job was writing
or deleting. Checkpoints are ordered by step; the clock does not matter.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from engine.checkpoint.manifest import CorruptCheckpointError, TrainingState, read_training
from engine.files.atomic_write import rename_durably
from engine.files.full_disk import fsync_folder

_NAME = re.compile(r"step-(\d{8,})")


def step_name(step: int) -> str:
    """Return the name of a checkpoint's folder."""
    return f"step-{step:08}"


def step_of(path: Path) -> int | None:
    """Return the step of a checkpoint's folder by its name; None if it is no such name."""
    name = _NAME.fullmatch(path.name)
    return int(name[1]) if name else None


@dataclass(frozen=True)
class CheckpointDirectory:
    """RUN/checkpoints."""

    path: Path

    def folder(self, step: int) -> Path:
        """Return the folder of the checkpoint of ``step``, which need not exist."""
        return self.path / step_name(step)

    def temporary(self, step: int) -> Path:
        """Return the folder into which the checkpoint is written before it is renamed."""
        return self.path / f"{step_name(step)}.tmp"

    def steps(self) -> list[int]:
        """List the steps of the complete checkpoints in ascending order."""
        if not self.path.is_dir():
            return []
        steps = (step_of(path) for path in self.path.iterdir() if path.is_dir())
        return sorted(step for step in steps if step is not None)

    def commit(self, step: int) -> None:
        """Rename the temporary folder, whose files have been fsynced, to the checkpoint's name.
        Raises OSError where a checkpoint of ``step`` exists."""
        fsync_folder(self.temporary(step))
        rename_durably(self.temporary(step), self.folder(step))
        fsync_folder(self.path.parent)  # in which this folder may be new

    def remove(self, step: int) -> None:
        """Delete a checkpoint. It is renamed first, so that no interrupt leaves a partial folder
        under a complete checkpoint's name."""
        temporary = self.temporary(step)
        shutil.rmtree(temporary, ignore_errors=True)
        self.folder(step).rename(temporary)
        shutil.rmtree(temporary)

    def remove_temporaries(self) -> None:
        """Delete the partial checkpoints that killed jobs left."""
        for temporary in self.path.glob("step-*.tmp"):
            shutil.rmtree(temporary, ignore_errors=True)

    def archive_after(self, after: int) -> list[Path]:
        """Rename the checkpoints of steps after ``after`` to step-N.aside, because the run resumes
        from an earlier one. Return the new paths."""
        moved = []
        for step in self.steps():
            if step > after:
                moved.append(_unused_path(self.path / f"{step_name(step)}.aside"))
                self.folder(step).rename(moved[-1])
        return moved

    def leftovers(self) -> list[Path]:
        """List archived and partial checkpoints."""
        return sorted([*self.path.glob("step-*.aside*"), *self.path.glob("step-*.tmp")])

    def losses(self) -> dict[int, float | None]:
        """Map the step of each checkpoint, in ascending order, to the loss that selects the best
        checkpoint, as checkpoint.best_by in the latest checkpoint says. None where a checkpoint is
        corrupt or has no such loss, since no validation followed the step."""
        states: dict[int, TrainingState | None] = {}
        for step in self.steps():
            try:
                states[step] = read_training(self.folder(step))
            except CorruptCheckpointError:
                states[step] = None
        best_by = next((s.best_by for s in reversed(states.values()) if s), "")
        return {step: s.loss_by(best_by) if s else None for step, s in states.items()}


def _unused_path(path: Path) -> Path:
    """Return ``path``, or the first of path-2, path-3 ... that does not exist."""
    unused, number = path, 2
    while unused.exists():
        unused, number = path.with_name(f"{path.name}-{number}"), number + 1
    return unused
