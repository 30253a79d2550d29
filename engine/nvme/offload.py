"""Offloading to an NVMe disk: optimizer states, and weights if the settings say so."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from engine.nvme.disk import Disk, open_disk
from engine.nvme.offloaded_weights import WeightsOnDisk
from engine.nvme.slot_file import SlotFile, open_slot_file
from engine.nvme.streamed_optimizer import StreamedOptimizer
from engine.optim.registry import is_by_entry, states_of

if TYPE_CHECKING:
    from engine.config.schema import Settings
    from engine.world.world import World


@dataclass
class NvmeOffload:
    """The state that a rank offloads to a disk: optimizer states, and weights if the settings say
    so."""

    settings: Settings
    disk: Disk
    weights: WeightsOnDisk | None
    """None if weights stay in memory."""
    _open: ExitStack = field(default_factory=ExitStack)

    def optimizer(self, inner: torch.optim.Optimizer) -> StreamedOptimizer:
        """Return an optimizer that makes the updates of ``inner``, with the states on the disk.
        ``inner`` must not have stepped yet.

        Raises UserError if the buffers or the disk are too small.
        """
        optimizer = self.settings.optimizer
        return StreamedOptimizer(
            inner,
            states=states_of(optimizer),
            divisible=is_by_entry(optimizer),
            memory=self.settings.zero.nvme_buffer,
            open_slot_file=self._open_slots,
            weights=self.weights,
        )

    def close(self) -> None:
        """Close all files on the disk."""
        self._open.close()
        if self.weights:
            self.weights.close()

    def _open_slots(self, sizes: Sequence[int]) -> SlotFile:
        slots = open_slot_file(self.disk, sizes, self.settings.zero.nvme_store)
        self._open.callback(slots.close)
        return slots


@contextmanager
def open_offload(world: World) -> Iterator[NvmeOffload | None]:
    """Create this rank's folder at zero.nvme_path, and remove it at the end. None if nothing is
    offloaded to a disk. All ranks call it.

    Raises UserError on all ranks if the folder cannot be created on one.
    """
    plan = world.plan
    zero = plan.settings.zero
    if zero.offload != "nvme":
        yield None
        return
    assert zero.nvme_path is not None, "a rule asks for it"
    disk = open_disk(
        Path(zero.nvme_path),
        f"{world.run_id}-rank{world.rank}",
        ranks=world.local_size,
        setting=plan.cite("zero.nvme_path"),
    )
    with ExitStack() as stack:
        opened = world.run_on_all(lambda: stack.enter_context(disk))
        weights = None
        if zero.offload_params == "nvme":
            pin = world.device.type == "cuda"
            weights = WeightsOnDisk(disk=opened, prefetch_bytes=zero.nvme_buffer, pin=pin)
        offload = NvmeOffload(settings=plan.settings, disk=opened, weights=weights)
        stack.callback(offload.close)
        yield offload
