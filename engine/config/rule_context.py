"""What rules look at: the settings, what follows from them, and where each was stated."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from math import prod

from engine.config.check import Checked, InvalidSettingError
from engine.config.resolve import SettingSources, cite
from engine.config.schema import Settings
from engine.errors import Problem
from engine.layout import Layout
from models.parallel.mode import Mode
from models.parallel.registry import modes


class Severity(Enum):
    """An error is refused; a warning costs something; a note is worth knowing."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True)
class Finding:
    """What a rule has found."""

    severity: Severity
    problem: Problem


@dataclass(frozen=True)
class RuleContext:
    """The facts about one config. What is not known because of an error raises
    ``InvalidSettingError``.

    Settings go by our names here (``tensor_parallel``, ``model.n_head``); messages cite them as the
    user spelt them.
    """

    file: str
    checked: Checked
    sources: SettingSources
    processes: int | None = None

    @property
    def settings(self) -> Settings:
        return self.checked.known

    @property
    def mode(self) -> Mode:
        return modes()[self.settings.mode]

    @cached_property
    def axes(self) -> dict[str, int]:
        """The mode's axes and their sizes."""
        axes = self.mode.axes(self.settings.tensor_parallel, self.settings.depth)
        if axes is None:
            raise InvalidSettingError("axes")
        return axes

    @property
    def gpus_per_replica(self) -> int:
        """GPUs that hold one copy of the model."""
        return self.settings.tensor_parallel * self.settings.pipeline

    @cached_property
    def layout(self) -> Layout:
        """The layout on the processes there are; without a number, on as few as will do."""
        processes = self.gpus_per_replica if self.processes is None else self.processes
        assert self.axes is not None
        if processes % self.gpus_per_replica:
            raise InvalidSettingError("layout")
        return Layout(
            mode=self.mode,
            tensor=self.settings.tensor_parallel,
            pipeline=self.settings.pipeline,
            data=processes // self.gpus_per_replica,
            depth=self.settings.depth,
        )

    def num_shards(self, *axes: str) -> int:
        """How many pieces a dimension falls into that these axes cut."""
        return prod(self.axes[axis] for axis in axes)

    def is_stated(self, name: str) -> bool:
        """Whether the user said something of a setting."""
        return name in self.sources.settings

    def cite(self, *names: str) -> str:
        """Settings with their values, as the user spelt them: "MODE='2d', DEPTH=2"."""
        return ", ".join(cite(name, self.sources.settings, self.settings) for name in names)

    def error(self, about: str, message: str) -> Finding:
        return self._finding(Severity.ERROR, about, message)

    def warning(self, about: str, message: str) -> Finding:
        return self._finding(Severity.WARNING, about, message)

    def note(self, about: str, message: str) -> Finding:
        return self._finding(Severity.NOTE, about, message)

    def _finding(self, severity: Severity, about: str, message: str) -> Finding:
        stated = self.sources.settings.get(about)
        if stated is None:
            return Finding(severity, Problem(self.file, 0, None, message))
        return Finding(severity, Problem(stated.origin.file, stated.origin.line, None, message))
