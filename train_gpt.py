"""What torchrun starts: one rank of a training run.

torchrun --nproc_per_node 8 train_gpt.py --config gpt_configs/gpt2_2d.py [KEY=VALUE ...]
"""

from __future__ import annotations

from engine.world.signals import hold_signals

if __name__ == "__main__":
    hold_signals()  # until the rank can say that it was stopped: importing torch takes seconds

import argparse
import os
from collections.abc import Mapping, Sequence

from engine.data.source import default_cache
from engine.errors import Refused
from engine.faults import planted
from engine.plan import Plan, make_plan
from engine.runs import restart as again
from engine.runs.plan_from_run import plan_of_run
from engine.train import train
from engine.unsupported import refuse_not_yet
from engine.world.distributed import Restart
from engine.world.launch_environment import Place
from engine.world.world import World
from launch.arguments import (
    Parser,
    add_config,
    add_place,
    add_run,
    beginning,
    config_and_overrides,
    run_to_resume,
)
from launch.rank import leave, run_rank
from launch.torchrun import note_stop


def main(argv: Sequence[str] | None = None, environ: Mapping[str, str] = os.environ) -> int:
    """Train; the exit code: 0 done, 1 the run failed, 2 the user's input was refused."""

    def work(args: argparse.Namespace, world: World) -> None:
        fault = world.agree(lambda: planted(environ.get("FAULT", ""), world.rank, world.attempt))
        cache, asked = default_cache(environ), beginning(args)
        finished = train(world, world.plan, asked, cache=cache, fault=fault)
        if not finished and world.is_main and args.told is not None:
            note_stop(args.told)

    return run_rank(argv, environ, parse=parse, plan=plan, work=work, restart=restart)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="train_gpt.py",
        description="Train a GPT; one process of a run.",
        examples=["torchrun --nproc_per_node 4 train_gpt.py --config gpt_configs/gpt2_2d.py"],
    )
    for add in (add_run, add_place):
        add(parser)
    add_config(parser, required=False)
    return parser.parse_intermixed_args(argv)


def plan(args: argparse.Namespace, place: Place, environ: Mapping[str, str]) -> Plan:
    """What this rank is part of; all ranks work it out for themselves."""
    beginning(args)  # refuses what contradicts itself
    if args.gpus not in (None, place.size):
        raise Refused(f"--gpus {args.gpus}, but {place.size} ranks were started")
    config, overrides = config_and_overrides(args)
    if config is not None:
        made = make_plan(config, gpus=place.size, overrides=overrides, environ=environ)
    else:
        made = plan_of_run(run_to_resume(args), gpus=place.size, overrides=overrides)
    refuse_not_yet(made)
    return made


def restart(args: argparse.Namespace, place: Place) -> Restart:
    """How this launch goes on where it was here before, whatever the config holds by now."""
    config, overrides = config_and_overrides(args)
    name = config.stem if config else ""
    return again.restart(name=name, size=place.size, overrides=overrides, asked=beginning(args))


if __name__ == "__main__":
    leave(main())
