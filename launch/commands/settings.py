"""List the settings: default, meaning and accepted values."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from itertools import groupby

from rich.console import Console, Group
from rich.padding import Padding
from rich.text import Text

from engine.config.fields import accepts, default_of
from engine.config.name_hints import closest, fold, names_elsewhere, unknown_setting
from engine.config.schema import all_settings, user_name
from engine.errors import UserError
from launch.settings_pages import by_section, meaning_of, names_page, section_of, settings_page

EXAMPLES = (
    "cuboid settings",
    "cuboid settings learning rate",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """[WORD ...]: only settings that are about these words."""
    parser.add_argument(
        "words", nargs="*", metavar="WORD", help="only settings with this word, such as optimizer"
    )
    pages = parser.add_mutually_exclusive_group()
    pages.add_argument(
        "--markdown", action="store_true", help="all of them as a page, which docs/settings.md is"
    )
    pages.add_argument(
        "--names",
        action="store_true",
        help="the names of other trainers as a page, which docs/names.md is",
    )


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Print them by section, a line each where nobody is looking; 0.

    Raises UserError when no setting is about the words.
    """
    if args.markdown or args.names:
        if args.words:
            raise UserError("a page is of all settings, without words")
        print(settings_page() if args.markdown else names_page(), end="")
        return 0
    chosen = [name for name in by_section() if all(_is_about(name, word) for word in args.words)]
    if not chosen:
        raise UserError(_nothing_about(args.words))
    console = Console()
    for number, (section, names) in enumerate(groupby(chosen, key=section_of)):
        if number:
            print()
        if console.is_terminal:
            console.print(*_heading(section), *map(_entry, names), sep="\n")
        else:
            print("\n".join([*map(str, _heading(section)), *map(_line, names)]))
    return 0


def _is_about(name: str, word: str) -> bool:
    """Whether a word is in a setting's line, or its name in another trainer."""
    return word.lower() in _line(name).lower() or fold(word) in names_elsewhere(user_name(name))


def _nothing_about(words: list[str]) -> str:
    hints = ((word, closest(word)) for word in words)
    lines = [unknown_setting(word, hint, in_file=False) for word, hint in hints if hint]
    return (
        lines[0]
        if lines
        else (f"no setting is about {' '.join(words)}; cuboid settings lists them all")
    )


def _heading(section: str) -> list[Text]:
    """# SECTION: meaning; none for settings outside of sections."""
    return [Text(f"# {section}: {meaning_of(section)}", style="bold blue")] if section else []


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
