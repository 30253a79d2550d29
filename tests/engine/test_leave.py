"""SIGINT and SIGTERM: an end before the first step, a request after it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

import pytest

from engine import leave
from engine.leave import die_with_parent, stop_signal

BOTH = [signal.SIGINT, signal.SIGTERM]


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", BOTH)
def test_at_first_a_signal_interrupts(number: signal.Signals) -> None:
    with stop_signal() as stop:
        with pytest.raises(KeyboardInterrupt, match=number.name):
            send(number)
        assert stop.requested == number.name


@pytest.mark.parametrize("number", BOTH)
def test_deferred_it_is_only_remembered(number: signal.Signals) -> None:
    with stop_signal() as stop:
        stop.deferred = True
        assert stop.requested is None
        send(number)
        assert stop.requested == number.name


def test_the_echo_of_a_launcher_is_no_second_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leave, "ECHO_SECONDS", 3600.0)
    with stop_signal() as stop:
        stop.deferred = True
        send(signal.SIGINT)
        send(signal.SIGINT)
        send(signal.SIGTERM)
        assert stop.requested == "SIGINT"
        monkeypatch.setattr(leave, "ECHO_SECONDS", 0.0)
        send(signal.SIGTERM)  # launchers repeat it
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_what_is_unbroken_is_done_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leave, "ECHO_SECONDS", 0.0)
    with stop_signal() as stop:
        stop.deferred = True
        send(signal.SIGTERM)
        with stop.unbroken():
            pass
        done = False

        def save() -> None:
            nonlocal done
            with stop.unbroken():
                send(signal.SIGINT)
                done = True

        with pytest.raises(KeyboardInterrupt, match="SIGTERM"):
            save()
        assert done


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells of a parent's end")
def test_who_is_saving_to_leave_outlives_its_launcher() -> None:
    """A launcher that is told to stop over and over ends at once."""

    def at_parents_death() -> int:
        pr_get_pdeathsig, number = 2, ctypes.c_int()
        ctypes.CDLL(None).prctl(pr_get_pdeathsig, ctypes.byref(number))
        return number.value

    with stop_signal() as stop:
        die_with_parent()
        assert at_parents_death() == signal.SIGKILL
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGTERM)  # nothing to save
        assert at_parents_death() == signal.SIGKILL
        stop.requested, stop.deferred = None, True
        send(signal.SIGTERM)
        assert at_parents_death() == 0


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in BOTH]
    with stop_signal() as stop:
        assert signal.getsignal(signal.SIGTERM) is stop
    assert [signal.getsignal(number) for number in BOTH] == before
