"""The models and batches that benchmarks train."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from engine.config.sections.optimizer import OptimizerSettings
from models.config import GPTConfig

Step = Callable[[], float]
"""Runs one step and returns its loss."""

OPTIMIZER = OptimizerSettings(lr=1e-4, weight_decay=0.1)
BATCHES = 4


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A model and its batch: ``samples`` of ``length`` tokens a step.

    ``drawn_on_device``: our initial weights come from the device's generator, which draws billions
    in a moment, and equal no contender's.
    """

    layers: int
    heads: int
    width: int
    vocabulary: int
    samples: int
    length: int
    precision: str = "float32"
    device_type: str = "cpu"
    compiled: bool = False
    drawn_on_device: bool = False

    @property
    def config(self) -> GPTConfig:
        return GPTConfig(
            n_layer=self.layers,
            n_head=self.heads,
            n_embd=self.width,
            head_dim=self.width // self.heads,
            n_inner=4 * self.width,
            vocab_size=self.vocabulary,
            block_size=1024,
        )

    @property
    def device(self) -> torch.device:
        return torch.device(self.device_type)

    def batches(self) -> list[tuple[Tensor, Tensor]]:
        draw = torch.Generator().manual_seed(0)
        shape = (BATCHES, self.samples, self.length + 1)
        ids = torch.randint(self.vocabulary, shape, generator=draw).to(self.device)
        return [(batch[:, :-1].contiguous(), batch[:, 1:].contiguous()) for batch in ids]


GPT2 = Workload(layers=12, heads=12, width=768, vocabulary=50257, samples=4, length=256)
TRUNK = Workload(layers=2, heads=4, width=128, vocabulary=50257, samples=8, length=256)
DEMO = Workload(layers=4, heads=4, width=128, vocabulary=128, samples=16, length=128)
CASES = {
    "gpt2": GPT2,
    "gpt2-bf16": replace(GPT2, precision="bf16"),
    "vocabulary": TRUNK,
    "vocabulary-bf16": replace(TRUNK, precision="bf16"),
    "demo": DEMO,
    "demo-bf16": replace(DEMO, precision="bf16"),
}
ON_CUDA = {
    "gpt2-h": replace(
        GPT2, samples=64, length=1024, precision="bf16", device_type="cuda", compiled=True
    ),
}
