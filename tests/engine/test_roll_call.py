"""What it takes of rank 0 that every rank looks for a failure."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace

import psutil
from torch.distributed import HashStore

from engine.roll_call import ANSWER_SECONDS, LOOKS_PER_SECOND, Process, RollCall, spaced

HERE = Process.this()


def test_a_process_is_told_from_others_of_its_number() -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as child:
        try:
            process = psutil.Process(child.pid)
            other = replace(HERE, pid=child.pid, started=process.create_time())
            assert other.state(HERE) == "running"
            process.suspend()
            deadline = time.monotonic() + 10
            while other.state(HERE) != "stopped" and time.monotonic() < deadline:
                time.sleep(0.01)
            assert other.state(HERE) == "stopped"
            assert replace(other, started=other.started - 60).state(HERE) == "gone"
            assert replace(other, booted=other.booted - 60).state(HERE) == ""
            assert replace(other, host="elsewhere").state(HERE) == ""
        finally:
            child.kill()
    assert other.state(HERE) == "gone"


def test_many_ranks_look_less_often_and_still_answer_in_time() -> None:
    assert spaced(0.25, 8) == 0.25
    assert 1000 / spaced(0.25, 1000) <= LOOKS_PER_SECOND
    assert spaced(0.25, 10**6) < ANSWER_SECONDS


def looks(ranks: int, seconds: float) -> float:
    """How many times a second one of so many ranks looks."""
    times: list[float] = []

    def reachable() -> bool:
        times.append(time.monotonic())
        return True

    roll = RollCall(HashStore(), 0, [HERE] * ranks, failed="failed", reachable=reachable)
    began = time.monotonic()
    roll.start()
    time.sleep(seconds)
    roll.stop()
    return len(times) / (time.monotonic() - began)


def test_a_rank_of_a_thousand_keeps_to_it() -> None:
    assert looks(1000, 1.0) * 1000 <= LOOKS_PER_SECOND
    assert looks(1, 1.0) > 0, "nothing would be found"
