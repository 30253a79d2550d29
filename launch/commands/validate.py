"""Check configs and report memory, messages and layout without running."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import Console

from engine.errors import UserError
from engine.formatting import format_bytes, format_layers
from launch.arguments import add_config, files_and_overrides, output_file
from launch.number_types import byte_size, positive
from launch.validate.alternatives import PlanRequest
from launch.validate.inspection import ALTERNATIVES, EstimatedPlan, Inspection, inspect_config

EXAMPLES = (
    "cuboid validate gpt_configs/gpt3_pp1d.py --gpus 128 --gpu-memory 80GiB",
    "cuboid validate gpt_configs/gpt2_2d.py BATCH_SIZE=8 --gpus 8 --modes",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add FILE or FOLDER ..., KEY=VALUE ... and the options that choose what is checked."""
    add_config(parser, required=True, what="config files or folders of them")
    parser.add_argument(
        "--gpus", type=positive, metavar="N", help="number of GPUs; default: one copy of the model"
    )
    parser.add_argument(
        "--gpu-memory",
        type=byte_size,
        metavar="SIZE",
        help="memory per GPU, such as 80GiB; a config that needs more is rejected, and changes "
        "that fit are listed",
    )
    parser.add_argument(
        "--here",
        action="store_true",
        help="also check this machine: GPUs, memory, data, folders and their free space",
    )
    parser.add_argument(
        "--modes",
        action="store_true",
        help="compare memory, bytes sent and padding of every legal MODE on these GPUs",
    )
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--map", action="store_true", help="draw the stage and shards of every GPU")
    shown.add_argument(
        "--json", action="store_true", help="print JSON; its schema is docs/validate.schema.json"
    )
    parser.add_argument(
        "--map-svg", type=svg_file, metavar="FILE.svg", help="write the drawing of --map as SVG"
    )


def svg_file(text: str) -> Path:
    """Expand the path of an SVG file to write (type for argparse)."""
    path = Path(text)
    if path.suffix.lower() not in ("", ".svg"):
        raise argparse.ArgumentTypeError(
            f"{text} does not end in .svg, the only format; use {path.with_suffix('.svg')}"
        )
    return output_file(text)


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Print the reports and return the exit code: 0, or 2 if a config is rejected.

    Raises:
        UserError: the arguments cannot be used.
    """
    named, overrides = files_and_overrides(args)
    files = _config_files(named)
    if len(files) > 1 and (args.map or args.map_svg):
        raise UserError(f"--map and --map-svg draw one config, not {len(files)}")
    if len(files) > 1 and args.modes and not args.json:
        raise UserError(f"--modes takes one config, not {len(files)}, unless --json is given")
    requests = [
        PlanRequest(path=file, gpus=args.gpus, overrides=tuple(overrides), environ=environ)
        for file in files
    ]
    inspections = _inspect_all(requests, args)
    if args.json:
        from launch.validate.as_json import as_json

        print(as_json(inspections))
    else:
        _print_report(inspections, args.map)
    if args.map_svg and inspections[0].case:
        _write_picture(inspections[0].case, args.map_svg)
    return 2 if any(inspection.problems for inspection in inspections) else 0


def _config_files(named: Sequence[Path]) -> list[Path]:
    """Return the named files, and the configs in the named folders, each once.

    The configs in a folder are its ``*.py``, except names that start with ``_``: other configs
    import those.

    Raises:
        UserError: nothing is named, or a folder has no config.
    """
    if not named:
        raise UserError("no config file given; run `cuboid validate FILE|FOLDER...`")
    return list(dict.fromkeys(file for path in named for file in _files_of(path)))


def _files_of(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield path
        return
    files = sorted(file for file in path.glob("[!_]*.py") if file.is_file())
    if not files:
        raise UserError(f"{path}: the folder has no config (*.py)")
    yield from files


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


def _print_report(inspections: list[Inspection], with_map: bool) -> None:
    """Print a full report of one config, or one line per config; problems go to stderr."""
    from launch.validate.listing import print_listing
    from launch.validate.report import print_remarks, print_report

    console = Console()
    if len(inspections) > 1:
        print_listing(inspections, console)
    elif inspections[0].case:
        print_report(inspections[0].case, console)
        if with_map:
            _print_map(inspections[0].case, console)
        print_remarks(inspections[0].case.plan, console)
    sys.stdout.flush()
    for inspection in inspections:
        for problem in inspection.problems:
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
