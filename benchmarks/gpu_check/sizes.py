"""The sizes of a check: for a GPU, and for a CPU with ``--dry``. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class CheckSizes:
    """The sizes of a check.

    ``family``: settings of the runs whose losses are compared with those on a CPU.
    ``memory``, ``memory_batch``: settings and batch of the runs whose memory is compared with its
    estimate.
    ``layers`` to ``length``: sizes of the measured model.
    ``large_layers`` to ``large_samples``: sizes in which the large model differs.
    ``square``: edge of the matmul that measures the device's rate.
    ``repeats``: measured calls of a matmul or of attention.
    ``pairs``: measured steps of each contender.
    ``global_batch``, ``steps``: samples a step, and steps, of the runs of ``family``.
    ``patience``: factor of the timeouts.
    """

    device: str
    family: tuple[str, ...]
    memory: tuple[str, ...]
    memory_batch: int
    layers: int
    heads: int
    width: int
    vocabulary: int
    padded_vocabulary: int
    samples: int
    length: int
    large_layers: int
    large_heads: int
    large_width: int
    large_samples: int
    square: int
    repeats: int
    pairs: int
    global_batch: int = 8
    steps: int = 5
    patience: float = 1.0


GPU = CheckSizes(
    device="cuda",
    family=("model.n_layer=4", "SEQ_LEN=256"),
    memory=("SEQ_LEN=1024",),
    memory_batch=64,
    layers=12,
    heads=12,
    width=768,
    vocabulary=50257,
    padded_vocabulary=50304,
    samples=64,
    length=1024,
    large_layers=48,
    large_heads=25,
    large_width=1600,
    large_samples=16,
    square=8192,
    repeats=10,
    pairs=15,
)

SMALL = ("model.n_layer=2", "model.n_embd=32", "model.n_head=4", "model.vocab_size=128")

DRY = CheckSizes(
    device="cpu",
    family=(*SMALL, "SEQ_LEN=16"),
    memory=(*SMALL, "SEQ_LEN=16"),
    memory_batch=4,
    layers=2,
    heads=4,
    width=32,
    vocabulary=127,
    padded_vocabulary=128,
    samples=2,
    length=16,
    large_layers=3,
    large_heads=4,
    large_width=64,
    large_samples=1,
    square=64,
    repeats=2,
    pairs=2,
    steps=3,
    patience=4.0,
)
