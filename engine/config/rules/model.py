"""Rules for the model, its data and paths."""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path

from engine.config.rule_context import Finding, RuleContext
from engine.config.schema import path_settings
from engine.config.sections.data import FILE_TYPES
from engine.config.sections.model import FROM_DATA
from engine.config.value_hints import nearest_multiples
from engine.files import paths
from models.presets import GPT2_VOCABULARY, PRESETS

NEED_A_FILE = frozenset({"json", "jsonl", "lanes", "tokens"})
NEED_A_MODEL = frozenset({"sentencepiece"})
"""The tokenizers that are read from data.tokenizer_path."""
VOCABULARIES = {"gpt2": GPT2_VOCABULARY, "bytes": 257}
"""The sizes of the tokenizers that depend on no file."""


def hidden_size_agrees(context: RuleContext) -> Iterator[Finding]:
    """Require HIDDEN_SIZE to equal model.n_embd."""
    hidden, width = context.settings.hidden_size, context.settings.model.n_embd
    if hidden is not None and hidden != width:
        yield context.error(
            "hidden_size",
            f"{context.cite('hidden_size')} differs from {context.cite('model.n_embd')}; correct "
            "one of them, or remove HIDDEN_SIZE",
        )


def heads_divide_the_width(context: RuleContext) -> Iterator[Finding]:
    """Require model.n_embd to be a multiple of model.n_head unless model.head_dim is set."""
    model = context.settings.model
    heads, width = model.n_head, model.n_embd
    if width % heads and not context.is_stated("model.head_dim"):
        yield context.error(
            "model.n_embd",
            f"{context.cite('model.n_embd')} is not a multiple of {context.cite('model.n_head')}; "
            f"nearest: {nearest_multiples(width, heads)}, or set model.head_dim",
        )


def preset_differs_from_the_published(context: RuleContext) -> Iterator[Finding]:
    """Note that some of titans' presets differ from the published model of that name."""
    name = context.settings.model.preset
    preset = PRESETS[name] if name else None
    if preset is None or preset.published is None:
        return
    other = PRESETS[preset.published]
    yield context.note(
        "model.preset",
        f"{context.cite('model.preset')} has n_embd={preset.n_embd} and n_head={preset.n_head}, "
        f"Colossal-AI's sizes; the published model has n_embd={other.n_embd} and "
        f"n_head={other.n_head}; for it, set model.type={preset.published!r}",
    )


def vocabulary_holds_the_tokens(context: RuleContext) -> Iterator[Finding]:
    """Require model.vocab_size to be at least the number of the tokenizer's tokens, if that does
    not depend on a file."""
    settings = context.settings
    tokens = VOCABULARIES.get(settings.data.tokenizer)
    if settings.data.type in ("images", "synthetic") or tokens is None:
        return
    if settings.model.vocab_size < tokens:
        yield context.error(
            "model.vocab_size",
            f"{context.cite('model.vocab_size')} is less than the {tokens} tokens of "
            f"{context.cite('data.tokenizer')}; set it to {tokens} or more",
        )


def vocabulary_has_a_tokenizer(context: RuleContext) -> Iterator[Finding]:
    """Require a number for model.vocab_size if the data has no tokenizer to take it from."""
    stated = context.sources.settings.get("model.vocab_size")
    if stated and stated.written == FROM_DATA and context.settings.data.type == "synthetic":
        yield context.error(
            "model.vocab_size",
            f"{stated} is the number of ids of a tokenizer, and {context.cite('data.type')} has "
            "none; set a number",
        )


def every_position_is_trained(context: RuleContext) -> Iterator[Finding]:
    """Note that a model.block_size above SEQ_LEN leaves positions untrained."""
    settings = context.settings
    if settings.model.block_size > settings.seq_len:
        yield context.note(
            "model.block_size",
            f"{context.cite('model.block_size')} is more than {context.cite('seq_len')}: this run "
            f"does not train the positions from {settings.seq_len} on; to leave them out, set "
            f"model.block_size={settings.seq_len}",
        )


def source_has_a_file(context: RuleContext) -> Iterator[Finding]:
    """Require data.path for JSON data; Python comes with a text only."""
    data = context.settings.data
    if data.type in NEED_A_FILE and data.path is None:
        yield context.error("data.type", f"{context.cite('data.type')} needs a file; set data.path")


def tokenizer_has_its_file(context: RuleContext) -> Iterator[Finding]:
    """Require data.tokenizer_path for a tokenizer that is a file."""
    data = context.settings.data
    if data.type not in FILE_TYPES:  # shards have their tokenizer in their folder
        return
    if data.tokenizer in NEED_A_MODEL and data.tokenizer_path is None:
        yield context.error(
            "data.tokenizer",
            f"{context.cite('data.tokenizer')} needs a model file; set data.tokenizer_path",
        )


def paths_exist(context: RuleContext) -> Iterator[Finding]:
    """Warn if a path is missing or of the wrong kind; the job may run on another machine."""
    for name, mark in path_settings().items():
        given = attrgetter(name)(context.settings)
        if given is None or not mark.exists:
            continue
        for path in (given,) if isinstance(given, str) else given:
            matches = paths.matches(path)
            problem = paths.problem_at(Path(path), *mark.exists) if matches == [path] else None
            if problem or not matches:
                problem = problem or "does not exist on this machine"
                cited = context.cite(name) if path == given else f"{context.cite(name)}: {path}"
                yield context.warning(name, f"{cited} {problem}")


RULES = (
    hidden_size_agrees,
    heads_divide_the_width,
    preset_differs_from_the_published,
    vocabulary_holds_the_tokens,
    vocabulary_has_a_tokenizer,
    every_position_is_trained,
    source_has_a_file,
    tokenizer_has_its_file,
    paths_exist,
)
