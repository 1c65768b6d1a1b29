"""Signals: what comes too early, in time, and twice."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.cli.signals import Signals
from tests.rig import wait_for

LONG_S = 10.0


@pytest.fixture
def signals() -> Iterator[Signals]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield Signals()
    signal.set_wakeup_fd(-1)
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_start_is_broken_off(signals: Signals) -> None:
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        signals.up()


def test_the_first_signal_ends_the_wait_and_the_second_the_stop(signals: Signals) -> None:
    signals.up()
    signal.raise_signal(signal.SIGINT)
    signals.wait()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_another_thread_may_ask(signals: Signals) -> None:
    signals.ask()
    signals.wait()


def test_a_signal_that_interrupts_nothing_ends_the_wait_too(signals: Signals) -> None:
    """As one does that comes when the wait has all but begun, or that another thread is given."""
    signals.up()
    waiter = threading.get_native_id()
    is_over = threading.Event()
    in_time = []

    def send() -> None:
        wait_for(Sleep(waiter).goes_on, LONG_S, "the main thread to wait")
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
        in_time.append(is_over.wait(LONG_S))
        signals.ask()

    sender = threading.Thread(target=send)
    sender.start()
    signals.wait()
    is_over.set()
    sender.join()
    assert in_time == [True]


class Sleep:
    """Tells whether a thread sleeps: one that waits for the interpreter wakes all the time."""

    def __init__(self, thread: int) -> None:
        self._path = Path(f"/proc/self/task/{thread}/status")
        self._switches = ""

    def goes_on(self) -> bool:
        """Say whether it has slept since this was asked before."""
        before, self._switches = self._switches, self._path.read_text().partition("\nvol")[2]
        return before == self._switches
