"""The input of rules: settings, values derived from them, and the position where each was set."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from math import prod

from engine.config.check import Checked, InvalidSettingError
from engine.config.resolve import Precedence, SettingSources, cite
from engine.config.schema import Settings, user_name
from engine.errors import Problem
from engine.layout import Layout
from models.parallel.mode import Mode
from models.parallel.registry import modes


class Severity(Enum):
    """Severity of a finding: errors reject the config; warnings report a cost; notes inform."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True)
class Finding:
    """One result of a rule."""

    severity: Severity
    problem: Problem


@dataclass(frozen=True)
class RuleContext:
    """Settings of one config, and values derived from them, for rules.

    Reading a value that depends on an invalid setting raises InvalidSettingError, which skips the
    rest of the rule. Setting names here are the schema's (``tensor_parallel``, ``model.n_head``);
    messages cite them in the user's spelling.
    """

    file: str
    checked: Checked
    sources: SettingSources
    processes: int | None = None

    @property
    def settings(self) -> Settings:
        """The settings; reading an invalid one raises InvalidSettingError (see
        ``Checked.known``)."""
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
    def gpus_per_model_copy(self) -> int:
        """GPUs of one copy of the model."""
        return self.settings.tensor_parallel * self.settings.pipeline

    @cached_property
    def layout(self) -> Layout:
        """The layout on ``processes`` ranks; by default on as few as hold the model."""
        processes = self.gpus_per_model_copy if self.processes is None else self.processes
        _ = self.axes  # raises InvalidSettingError
        if processes % self.gpus_per_model_copy:
            raise InvalidSettingError("layout")
        return Layout(
            mode=self.mode,
            tensor=self.settings.tensor_parallel,
            pipeline=self.settings.pipeline,
            data=processes // self.gpus_per_model_copy,
            depth=self.settings.depth,
        )

    def num_shards(self, *axes: str) -> int:
        """Return the number of shards of a dimension that is sharded over ``axes``."""
        return prod(self.axes[axis] for axis in axes)

    def is_stated(self, name: str) -> bool:
        """Return whether a setting has a value that is no default of cuboid: set by the user,
        implied by another setting, or a default of another trainer."""
        return name in self.sources.settings

    def is_stated_by_user(self, name: str) -> bool:
        """Return whether the user set a setting, by one of its names, and no default of another
        trainer did."""
        stated = self.sources.settings.get(name)
        if stated is None:
            return False
        return stated.precedence > Precedence.IMPLIED or stated.name != user_name(name)

    def cite(self, *names: str) -> str:
        """Format settings with their values in the user's spelling: "MODE='2d', DEPTH=2"."""
        return ", ".join(cite(name, self.sources.settings, self.settings) for name in names)

    def error(self, about: str, message: str) -> Finding:
        """Make an error about the setting ``about``, at the position where it was set."""
        return self._finding(Severity.ERROR, about, message)

    def warning(self, about: str, message: str) -> Finding:
        """Make a warning; the arguments are those of ``error``."""
        return self._finding(Severity.WARNING, about, message)

    def note(self, about: str, message: str) -> Finding:
        """Make a note; the arguments are those of ``error``."""
        return self._finding(Severity.NOTE, about, message)

    def _finding(self, severity: Severity, about: str, message: str) -> Finding:
        stated = self.sources.settings.get(about)
        if stated is None:
            return Finding(severity, Problem(self.file, 0, None, message))
        return Finding(severity, stated.origin.problem(message))
