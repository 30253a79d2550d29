"""A world of processes for a test: gloo on one machine, one function on every rank."""

from __future__ import annotations

import contextlib
import datetime
import multiprocessing
import os
import pickle
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from engine.world.coordination.launch_environment import LOOPBACK
from engine.world.signals import STOP_SIGNALS

# Ranks are forked from a server that has imported all of this but never computed with it: a fork
# costs milliseconds, and no thread pool is lost on the way.
PRELOAD = ["tests.support.preload"]
# Bounds for ranks that hang, far above what healthy ranks need on a busy machine: for all of a
# world's work, and for the other ranks to report their own error once one rank has failed.
TIMEOUT_SECONDS = 1000.0
GRACE_SECONDS = 60.0


class WorldError(Exception):
    """Ranks of a world failed. `failures` maps each to its traceback, the first to fail first."""

    def __init__(self, failures: dict[int, str]) -> None:
        self.failures = failures
        super().__init__("\n".join(f"rank {rank}: {text}" for rank, text in failures.items()))


def run_world(
    size: int,
    function: Callable[..., Any],
    *args: Any,
    timeout: float = TIMEOUT_SECONDS,
    grace: float = GRACE_SECONDS,
    open_group: bool = True,
    preload: Sequence[str] = PRELOAD,
) -> list[Any]:
    """Run `function(rank, size, *args)` on `size` ranks and return their results by rank.

    `function` must be importable (defined at the top of a module); arguments and results are
    pickled, so each rank has its own copy. Every rank has one thread, and the default gloo group
    is open unless `open_group=False`. All processes started here are gone on return. `preload`:
    the modules that ranks find imported; those of a process' first world hold for all.

    Raises:
        WorldError: a rank raised, died or was still running after `timeout` seconds, or `grace`
            seconds after another rank raised or died.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    job = pickle.dumps((function, args))
    processes: list[ForkServerProcess] = []
    pipes: dict[Connection, int] = {}
    with tempfile.TemporaryDirectory(prefix="world-") as folder:
        store = str(Path(folder) / "store") if open_group else None
        try:
            for rank in range(size):
                ours, theirs = context.Pipe(duplex=False)
                process = context.Process(
                    target=_rank_main, args=(theirs, rank, size, job, store, timeout), daemon=True
                )
                process.start()
                theirs.close()
                processes.append(process)
                pipes[ours] = rank
            return _collect(pipes, size, timeout, grace)
        finally:
            for pipe in pipes:
                pipe.close()
            for process in processes:
                process.join(grace if sys.exc_info()[0] is None else 0)
                if process.is_alive():
                    process.kill()
                    process.join()
                process.close()


@contextlib.contextmanager
def free_port() -> Iterator[int]:
    """Yield a port at which ranks can connect. It stays bound, without listening, so that no other
    process gets it."""
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind((LOOPBACK, 0))
        yield held.getsockname()[1]


def _collect(pipes: dict[Connection, int], size: int, timeout: float, grace: float) -> list[Any]:
    deadline = time.monotonic() + timeout
    results: dict[int, Any] = {}
    failures: dict[int, str] = {}
    waiting = dict(pipes)
    while waiting:
        ready = wait(list(waiting), max(0.0, deadline - time.monotonic()))
        if not ready:
            reason = "was still running" if failures else f"was still running after {timeout:.0f} s"
            failures |= dict.fromkeys(waiting.values(), reason)
            break
        for pipe in ready:
            assert isinstance(pipe, Connection)
            rank = waiting.pop(pipe)
            try:
                worked, value = pickle.loads(pipe.recv_bytes())
            except EOFError:
                worked, value = False, "died without a word"
            if worked:
                results[rank] = value
            else:
                failures[rank] = value
                deadline = min(deadline, time.monotonic() + grace)
    if failures:
        raise WorldError(failures)
    return [results[rank] for rank in range(size)]


def default_signals() -> None:
    """Restore the default effect of signals that stop a run: the parent of this process may ignore
    some, as nohup and background jobs of scripts do."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _rank_main(
    pipe: Connection, rank: int, size: int, job: bytes, store: str | None, timeout: float
) -> None:
    import torch
    import torch.distributed as dist

    default_signals()
    torch.set_num_threads(1)
    if sys.platform == "linux":  # the host's name need not resolve where tests run
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        # gloo's thread polls while its rank sends. A rank that is woken would interrupt a sender.
        with contextlib.suppress(OSError):  # some containers allow one policy only
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    try:
        function, args = pickle.loads(job)
        if store is not None:
            dist.init_process_group(
                "gloo",
                init_method=f"file://{store}",
                rank=rank,
                world_size=size,
                timeout=datetime.timedelta(seconds=timeout),
            )
        # Plain pickle: torch's own would send a tensor as a handle that dies with this process.
        message = pickle.dumps((True, function(rank, size, *args)))
    except BaseException:
        message = pickle.dumps((False, traceback.format_exc()))
    with contextlib.suppress(BrokenPipeError):
        pipe.send_bytes(message)
    if dist.is_initialized():
        dist.destroy_process_group()
