"""Signals that stop a run: an end before the first step, a request after it."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.world import signals
from engine.world.signals import (
    STOP_SIGNALS,
    block_signals,
    catch_stop_signals,
    stop_with_parent,
    unblock_signals,
)
from tests.support.worlds import default_signals, run_world

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _no_signal_is_ignored() -> Iterator[None]:
    """Undo ignored signals, such as those of nohup or of a background job of a script."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    default_signals()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_signal_before_deferral_raises_keyboard_interrupt(number: signal.Signals) -> None:
    with catch_stop_signals() as stop:
        with pytest.raises(KeyboardInterrupt, match=number.name):
            send(number)
        assert stop.requested == number.name


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_deferred_signal_is_only_stored(number: signal.Signals) -> None:
    with catch_stop_signals() as stop:
        stop.deferred = True
        assert stop.requested is None
        send(number)
        assert stop.requested == number.name


def test_repetition_by_a_launcher_is_no_second_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "REPEAT_SECONDS", 3600.0)
    with catch_stop_signals() as stop:
        stop.deferred = True
        send(signal.SIGINT)
        send(signal.SIGINT)
        send(signal.SIGTERM)
        assert stop.requested == "SIGINT"
        monkeypatch.setattr(signals, "REPEAT_SECONDS", 0.0)
        send(signal.SIGTERM)  # launchers repeat it
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_uninterruptible_block_runs_to_completion(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "REPEAT_SECONDS", 0.0)
    with catch_stop_signals() as stop:
        stop.deferred = True
        send(signal.SIGTERM)
        with stop.deferred_until_done():
            pass
        done = False

        def save() -> None:
            nonlocal done
            with stop.deferred_until_done():
                send(signal.SIGINT)
                done = True

        with pytest.raises(KeyboardInterrupt, match="SIGTERM"):
            save()
        assert done


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells of a parent's end")
def test_death_of_the_parent_sends_a_signal() -> None:
    pr_set_pdeathsig, pr_get_pdeathsig, number = 1, 2, ctypes.c_int()
    prctl = ctypes.CDLL(None).prctl
    try:
        stop_with_parent()
        prctl(pr_get_pdeathsig, ctypes.byref(number))
    finally:
        prctl(pr_set_pdeathsig, 0)  # this process is the tests'
    assert number.value in STOP_SIGNALS


def hold_and_release(rank: int, size: int, number: signal.Signals) -> None:
    """Send a signal while it is blocked, then while it has no handler any more."""
    block_signals()
    send(number)  # kills who does not hold it
    with catch_stop_signals() as stop:
        assert stop.requested is None
        with pytest.raises(KeyboardInterrupt, match=number.name):
            unblock_signals()
    send(number)  # nothing is left to report, and the run has not failed
    assert number in signal.sigpending()
    signal.sigwait([number])


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_blocked_signal_is_reported_once_unblocked(number: signal.Signals) -> None:
    """In a process with one thread: another thread, such as the tests' process may have, would get
    the signal that this one holds, and die of it."""
    run_world(1, hold_and_release, number, open_group=False)


@pytest.mark.parametrize("script", ["train_gpt.py", "evaluate_gpt.py"])
def test_ranks_block_signals_before_importing_torch(script: str) -> None:
    code = f"""
import os, runpy, signal, sys
class Found:
    def find_spec(self, name, path, target=None):
        if name == "torch":
            held = signal.pthread_sigmask(signal.SIG_BLOCK, ())
            os._exit(0 if signal.SIGUSR1 in held else 1)
sys.meta_path.insert(0, Found())
runpy.run_path({script!r}, run_name="__main__")
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_ignored_signals_stay_ignored_except_sigint_and_sigterm() -> None:
    """Processes started by nohup, and background jobs of shell scripts, inherit ignored signals."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    with catch_stop_signals() as stop:
        stop.deferred = True
        found = []
        for number in (signal.SIGHUP, signal.SIGINT):
            send(number)
            found.append(stop.requested)
        assert found == [None, "SIGINT"]
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_handlers_are_restored() -> None:
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    with catch_stop_signals() as stop:
        assert signal.getsignal(signal.SIGTERM) is stop
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before
