"""Arguments that commands share: a config file and overrides of its settings."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from engine.errors import Refused

_OVERRIDE = re.compile(r"[A-Za-z_][\w.]*=")


def add_config(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """FILE, also as --config FILE, and KEY=VALUE in any order and among the options."""
    metavar = "FILE|KEY=VALUE" if required else "[FILE]|KEY=VALUE"
    parser.add_argument(
        "words",
        nargs="*",
        metavar=metavar,
        help="the config file, and settings to override, such as optimizer.lr=3e-4",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="the config file, by option")


def config_and_overrides(args: argparse.Namespace) -> tuple[Path | None, list[str]]:
    """The config file, None if none was named, and the overrides in their order.

    Raises Refused when there are two files.
    """
    overrides = [word for word in args.words if _OVERRIDE.match(word)]
    files = [Path(word) for word in args.words if not _OVERRIDE.match(word)]
    if args.config is not None:
        files.insert(0, args.config)
    if len(files) > 1:
        raise Refused(f"one config file, not {len(files)}: {' '.join(map(str, files))}")
    return (files[0] if files else None), overrides


def positive(text: str) -> int:
    """An integer of 1 or more, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not 1 or more")
    return number
