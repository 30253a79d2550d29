"""A plan: a config, proved legal, on a number of GPUs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from engine.config.check import check
from engine.config.derived import derive_settings
from engine.config.reader import read
from engine.config.resolve import SettingSource, SettingSources, cite, read_setting_sources
from engine.config.rule_context import RuleContext, Severity
from engine.config.run_rules import run_rules
from engine.config.schema import Settings
from engine.errors import ConfigError
from engine.layout import Layout


@dataclass(frozen=True, kw_only=True)
class ConfigFile:
    """The config that a plan was made from. ``path`` is absolute and identifies it; ``text`` is
    what it held when it was read; ``overrides`` are the ``KEY=VALUE`` of the command line."""

    path: Path
    text: str = ""
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What will run. ``warnings`` cost something, ``notes`` are worth knowing; a line each.

    ``sources``: what the config, the command line and the environment state, from which the same
    plan can be made again. ``source_of``: each setting with what followed from others.
    """

    settings: Settings
    layout: Layout
    config: ConfigFile = field(default=ConfigFile(path=Path()), repr=False)
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    source_of: Mapping[str, SettingSource] = field(default_factory=dict, repr=False)
    sources: SettingSources = field(default_factory=lambda: SettingSources(""), repr=False)

    @property
    def micro_batch(self) -> int:
        """Samples of a micro-batch on a data-parallel rank."""
        return self.settings.batch_size // self.settings.num_micro_batches

    @property
    def padded_micro_batch(self) -> int:
        """The same, padded to what the mode splits evenly."""
        multiple = self.layout.sample_multiple(self.settings.seq_len)
        return -(-self.micro_batch // multiple) * multiple

    @property
    def global_batch(self) -> int:
        """Samples of a step, over all ranks."""
        return self.settings.batch_size * self.layout.data * self.settings.gradient_accumulation

    @property
    def tokens_per_step(self) -> int:
        """Tokens of a step, over all ranks."""
        return self.global_batch * self.settings.seq_len

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, hex, of all settings; the path of the file aside, which may differ by node."""
        resolved = self.settings.model_dump(mode="json", exclude={"source"})
        return hashlib.sha256(json.dumps(resolved, sort_keys=True).encode()).hexdigest()

    def cite(self, name: str) -> str:
        """A setting, its value and its place: "gpt.py:12: data.path='corpus.txt'".

        ``name`` is ours, dotted; a default is placed in the file as a whole.
        """
        place = self.source_of[name].origin if name in self.source_of else self.settings.source
        return f"{place}: {cite(name, self.source_of, self.settings)}"


def make_plan(
    path: str | Path,
    *,
    gpus: int | None,
    overrides: Sequence[str] = (),
    environ: Mapping[str, str],
) -> Plan:
    """Read a config, check everything that can be told from it, and lay it out on ``gpus``.

    Without ``gpus``, on the fewest that hold one copy of the model. ConfigError holds every
    problem there is.
    """
    document = read(path, overrides, environ)
    config = ConfigFile(path=Path(path).resolve(), text=document.text, overrides=tuple(overrides))
    statements = read_setting_sources(str(path), document, environ)
    return plan_from(statements, name=Path(path).stem, gpus=gpus, config=config)


def plan_from(sources: SettingSources, *, name: str, gpus: int | None, config: ConfigFile) -> Plan:
    """Make the plan of what was stated; ``name`` is the run's. Raises ConfigError."""
    resolved = replace(
        sources,
        settings=dict(sources.settings),
        conflicting=set(sources.conflicting),
        problems=list(sources.problems),
    )
    derive_settings(resolved)
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
        source_of=resolved.settings,
        sources=sources,
    )
