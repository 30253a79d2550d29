"""What it takes of rank 0 that every rank looks for a failure."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from dataclasses import replace

import psutil
import pytest
from torch.distributed import HashStore

from engine.world.coordination import liveness
from engine.world.coordination.liveness import (
    ANSWER_SECONDS,
    POLLS_PER_SECOND,
    LivenessMonitor,
    RankProcess,
    poll_interval,
)

HERE = RankProcess.current()


def test_a_process_is_told_from_others_of_its_number() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        try:
            process = psutil.Process(child.pid)
            other = replace(HERE, pid=child.pid, started=process.create_time())
            assert other.state(HERE) == "running"
            process.suspend()
            while other.state(HERE) != "stopped":
                time.sleep(0.01)
            assert replace(other, started=other.started - 60).state(HERE) == "gone"
            assert replace(other, booted=other.booted - 60).state(HERE) == ""
            assert replace(other, host="elsewhere").state(HERE) == ""
        finally:
            child.kill()
    assert other.state(HERE) == "gone"


def test_many_ranks_look_less_often_and_still_answer_in_time() -> None:
    assert poll_interval(0.25, 8) == 0.25
    assert 1000 / poll_interval(0.25, 1000) <= POLLS_PER_SECOND
    assert poll_interval(0.25, 10**6) < ANSWER_SECONDS


def test_a_killed_rank_is_gone_although_its_connections_close_before_it_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(liveness, "ANSWER_SECONDS", 3600.0)  # however late the signal is sent
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        started = psutil.Process(child.pid).create_time()
        processes = [replace(HERE, pid=child.pid, started=started), HERE]
        roll = LivenessMonitor(HashStore(), 1, processes, failed="failed", reachable=lambda: False)
        assert "does not answer" in roll.describe([0], "")
        threading.Timer(0.3, child.kill).start()
        roll.wait_until_dead(0)
        assert roll.describe([0], "").endswith("is gone: killed, or out of memory")


def between_looks(ranks: int) -> float:
    """Seconds between two looks of one of so many ranks; a busy machine can only add to them."""
    times: list[float] = []
    looked_twice = threading.Event()

    def reachable() -> bool:
        times.append(time.monotonic())
        if len(times) == 2:
            looked_twice.set()
        return True

    roll = LivenessMonitor(HashStore(), 0, [HERE] * ranks, failed="failed", reachable=reachable)
    roll.start()
    looked_twice.wait()
    roll.stop()
    return times[1] - times[0]


def test_many_ranks_keep_to_it() -> None:
    assert 250 / between_looks(250) <= POLLS_PER_SECOND
