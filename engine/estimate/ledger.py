"""Bytes alive while a program of allocations runs, and the moment when they are most."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What memory is for: the fields of ``Memory`` that are on the device."""

    PARAMETERS = "parameters"
    GRADIENTS = "gradients"
    OPTIMIZER = "optimizer"
    ACTIVATIONS = "activations"
    LOGITS = "logits"
    BUFFERS = "buffers"


@dataclass(frozen=True, kw_only=True)
class Effect:
    """What a stretch of the program does to what was alive before it: ``most`` bytes more at its
    fullest moment, which are ``peak`` by kind, and ``change`` once it has ended."""

    most: int
    peak: Mapping[Kind, int]
    change: Mapping[Kind, int]


class Ledger:
    """Keeps count of an imagined program's memory."""

    def __init__(self) -> None:
        self.live: Counter[Kind] = Counter()
        self.total = self.most = 0
        self.peak: Mapping[Kind, int] = {}

    def hold(self, kind: Kind, size: int) -> None:
        """Allocate ``size`` bytes."""
        self.live[kind] += size
        self.total += size
        if self.total > self.most:
            self.most, self.peak = self.total, dict(self.live)

    def drop(self, kind: Kind, size: int) -> None:
        """Free ``size`` bytes."""
        self.live[kind] -= size
        self.total -= size

    @contextmanager
    def during(self, kind: Kind, size: int) -> Iterator[None]:
        """``size`` bytes that live as long as the block."""
        self.hold(kind, size)
        yield
        self.drop(kind, size)

    def touch(self, kind: Kind, size: int) -> None:
        """``size`` bytes that are freed at once."""
        self.hold(kind, size)
        self.drop(kind, size)

    def chain(self, kind: Kind, *sizes: int) -> int:
        """Tensors made each from the one before, which is then freed. Holds the last and returns
        its size; a size of 0 is a view."""
        held = 0
        for size in filter(None, sizes):
            self.hold(kind, size)
            self.drop(kind, held)
            held = size
        return held

    def become(self, old: Kind, new: Kind, size: int) -> None:
        """``size`` bytes are henceforth counted as another kind."""
        self.drop(old, size)
        self.hold(new, size)

    def run(self, effect: Effect) -> None:
        """A stretch whose effect is known."""
        if self.total + effect.most > self.most:
            self.most = self.total + effect.most
            peak = Counter(self.live)
            peak.update(effect.peak)
            self.peak = peak
        self.live.update(effect.change)
        self.total += sum(effect.change.values())

    @property
    def effect(self) -> Effect:
        """Of all that has run."""
        return Effect(most=self.most, peak=self.peak, change=dict(self.live))
