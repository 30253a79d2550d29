"""What torchrun starts: one rank of a training run.

torchrun --nproc_per_node 8 train_gpt.py --config gpt_configs/gpt2_2d.py [KEY=VALUE ...]
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence

from engine.checkpoint.ways import Asked
from engine.context import open_world
from engine.data.source import default_cache
from engine.errors import Failed, Refused
from engine.loop import train
from engine.not_yet import not_yet
from engine.plan import Plan, make_plan
from engine.rendezvous import Place, locate, spokesman
from launch.arguments import Parser, add_config, add_place, add_run, config_and_overrides


def main(argv: Sequence[str] | None = None, environ: Mapping[str, str] = os.environ) -> int:
    """Train; the exit code: 0 done, 1 the run failed, 2 the user's input was refused."""
    try:
        args = parse(sys.argv[1:] if argv is None else argv)
        place = locate(
            environ,
            host=args.host,
            port=args.port,
            rank=args.rank,
            world_size=args.world_size,
            from_torch=args.from_torch,
        )
    except Refused as refusal:
        return refuse(refusal, environ)
    try:
        with open_world(lambda: plan(args, place, environ), place, backend=args.backend) as world:
            asked = Asked(resume=args.resume, output=args.output, new_data=args.allow_new_data)
            train(world, world.plan, asked, cache=default_cache(environ))
    except (Refused, Failed) as error:  # the world has told why, once over all ranks
        return 2 if isinstance(error, Refused) else 1
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(prog="train_gpt.py", description="Train a GPT; one process of a run.")
    for add in (add_run, add_place):
        add(parser)
    add_config(parser, required=True)
    return parser.parse_intermixed_args(argv)


def plan(args: argparse.Namespace, place: Place, environ: Mapping[str, str]) -> Plan:
    """What this rank is part of; all ranks work it out for themselves."""
    config, overrides = config_and_overrides(args)
    if config is None:
        raise Refused("which config? --config FILE")
    if args.gpus not in (None, place.size):
        raise Refused(f"--gpus {args.gpus}, but {place.size} ranks were started")
    made = make_plan(config, gpus=place.size, overrides=overrides, environ=environ)
    if refused := not_yet(made):
        raise Refused("\n".join(refused))
    return made


def refuse(refusal: Refused, environ: Mapping[str, str]) -> int:
    """Before ranks can meet, every rank refuses by itself, and torchrun ends all when one leaves:
    the others give rank 0 the time to speak."""
    if spokesman(environ):
        print(refusal, file=sys.stderr, flush=True)
    else:
        time.sleep(5)
    return 2


if __name__ == "__main__":
    sys.exit(main())
