"""The program that torchrun starts to train: one rank of a run.

torchrun --nproc_per_node 8 train_gpt.py --config gpt_configs/gpt2_2d.py [KEY=VALUE ...]
"""

from __future__ import annotations

from engine.world.signals import block_signals

if __name__ == "__main__":
    block_signals()  # until the rank can report a stop: importing torch takes seconds

import argparse
import os
from collections.abc import Mapping, Sequence

from engine.data.source import default_cache
from engine.errors import UserError
from engine.faults import parse_fault
from engine.plan import Plan, make_plan
from engine.runs import restart as again
from engine.runs.plan_from_run import plan_of_run
from engine.train import train
from engine.unsupported import require_supported
from engine.world.coordination.launch_environment import LaunchInfo
from engine.world.distributed import RestartCallbacks
from engine.world.world import World
from launch.arguments import (
    add_config,
    add_launch_options,
    add_run,
    config_and_overrides,
    run_to_resume,
    start_options,
)
from launch.parser import Parser
from launch.rank import exit_process, run_rank
from launch.torchrun import note_stop


def main(argv: Sequence[str] | None = None, environ: Mapping[str, str] = os.environ) -> int:
    """Train and return the exit code: 0 done, 1 the run failed, 2 the user's input was rejected."""

    def work(args: argparse.Namespace, world: World) -> None:
        fault = world.run_on_all(
            lambda: parse_fault(environ.get("FAULT", ""), world.rank, world.attempt)
        )
        cache, options = default_cache(environ), start_options(args)
        finished = train(world, options, cache=cache, fault=fault)
        if not finished and world.is_main and args.lost_pids_file is not None:
            note_stop(args.lost_pids_file)

    return run_rank(argv, environ, parse=parse, plan=plan, work=work, restart=restart)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="train_gpt.py",
        description="Train a GPT: one rank of a run.",
        examples=["torchrun --nproc_per_node 4 train_gpt.py --config gpt_configs/gpt2_2d.py"],
    )
    for add in (add_run, add_launch_options):
        add(parser)
    add_config(parser, required=False)
    return parser.parse_intermixed_args(argv)


def plan(args: argparse.Namespace, launch_info: LaunchInfo, environ: Mapping[str, str]) -> Plan:
    """Return the plan of the run, which every rank makes for itself."""
    start_options(args)  # rejects options that conflict
    if args.gpus not in (None, launch_info.size):
        raise UserError(f"--gpus {args.gpus}, but {launch_info.size} ranks were started")
    config, overrides = config_and_overrides(args)
    if config is not None:
        made = make_plan(config, gpus=launch_info.size, overrides=overrides, environ=environ)
    else:
        made = plan_of_run(run_to_resume(args), gpus=launch_info.size, overrides=overrides)
    require_supported(made)
    return made


def restart(args: argparse.Namespace, launch_info: LaunchInfo) -> RestartCallbacks:
    """Return the functions with which a restarted launch makes the plan of its run, whatever the
    config contains by now."""
    config, overrides = config_and_overrides(args)
    name = config.stem if config else ""
    return again.restart_of_launch(
        name=name, size=launch_info.size, overrides=overrides, options=start_options(args)
    )


if __name__ == "__main__":
    exit_process(main())
