"""Check configs and report what they would run; nothing is run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from engine.errors import UserError
from engine.formatting import format_bytes, format_layers
from launch.arguments import add_config, byte_size, files_and_overrides, output_file, positive
from launch.validate.alternatives import PlanRequest
from launch.validate.config_files import config_files
from launch.validate.inspection import ALTERNATIVES, EstimatedPlan, Inspection, inspect_config

EXAMPLES = (
    "cuboid validate gpt_configs/gpt3_pp1d.py --gpus 128 --gpu-memory 80GiB",
    "cuboid validate gpt_configs/gpt2_2d.py BATCH_SIZE=8 --gpus 8 --modes",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """FILE or FOLDER ..., KEY=VALUE ..., and what to look at."""
    add_config(parser, required=True, what="config files or folders of them")
    parser.add_argument(
        "--gpus", type=positive, metavar="N", help="how many; default: what one model needs"
    )
    parser.add_argument(
        "--gpu-memory",
        type=byte_size,
        metavar="SIZE",
        help="of a GPU, such as 80GiB: what does not fit is refused, with what would",
    )
    parser.add_argument(
        "--here",
        action="store_true",
        help="check this machine too: GPUs, memory, data, folders and the space in them",
    )
    parser.add_argument(
        "--modes",
        action="store_true",
        help="compare memory, bytes sent and padding of every legal MODE on these GPUs",
    )
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--map", action="store_true", help="draw which GPU holds what")
    shown.add_argument(
        "--json", action="store_true", help="for programs, as docs/validate.schema.json says"
    )
    parser.add_argument(
        "--map-svg", type=svg_file, metavar="FILE.svg", help="write that drawing as a picture"
    )


def svg_file(text: str) -> Path:
    """A file to write whose name does not promise another format, for argparse."""
    path = Path(text)
    if path.suffix.lower() not in ("", ".svg"):
        raise argparse.ArgumentTypeError(
            f"{text} is not a name for an SVG picture, the only format: {path.with_suffix('.svg')}"
        )
    return output_file(text)


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Print what was found; 0, or 2 where a config is refused.

    Raises UserError for arguments that cannot be used.
    """
    named, overrides = files_and_overrides(args)
    files = config_files(named)
    if len(files) > 1 and (args.map or args.map_svg):
        raise UserError(f"a map is of one config, not of {len(files)}")
    if len(files) > 1 and args.modes and not args.json:
        raise UserError(
            f"--modes compares those of one config, not of {len(files)}, without --json"
        )
    requests = [
        PlanRequest(path=file, gpus=args.gpus, overrides=tuple(overrides), environ=environ)
        for file in files
    ]
    found = _inspect_all(requests, args)
    if args.json:
        from launch.validate.as_json import as_json

        print(as_json(found))
    else:
        _print_report(found, args.map)
    if args.map_svg and found[0].case:
        _write_picture(found[0].case, args.map_svg)
    return 2 if any(one.problems for one in found) else 0


def _inspect_all(requests: list[PlanRequest], args: argparse.Namespace) -> list[Inspection]:
    enough = ALTERNATIVES if len(requests) == 1 else 1
    if not args.here:
        return [
            inspect_config(request, args.gpu_memory, enough=enough, modes=args.modes)
            for request in requests
        ]
    from launch.machine import this_machine
    from launch.validate.machine_checks import inspect_on

    machine = this_machine()
    return [
        inspect_on(machine, request, args.gpu_memory, enough=enough, modes=args.modes)
        for request in requests
    ]


def _print_report(found: list[Inspection], with_map: bool) -> None:
    """One config at length, or a line each; problems go to stderr."""
    from launch.validate.listing import print_listing
    from launch.validate.report import print_remarks, print_report

    console = Console()
    if len(found) > 1:
        print_listing(found, console)
    elif found[0].case:
        print_report(found[0].case, console)
        if with_map:
            _print_map(found[0].case, console)
        print_remarks(found[0].case.plan, console)
    sys.stdout.flush()
    for one in found:
        for problem in one.problems:
            print(problem, file=sys.stderr)


def _print_map(case: EstimatedPlan, console: Console) -> None:
    from launch.validate.terminal_map import terminal_map

    layers = [format_layers(stage.layers) for stage in case.estimate.stages]
    console.print(terminal_map(case.plan.layout, layers, console.width))


def _write_picture(case: EstimatedPlan, path: Path) -> None:
    from launch.validate.svg_map import Caption, svg_map

    captions = [
        Caption(f"layers {format_layers(one.layers)}", f"{format_bytes(one.memory.total)} a GPU")
        for one in case.estimate.stages
    ]
    picture = svg_map(case.plan.layout, case.plan.settings.name, captions)
    try:
        path.write_text(picture, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--map-svg {path}: cannot be written: {error.strerror}") from None
