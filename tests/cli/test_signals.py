"""Signals: what comes too early, in time, and twice."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from appliance.cli.signals import Signals


@pytest.fixture
def signals() -> Iterator[Signals]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield Signals()
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
