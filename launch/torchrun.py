"""Starts the ranks of a run on this machine under torchrun, and says how they ended."""

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
"""The line in the file of a launcher's ranks for a run that was stopped before its end."""


def processes(model_ranks: int, gpus: int, asked: int | None = None) -> int:
    """How many ranks to start, where one copy of the model takes ``model_ranks`` (TENSOR_PARALLEL x
    PIPELINE): as many as there are ``gpus``, in whole copies; one copy on a CPU; or what is asked.

    Raises:
        UserError: there are GPUs, but too few for one copy.
    """
    if asked is not None:
        return asked
    if gpus == 0:
        return model_ranks
    if gpus < model_ranks:
        raise UserError(
            f"TENSOR_PARALLEL x PIPELINE takes {model_ranks} GPUs, and this machine has {gpus}; "
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
    """torchrun's own arguments for ``ranks`` processes of ``program`` with ``arguments``, started
    again up to ``restarts`` times when one fails; ``logs`` is a folder for torchrun to write in.
    It passes ``signals`` on to the ranks."""
    spec = find_spec(program)
    assert spec is not None
    assert spec.origin is not None
    # By its path: of `-m train_gpt` there may be another in the folder the user is in.
    return [
        "--standalone",
        "--local-addr=127.0.0.1",  # its host name may not resolve: ranks would wait
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
    """Run ``program`` with ``arguments`` on ``ranks`` processes of this machine, inside this
    process, which hears of signals and of how each rank ended; the exit code of ``cuboid``. A run
    that fails is started again up to ``restarts`` times."""
    signals = handled_signals()  # before torchrun takes over SIGHUP, which would undo `nohup`
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // ranks)))
    # A rank that loses its store would print a C++ trace for what it then says in words.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    # What torchrun says of a failure is not for users, who have been told by the rank.
    quiet = logging.getLogger("torch.distributed.elastic")
    quiet.addHandler(logging.NullHandler())
    quiet.propagate = False
    # torchrun leaves a folder of its own behind; without any (/dev/null) its threads never end
    # after a second signal.
    with TemporaryDirectory(prefix="cuboid-", ignore_cleanup_errors=True) as logs:
        lost_pids_file = Path(logs) / "told"
        lost_pids_file.touch()
        handed = [*arguments, f"--told={lost_pids_file}"]
        try:
            torchrun.main(
                command(
                    ranks,
                    handed,
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
            # A timer of torchrun's that is deleted in its own thread cannot join it, and says so.
            sys.unraisablehook = lambda failure: None
            # At a second signal torchrun would go before its ranks, which still save. Only a
            # second Ctrl-C asks for more than the first signal.
            with suppress(ChildProcessError, SignalException):
                for number in signals:
                    if number != signal.SIGINT:
                        signal.signal(number, signal.SIG_IGN)
                while True:
                    os.wait()
            return 1
        return 1 if STOPPED in lost_pids_file.read_text().splitlines() else 0


def note_stop(lost_pids_file: Path) -> None:
    """Note for the launcher that a signal to its ranks alone stopped the run. They exit with 0, or
    torchrun would start the run again."""
    with suppress(OSError), lost_pids_file.open("a") as file:  # the launcher may be gone
        file.write(f"{STOPPED}\n")


def exit_code(failures: dict[int, ProcessFailure], reported: Collection[int] = ()) -> int:
    """2 where a rank refused, else 1. Names ranks that were killed, which cannot tell, but for
    processes of which another rank has ``told`` that they are gone."""
    for rank, failure in sorted(failures.items()):
        # Others get SIGTERM from torchrun.
        silent = failure.exitcode == -signal.SIGKILL and failure.pid in reported
        if failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM and not silent:
            hint = " (out of memory?)" if failure.exitcode == -signal.SIGKILL else ""
            print(f"rank {rank} was killed by {failure.signal_name()}{hint}", file=sys.stderr)
    return 2 if any(failure.exitcode == 2 for failure in failures.values()) else 1
