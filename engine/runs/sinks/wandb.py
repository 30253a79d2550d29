"""Weights & Biases: the curves of a run on wandb.ai, or in files that ``wandb sync`` uploads.

Steps are logged as a metric and not as W&B's own counter, which never goes back: a resumed run
repeats the steps after its checkpoint, and W&B would drop their rows.
"""

from __future__ import annotations

import logging
from pathlib import Path
from secrets import token_hex
from shlex import quote
from typing import TYPE_CHECKING

from engine.errors import UserError
from engine.files.atomic_write import write_atomically
from engine.runs.metrics import curves

if TYPE_CHECKING:
    from engine.runs.metrics import StepMetrics
    from engine.runs.sink import SinkRun

PACKAGE = "wandb"


def open_sink(run: SinkRun) -> WeightsAndBiases:
    """Start a run on W&B, or continue the W&B run whose id is in the run's folder."""
    return WeightsAndBiases(run)


class WeightsAndBiases:
    """Logs the curves to a run on W&B that has the name of the run's folder."""

    def __init__(self, run: SinkRun) -> None:
        """Open the run of W&B. Raises UserError if nobody is logged in: W&B would ask for a key on
        the terminal, and the training would wait for it."""
        import wandb

        logging.getLogger("wandb").setLevel(logging.ERROR)
        log = run.settings.log
        assert log.wandb is not None, "the setting enables this sink"
        offline = log.wandb == "offline"
        if not offline and not wandb.login(prompt=False, verify=False):
            raise UserError(
                "nobody is logged in to W&B; run `wandb login`, set WANDB_API_KEY, or use "
                "log.wandb='offline'"
            )
        self._run = wandb.init(
            project=log.wandb_project,
            name=run.folder.path.resolve().name,
            id=_run_id(run.folder.path / "wandb" / "id"),
            resume="allow",
            dir=run.folder.path,
            mode=log.wandb,
            config=run.settings.model_dump(mode="json"),
            # the terminal is not copied to W&B, and neither is the user's code
            settings=wandb.Settings(
                console="off", disable_git=True, disable_code=True, silent=True
            ),
        )
        self._run.define_metric("*", step_metric="step")
        self._run.define_metric("epoch/*", step_metric="epoch")
        files = quote(str(Path(self._run.settings.sync_dir)))
        self._view = f"wandb sync {files}" if offline else str(self._run.url)

    @property
    def view(self) -> tuple[str, str]:
        """A title, and the address of the run's page or the command that uploads an offline run."""
        return "W&B", self._view

    def step(self, row: StepMetrics) -> None:
        """Log the curves of a step, and the numbers (step, tokens ...) that W&B can use as the x
        axis."""
        axes: dict[str, float] = {"step": row.step, "tokens": row.tokens}
        if row.accelerator_seconds is not None:
            axes["accelerator_seconds"] = row.accelerator_seconds
        epoch: dict[str, float] = {}
        if row.epoch is not None:
            epoch = {"epoch": row.epoch.epoch, **row.epoch.curves()}
        self._run.log({**axes, **curves(row), **epoch})

    def close(self) -> None:
        """Finish the run of W&B."""
        self._run.finish()


def _run_id(file: Path) -> str:
    """Read the id of the run on W&B, or create it: a resumed run continues the same run on W&B."""
    if not file.exists():
        file.parent.mkdir(exist_ok=True)
        write_atomically(file, token_hex(8))
    return file.read_text(encoding="utf-8")
