"""One optimizer step: accumulate, sum, agree, clip, update."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from engine.data.loader import Batch
from engine.errors import RunError
from engine.optim.optimizer import Optimizer
from engine.training.gradients import GradientReducer, local_grad_norm_squared, unscale_and_clip
from engine.training.loss_scale import LossScale
from engine.training.loss_spikes import LossSpikes
from engine.training.pipeline import Pipeline
from models.chunks import ModelChunks
from models.parallel.collectives import Axis
from models.parallel.context import derive_seed


class DivergedError(RunError):
    """Training can not go on from here: raised on all ranks alike, before the optimizer."""


class NonFiniteError(DivergedError):
    """The loss or the gradient is not a number."""


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What all ranks know after a step. ``memory_bytes`` by rank; ``stop`` and ``save`` where any
    rank asked for it; ``skipped`` where the optimizer was not run, for the reason in ``remark``."""

    loss: float
    grad_norm: float
    memory_bytes: tuple[int, ...]
    stop: bool
    save: bool = False
    skipped: bool = False
    remark: str = ""

    @property
    def finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


def unchanged_loss(step: int, loss: Tensor) -> Tensor:
    return loss


@dataclass(frozen=True, kw_only=True)
class Stepper:
    """Runs steps of one model. ``world``: all ranks of the run. ``loss_hook``: for tests, what
    becomes of this rank's loss of a step before it is told."""

    model: ModelChunks
    pipeline: Pipeline
    optimizer: Optimizer
    gradients: GradientReducer
    world: Axis
    seed: int
    clip_grad_norm: float | None = None
    loss_scale: LossScale | None = None
    spikes: LossSpikes | None = None
    loss_hook: Callable[[int, Tensor], Tensor] = unchanged_loss

    def run(
        self,
        step: int,
        micro_batches: Sequence[Batch],
        *,
        targets: int,
        lr: float,
        memory_bytes: int = 0,
        stop: Callable[[], bool] = lambda: False,
        save: bool = False,
    ) -> StepResult:
        """One step over this rank's ``micro_batches`` (all accumulation rounds).

        ``targets``: how many count in the whole global batch. ``stop``: whether this rank was asked
        to, by when the ranks agree.

        Raises:
            NonFiniteError: loss or gradient is not finite on any rank; under a loss scale the step
                is skipped instead, while the scale can shrink.
            DivergedError: as many steps in a row as may be were skipped for a spike of the loss.
        """
        self.gradients.zero()
        scale = self.loss_scale.scale if self.loss_scale else 1.0
        loss = self.accumulate(step, micro_batches, scale / max(targets, 1))
        loss = self.loss_hook(step, loss)
        outcome = self.all_reduce_result(step, loss, scale, memory_bytes, stop(), save)
        if self.loss_scale is not None:
            self.loss_scale.update(overflow=not outcome.finite)
            if not outcome.finite:
                remark = f"skipped: fp16 overflows; loss scale {self.loss_scale.scale:g}"
                return replace(outcome, skipped=True, remark=remark)
        if self.spikes is not None and (verdict := self.spikes.update(outcome.loss)).skip:
            if self.spikes.exhausted:
                raise DivergedError(
                    f"step {step}: {verdict.reason}, as in the {self.spikes.consecutive_skips - 1} "
                    "steps before it, which were skipped; weights are those of before"
                )
            return replace(outcome, skipped=True, remark=f"skipped: {verdict.reason}")
        unscale_and_clip(self.model, outcome.grad_norm, self.clip_grad_norm, scale)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.model.parallel.zero.clear_gathered()
        return outcome

    def accumulate(self, step: int, micro_batches: Sequence[Batch], scale: float) -> Tensor:
        """Gradients of all micro-batches, summed over ranks; returns this rank's share of the
        loss, both times ``scale``."""
        seeds = [
            derive_seed(self.seed, step, number) for number in range(1, len(micro_batches) + 1)
        ]
        loss = self.pipeline.train(micro_batches, seeds, scale, self.gradients)
        self.gradients.wait()
        return loss

    def all_reduce_result(
        self, step: int, loss: Tensor, scale: float, memory_bytes: int, stop: bool, save: bool
    ) -> StepResult:
        """The one control all-reduce of a step: loss, squared norm, flags and memory by rank."""
        world, squares = self.world, local_grad_norm_squared(self.model)
        mine = torch.zeros(4 + 2 * world.size, dtype=torch.float64)
        mine[2], mine[3] = stop, save
        mine[4 + world.index] = memory_bytes
        mine = mine.to(loss.device)
        mine[0], mine[1] = loss, squares
        finite = torch.isfinite(loss) & torch.isfinite(squares)
        mine[4 + world.size + world.index] = ~finite
        total, square, stops, saves, *by_rank = world.all_reduce(mine).tolist()
        outcome = StepResult(
            loss=total / scale,
            grad_norm=math.sqrt(abs(square)) / scale,
            memory_bytes=tuple(int(n) for n in by_rank[: world.size]),
            stop=stops > 0,
            save=saves > 0,
        )
        bad = [rank for rank, flag in enumerate(by_rank[world.size :]) if flag]
        if not outcome.finite and (self.loss_scale is None or self.loss_scale.exhausted):
            raise NonFiniteError(
                f"step {step}: loss {outcome.loss:g}, gradient norm {outcome.grad_norm:g} "
                f"(not finite on rank {', '.join(map(str, bad)) or '?'}); "
                "the optimizer was not run: weights are those of the step before"
            )
        return outcome
