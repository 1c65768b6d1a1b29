"""Turns come in order, and one that is not had in time is not had at all."""

from __future__ import annotations

import threading
import time

import pytest

from appliance.datapath.turns import Turns
from appliance.errors import Unavailable

DEADLINE_S = 10.0


def waiting(turns: Turns, key: str) -> int:
    return len(turns._lines.get(key, ()))


def wait_for(turns: Turns, key: str, count: int) -> None:
    end = time.monotonic() + DEADLINE_S
    while waiting(turns, key) != count:
        assert time.monotonic() < end
        time.sleep(0.001)


def test_turns_come_in_the_order_of_asking() -> None:
    turns = Turns()
    came: list[int] = []

    def take(number: int) -> None:
        with turns.turn("i-1", DEADLINE_S):
            came.append(number)

    threads = [threading.Thread(target=take, args=(number,)) for number in range(20)]
    with turns.turn("i-1", DEADLINE_S):
        for place, thread in enumerate(threads, start=2):
            thread.start()
            wait_for(turns, "i-1", place)
    for thread in threads:
        thread.join()
    assert came == list(range(20))
    assert not turns._lines


def test_other_keys_do_not_wait() -> None:
    turns = Turns()
    with turns.turn("i-1", 0.0), turns.turn("i-2", 0.0):
        pass


def test_a_turn_that_does_not_come_is_given_up() -> None:
    turns = Turns()
    with turns.turn("i-1", 0.0):
        with pytest.raises(Unavailable, match="i-1"), turns.turn("i-1", 0.01):
            pytest.fail("It had the turn.")
        assert waiting(turns, "i-1") == 1
    with turns.turn("i-1", 0.0):
        pass


def test_a_turn_ends_with_what_it_raises() -> None:
    turns = Turns()
    with pytest.raises(ZeroDivisionError), turns.turn("i-1", 0.0):
        raise ZeroDivisionError
    with turns.turn("i-1", 0.0):
        pass
