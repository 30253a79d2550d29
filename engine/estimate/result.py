"""The result of estimating a run, as plain data: counts of parameters, sizes in bytes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes that one rank has allocated at one moment, by purpose.

    Only torch's allocations count: a GPU's context, NCCL's buffers and the workspaces of
    libraries need more.
    """

    parameters: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0
    """Tensors that forward passes save for the backward passes."""
    logits: int = 0
    """One chunk of logits in the loss, their gradient, and the head's gradients from it."""
    buffers: int = 0
    """Short-lived: gathered or cast tensors, gradients of activations, the step's token ids."""
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
    """The range of transformer blocks in each of the stage's model chunks."""
    parameters: int
    """Number of parameters in the shards of one rank, padding included."""
    memory: Memory
    """Memory of one rank at its peak, in any step but the first."""
    after_step: Memory
    """Memory of one rank between two steps, gradients included."""


@dataclass(frozen=True, kw_only=True)
class CommVolume:
    """What one rank sends in a step by one kind of collective along one axis: calls and bytes."""

    axis: str
    collective: str
    calls: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Estimated sizes, FLOPs and traffic of a run with one parallel layout."""

    parameters: int
    """Number of parameters of the whole model, unpadded; a tied head counts once."""
    parameters_per_rank: int
    """Number of parameters of the rank that has most."""
    flops_per_token: int
    """FLOPs of the model's maths, without recomputation (see engine/estimate/flops.py)."""
    flops_per_step: int
    """FLOPs of all ranks together."""
    stages: tuple[StageEstimate, ...]
    traffic: tuple[CommVolume, ...]
    """Volumes sent by the rank that sends the most bytes."""
    bubble: float
    """Fraction of a step in which pipeline ranks are idle, 0 to 1."""

    @property
    def fullest(self) -> StageEstimate:
        """The stage whose ranks need the most memory."""
        return max(self.stages, key=lambda stage: stage.memory.total)
