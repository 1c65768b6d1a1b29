"""Lanes: work of one key in order, many keys at once, never more threads than allowed."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from appliance.lanes import Lanes


@pytest.fixture
def lanes() -> Iterator[Lanes]:
    made = Lanes("test", 4)
    yield made
    made.stop(10)


def test_order_within_a_key(lanes: Lanes) -> None:
    done: dict[str, list[int]] = {key: [] for key in "abc"}
    for number in range(200):
        for key, seen in done.items():
            lanes.submit(key, lambda seen=seen, number=number: seen.append(number))  # type: ignore[misc]
    assert lanes.wait_quiet(10)
    assert all(seen == list(range(200)) for seen in done.values())


def test_keys_run_at_once_but_no_more_than_allowed(lanes: Lanes) -> None:
    meet = threading.Barrier(4)
    running, most = [0], [0]
    lock = threading.Lock()

    def work() -> None:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        meet.wait(10)
        with lock:
            running[0] -= 1

    for number in range(8):
        lanes.submit(f"key-{number}", work)
    assert lanes.wait_quiet(10)
    assert most == [4]


def test_no_key_means_no_order(lanes: Lanes) -> None:
    meet = threading.Barrier(3)

    def wait() -> None:
        meet.wait(10)

    for _ in range(3):
        lanes.submit("", wait)
    assert lanes.wait_quiet(10)


def test_work_that_raises_does_not_end_its_lane(lanes: Lanes) -> None:
    done: list[int] = []

    def fail() -> None:
        raise RuntimeError("a bug")

    for number in range(20):
        lanes.submit("a", fail)
        lanes.submit("a", lambda number=number: done.append(number))  # type: ignore[misc]
    assert lanes.wait_quiet(10)
    assert done == list(range(20))


def test_work_may_submit_work(lanes: Lanes) -> None:
    done: list[int] = []

    def work(left: int) -> None:
        done.append(left)
        if left:
            lanes.submit("a", lambda: work(left - 1))

    lanes.submit("a", lambda: work(50))
    assert lanes.wait_quiet(10)
    assert done == list(range(50, -1, -1))


def test_stop_finishes_what_runs_and_drops_the_rest(lanes: Lanes) -> None:
    begun, may_go_on = threading.Event(), threading.Event()
    done: list[str] = []

    def work() -> None:
        begun.set()
        may_go_on.wait(10)
        done.append("first")

    lanes.submit("a", work)
    lanes.submit("a", lambda: done.append("second"))
    assert begun.wait(10)
    assert not lanes.is_stopping
    assert not lanes.stop(0.05)
    assert lanes.is_stopping
    may_go_on.set()
    assert lanes.stop(10)
    lanes.submit("a", lambda: done.append("third"))
    assert lanes.wait_quiet(10)
    assert done == ["first"]


def test_quiet_only_when_it_is(lanes: Lanes) -> None:
    assert lanes.wait_quiet(0)
    may_go_on = threading.Event()

    def wait() -> None:
        may_go_on.wait(10)

    lanes.submit("a", wait)
    assert not lanes.wait_quiet(0.05)
    may_go_on.set()
    assert lanes.wait_quiet(10)


def test_who_asks_gets_the_answer_or_the_error(lanes: Lanes) -> None:
    assert lanes.ask(lambda: 6 * 7).result(10) == 42
    with pytest.raises(ZeroDivisionError):
        lanes.ask(lambda: 1 // 0).result(10)


def test_what_is_asked_too_late_is_cancelled(lanes: Lanes) -> None:
    meet, may_go_on = threading.Barrier(5), threading.Event()
    begun = [lanes.ask(lambda: meet.wait(10) < 5 and may_go_on.wait(10)) for _ in range(4)]
    meet.wait(10)
    waiting = lanes.ask(lambda: True)
    assert not lanes.stop(0)
    assert waiting.cancelled()
    assert lanes.ask(lambda: True).cancelled()
    may_go_on.set()
    assert all(one.result(10) for one in begun)


def test_work_that_never_ends_is_named(lanes: Lanes, caplog: pytest.LogCaptureFixture) -> None:
    begun, may_go_on = threading.Event(), threading.Event()

    def dawdle() -> None:
        begun.set()
        may_go_on.wait(10)

    lanes.submit("a", dawdle)
    assert begun.wait(10)
    assert not lanes.stop(0)
    may_go_on.set()
    assert "the thread test-0 does not end" in caplog.text
    assert "dawdle" in caplog.text
    assert lanes.stop(10)
