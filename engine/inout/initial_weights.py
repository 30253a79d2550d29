"""Initial weights of a run from a saved model (--init-from)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engine.checkpoint.compatibility import ARCHITECTURE
from engine.errors import UserError
from engine.files.atomic_write import write_atomically
from engine.inout.open_model import open_saved_model
from engine.inout.saved_model import SavedModel
from engine.runs.folder import RunFolder

if TYPE_CHECKING:
    from engine.plan import Plan
    from engine.training.trainer import Trainer

RESIZABLE = {"model.vocab_size": "token ids", "model.block_size": "positions"}
"""Settings that may differ from the saved model's, with the name of the rows that they count."""
TABLES = ("wte.weight", "wpe.weight", "lm_head.weight")
"""Parameters that have these rows."""
FILES = {".json", ".safetensors", ".bin"}
"""Suffixes of the files of a model."""


@dataclass(frozen=True, kw_only=True)
class InitialWeightsRecord:
    """RUN/initial.json: the initial weights of a run."""

    asked: str
    """The path that the user gave."""
    path: str
    """The model that it resolved to when the run began, such as a run's latest checkpoint."""
    stamp: str
    """The ``stamp`` of the model's files, to detect a later change."""

    @classmethod
    def of(cls, requested: Path, model: SavedModel) -> InitialWeightsRecord:
        """Make the record of ``model``, which was found at the user's path ``requested``."""
        path = model.path.absolute()
        return cls(asked=str(requested), path=str(path), stamp=stamp(path))

    def record(self, folder: RunFolder) -> None:
        """Write the record into the run's folder, so that a run that restarts from step 0 uses the
        same weights."""
        write_atomically(folder.initial, json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def recorded(cls, folder: RunFolder) -> InitialWeightsRecord | None:
        """Read the record of a run; None if the run has none. Raises UserError if the record is
        corrupt."""
        try:
            return cls(**json.loads(folder.initial.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError):
            raise UserError(
                f"{folder.initial} is corrupt: it does not name the initial weights"
            ) from None


def find_initial_weights(requested: Path | None, run_folder: Path | None) -> Path | None:
    """Return the path of the initial weights, or None. A run that restarts in ``run_folder`` uses
    the path recorded there, unless ``requested`` (--init-from) names another one.

    Raises UserError where the recorded model has changed since.
    """
    if run_folder is None:
        return requested
    recorded = InitialWeightsRecord.recorded(RunFolder(run_folder))
    if recorded is None or (requested is not None and str(requested) != recorded.asked):
        return requested
    path = Path(recorded.path)
    if stamp(path) != recorded.stamp:
        raise UserError(
            f"{path} was changed or deleted since {run_folder} started from it, and the run has no "
            "checkpoint to resume from; choose another --output"
        )
    return path


def stamp(path: Path) -> str:
    """Hash the names, sizes and times of the model files at ``path`` (SHA-256); "" if it is
    missing."""
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
    """Open the model at ``path`` and compare its architecture with the plan's. The settings in
    RESIZABLE may differ.

    Raises:
        UserError: there is no model, or other settings differ, which the message lists.
    """
    model = open_saved_model(path)
    lines = [
        f"  {plan.cite(name)}; the saved model has {name.removeprefix('model.')}={saved!r}"
        for name, saved in _differences(plan, model)
        if name not in RESIZABLE
    ]
    if lines:
        first = f"--init-from={path} has another architecture than {plan.settings.source}:"
        raise UserError("\n".join([first, *lines]))
    return model


def notes(plan: Plan, model: SavedModel) -> Iterator[str]:
    """Yield the lines that report the initial weights to the user."""
    step = "" if model.step is None else f", of step {model.step}"
    yield f"starting from the weights of {model.path}{step}"
    for name, saved in _differences(plan, model):
        if name in RESIZABLE:
            rows, unit = getattr(plan.settings.model, name.removeprefix("model.")), RESIZABLE[name]
            effect = (
                f"the last {rows - saved:,} start from random weights"
                if rows > saved
                else f"the last {saved - rows:,} are dropped"
            )
            yield f"{plan.cite(name)}, and the saved model has {saved:,} {unit}: {effect}"


def load_initial_weights(trainer: Trainer, model: SavedModel) -> None:
    """Load the weights of ``model`` into this rank's shards of the trainer's model, a tensor at a
    time. Raises UserError, RunError."""
    try:
        model.load(trainer.model, resize=TABLES)
    except ValueError as error:
        raise UserError(f"{model.path}: {error}") from None
    positions = min(model.length, trainer.model.config.block_size)
    trainer.trained_length = max(trainer.trained_length, positions)


def _differences(plan: Plan, model: SavedModel) -> Iterator[tuple[str, object]]:
    """Yield the architecture settings in which the model differs from the plan, each with its value
    in the model."""
    for name in ARCHITECTURE:
        field = name.removeprefix("model.")
        saved = getattr(model.config, field)
        if getattr(plan.settings.model, field) != saved:
            yield name, saved
