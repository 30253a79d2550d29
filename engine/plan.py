"""A plan: the checked settings of a config and their layout on a number of GPUs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from engine.config.check import check
from engine.config.derived import derive_settings
from engine.config.global_batch import derive_batch, gpus_of_batch
from engine.config.reader import read
from engine.config.resolve import SettingSource, SettingSources, cite, read_setting_sources
from engine.config.rule_context import RuleContext, Severity
from engine.config.run_rules import run_rules
from engine.config.schema import Settings
from engine.errors import ConfigError
from engine.layout import Layout
from models.parallel.rows import RowOrder


@dataclass(frozen=True, kw_only=True)
class ConfigFile:
    """The config file of a plan."""

    path: Path
    """Absolute; identifies the config."""
    text: str = ""
    """Its content when it was read."""
    overrides: tuple[str, ...] = ()
    """``KEY=VALUE`` arguments of the command line."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Checked settings and their layout: all that a run needs to start."""

    settings: Settings
    layout: Layout
    config: ConfigFile = field(default=ConfigFile(path=Path()), repr=False)
    warnings: tuple[str, ...] = ()
    """A line for each setting that costs time, memory or accuracy."""
    notes: tuple[str, ...] = ()
    """Other lines for the user."""
    undetermined: frozenset[str] = frozenset()
    """Settings whose value is found when the data is read; ``settings`` has their default."""
    source_of: Mapping[str, SettingSource] = field(default_factory=dict, repr=False)
    """The source of each setting's value. Derived settings are included, defaults are not."""
    sources: SettingSources = field(default_factory=lambda: SettingSources(""), repr=False)
    """The settings stated by config, command line and environment; ``plan_from`` makes an equal
    plan of them."""

    @property
    def micro_batch(self) -> int:
        """Samples per micro-batch of a data-parallel rank."""
        return self.settings.batch_size // self.settings.num_micro_batches

    @cached_property
    def row_order(self) -> RowOrder:
        """The order of the rows of a micro-batch; it has their number, padding included."""
        return self.layout.row_order(self.micro_batch, self.settings.seq_len)

    @property
    def global_batch(self) -> int:
        """Samples per step over all ranks."""
        return self.settings.batch_size * self.layout.data * self.settings.gradient_accumulation

    @property
    def tokens_per_step(self) -> int:
        """Tokens per step over all ranks."""
        return self.global_batch * self.settings.seq_len

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, hexadecimal, of all settings but the config's path, which may differ by node."""
        resolved = self.settings.model_dump(mode="json", exclude={"source"})
        return hashlib.sha256(json.dumps(resolved, sort_keys=True).encode()).hexdigest()

    def with_vocabulary(self, size: int) -> Plan:
        """Return the plan with ``size`` in place of model.vocab_size='data'; the plan itself if the
        config states a number. Raises ConfigError if a rule rejects ``size``."""
        if "model.vocab_size" not in self.undetermined:
            return self
        stated = self.sources.settings["model.vocab_size"]
        found = replace(stated, value=size, remark=f" ({size:,} ids)")
        sources = replace(
            self.sources, settings={**self.sources.settings, "model.vocab_size": found}
        )
        name, gpus = self.settings.name, self.layout.gpus
        return plan_from(sources, name=name, gpus=gpus, config=self.config)

    def cite(self, name: str) -> str:
        """Format a setting with its origin and value: "gpt.py:12: data.path='corpus.txt'".

        ``name`` is the dotted name in the schema. The origin of a default is the file as a whole.
        """
        origin = self.source_of[name].origin if name in self.source_of else self.settings.source
        return f"{origin}: {cite(name, self.source_of, self.settings)}"


def make_plan(
    path: str | Path,
    *,
    gpus: int | None,
    overrides: Sequence[str] = (),
    environ: Mapping[str, str],
) -> Plan:
    """Read and check a config, and lay it out on ``gpus``; None: on the fewest GPUs that its layout
    and its batch need.

    Raises ConfigError with all problems.
    """
    document = read(path, overrides, environ)
    config = ConfigFile(path=Path(path).resolve(), text=document.text, overrides=tuple(overrides))
    sources = read_setting_sources(str(path), document, environ)
    return plan_from(sources, name=Path(path).stem, gpus=gpus, config=config)


def plan_from(sources: SettingSources, *, name: str, gpus: int | None, config: ConfigFile) -> Plan:
    """Make a plan from the settings of ``sources``. ``name`` is the name of the run. Raises
    ConfigError with all problems."""
    resolved = replace(
        sources,
        settings=dict(sources.settings),
        conflicting=set(sources.conflicting),
        undetermined=set(sources.undetermined),
        problems=list(sources.problems),
    )
    derive_settings(resolved)
    gpus = gpus or gpus_of_batch(resolved)
    derive_batch(resolved, gpus)
    checked = check(resolved, name, resolved.file)
    context = RuleContext(resolved.file, checked, resolved, gpus)
    findings = list(run_rules(context))
    by_severity = {
        severity: [one.problem for one in findings if one.severity == severity]
        for severity in Severity
    }
    errors = [*resolved.problems, *checked.problems, *by_severity[Severity.ERROR]]
    if errors:
        raise ConfigError(errors)
    notes = [*resolved.notes, *by_severity[Severity.NOTE]]
    return Plan(
        settings=checked.settings,
        layout=context.layout,
        config=config,
        warnings=tuple(map(str, sorted(set(by_severity[Severity.WARNING])))),
        notes=tuple(map(str, sorted(set(notes)))),
        undetermined=frozenset(resolved.undetermined),
        source_of=resolved.settings,
        sources=sources,
    )
