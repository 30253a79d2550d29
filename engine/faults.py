"""Planted faults, for tests of how a run handles them.

``FAULT=kind:rank:step`` in the environment of the ranks. The kind is a signal to that rank (kill,
stop, term, int, hup, usr1, usr2), ``raise`` (an exception), or ``nan`` or ``spike`` (its loss is
changed). The fault happens between the backward pass and the update of the step. With a moment, as
in ``kill-rename``, it happens while the checkpoint of that step is saved:

    save     this rank opens its file            rename   before the atomic rename
    verify   before this rank reads it back      named    after the atomic rename
    prune    during the removal of an older checkpoint

In a list with commas, the n-th fault is for the n-th attempt of a launch that restarts.
"""

from __future__ import annotations

import math
import os
import re
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

SIGNALS = {
    "kill": signal.SIGKILL,
    "stop": signal.SIGSTOP,
    "term": signal.SIGTERM,
    "int": signal.SIGINT,
    "hup": signal.SIGHUP,
    "usr1": signal.SIGUSR1,
    "usr2": signal.SIGUSR2,
}
LOSSES = {"nan": math.nan, "spike": 1000.0}  # factors of the loss
KINDS = [*SIGNALS, "raise", *LOSSES]
SAVE_MOMENTS = ["save", "verify", "rename", "named", "prune"]


@dataclass
class Fault:
    """A planted fault of this rank, which is triggered at most once."""

    kind: str
    moment: str
    step: int
    _done: bool = field(default=False, init=False)

    def apply_to_step(self, step: int, loss: Tensor) -> Tensor:
        """Trigger the fault if it is planted in ``step``. Return this rank's ``loss``, changed if
        the fault is 'nan' or 'spike'."""
        if self.moment or step != self.step or self._done:
            return loss
        if self.kind in LOSSES:
            self._done = True
            return loss * LOSSES[self.kind]
        self._trigger()
        return loss

    def watch_saves(self, checkpoints: Path, temporary: Path) -> None:
        """Install a hook that triggers the fault at its ``moment`` of the save. ``checkpoints``:
        the folder of the run's checkpoints. ``temporary``: the folder in which the step's
        checkpoint is written."""
        if self.moment:
            sys.addaudithook(_SaveObserver(self, checkpoints, temporary))

    def _trigger(self) -> None:
        """Raise the exception or send the signal, unless the fault was triggered before."""
        if self._done:
            return
        self._done = True
        if self.kind == "raise":
            raise RuntimeError("a planted fault")
        os.kill(os.getpid(), SIGNALS[self.kind])


class _SaveObserver:
    """Detects the moments of a save by Python's audit events: the code that saves needs no
    hooks."""

    def __init__(self, fault: Fault, checkpoints: Path, temporary: Path) -> None:
        self.fault, self.temporary = fault, os.fspath(temporary)
        self.checkpoints, self.named, self.removed = os.fspath(checkpoints), False, 0

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if self._moment(event, args) == self.fault.moment:
            self.fault._trigger()

    def _moment(self, event: str, args: tuple[Any, ...]) -> str | None:
        """Return the name of the moment of a save that an audit event marks; None if it marks
        none."""
        if event == "open" and isinstance(args[0], str | os.PathLike):
            path, mode = os.fspath(args[0]), args[1]
            if self.named and path == self.checkpoints:  # for fsync
                return "named"
            if Path(path).parent == Path(self.temporary):
                return "verify" if mode == "r" else "save"
        elif event == "os.rename" and os.fspath(args[0]) == self.temporary:
            self.named = True
            return "rename"
        elif event == "os.remove" and self.named:
            self.removed += 1
            return "prune" if self.removed == 2 else None
        return None


def parse_fault(text: str, rank: int, attempt: int) -> Fault | None:
    """Return the fault that ``text``, the value of ``FAULT``, plants on this rank in this attempt.

    Raises UserError if ``text`` is not a list of faults.
    """
    if not text:
        return None
    faults = [_parse(entry) for entry in text.split(",")]
    if attempt >= len(faults):
        return None
    fault_rank, fault = faults[attempt]
    return fault if fault_rank == rank else None


def _parse(text: str) -> tuple[int | None, Fault | None]:
    """Parse an entry KIND:RANK:STEP and return its rank and fault; None, None for an empty
    entry."""
    if not text:
        return None, None
    match = re.fullmatch(r"([a-z]+[12]?)(?:-([a-z]+))?:(\d+):(\d+)", text)
    if match is None or match[1] not in KINDS or match[2] not in (None, *SAVE_MOMENTS):
        raise UserError(
            f"FAULT={text} in the environment: expected KIND:RANK:STEP, where KIND is one of "
            f"{', '.join(KINDS)}, and may end in one of -{', -'.join(SAVE_MOMENTS)}"
        )
    if match[2] and match[1] in LOSSES:
        raise UserError(
            f"FAULT={text} in the environment: {match[1]} changes the loss of a step and takes no "
            "moment of a save"
        )
    return int(match[3]), Fault(kind=match[1], moment=match[2] or "", step=int(match[4]))
