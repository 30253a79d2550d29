"""One optimizer step: accumulate and reduce gradients, check them, clip, update."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from engine.data.batches.loader import Batch
from engine.errors import RunError
from engine.optim.optimizer import Optimizer
from engine.step_message import (
    HOST_MEMORY,
    LOSS,
    SAVE,
    SQUARED_NORM,
    STOP,
    memory_entry,
    message_entries,
    non_finite_entry,
)
from engine.training.gradients import GradientReducer, local_grad_norm_squared, unscale_and_clip
from engine.training.loss_scale import LossScale
from engine.training.loss_spikes import LossSpikes
from engine.training.pipeline import Pipeline
from engine.training.step_statistics import StepStatistics
from engine.training.step_times import FORWARD_BACKWARD, OPTIMIZER
from engine.training.tensor_statistics import Statistics
from models.chunks import ModelChunks
from models.parallel.collectives import Axis
from models.parallel.context import derive_seed
from models.parallel.dropout import seed_from_sample


class DivergedError(RunError):
    """Training has diverged. Raised on all ranks in the same step, before the optimizer runs."""


class NonFiniteError(DivergedError):
    """The loss or the gradient norm is NaN or infinite."""


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """The result of a step, equal on all ranks."""

    loss: float
    """Mean over the targets of the global batch."""
    grad_norm: float
    """Norm of the global gradient before clipping."""
    memory_bytes: tuple[int, ...]
    """Peak memory, by rank."""
    host_memory_bytes: int = 0
    """Peak host memory, mean over the ranks; 0 unless an epoch ends."""
    stop: bool
    """True if any rank was asked to stop."""
    save: bool = False
    """True if any rank requests a checkpoint after this step."""
    statistics: Mapping[str, Statistics] | None = None
    """Statistics of the step's tensors by name; None if they were not asked for, or the optimizer
    was not run."""
    remark: str = ""
    """The reason for which the optimizer was not run; "" if it was."""

    @property
    def skipped(self) -> bool:
        """Return whether the optimizer was not run."""
        return bool(self.remark)

    @property
    def finite(self) -> bool:
        """Return whether loss and gradient norm are finite."""
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


def unchanged_loss(step: int, loss: Tensor) -> Tensor:
    """Return ``loss``: the default of ``Stepper.loss_hook``."""
    return loss


@dataclass(frozen=True, kw_only=True)
class Stepper:
    """Runs the steps of one model."""

    model: ModelChunks
    pipeline: Pipeline
    optimizer: Optimizer
    gradients: GradientReducer
    world: Axis
    """All ranks of the run."""
    seed: int
    """Seed of the dropout masks."""
    rounds: int = 1
    """Rounds of gradient accumulation."""
    clip_grad_norm: float | None = None
    statistics_every: int | None = None
    """Steps between statistics of the step's tensors; None for no statistics."""
    loss_scale: LossScale | None = None
    spikes: LossSpikes | None = None
    loss_hook: Callable[[int, Tensor], Tensor] = unchanged_loss
    """For tests: (step, this rank's loss) -> loss, applied before the loss is all-reduced."""

    def run(
        self,
        step: int,
        micro_batches: Sequence[Batch],
        *,
        targets: int,
        lr: float,
        memory_bytes: int = 0,
        host_memory_bytes: int = 0,
        stop: Callable[[], bool] = lambda: False,
        save: bool = False,
    ) -> StepResult:
        """Run one step over this rank's ``micro_batches`` (all accumulation rounds).

        targets: number of targets in the global batch.
        memory_bytes: peak memory of this rank.
        host_memory_bytes: peak host memory of this rank, if an epoch ends in this step.
        stop: returns whether this rank was asked to stop; called just before the all-reduce.
        save: whether this rank requests a checkpoint after the step.

        Raises:
            NonFiniteError: loss or gradient is not finite on a rank. With a loss scale the step
                is skipped instead, as long as the scale can shrink.
            DivergedError: more than loss_spike.max_skips consecutive steps had a loss spike.
        """
        clock = self.world.traffic.clock
        clock.start(FORWARD_BACKWARD)
        self.gradients.zero()
        scale = self.loss_scale.scale if self.loss_scale else 1.0
        statistics = self._statistics(step)
        loss = self.accumulate(step, micro_batches, scale / max(targets, 1), statistics)
        loss = self.loss_hook(step, loss)
        clock.start(OPTIMIZER)
        message = self.host_message(memory_bytes, host_memory_bytes, stop=stop(), save=save)
        result = self.all_reduce_result(step, loss, scale, message)
        if self.loss_scale is not None:
            self.loss_scale.update(overflow=not result.finite)
            if not result.finite:
                remark = f"skipped: fp16 overflow; loss scale {self.loss_scale.scale:g}"
                return replace(result, remark=remark)
        if self.spikes is not None and (verdict := self.spikes.update(result.loss)).skip:
            if self.spikes.exhausted:
                raise DivergedError(
                    f"step {step}: {verdict.reason}; loss spikes in "
                    f"{self.spikes.consecutive_skips} consecutive steps, more than "
                    f"loss_spike.max_skips={self.spikes.settings.max_skips}; weights are those "
                    "before the first skipped step; resume with a lower optimizer.lr"
                )
            return replace(result, remark=f"skipped: {verdict.reason}")
        unscale_and_clip(self.model, result.grad_norm, self.clip_grad_norm, scale)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        with statistics.update() if statistics else nullcontext():
            self.optimizer.step()
        self.model.parallel.zero.clear_gathered()
        return replace(result, statistics=statistics.result()) if statistics else result

    def _statistics(self, step: int) -> StepStatistics | None:
        """Return a collector of the statistics of ``step``; None if no statistics are due."""
        every = self.statistics_every
        due = every is not None and step % every == 0
        return StepStatistics(self.model, self.world) if due else None

    def accumulate(
        self,
        step: int,
        micro_batches: Sequence[Batch],
        scale: float,
        statistics: StepStatistics | None = None,
    ) -> Tensor:
        """Accumulate the gradients of all micro-batches, reduce the gradients over the ranks, and
        return this rank's share of the loss. Gradients and loss are multiplied by ``scale``.
        ``statistics``: observes the forward passes."""
        seeds = self._dropout_seeds(step, micro_batches)
        if statistics is None:
            loss = self.pipeline.train(micro_batches, seeds, scale, self.gradients)
        else:
            with statistics.eagerly():
                loss = self.pipeline.train(
                    micro_batches, seeds, scale, self.gradients, statistics.forward
                )
        self.gradients.wait()
        return loss

    def _dropout_seeds(self, step: int, micro_batches: Sequence[Batch]) -> list[int]:
        """Return the dropout seed of each micro-batch. The samples of a step are numbered by
        accumulation round, then data-parallel rank, then micro-batch."""
        data = self.model.parallel.axes["data"]
        seed, per_round = derive_seed(self.seed, step), len(micro_batches) // self.rounds
        seeds = []
        for number, (ids, _) in enumerate(micro_batches):
            turn, place = divmod(number, per_round)
            before = (turn * data.size + data.index) * per_round + place
            seeds.append(seed_from_sample(seed, before * len(ids)))
        return seeds

    def host_message(
        self,
        memory_bytes: int = 0,
        host_memory_bytes: int = 0,
        *,
        stop: bool = False,
        save: bool = False,
    ) -> Tensor:
        """Return this rank's message for the all-reduce of a step, with the entries that are known
        on the host."""
        message = torch.zeros(message_entries(self.world.size), dtype=torch.float64)
        message[STOP], message[SAVE], message[HOST_MEMORY] = stop, save, host_memory_bytes
        message[memory_entry(self.world.index)] = memory_bytes
        return message

    def all_reduce_result(
        self, step: int, loss: Tensor, scale: float, message: Tensor
    ) -> StepResult:
        """Sum the loss, the squared gradient norm, and the numbers in ``message`` over all ranks in
        a single all-reduce, and return the result of the step. Raises NonFiniteError."""
        world, squares = self.world, local_grad_norm_squared(self.model)
        message = message.to(loss.device)
        message[LOSS], message[SQUARED_NORM] = loss, squares
        finite = torch.isfinite(loss) & torch.isfinite(squares)
        message[non_finite_entry(world.index, world.size)] = ~finite
        total, square, stops, saves, host, *by_rank = world.all_reduce(message).tolist()
        result = StepResult(
            loss=total / scale,
            grad_norm=math.sqrt(abs(square)) / scale,
            memory_bytes=tuple(int(n) for n in by_rank[: world.size]),
            host_memory_bytes=round(host / world.size),
            stop=stops > 0,
            save=saves > 0,
        )
        ranks = [rank for rank, flag in enumerate(by_rank[world.size :]) if flag]
        if not result.finite and (self.loss_scale is None or self.loss_scale.exhausted):
            raise NonFiniteError(
                f"step {step}: loss {result.loss:g}, gradient norm {result.grad_norm:g} "
                f"(not finite on rank {', '.join(map(str, ranks)) or '?'}); "
                "the optimizer was not run: weights are those of the previous step; resume with "
                "a lower optimizer.lr"
            )
        return result
