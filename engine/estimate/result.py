"""The result of an estimate. Plain data: counts of parameters, sizes in bytes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one rank at one moment, by purpose.

    These are bytes that torch's allocator hands out. A GPU's context, NCCL's buffers and the
    workspaces of libraries add to them.
    """

    parameters: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0
    """Saved by forward passes for their backward passes."""
    logits: int = 0
    """A chunk of the loss with its gradient, and the gradients of the head computed from it."""
    buffers: int = 0
    """Short-lived: gathered and cast tensors, gradients of activations, the step's token ids."""
    host: int = 0
    """Offloaded to host memory; not on the device."""
    nvme: int = 0
    """Offloaded to NVMe; not on the device."""

    @property
    def total(self) -> int:
        """Bytes on the device."""
        state = self.parameters + self.gradients + self.optimizer
        return state + self.activations + self.logits + self.buffers


@dataclass(frozen=True, kw_only=True)
class StageEstimate:
    """One pipeline stage, whose ranks all have shards of equal shapes."""

    stage: int
    layers: tuple[range, ...]
    """Range of blocks of each chunk."""
    parameters: int
    """Parameters of one rank: its shards, padding included."""
    memory: Memory
    """At the peak of a rank of this stage, in any step but the first."""
    after_step: Memory
    """Between two steps, gradients included."""


@dataclass(frozen=True, kw_only=True)
class CommVolume:
    """Volume that one rank sends per step by one collective over one axis."""

    axis: str
    collective: str
    calls: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The estimate of a plan."""

    parameters: int
    """Of the whole model, unpadded; a tied head counts once."""
    parameters_per_rank: int
    """Of the rank with the most."""
    flops_per_token: int
    """The model's own (see engine/estimate/flops.py)."""
    flops_per_step: int
    """Of all ranks."""
    stages: tuple[StageEstimate, ...]
    traffic: tuple[CommVolume, ...]
    """Of the rank that sends the most bytes."""
    bubble: float
    """Fraction of a step in which pipeline ranks are idle, 0 to 1."""

    @property
    def fullest(self) -> StageEstimate:
        """The stage whose ranks need the most memory."""
        return max(self.stages, key=lambda stage: stage.memory.total)
