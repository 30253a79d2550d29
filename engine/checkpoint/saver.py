"""Decides when a run saves a checkpoint, collects its state, and restores it on a resume."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from statistics import fmean
from typing import TYPE_CHECKING, Self, TypeVar

import torch
import torch.distributed as dist
from pydantic import BaseModel

from engine.checkpoint import state_dict
from engine.checkpoint.async_save import Background, HostStaging
from engine.checkpoint.directory import CheckpointDirectory
from engine.checkpoint.load import SavedCheckpoint
from engine.checkpoint.manifest import LossScaleState, LossSpikesState, TrainingState
from engine.checkpoint.retention import checkpoints_to_delete
from engine.checkpoint.save import layout_of, save
from engine.checkpoint.state_dict import Tensors
from engine.training.step import DivergedError

if TYPE_CHECKING:
    from types import TracebackType

    from engine.training.trainer import Trainer

StateT = TypeVar("StateT", bound=BaseModel)

EXIT_WAIT_SECONDS = 5.0
"""A failed run waits this long for a running asynchronous save: other ranks may be dead."""


class Saver:
    """Saves a checkpoint every ``checkpoint.every`` steps, ``checkpoint.epochs`` or
    ``checkpoint.minutes``, on request, and at the end of the run.

    Without these three settings it saves only when the run is stopped early, and at the end of a
    resumed run, because an older checkpoint must not remain the latest of a finished run. As a
    context manager it waits on exit for a running asynchronous save.
    """

    def __init__(
        self,
        trainer: Trainer,
        checkpoints: CheckpointDirectory,
        *,
        print_line: Callable[[str], None] = lambda line: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._trainer, self._checkpoints = trainer, checkpoints
        self._print_line, self._clock = print_line, clock
        self._settings = trainer.plan.settings.checkpoint
        self._resumed = trainer.done > 0
        self._since = clock()
        self._losses: list[float] = []  # of the steps since the last checkpoint
        self._background, self._staging = Background(), HostStaging()
        self._group = trainer.world.cpu_group
        if self._settings.is_enabled and self._settings.asynchronous:
            # A group of its own: the main thread sends messages concurrently
            timeout = timedelta(seconds=trainer.plan.settings.start_timeout)
            self._group = dist.new_group(backend="gloo", timeout=timeout)

    @property
    def is_due(self) -> bool:
        """True if this rank requests a save after the next step: ``checkpoint.minutes`` have passed
        (on rank 0, since clocks differ), or the asynchronous save failed on this rank, so that all
        ranks must wait for that save and raise its error."""
        if self._background.failed:
            return True
        minutes, world = self._settings.minutes, self._trainer.world
        return minutes is not None and world.is_main and self._clock() - self._since >= 60 * minutes

    def on_step_end(
        self,
        step: int,
        loss: float,
        val_loss: float | None,
        *,
        requested: bool,
        last: bool,
        stopped: bool = False,
    ) -> None:
        """Save a checkpoint, if one is due, and delete older ones. All ranks call this after each
        step with the same arguments.

        ``requested``: ``is_due`` was true on a rank before the step.
        ``last``: no step follows.
        ``stopped``: no step follows, although the run is not finished.

        Raises:
            RunError: this save, or the running asynchronous one before it, failed.
        """
        self._losses.append(loss)
        due = requested or last
        due = due or self._trainer.ends_interval(step, self._settings.every, self._settings.epochs)
        if not (stopped or (self._resumed and last) or (self._settings.is_enabled and due)):
            return
        state, training = self._state_tensors(), self._training_state(step, val_loss)
        if self._settings.asynchronous:
            self._background.wait()  # the running save reads from the buffers
            state = self._staging.stage(state)
            self._background.start(lambda: self._write(state, training))
            if last:
                self._background.wait()
        else:
            self._write(state, training)
        self._since = self._clock()
        self._losses.clear()

    def _state_tensors(self) -> Tensors:
        """Collect this rank's shards of all tensors."""
        trainer = self._trainer
        return {
            **state_dict.model_tensors(trainer.model),
            **state_dict.optimizer_tensors(trainer.model, trainer.stepper.optimizer),
            **state_dict.rng_tensors(trainer.world.rank, trainer.device),
        }

    def _training_state(self, step: int, val_loss: float | None) -> TrainingState:
        """Collect the state of training apart from tensors."""
        trainer, finite = self._trainer, [x for x in self._losses if math.isfinite(x)]
        return TrainingState(
            tokenizer=trainer.tokenizer,
            trained_length=trainer.trained_length,
            **asdict(trainer.batches.consumed(step)),
            val_loss=val_loss if val_loss is not None and math.isfinite(val_loss) else None,
            train_loss=fmean(finite) if finite else None,
            loss_scale=_recorded_state(trainer.stepper.loss_scale, LossScaleState),
            matmul=trainer.matmul,
            device=trainer.device.type,
            threads=torch.get_num_threads(),
            dropout_by="sample",
            corpus=trainer.batches.corpus.fingerprint,
            settings=trainer.plan.settings.model_dump(mode="json"),
            loss_spikes=_recorded_state(trainer.stepper.spikes, LossSpikesState),
        )

    def _write(self, state: Tensors, training: TrainingState) -> None:
        """Save the checkpoint; rank 0 then prints its path and deletes older checkpoints."""
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
        """Delete older checkpoints. Called once the new one has been verified."""
        losses, settings = self._checkpoints.losses(), self._settings
        for step in checkpoints_to_delete(losses, keep=settings.keep, best=settings.best):
            try:
                self._checkpoints.remove(step)
            except OSError as error:
                self._print_line(
                    f"{self._checkpoints.folder(step)} cannot be deleted: {error.strerror}"
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
        all_alive = isinstance(error, DivergedError)
        try:
            self._background.wait(None if all_alive else EXIT_WAIT_SECONDS)
        except BaseException as save_error:
            error.add_note(f"{save_error}")


def restore(trainer: Trainer, checkpoint: SavedCheckpoint) -> None:
    """Restore the state of ``checkpoint`` in ``trainer``: bit for bit if the layout is unchanged.
    Raises RunError if files of the checkpoint cannot be read."""
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
    """Copy the attributes of ``component`` that are fields of ``kind`` into a ``kind``; return None
    without component."""
    if component is None:
        return None
    return kind.model_validate({name: getattr(component, name) for name in kind.model_fields})


def _restore_component(component: object | None, state: BaseModel | None) -> None:
    """Set the attributes of ``component`` to the fields of ``state``, unless one of the two is
    None: the run lacks the component, or the checkpoint lacks the state."""
    if component is not None and state is not None:
        for name, value in state:
            setattr(component, name, value)
