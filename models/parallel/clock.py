"""Divides the time of a rank into parts, at no measurable cost.

One part runs at any moment, so parts neither overlap nor leave gaps. Within a part, the time that
the rank waits for other ranks is kept apart: exposed communication is the part of a collective that
no computation hides.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, Protocol

import torch

OTHER = "other"
"""The part that runs until the first one is started."""


class Activity(NamedTuple):
    """The state of a rank at a moment."""

    part: str
    waiting: bool = False
    """Whether it waits for other ranks."""


class Marks(Protocol):
    """Marks moments of a device, and measures the seconds between them."""

    def set(self) -> None:
        """Mark this moment."""

    def intervals(self) -> Iterator[float]:
        """Yield the seconds between each two consecutive marks that the device has passed; each
        interval once."""
        ...


class HostMarks:
    """Moments of the host's clock, for a CPU."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now, self._marks = now, deque([now()])

    def set(self) -> None:
        """Mark this moment."""
        self._marks.append(self._now())

    def intervals(self) -> Iterator[float]:
        """Yield the seconds between all consecutive marks."""
        while len(self._marks) > 1:
            start = self._marks.popleft()
            yield self._marks[0] - start


class CudaMarks:
    """Moments of a CUDA device's current stream. The host never waits for the device: a mark is
    read once the device has passed it."""

    def __init__(self) -> None:
        self._marks: deque[torch.cuda.Event] = deque()
        self._unused: list[torch.cuda.Event] = []
        self.set()

    def set(self) -> None:
        """Mark the end of all work that was submitted so far."""
        mark = self._unused.pop() if self._unused else torch.cuda.Event(enable_timing=True)
        mark.record()
        self._marks.append(mark)

    def intervals(self) -> Iterator[float]:
        """Yield the seconds between the marks that the device has passed."""
        while len(self._marks) > 1 and self._marks[1].query():
            start = self._marks.popleft()
            self._unused.append(start)
            yield start.elapsed_time(self._marks[0]) / 1000


class PartClock:
    """Adds up the seconds that a rank spends on each activity."""

    def __init__(self, make_marks: Callable[[], Marks] = HostMarks) -> None:
        """Start the part OTHER. ``make_marks``: makes the marks of the device."""
        self._make_marks = make_marks
        self.restart()

    def restart(self) -> None:
        """Forget all seconds so far, and start the part OTHER."""
        self._marks, self._current = self._make_marks(), Activity(OTHER)
        self._past: deque[Activity] = deque()  # one for each interval that is not added yet
        self._seconds: dict[Activity, float] = {}

    def start(self, part: str) -> None:
        """End the running part and start ``part``."""
        self._change(Activity(part))

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the block, within the running part, as waiting for other ranks."""
        before = self._current
        self._change(Activity(before.part, waiting=True))
        try:
            yield
        finally:
            self._change(before)

    def take(self) -> dict[Activity, float]:
        """Return the seconds of each activity up to the last change, since the last call. Seconds
        that a CUDA device has not passed yet are in the result of a later call."""
        self._add()
        seconds, self._seconds = self._seconds, {}
        return seconds

    def _change(self, activity: Activity) -> None:
        self._past.append(self._current)
        self._current = activity
        self._marks.set()
        self._add()

    def _add(self) -> None:
        """Add the intervals that the device has passed to the seconds of their activities."""
        for interval in self._marks.intervals():
            activity = self._past.popleft()
            self._seconds[activity] = self._seconds.get(activity, 0.0) + interval


def clock_of(device: torch.device) -> PartClock:
    """Return a clock for computations on ``device``, which is the current device."""
    return PartClock(CudaMarks if device.type == "cuda" else HostMarks)
