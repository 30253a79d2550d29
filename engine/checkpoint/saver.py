"""When a run saves, what of it, and how it comes back."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING, Self, TypeVar

import torch
import torch.distributed as dist
from pydantic import BaseModel

from engine.checkpoint import state_dict
from engine.checkpoint.async_save import Background, HostStaging
from engine.checkpoint.directory import CheckpointDirectory, checkpoints_to_delete
from engine.checkpoint.load import SavedCheckpoint
from engine.checkpoint.manifest import LossScaleState, LossSpikesState, TrainingState
from engine.checkpoint.save import layout_of, save
from engine.checkpoint.state_dict import Tensors
from engine.training.step import DivergedError

if TYPE_CHECKING:
    from types import TracebackType

    from engine.runs.folder import RunFolder
    from engine.training.trainer import Trainer

StateT = TypeVar("StateT", bound=BaseModel)

EXIT_WAIT_SECONDS = 5.0
"""How long a run that has failed waits for a checkpoint on its way: others may be gone."""

# Field of the manifest -> attribute, where they differ: the names on disk stay.
ATTRIBUTES = {
    "quiet": "steps_since_overflow",
    "borne": "consecutive_overflows",
    "in_a_row": "consecutive_skips",
}


class Saver:
    """Saves a run every so many steps or minutes, where it is asked to, and at its end.

    Without ``checkpoint.every`` and ``checkpoint.minutes`` it saves only a run that is stopped
    before its end, and at its end one that was resumed: an older checkpoint must not stay the
    latest of a finished run. Within ``with``, so that no checkpoint is still on its way when the
    run leaves.
    """

    def __init__(
        self,
        trainer: Trainer,
        folder: RunFolder,
        *,
        print_line: Callable[[str], None] = lambda line: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._trainer, self._checkpoints, self._print_line, self._clock = (
            trainer,
            CheckpointDirectory(folder.checkpoints),
            print_line,
            clock,
        )
        self._settings = trainer.plan.settings.checkpoint
        self._resumed = trainer.done > 0
        self._since = clock()
        self._background, self._staging = Background(), HostStaging()
        self._group = trainer.world.cpu_group
        if self._settings.is_enabled and self._settings.asynchronous:
            # Beside the main thread's messages, never among them
            timeout = timedelta(seconds=trainer.plan.settings.start_timeout)
            self._group = dist.new_group(backend="gloo", timeout=timeout)

    @property
    def is_due(self) -> bool:
        """Whether this rank asks for a checkpoint after the next step: the minutes are over (clocks
        differ: the main rank's counts), or the one on its way has failed, which all ranks are to
        find when they wait for it."""
        if self._background.failed:
            return True
        minutes, world = self._settings.minutes, self._trainer.world
        return minutes is not None and world.is_main and self._clock() - self._since >= 60 * minutes

    def on_step_end(
        self,
        step: int,
        val_loss: float | None,
        *,
        requested: bool,
        last: bool,
        stopped: bool = False,
    ) -> None:
        """All ranks call this once after each step, with the same arguments. ``stopped``: it is the
        last, and others were to follow.

        Raises:
            RunError: this checkpoint, or the one before that was still on its way, was not written.
        """
        every = self._settings.every
        due = requested or last or (every is not None and step % every == 0)
        if not (stopped or (self._resumed and last) or (self._settings.is_enabled and due)):
            return
        state, training = self._state_tensors(), self._training_state(step, val_loss)
        if self._settings.asynchronous:
            self._background.wait()  # it writes from the copies
            state = self._staging.stage(state)
            self._background.start(lambda: self._write(state, training))
            if last:
                self._background.wait()
        else:
            self._write(state, training)
        self._since = self._clock()

    def _state_tensors(self) -> Tensors:
        trainer = self._trainer
        return {
            **state_dict.model_tensors(trainer.model),
            **state_dict.optimizer_tensors(trainer.model, trainer.stepper.optimizer),
            **state_dict.rng_tensors(trainer.world.rank, trainer.device),
        }

    def _training_state(self, step: int, val_loss: float | None) -> TrainingState:
        trainer = self._trainer
        return TrainingState(
            tokenizer=trainer.tokenizer,
            trained_length=trainer.trained_length,
            **asdict(trainer.batches.consumed(step)),
            val_loss=val_loss if val_loss is not None and math.isfinite(val_loss) else None,
            loss_scale=_recorded_state(trainer.stepper.loss_scale, LossScaleState),
            matmul=trainer.matmul,
            device=trainer.device.type,
            threads=torch.get_num_threads(),
            corpus=trainer.batches.corpus.fingerprint,
            settings=trainer.plan.settings.model_dump(mode="json"),
            loss_spikes=_recorded_state(trainer.stepper.spikes, LossSpikesState),
        )

    def _write(self, state: Tensors, training: TrainingState) -> None:
        plan, started = self._trainer.plan, self._clock()
        layout = layout_of(plan.settings, plan.layout.data)
        save(self._checkpoints, state, training, layout=layout, group=self._group)
        if self._trainer.world.is_main:
            self._print_line(
                f"saved {self._checkpoints.folder(training.step)} in "
                f"{self._clock() - started:.1f} s"
            )
            self._prune()

    def _prune(self) -> None:
        """Only now, as the new one has been verified."""
        keep, best = self._settings.keep, self._settings.best
        for step in checkpoints_to_delete(
            self._checkpoints.validation_losses(), keep=keep, best=best
        ):
            try:
                self._checkpoints.remove(step)
            except OSError as error:
                self._print_line(
                    f"{self._checkpoints.folder(step)} cannot be removed: {error.strerror}"
                )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self._background.wait()
            return
        alike = isinstance(error, DivergedError)  # no rank is gone
        try:
            self._background.wait(None if alike else EXIT_WAIT_SECONDS)
        except BaseException as another:
            error.add_note(f"{another}")


def restore(trainer: Trainer, checkpoint: SavedCheckpoint) -> None:
    """Bring a new run to where a checkpoint was written: to the same bits in the same layout.
    Raises RunError where its files cannot be read."""
    checkpoint.load_model(trainer.model)
    checkpoint.load_optimizer(trainer.model, trainer.stepper.optimizer)
    training = checkpoint.training
    trainer.done = training.step
    trainer.trained_length = max(trainer.trained_length, checkpoint.trained_length or 0)
    _restore_component(trainer.stepper.loss_scale, training.loss_scale)
    _restore_component(trainer.stepper.spikes, training.loss_spikes)
    if checkpoint.manifest.layout.ranks == trainer.world.size:
        checkpoint.load_rng(trainer.world.rank, trainer.device)


def _recorded_state(component: object | None, kind: type[StateT]) -> StateT | None:
    """What a checkpoint keeps of a part that has attributes of these names."""
    if component is None:
        return None
    return kind.model_validate(
        {field: getattr(component, ATTRIBUTES.get(field, field)) for field in kind.model_fields}
    )


def _restore_component(component: object | None, state: BaseModel | None) -> None:
    """Nothing, where the run has no such part or had none."""
    if component is not None and state is not None:
        for name, value in state:
            setattr(component, ATTRIBUTES.get(name, name), value)
