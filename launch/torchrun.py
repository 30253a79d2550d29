"""Starts the ranks of a run on this machine under torchrun and returns cuboid's exit code."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Collection, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from engine.errors import UserError
from engine.world.processor import usable_cores
from engine.world.signals import STOP_SIGNALS, handled_signals

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

STOPPED = "stopped"
"""The line that a rank appends to the lost-PIDs file if a signal stopped the run early."""


def ranks_to_start(model_ranks: int, gpus: int, requested: int | None = None) -> int:
    """Return the number of ranks to start: ``requested`` if given, one copy of the model without
    GPUs, else as many whole copies as there are GPUs for.

    model_ranks: ranks of one copy of the model, TENSOR_PARALLEL x PIPELINE.

    Raises:
        UserError: there are GPUs, but too few for one copy.
    """
    if requested is not None:
        return requested
    if gpus == 0:
        return model_ranks
    if gpus < model_ranks:
        raise UserError(
            f"TENSOR_PARALLEL x PIPELINE needs {model_ranks} GPUs, but this machine has {gpus}; "
            f"--gpus {model_ranks} lets ranks share them, which is slow"
        )
    return gpus - gpus % model_ranks


def command(
    ranks: int,
    arguments: Sequence[str],
    *,
    logs: Path,
    signals: Collection[signal.Signals] = STOP_SIGNALS,
    program: str = "train_gpt",
    restarts: int = 0,
) -> list[str]:
    """Return torchrun's arguments.

    ranks: number of processes.
    arguments: arguments of the program.
    logs: folder for torchrun's logs.
    signals: signals that torchrun passes on to the ranks.
    program: module to run.
    restarts: how often torchrun restarts the ranks when one fails.
    """
    spec = find_spec(program)
    assert spec is not None
    assert spec.origin is not None
    # By path, because `-m train_gpt` would find a file of that name in the current folder.
    return [
        "--standalone",
        "--local-addr=127.0.0.1",  # the host name may not resolve: ranks would wait forever
        f"--nproc_per_node={ranks}",
        f"--max_restarts={restarts}",
        f"--log_dir={logs}",
        f"--signals_to_handle={','.join(number.name for number in signals)}",
        spec.origin,
        *arguments,
    ]


def run(
    ranks: int, arguments: Sequence[str], *, program: str = "train_gpt", restarts: int = 0
) -> int:
    """Run ``program`` with ``arguments`` as ``ranks`` processes of this machine and return the exit
    code of ``cuboid``. Ranks that fail are restarted up to ``restarts`` times.

    torchrun runs inside this process, which so learns the signals and how each rank ended.
    """
    # Before torchrun installs its handler of SIGHUP, which would undo `nohup`.
    signals = handled_signals()
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // ranks)))
    # A rank that loses its store would print a C++ trace before its own message.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    # The rank has printed why it failed: suppress torchrun's report of the failure.
    elastic = logging.getLogger("torch.distributed.elastic")
    elastic.addHandler(logging.NullHandler())
    elastic.propagate = False
    # torchrun never removes its log folder; with /dev/null instead its threads would never end
    # after a second signal.
    with TemporaryDirectory(prefix="cuboid-", ignore_cleanup_errors=True) as logs:
        lost_pids_file = Path(logs) / "lost-pids"
        lost_pids_file.touch()
        program_arguments = [*arguments, f"--lost-pids-file={lost_pids_file}"]
        try:
            torchrun.main(
                command(
                    ranks,
                    program_arguments,
                    logs=Path(logs),
                    signals=signals,
                    program=program,
                    restarts=restarts,
                )
            )
        except ChildFailedError as error:
            lines = set(lost_pids_file.read_text().splitlines()) - {STOPPED}
            return exit_code(error.failures, reported={int(line) for line in lines})
        except SignalException:
            # torchrun deletes a timer in the timer's own thread, which prints a failed join.
            sys.unraisablehook = lambda failure: None
            # At a second signal torchrun would exit before its ranks, which still save. Only a
            # second Ctrl-C demands more than the first signal did.
            with suppress(ChildProcessError, SignalException):
                for number in signals:
                    if number != signal.SIGINT:
                        signal.signal(number, signal.SIG_IGN)
                while True:
                    os.wait()
            return 1
        return 1 if STOPPED in lost_pids_file.read_text().splitlines() else 0


def note_stop(lost_pids_file: Path) -> None:
    """Record for the launcher that a signal to the ranks alone stopped the run. The ranks exit with
    0, because torchrun would restart them otherwise."""
    with suppress(OSError), lost_pids_file.open("a") as file:  # the launcher may have exited
        file.write(f"{STOPPED}\n")


def exit_code(failures: dict[int, ProcessFailure], reported: Collection[int] = ()) -> int:
    """Print which ranks were killed and return the exit code: 2 if a rank rejected the user's
    input, else 1.

    reported: PIDs of lost ranks that another rank has reported, which are not printed again.
    """
    for rank, failure in sorted(failures.items()):
        silent = failure.exitcode == -signal.SIGKILL and failure.pid in reported
        # SIGTERM is how torchrun stops the other ranks.
        if failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM and not silent:
            hint = " (out of memory?)" if failure.exitcode == -signal.SIGKILL else ""
            print(f"rank {rank} was killed by {failure.signal_name()}{hint}", file=sys.stderr)
    return 2 if any(failure.exitcode == 2 for failure in failures.values()) else 1
