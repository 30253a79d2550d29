"""A model in training: one step, validation, learning rate."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from engine.data.batches.loader import Batch, TrainBatches
from engine.data.text_loss.bits_per_byte import TextLoss
from engine.data.text_loss.text_units import TextUnits
from engine.data.tokenizer import dump
from engine.errors import UserError
from engine.optim.lr_schedule import LRSchedule
from engine.optim.optimizer import Optimizer, ResidentOptimizer
from engine.optim.registry import build_optimizer
from engine.training.build import build_on_world, named_parameters
from engine.training.gradients import GradientReducer
from engine.training.loss_scale import LossScale
from engine.training.loss_spikes import LossSpikes
from engine.training.memory import keep_freed_memory, peak_bytes, peak_resident_bytes
from engine.training.pipeline import Pipeline, scaled_loss
from engine.training.step import Stepper, StepResult, unchanged_loss
from engine.training.step_times import DATA, VALIDATING, StepTimes
from models.parallel.clock import OTHER

if TYPE_CHECKING:
    from engine.nvme.offload import NvmeOffload
    from engine.plan import Plan
    from engine.world.world import World
    from models.parallel.clock import PartClock

BATCHES_AT_ONCE = 8
"""Batches of a validation that are in memory at once: few pipeline bubbles, bounded memory."""


class Trainer:
    """The model, its optimizer and its data on one rank of the world."""

    def __init__(
        self,
        world: World,
        batches: TrainBatches,
        *,
        steps: int,
        matmul: str,
        offload: NvmeOffload | None = None,
        loss_hook: Callable[[int, Tensor], Tensor] = unchanged_loss,
    ) -> None:
        """Build the model and its optimizer; all ranks call it. Raises UserError.

        offload: the disk that stores optimizer states, and weights if they are offloaded too.
        loss_hook: for tests, see ``Stepper``.
        """
        settings = world.plan.settings
        self.plan, self.world, self.batches, self.steps = world.plan, world, batches, steps
        self.device, self.data_rank = world.device, world.axes["data"].index
        self.matmul = matmul
        self.done = 0  # steps
        self._validation_text: tuple[int, int] | None = None
        """Bytes and characters of the validation targets, once they have been counted."""
        self.trained_length = settings.seq_len  # positions; initial weights may have more
        keep_freed_memory()
        torch.use_deterministic_algorithms(settings.deterministic)
        self.model = build_on_world(world, matmul, offload)
        self.lr_schedule = world.run_on_all(self._build_lr_schedule)
        self.pipeline = Pipeline(self.model, world.axes["pipeline"], settings.schedule)
        fp16 = settings.precision == "fp16"
        self.stepper = Stepper(
            model=self.model,
            pipeline=self.pipeline,
            optimizer=world.run_on_all(lambda: self._build_optimizer(offload)),
            gradients=GradientReducer(self.model),
            world=world.axes["world"],
            seed=settings.seed,
            rounds=settings.gradient_accumulation,
            clip_grad_norm=settings.clip_grad_norm,
            statistics_every=settings.log.statistics,
            loss_scale=LossScale(settings.loss_scale) if fp16 else None,
            spikes=LossSpikes(settings.loss_spike) if settings.loss_spike.factor else None,
            loss_hook=loss_hook,
        )

    def _build_optimizer(self, offload: NvmeOffload | None) -> Optimizer:
        optimizer = build_optimizer(self.plan.settings.optimizer, named_parameters(self.model))
        if offload is not None:
            return offload.optimizer(optimizer)
        return ResidentOptimizer(optimizer, self.model.named_parameters())

    def _build_lr_schedule(self) -> LRSchedule:
        """Return the schedule of the run. Raises UserError if it does not suit the data."""
        settings, cite = self.plan.settings, self.plan.cite
        epochs = None if settings.max_steps is not None else settings.num_epochs or 1
        schedule = LRSchedule(
            settings=settings.lr_scheduler,
            per_step=self.batches.per_step,
            end=self.batches.consumed(self.steps, epochs=epochs),
        )
        if (unit := schedule.endless_unit) is not None:
            raise UserError(
                f"{cite(f'lr_scheduler.{unit}')} needs data with epochs, but "
                f"{cite('data.type')} is endless; use 'step' or 'token'"
            )
        if settings.lr_scheduler.total is not None and schedule.warmup >= schedule.total:
            raise UserError(
                f"{cite('lr_scheduler.warmup')} is {schedule.warmup:,.6g} in units of "
                f"lr_scheduler.by={settings.lr_scheduler.by!r} and must be less than "
                f"lr_scheduler.total={schedule.total:,.6g}"
            )
        return schedule

    @property
    def clock(self) -> PartClock:
        """The clock that divides this rank's time."""
        return self.world.traffic.clock

    @property
    def tokenizer(self) -> dict[str, Any] | None:
        """Return the data's tokenizer in the form that files store; None if the token ids encode no
        text."""
        tokenizer = self.batches.corpus.tokenizer
        return None if tokenizer is None else dump(tokenizer)

    def step(self, step: int, *, save: bool = False) -> StepResult:
        """Train on the samples of ``step``, counted from 1. ``save``: whether this rank requests a
        checkpoint after the step."""
        self.clock.start(DATA)
        batches, targets = list(self.micro_batches(step)), self.batches.targets(step)
        ends_epoch = self.batches.epoch_ended_by(step) is not None
        result = self.stepper.run(
            step,
            batches,
            targets=targets,
            lr=self.lr(step),
            memory_bytes=peak_bytes(self.device),
            host_memory_bytes=peak_resident_bytes() if ends_epoch else 0,
            stop=self.world.poll_stop,
            save=save,
        )
        self.clock.start(OTHER)
        self.done = step
        return result

    def step_times(self) -> StepTimes:
        """Return this rank's seconds from the last call to the end of the last step or validation.
        The host does not wait for the device."""
        return StepTimes.of(self.clock.take())

    def lr(self, step: int) -> float:
        """Return the learning rate of ``step``, counted from 1."""
        return self.plan.settings.optimizer.lr * self.lr_schedule.factor(
            self.batches.consumed(step)
        )

    def micro_batches(self, step: int) -> Iterator[Batch]:
        """Yield this rank's micro-batches of a step, of all accumulation rounds."""
        for accumulation_round in range(self.plan.settings.gradient_accumulation):
            yield from self._split(self.batches.batch(step, accumulation_round, self.data_rank))

    def validates_after(self, step: int, *, last: bool) -> bool:
        """Return whether a validation follows ``step``."""
        settings = self.plan.settings.eval
        if settings.every == 0 or self.batches.validation.batches == 0:
            return False
        return last or self.ends_interval(step, settings.every, settings.epochs)

    def ends_interval(self, step: int, every: int | None, epochs: float | None) -> bool:
        """Return whether a multiple of ``every`` steps or of ``epochs`` epochs ends in ``step``."""
        by_steps = every is not None and step % every == 0
        return by_steps or (epochs is not None and self.batches.ends_interval(step, epochs))

    def validate(self) -> TextLoss:
        """Return the loss over the validation samples; it does not depend on the layout."""
        self.clock.start(VALIDATING)
        eval_batches = self.batches.validation
        counts_text = self._validation_text is None and self._is_first_of_model_copy
        units = TextUnits(self.batches.corpus.tokenizer) if counts_text else None
        counts = torch.zeros(3, dtype=torch.int64)
        loss = torch.zeros((), dtype=torch.float64, device=self.device)
        self.model.train(False)
        for first in range(0, eval_batches.batches, BATCHES_AT_ONCE):
            numbers = range(first, min(first + BATCHES_AT_ONCE, eval_batches.batches))
            batches = [eval_batches.batch(number, self.data_rank) for number in numbers]
            if units is not None:
                counts += sum(units.count(targets) for _, targets in batches)
            split = [micro_batch for batch in batches for micro_batch in self._split(batch)]
            self.pipeline.evaluate(split, scaled_loss(1 / eval_batches.targets), loss)
        self.model.train()
        message = torch.stack([loss, *counts[1:].to(loss)])
        mean, in_bytes, characters = self.world.axes["world"].all_reduce(message).tolist()
        self.clock.start(OTHER)
        self._validation_text = self._validation_text or (int(in_bytes), int(characters))
        return TextLoss(
            loss=mean,
            targets=eval_batches.targets,
            bytes=self._validation_text[0] or None,
            characters=self._validation_text[1] or None,
        )

    @property
    def _is_first_of_model_copy(self) -> bool:
        """Return whether this rank is the first of the ranks that read the same samples."""
        return all(self.world.axes[name].index == 0 for name in ("tensor", "pipeline"))

    def _split(self, batch: Batch) -> Iterator[Batch]:
        return micro_batches(self.plan, batch, self.device)


def micro_batches(plan: Plan, batch: Batch, device: torch.device) -> Iterator[Batch]:
    """Split a rank's batch into micro-batches on ``device``."""
    parts = (tensor.chunk(plan.settings.num_micro_batches) for tensor in batch)
    for ids, targets in zip(*parts, strict=True):
        yield ids.to(device, non_blocking=True), targets.to(device, non_blocking=True)
