"""Bytes alive while a program of allocations runs, and the moment when they are most."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum


class MemoryKind(StrEnum):
    """What memory is for: the fields of ``Memory`` that are on the device."""

    PARAMETERS = "parameters"
    GRADIENTS = "gradients"
    OPTIMIZER = "optimizer"
    ACTIVATIONS = "activations"
    LOGITS = "logits"
    BUFFERS = "buffers"


@dataclass(frozen=True, kw_only=True)
class MemoryDelta:
    """What a stretch of the program does to what was alive before it: ``most`` bytes more at its
    fullest moment, which are ``peak`` by kind, and ``change`` once it has ended."""

    peak_increase: int
    peak: Mapping[MemoryKind, int]
    change: Mapping[MemoryKind, int]


class Ledger:
    """Keeps count of an imagined program's memory."""

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
        """``size`` bytes that live as long as the block."""
        self.allocate(kind, size)
        yield
        self.free(kind, size)

    def transient(self, kind: MemoryKind, size: int) -> None:
        """``size`` bytes that are freed at once."""
        self.allocate(kind, size)
        self.free(kind, size)

    def chain(self, kind: MemoryKind, *sizes: int) -> int:
        """Tensors made each from the one before, which is then freed. Holds the last and returns
        its size; a size of 0 is a view."""
        held = 0
        for size in filter(None, sizes):
            self.allocate(kind, size)
            self.free(kind, held)
            held = size
        return held

    def recategorise(self, old: MemoryKind, new: MemoryKind, size: int) -> None:
        """``size`` bytes are henceforth counted as another kind."""
        self.free(old, size)
        self.allocate(new, size)

    def apply(self, delta: MemoryDelta) -> None:
        """A stretch whose effect is known."""
        if self.total + delta.peak_increase > self.peak_total:
            self.peak_total = self.total + delta.peak_increase
            peak = Counter(self.live)
            peak.update(delta.peak)
            self.peak = peak
        self.live.update(delta.change)
        self.total += sum(delta.change.values())

    @property
    def delta(self) -> MemoryDelta:
        """Of all that has run."""
        return MemoryDelta(peak_increase=self.peak_total, peak=self.peak, change=dict(self.live))
