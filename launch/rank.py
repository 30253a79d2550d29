"""One rank of whatever torchrun started: from its arguments to its exit code."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NoReturn

from engine.errors import RunError, UserError
from engine.output import MAX_STALL_SECONDS, install_unfailing_streams
from engine.plan import Plan
from engine.world.coordination.launch_environment import LaunchInfo, find_launch_info, is_rank_0
from engine.world.distributed import Restart, open_world
from engine.world.signals import unblock_signals

if TYPE_CHECKING:
    from engine.world.world import World


REPORT_SECONDS = 30.0
"""How long other ranks leave to rank 0, which a busy machine may start later, to print a refusal of
their common arguments. torchrun and mpirun end them once rank 0 has left."""


def run_rank(
    argv: Sequence[str] | None,
    environ: Mapping[str, str],
    *,
    parse: Callable[[Sequence[str]], argparse.Namespace],
    plan: Callable[[argparse.Namespace, LaunchInfo, Mapping[str, str]], Plan],
    work: Callable[[argparse.Namespace, World], None],
    restart: Callable[[argparse.Namespace, LaunchInfo], Restart] | None = None,
) -> int:
    """Do the ``work`` in the world that the arguments, with those of ``add_launch_options``, and
    the launcher's environment say. ``argv``: None for those of this process. The exit code: 0
    done, 1 it failed, 2 the user's input was refused.
    """
    install_unfailing_streams(MAX_STALL_SECONDS)
    try:
        args = parse(sys.argv[1:] if argv is None else argv)
        launch_info = find_launch_info(
            environ,
            host=args.host,
            port=args.port,
            rank=args.rank,
            world_size=args.world_size,
            from_torch=args.from_torch,
            local_rank=args.local_rank,
        )
    except UserError as refusal:
        return report_user_error(refusal, environ)
    try:
        with open_world(
            lambda: plan(args, launch_info, environ),
            launch_info,
            restart=restart(args, launch_info) if restart else None,
            backend=args.backend,
            lost_pids_file=args.told,
        ) as world:
            work(args, world)
    except (UserError, RunError) as error:  # the world has told why, once over all ranks
        return 2 if isinstance(error, UserError) else 1
    return 0


def exit_process(code: int) -> NoReturn:
    """End the process; at once where the run failed, since a thread that still waits for a rank
    that is gone would abort it on its way out."""
    sys.stdout.flush()
    sys.stderr.flush()
    if code == 1:
        os._exit(code)
    sys.exit(code)


def report_user_error(refusal: UserError, environ: Mapping[str, str]) -> int:
    """Before ranks can meet, every rank refuses by itself, and torchrun ends all when one leaves:
    the others give rank 0 the time to speak."""
    unblock_signals()  # torchrun's
    if is_rank_0(environ):
        print(refusal, file=sys.stderr, flush=True)
    else:
        time.sleep(REPORT_SECONDS)
    return 2
