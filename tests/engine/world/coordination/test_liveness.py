"""Processes of ranks, answers after a failure, and the load of polling on rank 0."""

from __future__ import annotations

import errno
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import psutil
import pytest
import torch
import torch.distributed as dist
from torch.distributed import HashStore, PrefixStore
from torch.distributed.checkpoint import DefaultSavePlanner, save

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
from models.parallel.collectives import Axis, Handle, Traffic
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


Act = Callable[[Callable[[], None]], object]


def published_line(act: Act, rank: LivenessMonitor | None = None) -> str:
    """Return the line that ``rank`` would publish while its main thread runs ``act(join)``, at the
    moment when that calls ``join()``: it joins a thread, which waits for this moment."""
    lines: list[str] = []
    begun: list[bool] = []
    main = threading.main_thread().ident or 0

    def observe() -> None:
        while not begun or sys._current_frames()[main].f_globals["__name__"] != threading.__name__:
            time.sleep(0.001)
        lines.append((rank or monitor())._current_line())

    observer = threading.Thread(target=observe, daemon=True)
    observer.start()
    begun.append(True)
    act(observer.join)
    return lines[0]


def wait_in_axis(join: Callable[[], None]) -> None:
    with pretended(0, 2):
        axis = Axis(name="data", size=2, index=0, group=dist.group.WORLD, traffic=Traffic())
        work: Any = SimpleNamespace(wait=join)
        Handle(axis=axis, works=[work]).wait()


def wait_in_torch(join: Callable[[], None]) -> None:
    work = SimpleNamespace(wait=join)
    with pretended(0, 2), patch.object(dist.ProcessGroup, "barrier", lambda *_, **__: work):
        dist.barrier()


def control_plane(rank: int, size: int) -> ControlPlane:
    info = LaunchInfo(rank=rank, size=size, launcher="by hand")
    return ControlPlane(info, stop_requested=lambda: False, explain=lambda error: None)


def wait_in_control_plane(join: Callable[[], None]) -> None:
    """Wait for an answer of the store, which a thread requests."""

    def check(keys: list[str]) -> bool:
        join()
        return True

    plane: Any = control_plane(1, 2)
    plane.set_timeout(3600.0)
    plane._prefixed = SimpleNamespace(set=print, check=check, get=lambda key: b"[]")
    plane.all_gather("")


@pytest.mark.parametrize("wait", [wait_in_axis, wait_in_torch, wait_in_control_plane])
def test_rank_that_waits_for_others_publishes_no_line(wait: Act) -> None:
    assert published_line(wait) == ""


def work_alone(join: Callable[[], None]) -> None:
    join()


def work_in_run_on_all(join: Callable[[], None]) -> None:
    control_plane(0, 1).run_on_all(lambda: work_alone(join))


def work_in_checkpoint(join: Callable[[], None]) -> None:
    class Slow(DefaultSavePlanner):
        def create_local_plan(self) -> Any:
            work_alone(join)
            return super().create_local_plan()

    with TemporaryDirectory() as folder:
        save({"x": torch.ones(1)}, checkpoint_id=folder, planner=Slow(), no_dist=True)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("work", [work_alone, work_in_run_on_all, work_in_checkpoint])
def test_busy_rank_publishes_its_line(work: Act) -> None:
    assert re.search(r"test_liveness\.py:\d+, in work_alone$", published_line(work))


def test_rank_that_has_failed_itself_publishes_no_line() -> None:
    """It closes its connections, which is no wait for others."""
    plane = control_plane(1, 2)
    plane.failure_reporter.liveness = failing = monitor(1)
    assert published_line(work_alone, failing) != ""
    plane.diagnose(OSError(errno.ENOSPC, "no space left"))
    assert published_line(work_alone, failing) == ""
