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
    name: Literal["auto"] | None = setting(
        "NAME of the run's folder: 'auto' appends the main settings to the config's name; None: "
        "the config's name",
        None,
    )
    tensorboard: bool = setting("write TensorBoard's files", True)
    statistics: Count | None = setting(
        "steps between statistics (mean, max, min, l2) of gradients, weights, updates, activations "
        "and logits; None: no statistics",
        None,
    )
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
    epochs: Positive | None = setting(
        "epochs between checkpoints, such as 0.5; None: not by epochs", None
    )
    minutes: Positive | None = setting("minutes between checkpoints; None: not by the clock", None)
    keep: Count = setting("number of newest checkpoints to keep", 3)
    best: bool = setting("also keep the checkpoint with the lowest loss", True)
    best_by: Literal["validation", "train"] = setting(
        "loss that selects the best checkpoint: of the validation right after its step, or the "
        "mean of training since the checkpoint before",
        "validation",
    )
    asynchronous: bool = setting("write in the background, from a copy in host memory", False)
    auto_resume: bool = setting(
        "continue the newest run of the config file, as --resume auto does; the option --resume "
        "takes precedence",
        False,
    )

    @property
    def is_enabled(self) -> bool:
        """True if a run saves periodically and at its end. If False, a run only saves when it is
        stopped, and a resumed run at its end."""
        intervals = self.every, self.epochs, self.minutes
        return any(interval is not None for interval in intervals)
