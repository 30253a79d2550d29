"""Processes of ranks, answers after a failure, and the load of polling on rank 0."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import psutil
import pytest
import torch
import torch.distributed as dist
from torch.distributed import HashStore, PrefixStore
from torch.distributed.c10d_logger import _exception_logger

from engine.world.coordination import liveness
from engine.world.coordination.control_plane import ControlPlane
from engine.world.coordination.launch_environment import LaunchInfo
from engine.world.coordination.liveness import (
    ANSWER_SECONDS,
    POLLS_PER_SECOND,
    LivenessMonitor,
    RankProcess,
    poll_interval,
)
from models.parallel.collectives import Axis, Traffic
from tests.support.runs import pretended

THIS = RankProcess.current()


def monitor(
    rank: int = 0, *, processes: list[RankProcess] | None = None, store: HashStore | None = None
) -> LivenessMonitor:
    """Return a monitor of ranks that are all this process, unless ``processes`` are given."""
    return LivenessMonitor(
        store or HashStore(),
        rank,
        processes or [THIS, THIS],
        failed="failed",
        reachable=lambda: True,
    )


def test_process_state_depends_on_machine_and_start_time() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        try:
            process = psutil.Process(child.pid)
            other = replace(THIS, pid=child.pid, started=process.create_time())
            assert other.state(THIS) == "running"
            process.suspend()
            while other.state(THIS) != "suspended":
                time.sleep(0.01)
            assert replace(other, started=other.started - 60).state(THIS) == "dead"
            assert replace(other, booted=other.booted - 60).state(THIS) == ""
            assert replace(other, host="elsewhere").state(THIS) == ""
        finally:
            child.kill()
    assert other.state(THIS) == "dead"


def test_poll_interval_grows_with_the_ranks_and_stays_below_the_answer_timeout() -> None:
    assert poll_interval(0.25, 8) == 0.25
    assert 1000 / poll_interval(0.25, 1000) <= POLLS_PER_SECOND
    assert poll_interval(0.25, 10**6) < ANSWER_SECONDS


def test_killed_rank_is_reported_dead_though_its_connections_close_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(liveness, "ANSWER_SECONDS", 3600.0)  # however late the signal is sent
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        started = psutil.Process(child.pid).create_time()
        processes = [replace(THIS, pid=child.pid, started=started), THIS]
        survivor = monitor(1, processes=processes)
        assert survivor.describe([0], " within 1 s").endswith("did not respond within 1 s")
        threading.Timer(0.3, child.kill).start()
        survivor.wait_until_dead(0)
        assert survivor.describe([0], "").endswith("is dead: killed, or out of memory")


def interval_between_polls(ranks: int) -> float:
    """Return the seconds between two polls of one of ``ranks`` ranks; a busy machine can only add
    to them."""
    times: list[float] = []
    polled_twice = threading.Event()

    def reachable() -> bool:
        times.append(time.monotonic())
        if len(times) == 2:
            polled_twice.set()
        return True

    poller = LivenessMonitor(HashStore(), 0, [THIS] * ranks, failed="failed", reachable=reachable)
    poller.start()
    polled_twice.wait()
    poller.stop()
    return times[1] - times[0]


def test_poll_rate_of_many_ranks_stays_below_its_limit() -> None:
    assert 250 / interval_between_polls(250) <= POLLS_PER_SECOND


def test_rank_that_exits_after_the_failure_of_another_rank_is_not_blamed() -> None:
    store = HashStore()
    leaving = monitor(1, store=store)
    leaving.start()
    store.set("failed", "1")
    leaving.stop()
    answers = PrefixStore("here", store)
    assert answers.check(["1"])
    assert answers.get("1") == b""


# The source line of the main thread


def published_line(wait: Callable[[Callable[..., Any]], object]) -> str:
    """Return the line that a rank would publish while its main thread is in ``wait(call)``, at the
    moment when that runs ``call``."""
    lines: list[str] = []

    def call(*args: object, **more: object) -> None:
        thread = threading.Thread(target=lambda: lines.append(monitor()._current_line()))
        thread.start()
        thread.join()

    wait(call)
    return lines[0]


def wait_in_collective(call: Callable[..., Any]) -> None:
    with pytest.MonkeyPatch.context() as patch, pretended(0, 2):
        group = dist.group.WORLD
        axis = Axis(name="data", size=2, index=0, group=group, traffic=Traffic())
        patch.setattr(dist, "irecv", call)
        axis.start_receive(torch.ones(1), 1)


def wait_in_torch(call: Callable[..., Any]) -> None:
    _exception_logger(call)()  # around every collective of torch.distributed


def wait_in_control_plane(call: Callable[..., Any]) -> None:
    info = LaunchInfo(rank=0, size=2, launcher="by hand")
    plane = ControlPlane(info, stop_requested=lambda: False, explain=lambda error: None)
    plane.set_timeout(3600.0)

    def sleep(seconds: float) -> None:
        call()
        plane.store.set("1/1", "")  # the value that rank 0 waits for

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "sleep", sleep)
        plane.all_gather("")


@pytest.mark.parametrize("wait", [wait_in_collective, wait_in_torch, wait_in_control_plane])
def test_rank_that_waits_for_others_publishes_no_line(
    wait: Callable[[Callable[..., Any]], object],
) -> None:
    assert published_line(wait) == ""


def test_busy_rank_publishes_its_line() -> None:
    assert re.search(r"\.py:\d+, in \w+$", published_line(lambda call: call()))
