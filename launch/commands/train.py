"""Train a config (default: the demo) on this machine's GPUs or CPU."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import quote

from engine.errors import UserError
from engine.plan import Plan, make_plan
from engine.runs.folder import RunFolder
from engine.runs.plan_from_run import plan_of_run, read_record
from engine.runs.start_candidates import names_run, start_candidates
from engine.unsupported import require_supported
from engine.world.processor import usable_cores
from launch import torchrun
from launch.arguments import (
    add_config,
    add_run,
    config_and_overrides,
    run_arguments,
    run_to_resume,
    start_options,
)
from launch.demo_layout import choose
from launch.machine import count_gpus, this_machine
from launch.number_types import not_negative
from launch.preflight import run_preflight
from launch.vocabulary import size_on_this_machine, with_size

# The demo's config: in a checkout, or where an installation puts it.
DEMOS = tuple(
    root / "gpt_configs" / "demo.py"
    for root in (Path(__file__).parents[2], Path(sys.prefix) / "share" / "cuboid")
)
LAYOUT = {"TENSOR_PARALLEL", "MODE", "DEPTH", "PIPELINE", "parallel"}

EXAMPLES = (
    "cuboid train gpt_configs/gpt2_2d.py BATCH_SIZE=2 MAX_STEPS=100",
    "cuboid train --gpus 2 TENSOR_PARALLEL=2 MODE=1d",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add [FILE], KEY=VALUE ... and the options of a run."""
    add_config(parser, required=False)
    add_run(parser)
    parser.add_argument(
        "--max-restarts",
        type=not_negative,
        default=0,
        metavar="N",
        help="restart a failed run up to N times from its last valid checkpoint; default: 0",
    )


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Check the config and the machine, then train under torchrun and return its exit code.

    Without a config, the settings are those that the run to resume recorded. Without such a run
    they are the demo's, in a layout that suits the machine unless the overrides state one.

    Raises:
        UserError, ConfigError: the config, the options or the machine cannot be used. Nothing has
            been started by then.
    """
    config, overrides = config_and_overrides(args)
    options = start_options(args)  # rejects options that conflict
    number = args.gpus or _requested_ranks(environ)
    if config is None and names_run(options.resume):
        plan = _plan_of_run(run_to_resume(args), overrides, number, environ)
    else:
        config = config or _demo()
        plan, overrides = _plan_of_config(config, overrides, number, environ)
    require_supported(plan)
    candidate = next(start_candidates("", plan, options))
    run_preflight(
        plan,
        this_machine(),
        environ,
        Path(candidate.run_folder) if candidate.run_folder else options.output,
    )
    if candidate.finished:
        print(*candidate.remarks, candidate.finished, sep="\n")
        return 0
    arguments = run_arguments(args, config, overrides)
    return torchrun.run(plan.layout.gpus, arguments, restarts=args.max_restarts)


def _plan_of_config(
    config: Path, overrides: list[str], number: int | None, environ: Mapping[str, str]
) -> tuple[Plan, list[str]]:
    """Plan a config on ``number`` ranks (None: as many as suit the machine). Return the plan and
    the overrides that the plan was made with."""
    if _is_demo(config) and not _sets_layout(overrides):
        choice = choose(0 if number else count_gpus(), number, cores=usable_cores())
        print(choice.reason, flush=True)
        ranks, overrides = choice.processes, [*choice.overrides, *overrides]
    else:
        one_copy = make_plan(config, gpus=None, overrides=overrides, environ=environ)
        gpus = 0 if number else count_gpus()
        ranks = torchrun.ranks_to_start(one_copy.layout.gpus, gpus, number)
    plan = make_plan(config, gpus=ranks, overrides=overrides, environ=environ)
    if plan.undetermined:
        plan = with_size(plan, size_on_this_machine(plan, environ))
    return plan, overrides


def _plan_of_run(
    folder: RunFolder, overrides: list[str], number: int | None, environ: Mapping[str, str]
) -> Plan:
    """Plan a recorded run on ``number`` ranks. None: with as many copies of the model as the run
    had, or fewer if this machine has too few GPUs."""
    one_copy = plan_of_run(folder, gpus=None, overrides=overrides)
    copies, gpus = read_record(folder).data_parallel, 0 if number else count_gpus()
    per_copy = one_copy.layout.tensor * one_copy.layout.pipeline
    ranks = per_copy * copies
    if number or (gpus and gpus < ranks):
        ranks = torchrun.ranks_to_start(per_copy, gpus, number)
    plan = plan_of_run(folder, gpus=ranks, overrides=overrides)
    data = environ.get("DATA")
    if data and data != plan.settings.data.path:
        print(
            f"DATA={data} in the environment is ignored: the run uses "
            f"{plan.cite('data.path')}; pass {quote(f'data.path={data}')} to change it"
        )
    return plan


def _demo() -> Path:
    """Return the path of the demo's config, relative if it is below the current folder.

    Raises:
        UserError: the demo is not installed.
    """
    demo = next((path for path in DEMOS if path.is_file()), None)
    if demo is None:
        raise UserError(
            "no config file given, and the demo is not installed here; run `cuboid train FILE`"
        )
    here = Path.cwd()
    return demo.relative_to(here) if demo.is_relative_to(here) else demo


def _is_demo(config: Path) -> bool:
    return config.is_file() and any(demo.is_file() and config.samefile(demo) for demo in DEMOS)


def _sets_layout(overrides: Sequence[str]) -> bool:
    return any(override.partition("=")[0].split(".")[0] in LAYOUT for override in overrides)


def _requested_ranks(environ: Mapping[str, str]) -> int | None:
    """Return the number of ranks in the variable NPROC, None if it is not set."""
    text = environ.get("NPROC", "")
    if not text:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise UserError(
            f"NPROC={text} in the environment is not a whole number of 1 or more; set or unset it"
        )
    return int(text)
