"""Settings of logs and checkpoints."""

from __future__ import annotations

from typing import Literal

from engine.config.fields import Section, setting
from engine.config.setting_types import Count, NewPath, Positive


class LogSettings(Section):
    """Logs of a run."""

    every: Count | None = setting(
        "steps between lines on the terminal; None: about thirty lines; log.jsonl has all steps",
        None,
    )
    dir: NewPath | None = setting("folder of the run; None: runs/NAME-TIME", None)
    tensorboard: bool = setting("write TensorBoard's files", True)
    tokens_per_second: Positive | None = setting(
        "tokens per second of a reference accelerator: adds its seconds as an axis; None: no such "
        "axis",
        None,
    )
    wandb: Literal["online", "offline"] | None = setting(
        "send the curves to Weights & Biases, or write them for `wandb sync`; None: neither", None
    )
    wandb_project: str = setting("project on Weights & Biases", "cuboid")


class CheckpointSettings(Section):
    """Checkpoints of a run."""

    every: Count | None = setting("steps between checkpoints; None: not by steps", None)
    minutes: Positive | None = setting("minutes between checkpoints; None: not by the clock", None)
    keep: Count = setting("number of newest checkpoints to keep", 3)
    best: bool = setting("also keep the checkpoint with the lowest validation loss", True)
    asynchronous: bool = setting("write in the background, from a copy in host memory", False)

    @property
    def is_enabled(self) -> bool:
        """True if a run saves periodically and at its end. If not, it only saves when it is
        stopped, and at the end of a run that was resumed."""
        return self.every is not None or self.minutes is not None
