"""List the settings with default, meaning and accepted values."""

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
    """Add [WORD ...] and the options that print a Markdown page."""
    parser.add_argument(
        "words",
        nargs="*",
        metavar="WORD",
        help="list only settings whose line contains WORD, such as optimizer",
    )
    pages = parser.add_mutually_exclusive_group()
    pages.add_argument(
        "--markdown", action="store_true", help="print docs/settings.md: all settings as Markdown"
    )
    pages.add_argument(
        "--names",
        action="store_true",
        help="print docs/names.md: the names of other trainers as Markdown",
    )


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Print the settings by section and return 0. A pipe or file gets one line per setting.

    Raises:
        UserError: no setting matches the words.
    """
    if args.markdown or args.names:
        if args.words:
            raise UserError("--markdown and --names print all settings; pass no WORD")
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
    """Return whether a setting's line contains the word, or the word is another trainer's name of
    the setting."""
    return word.lower() in _line(name).lower() or fold(word) in names_elsewhere(user_name(name))


def _nothing_about(words: list[str]) -> str:
    hints = ((word, closest(word)) for word in words)
    lines = [unknown_setting(word, hint, in_file=False) for word, hint in hints if hint]
    return (
        lines[0]
        if lines
        else (f"no setting matches {' '.join(words)}; cuboid settings lists all of them")
    )


def _heading(section: str) -> list[Text]:
    """Return '# SECTION: meaning' as a list of one line, empty for settings without a section."""
    return [Text(f"# {section}: {meaning_of(section)}", style="bold blue")] if section else []


def _line(name: str) -> str:
    """Return 'NAME = DEFAULT  # meaning (accepted values)'; '...' if there is no default."""
    field = all_settings()[name]
    line = f"{user_name(name)} = {default_of(field) or '...'}"
    return f"{line:<40}  # {field.description} ({accepts(field)})"


def _entry(name: str) -> Group:
    """Format a setting for a terminal: NAME = DEFAULT, then meaning and values, indented."""
    field = all_settings()[name]
    head = Text(user_name(name), style="bold").append(" = ", style="dim not bold")
    head.append(default_of(field) or "...", style="cyan not bold")
    meaning = Text(field.description or "").append(f" ({accepts(field)})", style="dim")
    return Group(head, Padding(meaning, (0, 0, 0, 4)))
