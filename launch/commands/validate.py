"""Check a config and say what it would run, without running anything."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from rich.console import Console

from engine.errors import Refused
from engine.overview import overview, remarks, table
from engine.plan import make_plan
from launch.arguments import add_config, config_and_overrides, positive


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """FILE, KEY=VALUE ..., --gpus."""
    add_config(parser, required=True)
    parser.add_argument(
        "--gpus", type=positive, metavar="N", help="how many; default: what one model needs"
    )


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Print the plan; 0.

    Raises ConfigError with all problems of the config, and Refused when none is named.
    """
    config, overrides = config_and_overrides(args)
    if config is None:
        raise Refused("name a config: cuboid validate FILE")
    plan = make_plan(config, gpus=args.gpus, overrides=overrides, environ=environ)
    console = Console()
    console.print(table(overview(plan)))
    for line in remarks(plan):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return 0
