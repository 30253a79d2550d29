"""The model and its data."""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path

from engine import paths
from engine.config.rule_context import Finding, RuleContext
from engine.config.schema import path_settings
from engine.config.value_hints import nearest_multiples
from models.presets import GPT2_VOCABULARY, PRESETS

NEED_A_FILE = frozenset({"json", "jsonl"})


def hidden_size_agrees(facts: RuleContext) -> Iterator[Finding]:
    """HIDDEN_SIZE repeats the model's width."""
    hidden, width = facts.settings.hidden_size, facts.settings.model.n_embd
    if hidden is not None and hidden != width:
        yield facts.error(
            "hidden_size", f"{facts.cite('hidden_size')} is not {facts.cite('model.n_embd')}"
        )


def heads_divide_the_width(facts: RuleContext) -> Iterator[Finding]:
    """Unless a head's width is stated, the heads share the model's out."""
    model = facts.settings.model
    heads, width = model.n_head, model.n_embd
    if width % heads and not facts.is_stated("model.head_dim"):
        yield facts.error(
            "model.n_embd",
            f"{facts.cite('model.n_embd')} is not a multiple of {facts.cite('model.n_head')}; "
            f"nearest: {nearest_multiples(width, heads)}, or state model.head_dim",
        )


def preset_differs_from_the_published(facts: RuleContext) -> Iterator[Finding]:
    """Some of titans' sizes go by a published model's name."""
    name = facts.settings.model.preset
    preset = PRESETS[name] if name else None
    if preset is None or preset.published is None:
        return
    other = PRESETS[preset.published]
    yield facts.note(
        "model.preset",
        f"{facts.cite('model.preset')} has n_embd={preset.n_embd} and n_head={preset.n_head}, as "
        f"Colossal-AI has it; the published one has n_embd={other.n_embd} and "
        f"n_head={other.n_head}: model.type={preset.published!r}",
    )


def vocabulary_holds_the_tokens(facts: RuleContext) -> Iterator[Finding]:
    """Every token that the tokenizer gives has an embedding."""
    settings = facts.settings
    if settings.data.type == "synthetic" or settings.data.tokenizer != "gpt2":
        return
    if settings.model.vocab_size < GPT2_VOCABULARY:
        yield facts.error(
            "model.vocab_size",
            f"{facts.cite('model.vocab_size')} is less than the {GPT2_VOCABULARY} tokens of "
            f"{facts.cite('data.tokenizer')}",
        )


def every_position_is_trained(facts: RuleContext) -> Iterator[Finding]:
    """Positions beyond the samples are never looked up in training."""
    settings = facts.settings
    if settings.model.block_size > settings.seq_len:
        yield facts.note(
            "model.block_size",
            f"{facts.cite('model.block_size')} is more than {facts.cite('seq_len')}: this run does "
            f"not train the positions from {settings.seq_len} on; "
            f"model.block_size={settings.seq_len} leaves them out",
        )


def source_has_a_file(facts: RuleContext) -> Iterator[Finding]:
    """Only text comes with Python."""
    data = facts.settings.data
    if data.type in NEED_A_FILE and data.path is None:
        yield facts.error("data.type", f"{facts.cite('data.type')} needs data.path, a file")


def paths_exist(facts: RuleContext) -> Iterator[Finding]:
    """Warn of a path that is missing or of another kind: the job may run on another machine."""
    for name, mark in path_settings().items():
        given = attrgetter(name)(facts.settings)
        if given is None or not mark.exists:
            continue
        for path in (given,) if isinstance(given, str) else given:
            found = paths.matches(path)
            problem = paths.problem_at(Path(path), *mark.exists) if found == [path] else None
            if problem or not found:
                problem = problem or "does not exist on this machine"
                named = facts.cite(name) if path == given else f"{facts.cite(name)}: {path}"
                yield facts.warning(name, f"{named} {problem}")


RULES = (
    hidden_size_agrees,
    heads_divide_the_width,
    preset_differs_from_the_published,
    vocabulary_holds_the_tokens,
    every_position_is_trained,
    source_has_a_file,
    paths_exist,
)
