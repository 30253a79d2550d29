"""Starts torchrun on one node of a Slurm job; slurm_job.sh runs this file by its path.

Slurm signals either all processes of a node or, with proctrack/pgid, only the group of the process
that it has started. Ranks are in groups of their own: torchrun passes SIGTERM on to them, and kills
them 30 s later. SIGUSR1, which announces the time limit, is passed on by this process and not by
torchrun: the ranks save and exit, and torchrun ends once they have.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from types import FrameType

import psutil


def main(arguments: list[str]) -> int:
    """Run torchrun with ``arguments`` and return its exit code."""
    # First: until torchrun runs, there is no rank to signal
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    torchrun = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *arguments], preexec_fn=_block
    )

    def pass_on(number: int, frame: FrameType | None) -> None:
        for rank in psutil.Process(torchrun.pid).children():
            rank.send_signal(number)

    signal.signal(signal.SIGUSR1, pass_on)
    # Slurm sends these to torchrun, too: this process only waits for it
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, frame: None)
    code = torchrun.wait()
    return code if code >= 0 else 128 - code


def _block() -> None:
    """Block SIGUSR1 in torchrun, which it would end, and in the ranks until they unblock it."""
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
