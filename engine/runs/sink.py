"""Sinks: destinations of the metrics beside log.jsonl, one module of ``engine/runs/sinks`` each.

The setting log.NAME enables the module NAME, which has:

    PACKAGE                          the package that NAME imports, such as "wandb" open_sink(run:
    SinkRun) -> Sink  opens the sink at the start of a run, on rank 0

log.jsonl is the record of a run: a run that cannot write it fails. A sink that fails is reported
and closed, and the run continues without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Protocol

from engine import discover

if TYPE_CHECKING:
    from engine.config.schema import Settings
    from engine.plan import Plan
    from engine.runs.folder import RunFolder
    from engine.runs.metrics import StepMetrics

SINKS = "engine.runs.sinks"


class Sink(Protocol):
    """A destination of the metrics of all steps, in order."""

    @property
    def view(self) -> tuple[str, str] | None:
        """A title, and the command or address that shows the metrics; None if there is none."""
        ...

    def step(self, row: StepMetrics) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class SinkRun:
    """The run whose metrics a sink receives."""

    folder: RunFolder
    settings: Settings
    steps_done: int = 0
    """The step from which the run resumes; the sink drops rows of later steps from before the
    resume."""


def enabled_sinks(settings: Settings) -> list[str]:
    """Return the names of the sinks that the settings enable."""
    return [name for name in discover.module_names(SINKS) if getattr(settings.log, name)]


def missing_packages(plan: Plan) -> Iterator[str]:
    """Yield a line for each enabled sink whose package is not installed."""
    for name in enabled_sinks(plan.settings):
        package = discover.load(SINKS, name).PACKAGE
        spec = find_spec(package)
        if spec is None or spec.origin is None:  # a folder of that name is no package
            yield (
                f"{plan.cite(f'log.{name}')} needs the package {package}, which is not installed; "
                f"pip install {package}"
            )


@dataclass
class OpenSinks:
    """The working sinks of a run. A sink that fails is reported to ``warn``, closed and removed."""

    warn: Callable[[str], None]
    sinks: dict[str, Sink] = field(default_factory=dict)
    """By the name of the setting."""

    @classmethod
    def open(cls, run: SinkRun, warn: Callable[[str], None]) -> OpenSinks:
        """Open the sinks that the settings enable."""
        opened = cls(warn)
        for name in enabled_sinks(run.settings):
            with opened._surviving(name):
                opened.sinks[name] = discover.load(SINKS, name).open_sink(run)
        return opened

    @property
    def views(self) -> list[tuple[str, str]]:
        """Pairs of a title and the command or address that shows the metrics."""
        return [view for sink in self.sinks.values() if (view := sink.view) is not None]

    def step(self, row: StepMetrics) -> None:
        """Pass a row to each sink."""
        for name, sink in list(self.sinks.items()):
            with self._surviving(name, f" after step {row.step - 1}"):
                sink.step(row)

    def close(self) -> None:
        """Close all sinks. Later calls do nothing."""
        for name, sink in list(self.sinks.items()):
            with self._surviving(name):
                sink.close()
        self.sinks.clear()

    @contextmanager
    def _surviving(self, name: str, when: str = "") -> Iterator[None]:
        """Report, close and remove the sink ``name`` if the block raises."""
        try:
            yield
        except Exception as error:
            if (sink := self.sinks.pop(name, None)) is not None:
                with suppress(Exception):
                    sink.close()
            reason = str(error).partition("\n")[0] or type(error).__name__
            self.warn(
                f"warning: log.{name} failed{when}: {reason}; the run continues without it, and "
                "log.jsonl has all steps"
            )
