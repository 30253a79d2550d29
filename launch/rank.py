"""The main function of a rank: from its arguments to its exit code."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NoReturn

from engine.errors import RunError, UserError
from engine.plan import Plan
from engine.world.coordination.launch_environment import LaunchInfo, find_launch_info, is_rank_0
from engine.world.distributed import RestartCallbacks, open_world
from engine.world.signals import unblock_signals
from launch.standard_streams import MAX_STALL_SECONDS, install_unfailing_streams

if TYPE_CHECKING:
    from engine.world.world import World


REPORT_SECONDS = 30.0
"""Seconds that the other ranks wait for rank 0, which may start later on a busy machine, to report
invalid arguments. torchrun and mpirun kill them once rank 0 has exited."""


def run_rank(
    argv: Sequence[str] | None,
    environ: Mapping[str, str],
    *,
    parse: Callable[[Sequence[str]], argparse.Namespace],
    plan: Callable[[argparse.Namespace, LaunchInfo, Mapping[str, str]], Plan],
    work: Callable[[argparse.Namespace, World], None],
    restart: Callable[[argparse.Namespace, LaunchInfo], RestartCallbacks] | None = None,
) -> int:
    """Connect this rank to the others, run ``work`` and return the exit code: 0 done, 1 the run
    failed, 2 the user's input was rejected.

    argv: the arguments, among them those of ``add_launch_options``; None: this process's.
    environ: the environment, which the launcher of the ranks has filled.
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
            lost_pids_file=args.lost_pids_file,
        ) as world:
            work(args, world)
    except (UserError, RunError) as error:  # open_world has printed it, once for all ranks
        return 2 if isinstance(error, UserError) else 1
    return 0


def exit_process(code: int) -> NoReturn:
    """Exit the process; after a failure by os._exit, because a thread that still waits for a lost
    rank would abort a normal exit."""
    sys.stdout.flush()
    sys.stderr.flush()
    if code == 1:
        os._exit(code)
    sys.exit(code)


def report_user_error(refusal: UserError, environ: Mapping[str, str]) -> int:
    """Report invalid arguments before the ranks are connected and return exit code 2.

    Only rank 0 prints. The others sleep REPORT_SECONDS, because torchrun kills all ranks as soon as
    one exits.
    """
    unblock_signals()  # so that torchrun can stop a sleeping rank
    if is_rank_0(environ):
        print(refusal, file=sys.stderr, flush=True)
    else:
        time.sleep(REPORT_SECONDS)
    return 2
