"""The program that torchrun starts to measure throughput: one rank.

torchrun --nproc_per_node 4 throughput_gpt.py --config gpt_configs/gpt2_2d.py [KEY=VALUE ...]
"""

from __future__ import annotations

from engine.world.signals import block_signals

if __name__ == "__main__":
    block_signals()  # until the rank can report a stop: importing torch takes seconds

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from engine.data.source import default_cache
from engine.errors import UserError
from engine.plan import Plan, make_plan
from engine.throughput import OutOfDeviceMemoryError, measure, with_random_tokens
from engine.unsupported import require_supported
from engine.world.coordination.launch_environment import LaunchInfo
from engine.world.world import World
from launch.arguments import (
    add_config,
    add_launch_options,
    add_ranks,
    config_and_overrides,
    path,
)
from launch.number_types import not_negative, positive
from launch.parser import Parser
from launch.rank import exit_process, run_rank


def main(argv: Sequence[str] | None = None, environ: Mapping[str, str] = os.environ) -> int:
    """Measure and return the exit code: 0 done, 1 failed, 2 the user's input was rejected."""

    def work(args: argparse.Namespace, world: World) -> None:
        try:
            result = measure(
                world, cache=default_cache(environ), warmup=args.warmup, steps=args.steps
            )
        except OutOfDeviceMemoryError:
            if args.result is not None:
                args.result.write_text("")  # on any rank: not all of them may be full
            raise
        text = json.dumps(asdict(result))
        if world.is_main and args.result is not None:
            args.result.write_text(text)
        elif world.is_main:
            print(text, flush=True)

    return run_rank(argv, environ, parse=parse, plan=plan, work=work)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="throughput_gpt.py",
        description="Measure training steps: one rank of the measurement.",
        examples=["torchrun --nproc_per_node 4 throughput_gpt.py --config gpt_configs/gpt2_2d.py"],
    )
    add_ranks(parser)
    parser.add_argument("--steps", type=positive, default=10, help="steps to measure; default: 10")
    parser.add_argument(
        "--warmup", type=not_negative, default=3, help="steps before them; default: 3"
    )
    parser.add_argument(
        "--result", type=path, metavar="FILE", help="file for the result; default: standard output"
    )
    add_launch_options(parser)
    add_config(parser, required=True)
    return parser.parse_intermixed_args(argv)


def plan(args: argparse.Namespace, launch_info: LaunchInfo, environ: Mapping[str, str]) -> Plan:
    """Return the plan to measure, which every rank makes for itself."""
    config, overrides = config_and_overrides(args)
    if config is None:
        raise UserError("no config file given: pass --config FILE")
    made = make_plan(config, gpus=launch_info.size, overrides=overrides, environ=environ)
    require_supported(made)
    return with_random_tokens(made)


if __name__ == "__main__":
    exit_process(main())
