"""A clock divides time without gaps and without overlaps."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from models.parallel.clock import OTHER, Activity, HostMarks, PartClock, clock_of


class Time:
    """A time that advances only when a test advances it."""

    def __init__(self) -> None:
        self.now = 100.0

    def read(self) -> float:
        return self.now

    def pass_by(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def clock(time: Time) -> PartClock:
    return PartClock(partial(HostMarks, time.read))


def test_each_moment_is_in_one_part(time, clock):
    time.pass_by(1)
    clock.start("a")
    time.pass_by(2)
    with clock.waiting():
        time.pass_by(4)
        with clock.waiting():
            time.pass_by(8)
    time.pass_by(16)
    clock.start("b")
    time.pass_by(32)
    clock.start("a")
    time.pass_by(64)
    clock.start(OTHER)
    assert clock.take() == {
        Activity(OTHER): 1,
        Activity("a"): 2 + 16 + 64,
        Activity("a", waiting=True): 4 + 8,
        Activity("b"): 32,
    }


def test_seconds_are_taken_once_and_the_running_part_later(time, clock):
    clock.start("a")
    time.pass_by(1)
    clock.start("b")
    time.pass_by(2)
    assert clock.take() == {Activity(OTHER): 0, Activity("a"): 1}
    time.pass_by(4)
    clock.start("c")
    assert clock.take() == {Activity("b"): 6}
    assert clock.take() == {}


def test_a_restart_discards_earlier_times(time, clock):
    clock.start("a")
    time.pass_by(1)
    clock.restart()
    time.pass_by(2)
    clock.start("b")
    assert clock.take() == {Activity(OTHER): 2}


def test_an_error_ends_the_time_of_waiting(time, clock):
    def fail() -> None:
        with clock.waiting():
            raise ValueError

    clock.start("a")
    with pytest.raises(ValueError):
        fail()
    time.pass_by(2)
    clock.start("b")
    assert clock.take()[Activity("a")] == 2


@pytest.mark.gpu
def test_marks_of_a_cuda_device_measure_its_work_and_not_the_host():
    """The host is done long before the device, and reads the seconds later."""
    clock = clock_of(torch.device("cuda"))
    clock.start("a")
    torch.cuda._sleep(10**8)
    clock.start("b")
    torch.cuda._sleep(3 * 10**8)
    clock.start(OTHER)
    early = clock.take()
    assert Activity("b") not in early, "the host did not wait for the device"
    torch.cuda.synchronize()
    late = clock.take()
    a = early.get(Activity("a"), 0) + late.get(Activity("a"), 0)
    assert 2 < late[Activity("b")] / a < 4
