"""Programs and worlds of a check, with a log and a timeout; all their processes are killed at the
end. Imports no torch."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from engine.world.signals import stop_with_parent
from tests.support.worlds import PRELOAD, WorldError, run_world

MARK = "GPU_CHECK"
"""An environment variable of every process of a check; its value identifies the check."""
WARM = [*PRELOAD, "train_gpt", "benchmarks.gpu_check.rank_tasks"]


class CaseFailedError(Exception):
    """A case failed; the message is printed in the table."""


def run_program(arguments: list[str], log: Path, timeout: float, **environ: str) -> str:
    """Run Python with the ``arguments`` and return its output, which also goes to ``log``.

    Raises:
        CaseFailedError: the exit code is not 0, or the program was killed after ``timeout``.
    """
    started = time.monotonic()
    with log.open("a") as file:
        begin = file.tell()
        process = subprocess.Popen(
            [sys.executable, *arguments],
            env={**os.environ, **environ},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise CaseFailedError(f"timed out after {time.monotonic() - started:.0f} s") from None
        finally:
            if process.poll() is None:  # the id of an ended process may be reused
                end(process.pid)
                process.wait()
    with log.open() as file:
        file.seek(begin)
        output = file.read()
    if code:
        raise CaseFailedError(f"exit code {code}: {last_line(output)}")
    return output


def run_ranks(size: int, work: str, *arguments: Any, log: Path, timeout: float) -> list[Any]:
    """Run ``work(rank, size, *arguments)`` of benchmarks/gpu_check/rank_tasks.py on forked
    processes and return the results by rank; what the ranks print goes to ``log``.

    Raises:
        CaseFailedError: a rank raised, died or was killed after ``timeout``.
    """
    try:
        return run_world(
            size,
            on_rank,
            log,
            work,
            arguments,
            timeout=timeout,
            grace=15.0,
            open_group=False,
            preload=WARM,
        )
    except WorldError as error:
        rank, trace = next(iter(error.failures.items()))
        with log.open("a") as file:
            file.write(f"{error}\n")
        raise CaseFailedError(f"rank {rank}: {last_line(trace)}") from None


def on_rank(rank: int, size: int, log: Path, work: str, arguments: tuple[Any, ...]) -> Any:
    """Run the function ``work`` on this rank; its module, which imports torch, is imported here."""
    die_with_parent()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for number in (1, 2):
        os.dup2(descriptor, number)
    module = importlib.import_module("benchmarks.gpu_check.rank_tasks")
    return getattr(module, work)(rank, size, *arguments)


def die_with_parent() -> None:
    """Let the kernel (Linux) kill this process when its parent ends."""
    stop_with_parent(signal.SIGKILL)


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no output"


def end(pid: int) -> None:
    """Kill a process that we started, and its descendants."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for one in [*process.children(recursive=True), process]:
            with suppress(psutil.NoSuchProcess):
                one.kill()


def end_strays(mark: str, grace: float = 0.0) -> list[str]:
    """Kill all processes of a check except this one and its multiprocessing servers; return the
    command lines of the killed processes.

    Processes that end by themselves within ``grace`` seconds are not killed: torch's compile
    workers notice the end of their parent with a delay.
    """
    servers = set()
    for child in psutil.Process().children():
        with suppress(psutil.Error):  # the process has just ended
            if any("from multiprocessing." in word for word in child.cmdline()):
                servers.add(child.pid)
    strays = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.pid in {os.getpid(), *servers} or process.environ().get(MARK) != mark:
                continue
            if process.status() != psutil.STATUS_ZOMBIE:
                strays.append(process)
    killed = []
    for process in psutil.wait_procs(strays, timeout=grace)[1]:
        with suppress(psutil.Error):
            killed.append(" ".join(process.cmdline())[:200])
            process.kill()
    return killed


def stop_on_signals() -> None:
    """Let SIGTERM and SIGHUP raise KeyboardInterrupt, as Ctrl-C does."""

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)


def environment(mark: str, path: list[Path]) -> Mapping[str, str]:
    """Return the environment variables that a check sets for all its processes."""
    theirs = [str(one) for one in path]
    if before := os.environ.get("PYTHONPATH"):
        theirs.append(before)
    return {
        MARK: mark,
        "PYTHONPATH": os.pathsep.join(theirs),
        # A process that has queried CUDA for its GPUs cannot fork children that use them.
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
    }
