"""Periodic work: at its time, hurried, and ended."""

from __future__ import annotations

import threading
import time

from appliance.ending import end_threads
from appliance.role import Periodic
from appliance.rounds import Rounds

LONG_S = 3600.0


def test_work_that_is_hurried_is_done_now_and_no_other() -> None:
    rounds, done, others = Rounds(), threading.Semaphore(0), threading.Event()
    rounds.begin(Periodic(name="one", every_s=LONG_S, run=lambda: done.release()))
    rounds.begin(Periodic(name="other", every_s=LONG_S, run=others.set))
    for _ in range(2):
        rounds.hurry("one")
        assert done.acquire(timeout=10)
    rounds.hurry("none such")
    assert not others.is_set()
    rounds.end()
    end_threads(rounds.threads, 10)
    assert not any(thread.is_alive() for thread in rounds.threads)
    assert not done.acquire(blocking=False)


def test_work_under_way_is_done_once_more_when_it_is_hurried() -> None:
    rounds, begun, going = Rounds(), threading.Semaphore(0), threading.Event()

    def work() -> None:
        begun.release()
        going.wait(10)

    rounds.begin(Periodic(name="one", every_s=0.01, run=work))
    assert begun.acquire(timeout=10)
    rounds.hurry("one")
    going.set()
    assert begun.acquire(timeout=10)
    rounds.end()
    end_threads(rounds.threads, 10)


def test_nothing_begins_after_the_end() -> None:
    rounds, count = Rounds(), [0]

    def work() -> None:
        count[0] += 1

    rounds.begin(Periodic(name="one", every_s=LONG_S, run=work))
    began = time.monotonic()
    rounds.end()
    end_threads(rounds.threads, 10)
    rounds.hurry("one")
    assert (count, time.monotonic() - began < 5) == ([0], True)
