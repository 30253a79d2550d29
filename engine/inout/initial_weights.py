"""The weights that a run begins with, where they are not random."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engine.atomic_write import write_atomically
from engine.checkpoint.compatibility import ARCHITECTURE
from engine.errors import UserError
from engine.inout.open_model import open_saved_model
from engine.inout.saved_model import SavedModel
from engine.runs.folder import RunFolder

if TYPE_CHECKING:
    from engine.plan import Plan
    from engine.training.trainer import Trainer

RESIZABLE = {"model.vocab_size": "token ids", "model.block_size": "positions"}
TABLES = ("wte.weight", "wpe.weight", "lm_head.weight")
"""Whose rows those are."""
FILES = {".json", ".safetensors", ".bin"}


@dataclass(frozen=True, kw_only=True)
class InitialWeightsRecord:
    """``asked``: the path the user gave; ``path``: what it stood for when the run began, such as a
    run's latest checkpoint; ``stamp``: tells when its files have changed since."""

    asked: str
    path: str
    stamp: str

    @classmethod
    def of(cls, asked: Path, model: SavedModel) -> InitialWeightsRecord:
        path = model.path.absolute()
        return cls(asked=str(asked), path=str(path), stamp=stamp(path))

    def record(self, folder: RunFolder) -> None:
        """So that the run begins the same way, should it have to begin again."""
        write_atomically(folder.initial, json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def recorded(cls, folder: RunFolder) -> InitialWeightsRecord | None:
        """What the folder's run began with. Raises UserError for a record that is none."""
        try:
            return cls(**json.loads(folder.initial.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError):
            raise UserError(f"{folder.initial} does not say what the run began with") from None


def find_initial_weights(asked: Path | None, run_folder: Path | None) -> Path | None:
    """Where the weights to begin with are, if any. ``run_folder``: of a run that begins again,
    which takes those that it began with, unless others are asked for.

    Raises UserError where those have changed since.
    """
    before = (
        InitialWeightsRecord.recorded(RunFolder(run_folder)) if run_folder is not None else None
    )
    if before is None or (asked is not None and str(asked) != before.asked):
        return asked
    path = Path(before.path)
    if stamp(path) != before.stamp:
        raise UserError(
            f"{path} has changed or gone since {run_folder} began with it, and there is no "
            f"checkpoint to "
            "go on from: another --output"
        )
    return path


def stamp(path: Path) -> str:
    """Of a file, or the files of a folder: SHA-256 of names, sizes and times. Empty where there is
    none."""
    if not path.exists():
        return ""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    stats = [
        (file.name, file.stat().st_size, file.stat().st_mtime_ns)
        for file in files
        if file.suffix in FILES and file.is_file()
    ]
    return hashlib.sha256(json.dumps(stats).encode()).hexdigest()


def open_initial(plan: Plan, path: Path) -> SavedModel:
    """The model at ``path``, which is that of the plan but for the rows of its tables.

    Raises UserError where there is none, or it is another one; every difference.
    """
    model = open_saved_model(path)
    other = [
        f"  {plan.cite(name)}; there {name.removeprefix('model.')} is {there!r}"
        for name, there in _differences(plan, model)
        if name not in RESIZABLE
    ]
    if other:
        first = f"--init-from={path} holds another model than {plan.settings.source}:"
        raise UserError("\n".join([first, *other]))
    return model


def notes(plan: Plan, model: SavedModel) -> Iterator[str]:
    """What is worth knowing of the weights that the plan's run begins with, a line each."""
    step = "" if model.step is None else f", of step {model.step}"
    yield f"beginning with the weights of {model.path}{step}"
    for name, there in _differences(plan, model):
        if name in RESIZABLE:
            here, what = getattr(plan.settings.model, name.removeprefix("model.")), RESIZABLE[name]
            fate = (
                f"the last {here - there:,} begin as without --init-from"
                if here > there
                else f"the last {there - here:,} are left out"
            )
            yield f"{plan.cite(name)}, and there are {there:,} {what} in it: {fate}"


def load_initial_weights(trainer: Trainer, model: SavedModel) -> None:
    """Each rank's boxes, a tensor at a time. Raises UserError, RunError."""
    try:
        model.load(trainer.model, resize=TABLES)
    except ValueError as error:
        raise UserError(f"{model.path}: {error}") from None
    kept = min(model.length, trainer.model.config.block_size)
    trainer.trained_length = max(trainer.trained_length, kept)


def _differences(plan: Plan, model: SavedModel) -> Iterator[tuple[str, object]]:
    """Settings of the architecture that are others there, and what they are there."""
    for name in ARCHITECTURE:
        field = name.removeprefix("model.")
        there = getattr(model.config, field)
        if getattr(plan.settings.model, field) != there:
            yield name, there
