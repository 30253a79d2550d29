"""A plan: a config, proved legal, on a number of GPUs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from engine.config.check import check
from engine.config.derived import complete
from engine.config.errors import ConfigError
from engine.config.reader import read
from engine.config.resolve import Stated, Statements, cite, read_statements
from engine.config.rule_context import Facts, Severity
from engine.config.run_rules import judge
from engine.config.schema import Settings
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

    ``statements``: what the config, the command line and the environment state, from which the same
    plan can be made again. ``stated``: each setting with what followed from others.
    """

    settings: Settings
    layout: Layout
    config: ConfigFile = field(default=ConfigFile(path=Path()), repr=False)
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    stated: Mapping[str, Stated] = field(default_factory=dict, repr=False)
    statements: Statements = field(default_factory=lambda: Statements(""), repr=False)

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
        place = self.stated[name].origin if name in self.stated else self.settings.source
        return f"{place}: {cite(name, self.stated, self.settings)}"


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
    statements = read_statements(str(path), document, environ)
    return plan_from(statements, name=Path(path).stem, gpus=gpus, config=config)


def plan_from(statements: Statements, *, name: str, gpus: int | None, config: ConfigFile) -> Plan:
    """Make the plan of what was stated; ``name`` is the run's. Raises ConfigError."""
    whole = replace(
        statements,
        settings=dict(statements.settings),
        disputed=set(statements.disputed),
        problems=list(statements.problems),
    )
    complete(whole)
    checked = check(whole, name, whole.file)
    facts = Facts(whole.file, checked, whole, gpus)
    findings = list(judge(facts))
    by_severity = {
        severity: [one.problem for one in findings if one.severity == severity]
        for severity in Severity
    }
    errors = [*whole.problems, *checked.problems, *by_severity[Severity.ERROR]]
    if errors:
        raise ConfigError(errors)
    notes = [*whole.notes, *by_severity[Severity.NOTE]]
    return Plan(
        settings=checked.settings,
        layout=facts.layout,
        config=config,
        warnings=tuple(map(str, sorted(set(by_severity[Severity.WARNING])))),
        notes=tuple(map(str, sorted(set(notes)))),
        stated=whole.settings,
        statements=statements,
    )
