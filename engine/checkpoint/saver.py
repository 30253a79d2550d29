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
from engine.checkpoint.async_save import Background, Copies
from engine.checkpoint.directory import Shelf, surplus
from engine.checkpoint.load import Stored
from engine.checkpoint.manifest import LossScaleState, LossSpikesState, Training
from engine.checkpoint.save import layout_of, save
from engine.checkpoint.state_dict import Tensors
from engine.training.step import Diverged

if TYPE_CHECKING:
    from types import TracebackType

    from engine.runs.folder import RunFolder
    from engine.training.trainer import Run

State = TypeVar("State", bound=BaseModel)

LEAVE_SECONDS = 5.0
"""How long a run that has failed waits for a checkpoint on its way: others may be gone."""


class Saver:
    """Saves a run every so many steps or minutes, where it is asked to, and at its end.

    Without ``checkpoint.every`` and ``checkpoint.minutes`` it saves only a run that is stopped
    before its end, and at its end one that was resumed: an older checkpoint must not stay the
    latest of a finished run. Within ``with``, so that no checkpoint is still on its way when the
    run leaves.
    """

    def __init__(
        self,
        run: Run,
        folder: RunFolder,
        *,
        say: Callable[[str], None] = lambda line: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run, self._shelf, self._say, self._clock = run, Shelf(folder.checkpoints), say, clock
        self._settings = run.plan.settings.checkpoint
        self._resumed = run.done > 0
        self._since = clock()
        self._background, self._copies = Background(), Copies()
        self._group = run.world.cpu_group
        if self._settings.wanted and self._settings.asynchronous:
            # Beside the main thread's messages, never among them
            timeout = timedelta(seconds=run.plan.settings.start_timeout)
            self._group = dist.new_group(backend="gloo", timeout=timeout)

    @property
    def overdue(self) -> bool:
        """Whether this rank asks for a checkpoint after the next step: the minutes are over (clocks
        differ: the main rank's counts), or the one on its way has failed, which all ranks are to
        find when they wait for it."""
        if self._background.failed:
            return True
        minutes, world = self._settings.minutes, self._run.world
        return minutes is not None and world.is_main and self._clock() - self._since >= 60 * minutes

    def after(
        self,
        step: int,
        val_loss: float | None,
        *,
        asked: bool,
        last: bool,
        stopped: bool = False,
    ) -> None:
        """All ranks call this once after each step, with the same arguments. ``stopped``: it is the
        last, and others were to follow.

        Raises:
            Failed: this checkpoint, or the one before that was still on its way, was not written.
        """
        every = self._settings.every
        due = asked or last or (every is not None and step % every == 0)
        if not (stopped or (self._resumed and last) or (self._settings.wanted and due)):
            return
        state, training = self._state(), self._training(step, val_loss)
        if self._settings.asynchronous:
            self._background.wait()  # it writes from the copies
            state = self._copies.of(state)
            self._background.start(lambda: self._write(state, training))
            if last:
                self._background.wait()
        else:
            self._write(state, training)
        self._since = self._clock()

    def _state(self) -> Tensors:
        run = self._run
        return {
            **state_dict.of_model(run.model),
            **state_dict.of_optimizer(run.model, run.stepper.optimizer),
            **state_dict.of_rng(run.world.rank, run.device),
        }

    def _training(self, step: int, val_loss: float | None) -> Training:
        run = self._run
        return Training(
            tokenizer=run.tokenizer,
            trained_length=run.trained_length,
            **asdict(run.batches.consumed(step)),
            val_loss=val_loss if val_loss is not None and math.isfinite(val_loss) else None,
            loss_scale=_state_of(run.stepper.loss_scale, LossScaleState),
            matmul=run.matmul,
            device=run.device.type,
            threads=torch.get_num_threads(),
            corpus=run.batches.corpus.fingerprint,
            settings=run.plan.settings.model_dump(mode="json"),
            loss_spikes=_state_of(run.stepper.spikes, LossSpikesState),
        )

    def _write(self, state: Tensors, training: Training) -> None:
        plan, started = self._run.plan, self._clock()
        layout = layout_of(plan.settings, plan.layout.data)
        save(self._shelf, state, training, layout=layout, group=self._group)
        if self._run.world.is_main:
            self._say(
                f"saved {self._shelf.folder(training.step)} in {self._clock() - started:.1f} s"
            )
            self._prune()

    def _prune(self) -> None:
        """Only now, as the new one has been verified."""
        keep, best = self._settings.keep, self._settings.best
        for step in surplus(self._shelf.losses(), keep=keep, best=best):
            try:
                self._shelf.remove(step)
            except OSError as error:
                self._say(f"{self._shelf.folder(step)} cannot be removed: {error.strerror}")

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
        alike = isinstance(error, Diverged)  # no rank is gone
        try:
            self._background.wait(None if alike else LEAVE_SECONDS)
        except BaseException as another:
            error.add_note(f"{another}")


def restore(run: Run, stored: Stored) -> None:
    """Bring a new run to where a checkpoint was written: to the same bits in the same layout.
    Raises Failed where its files cannot be read."""
    stored.load_model(run.model)
    stored.load_optimizer(run.model, run.stepper.optimizer)
    training = stored.training
    run.done = training.step
    run.trained_length = max(run.trained_length, stored.trained_length or 0)
    _restore(run.stepper.loss_scale, training.loss_scale)
    _restore(run.stepper.spikes, training.loss_spikes)
    if stored.manifest.layout.ranks == run.world.size:
        stored.load_rng(run.world.rank, run.device)


def _state_of(part: object | None, kind: type[State]) -> State | None:
    """What a checkpoint keeps of a part that has attributes of these names."""
    if part is None:
        return None
    return kind.model_validate({name: getattr(part, name) for name in kind.model_fields})


def _restore(part: object | None, state: BaseModel | None) -> None:
    """Nothing, where the run has no such part or had none."""
    if part is not None and state is not None:
        for name, value in state:
            setattr(part, name, value)
