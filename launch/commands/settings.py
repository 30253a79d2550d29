"""List every setting with its default, its meaning and what it takes."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping

from engine.config.fields import accepts, default_of
from engine.config.schema import all_settings, user_name
from engine.errors import Refused


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """[WORD ...]: only settings that are about these words."""
    parser.add_argument(
        "words", nargs="*", metavar="WORD", help="only lines with this word, such as optimizer"
    )


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """A line a setting, as a config would write it; 0.

    Raises Refused when no setting is about the words.
    """
    chosen = [line for line in lines() if all(word.lower() in line.lower() for word in args.words)]
    if not chosen:
        raise Refused(f"no setting is about {' '.join(args.words)}; cuboid settings lists them all")
    print("\n".join(chosen))
    return 0


def lines() -> Iterator[str]:
    """NAME = DEFAULT  # meaning (what it takes). '...' stands where one must be given."""
    for name, field in all_settings().items():
        line = f"{user_name(name)} = {default_of(field) or '...'}"
        yield f"{line:<40}  # {field.description} ({accepts(field)})"
