"""Memory accounting of a simulated program: bytes by kind, and their peak."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum


class MemoryKind(StrEnum):
    """A purpose of device memory. Its value is the name of a field of ``Memory``."""

    PARAMETERS = "parameters"
    GRADIENTS = "gradients"
    OPTIMIZER = "optimizer"
    ACTIVATIONS = "activations"
    LOGITS = "logits"
    BUFFERS = "buffers"


@dataclass(frozen=True, kw_only=True)
class MemoryDelta:
    """How a section of the simulated program changes memory, relative to the section's start."""

    peak_increase: int
    """Largest increase within the section."""
    peak: Mapping[MemoryKind, int]
    """That increase by kind."""
    change: Mapping[MemoryKind, int]
    """Change at the end, by kind."""


class Ledger:
    """Records the memory of a simulated program."""

    def __init__(self) -> None:
        self.live: Counter[MemoryKind] = Counter()
        self.total = self.peak_total = 0
        self.peak: Mapping[MemoryKind, int] = {}

    def allocate(self, kind: MemoryKind, size: int) -> None:
        """Allocate ``size`` bytes."""
        self.live[kind] += size
        self.total += size
        if self.total > self.peak_total:
            self.peak_total, self.peak = self.total, dict(self.live)

    def free(self, kind: MemoryKind, size: int) -> None:
        """Free ``size`` bytes."""
        self.live[kind] -= size
        self.total -= size

    @contextmanager
    def temporarily(self, kind: MemoryKind, size: int) -> Iterator[None]:
        """Allocate ``size`` bytes, and free them at the end of the ``with`` block."""
        self.allocate(kind, size)
        yield
        self.free(kind, size)

    def transient(self, kind: MemoryKind, size: int) -> None:
        """Allocate ``size`` bytes and free them at once."""
        self.allocate(kind, size)
        self.free(kind, size)

    def chain(self, kind: MemoryKind, *sizes: int) -> int:
        """Allocate tensors of ``sizes`` bytes, each computed from the previous one, which is then
        freed. A size of 0 is a view.

        Returns the size of the last tensor, which remains.
        """
        last = 0
        for size in filter(None, sizes):
            self.allocate(kind, size)
            self.free(kind, last)
            last = size
        return last

    def recategorise(self, old: MemoryKind, new: MemoryKind, size: int) -> None:
        """Count ``size`` bytes of kind ``old`` as kind ``new`` from now on."""
        self.free(old, size)
        self.allocate(new, size)

    def apply(self, delta: MemoryDelta) -> None:
        """Add the memory change of a program section to this ledger."""
        if self.total + delta.peak_increase > self.peak_total:
            self.peak_total = self.total + delta.peak_increase
            peak = Counter(self.live)
            peak.update(delta.peak)
            self.peak = peak
        self.live.update(delta.change)
        self.total += sum(delta.change.values())

    @property
    def delta(self) -> MemoryDelta:
        """The memory change of everything recorded in this ledger so far."""
        return MemoryDelta(peak_increase=self.peak_total, peak=self.peak, change=dict(self.live))
