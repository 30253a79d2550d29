"""List every setting with its default, its meaning and what it takes."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from itertools import groupby

from rich.console import Console, Group
from rich.padding import Padding
from rich.text import Text

from engine.config.fields import Section, accepts, default_of
from engine.config.schema import Settings, all_settings, user_name
from engine.errors import Refused


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """[WORD ...]: only settings that are about these words."""
    parser.add_argument(
        "words", nargs="*", metavar="WORD", help="only settings with this word, such as optimizer"
    )
    parser.add_argument(
        "--markdown", action="store_true", help="all of them as a page, which docs/settings.md is"
    )


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Print them, a line each where nobody is looking; 0.

    Raises Refused when no setting is about the words.
    """
    if args.markdown and args.words:
        raise Refused("--markdown is of all settings, without words")
    if args.markdown:
        print(markdown(), end="")
        return 0
    chosen = [
        name
        for name in all_settings()
        if all(word.lower() in _line(name).lower() for word in args.words)
    ]
    if not chosen:
        raise Refused(f"no setting is about {' '.join(args.words)}; cuboid settings lists them all")
    console = Console()
    if console.is_terminal:
        console.print(*map(_entry, chosen), sep="\n")
    else:
        print("\n".join(map(_line, chosen)))
    return 0


def markdown() -> str:
    """A page: a table for what stands by itself, and one for every section."""
    parts = [
        "# Settings",
        "What a config file may state. A name with a dot is a key of a section, as in "
        "`optimizer = dict(lr=3e-4)`, or `optimizer.lr=3e-4` on the command line. "
        "`cuboid settings` prints the same; it made this page, with `--markdown`.",
    ]
    for section, names in groupby(_by_section(), key=_section):
        if section:
            kind = Settings.model_fields[section].annotation
            assert isinstance(kind, type)
            assert issubclass(kind, Section)
            parts.append(f"## {section}\n\n{kind.__doc__}")
        rows = ["| setting | takes | default | meaning |", "| --- | --- | --- | --- |"]
        rows += [" | ".join(["", *map(_cell, _row(name)), ""]).strip() for name in names]
        parts.append("\n".join(rows))
    return "\n\n".join(parts) + "\n"


def _by_section() -> list[str]:
    """Those by themselves first; sections in the order of the schema."""
    order = ["", *Settings.model_fields]
    return sorted(all_settings(), key=lambda name: order.index(_section(name)))


def _section(name: str) -> str:
    return name.rpartition(".")[0]


def _row(name: str) -> tuple[str, str, str, str]:
    """Name, what it takes, default, meaning; names and values as code."""
    field = all_settings()[name]
    default = default_of(field)
    extra = field.json_schema_extra
    in_words = isinstance(extra, dict) and "shown" in extra
    return (
        f"`{user_name(name)}`",
        accepts(field),
        default if in_words else f"`{default}`" if default else "must be given",
        field.description or "",
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace(">", "&gt;")


def _line(name: str) -> str:
    """NAME = DEFAULT  # meaning (what it takes). '...' stands where one must be given."""
    field = all_settings()[name]
    line = f"{user_name(name)} = {default_of(field) or '...'}"
    return f"{line:<40}  # {field.description} ({accepts(field)})"


def _entry(name: str) -> Group:
    """The same for a terminal: NAME = DEFAULT, and the rest below it."""
    field = all_settings()[name]
    head = Text(user_name(name), style="bold").append(" = ", style="dim not bold")
    head.append(default_of(field) or "...", style="cyan not bold")
    meaning = Text(field.description or "").append(f" ({accepts(field)})", style="dim")
    return Group(head, Padding(meaning, (0, 0, 0, 4)))
