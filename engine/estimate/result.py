"""What an estimate says. Plain data: counts are of parameters, sizes in bytes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes that one rank holds at one moment, by what they are for.

    ``activations``: what forward passes left for their backward passes. ``logits``: a chunk of the
    loss with its gradient, and the gradients of the head that it makes. ``buffers``: what lives
    shorter than that: gathered and cast tensors, gradients of activations on their way, the step's
    token ids. ``host`` and ``nvme`` are offloaded, and not on the device.

    These are the bytes that torch's allocator hands out. A GPU's context, NCCL's buffers and the
    workspaces of its libraries come on top of them.
    """

    parameters: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0
    logits: int = 0
    buffers: int = 0
    host: int = 0
    nvme: int = 0

    @property
    def total(self) -> int:
        """Bytes on the device."""
        held = self.parameters + self.gradients + self.optimizer
        return held + self.activations + self.logits + self.buffers


@dataclass(frozen=True, kw_only=True)
class StageEstimate:
    """One pipeline stage; all its ranks hold equal shapes.

    ``layers`` are the ranges of blocks held, one for each chunk. ``parameters`` are counted as one
    rank holds them: its piece, padding included. ``memory`` is that of the moment when a rank of
    this stage holds the most, in any step but the first; ``after_step`` that between two steps,
    gradients included.
    """

    stage: int
    layers: tuple[range, ...]
    parameters: int
    memory: Memory
    after_step: Memory


@dataclass(frozen=True, kw_only=True)
class CommVolume:
    """What one rank sends in a step over an axis by a collective: how often, and bytes."""

    axis: str
    collective: str
    calls: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a plan takes.

    ``parameters`` of the whole model, unpadded, a tied head counted once; ``parameters_per_rank``
    those of the fullest rank. FLOPs are the model's own (see engine/estimate/flops.py), per token
    and per step of all ranks. ``traffic`` is that of the rank that sends the most bytes.
    ``bubble`` is the share of a step that pipeline ranks wait, 0 to 1.
    """

    parameters: int
    parameters_per_rank: int
    flops_per_token: int
    flops_per_step: int
    stages: tuple[StageEstimate, ...]
    traffic: tuple[CommVolume, ...]
    bubble: float

    @property
    def fullest(self) -> StageEstimate:
        """The stage whose ranks hold the most memory."""
        return max(self.stages, key=lambda stage: stage.memory.total)
