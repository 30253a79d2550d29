"""NVMe offload for the cases of tests/support/training.py."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from engine.nvme.disk import Disk, open_disk
from engine.nvme.offloaded_weights import WeightsOnDisk
from engine.nvme.slot_file import SlotFile, open_slot_file
from engine.nvme.streamed_optimizer import StreamedOptimizer

STATISTICS_ON_DISK = [
    "log.statistics=2",
    "zero.stage=3",
    "zero.offload=nvme",
    "zero.nvme_path=.",
    "zero.offload_params=nvme",
]
"""Overrides of a valid plan that training does not support."""

MEMORY = 2**19
"""Of this the models of the tests need several groups, and parts of a parameter."""


@dataclass(frozen=True)
class Offloaded:
    disk: Disk
    weights: WeightsOnDisk | None
    stack: ExitStack

    def optimizer(self, inner: torch.optim.Optimizer) -> StreamedOptimizer:
        """Return an AdamW with its states on the disk."""
        return StreamedOptimizer(
            inner,
            states=2,
            divisible=True,
            memory=MEMORY,
            open_slot_file=self._open_slots,
            weights=self.weights,
        )

    def _open_slots(self, sizes: Sequence[int]) -> SlotFile:
        slots = open_slot_file(self.disk, sizes)
        self.stack.callback(slots.close)
        return slots


@contextmanager
def open_offloaded(rank: int, *, weights: bool) -> Iterator[Offloaded]:
    """Open a disk folder for a rank: for optimizer states, and with ``weights`` for weights too."""
    with ExitStack() as stack:
        root = stack.enter_context(tempfile.TemporaryDirectory(prefix="disk-"))
        disk = stack.enter_context(open_disk(Path(root), f"job-rank{rank}"))
        on_disk = WeightsOnDisk(disk=disk, prefetch_bytes=MEMORY) if weights else None
        if on_disk:
            stack.callback(on_disk.close)
        yield Offloaded(disk, on_disk, stack)
