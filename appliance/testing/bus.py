"""The contract of a bus, for every implementation: subclass :class:`BusContract`.

Override the fixture ``make_bus``: a function that makes one more process's bus on the same
messages, with ``attempts`` set to ``ATTEMPTS``. The contract starts and stops what it makes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from appliance.bus import Bus, Delivery
from appliance.errors import InputError, NotFound, Stale, Unavailable
from appliance.messages import (
    DeadLetter,
    Done,
    Message,
    PolicyChanged,
    ReadConsole,
    RebootWanted,
    Wanted,
)
from appliance.role import Role
from appliance.store import Transaction

ATTEMPTS = 3
DEADLINE_S = 20.0

MakeBus = Callable[[], Bus]
Handler = Callable[[Message, Delivery], None]


def wait_until(is_so: Callable[[], bool], what: str) -> None:
    """Wait for a condition; fail with words when it does not come true in time."""
    until = time.monotonic() + DEADLINE_S
    while not is_so():
        assert time.monotonic() < until, f"not within {DEADLINE_S:g} s: {what}"
        time.sleep(0.01)


class Listener:
    """Notes what arrives, in order."""

    def __init__(self) -> None:
        self.heard: list[Message] = []
        self._lock = threading.Lock()

    def __call__(self, message: Message, delivery: Delivery | None = None) -> None:
        with self._lock:
            self.heard.append(message)

    def wait_for(self, count: int) -> list[Message]:
        """Wait for so many messages, and return all."""
        wait_until(lambda: len(self.heard) >= count, f"{count} messages: {self.heard}")
        return self.heard


class BusContract:
    """What the roles rely on."""

    @pytest.fixture
    def make_bus(self) -> MakeBus:
        """Return what makes a bus; to be overridden."""
        raise NotImplementedError

    @pytest.fixture
    def bus(self, make_bus: MakeBus) -> Iterator[Bus]:
        """A bus that has not been started yet."""
        made = make_bus()
        yield made
        made.stop(10)

    def serve(self, bus: Bus, topic: str = "controller", group: str = "", **handlers: Any) -> None:
        """Let a role take messages; ``wanted``, ``reboot``, ``letter``, ``read``, ``changed``."""
        kinds: dict[str, type[Message]] = {
            "wanted": Wanted,
            "reboot": RebootWanted,
            "letter": DeadLetter,
        }
        role = Role(
            name=topic,
            topic=topic,
            group_topic=group,
            casts={kind: handlers[name] for name, kind in kinds.items() if name in handlers},
            calls={ReadConsole: handlers["read"]} if "read" in handlers else {},
            hears={PolicyChanged: handlers["changed"]} if "changed" in handlers else {},
        )
        bus.serve(role)

    def test_a_cast_arrives_as_it_was_sent(self, bus: Bus) -> None:
        listener = Listener()
        self.serve(bus, wanted=listener)
        bus.start()
        message = Wanted(instance_id="i-1", is_forced=True, request_id="req")
        bus.cast("controller", message)
        assert listener.wait_for(1) == [message]

    def test_what_was_cast_before_the_start_arrives(self, bus: Bus) -> None:
        listener = Listener()
        bus.cast("controller", Wanted(instance_id="i-1"))
        self.serve(bus, wanted=listener)
        bus.start()
        listener.wait_for(1)

    def test_what_was_not_taken_outlives_the_process(self, make_bus: MakeBus) -> None:
        first = make_bus()
        first.cast("controller", Wanted(instance_id="i-1"))
        first.stop(10)
        second = make_bus()
        listener = Listener()
        self.serve(second, wanted=listener)
        second.start()
        listener.wait_for(1)
        second.stop(10)

    def test_what_was_taken_does_not_come_again(self, make_bus: MakeBus) -> None:
        first, second = make_bus(), make_bus()
        heard, again = Listener(), Listener()
        self.serve(first, wanted=heard)
        first.start()
        first.cast("controller", Wanted(instance_id="i-1"))
        heard.wait_for(1)
        first.stop(10)
        self.serve(second, wanted=again, reboot=again)
        second.start()
        second.cast("controller", RebootWanted(instance_id="i-2"))
        assert again.wait_for(1) == [RebootWanted(instance_id="i-2")]
        second.stop(10)

    def test_messages_of_a_lane_keep_their_order(self, bus: Bus) -> None:
        listener = Listener()
        self.serve(bus, wanted=listener)
        bus.start()
        sent = [
            Wanted(instance_id=f"i-{lane}", request_id=str(number))
            for number in range(30)
            for lane in range(3)
        ]
        for message in sent:
            bus.cast("controller", message)
        listener.wait_for(len(sent))
        for lane in range(3):
            mine = [one.request_id for one in listener.heard if one.lane == f"i-{lane}"]
            assert mine == [str(number) for number in range(30)]

    def test_one_lane_does_not_hold_up_another(self, bus: Bus) -> None:
        listener, may_go_on = Listener(), threading.Event()

        def handle(message: Message, delivery: Delivery) -> None:
            if message.lane == "i-slow":
                may_go_on.wait(DEADLINE_S)
            listener(message)

        self.serve(bus, wanted=handle)
        bus.start()
        bus.cast("controller", Wanted(instance_id="i-slow"))
        bus.cast("controller", Wanted(instance_id="i-fast"))
        assert listener.wait_for(1) == [Wanted(instance_id="i-fast")]
        may_go_on.set()
        listener.wait_for(2)

    def test_what_fails_is_tried_again(self, bus: Bus) -> None:
        tries = Listener()

        def handle(message: Message, delivery: Delivery) -> None:
            tries(message)
            if len(tries.heard) < ATTEMPTS:
                raise RuntimeError("not yet")

        self.serve(bus, wanted=handle)
        bus.start()
        bus.cast("controller", Wanted(instance_id="i-1"))
        tries.wait_for(ATTEMPTS)
        time.sleep(0.2)
        assert len(tries.heard) == ATTEMPTS

    def test_what_always_fails_becomes_a_dead_letter_and_others_go_on(self, bus: Bus) -> None:
        tries, letters, others = Listener(), Listener(), Listener()

        def fail(message: Message, delivery: Delivery) -> None:
            tries(message)
            raise RuntimeError("a bug")

        self.serve(bus, wanted=fail, letter=letters, reboot=others)
        bus.start()
        bus.cast("controller", Wanted(instance_id="i-1", request_id="req-1"))
        bus.cast("controller", RebootWanted(instance_id="i-2"))
        others.wait_for(1)
        (letter,) = letters.wait_for(1)
        assert len(tries.heard) == ATTEMPTS
        assert isinstance(letter, DeadLetter)
        assert (letter.kind, letter.instance_id, letter.topic) == ("Wanted", "i-1", "controller")
        assert "a bug" in letter.error
        assert letter.request_id == "req-1"

    def test_what_can_never_be_handled_is_not_tried_again(self, bus: Bus) -> None:
        tries, letters = Listener(), Listener()

        def refuse(message: Message, delivery: Delivery) -> None:
            tries(message)
            raise InputError("It makes no sense.")

        self.serve(bus, wanted=refuse, letter=letters)
        bus.start()
        bus.cast("controller", Wanted(instance_id="i-1"))
        letters.wait_for(1)
        assert len(tries.heard) == 1

    def test_what_is_stale_is_dropped_without_a_word(self, bus: Bus) -> None:
        tries, letters = Listener(), Listener()

        def drop(message: Message, delivery: Delivery) -> None:
            tries(message)
            raise Stale("It was overtaken.")

        self.serve(bus, wanted=drop, letter=letters)
        bus.start()
        bus.cast("controller", Wanted(instance_id="i-1"))
        tries.wait_for(1)
        time.sleep(0.2)
        assert (len(tries.heard), letters.heard) == (1, [])

    def test_that_the_store_is_away_does_not_count(self, bus: Bus) -> None:
        tries, letters = Listener(), Listener()

        def handle(message: Message, delivery: Delivery) -> None:
            tries(message)
            if len(tries.heard) <= ATTEMPTS + 1:
                raise Unavailable("The store does not answer.")

        self.serve(bus, wanted=handle, letter=letters)
        bus.start()
        bus.cast("controller", Wanted(instance_id="i-1"))
        tries.wait_for(ATTEMPTS + 2)
        assert letters.heard == []

    def test_work_is_done_once_however_often_it_is_tried(self, bus: Bus) -> None:
        effects, tries = Listener(), Listener()

        def handle(message: Message, delivery: Delivery) -> None:
            def work(tx: Transaction) -> None:
                effects(message)

            tries(message)
            delivery.once(work)
            delivery.once(work)
            if len(tries.heard) < 2:
                raise RuntimeError("after its effect")

        self.serve(bus, wanted=handle)
        bus.start()
        bus.cast("controller", Wanted(instance_id="i-1"))
        tries.wait_for(2)
        time.sleep(0.2)
        assert len(effects.heard) == 1

    def test_a_call_is_answered(self, bus: Bus) -> None:
        self.serve(bus, topic="network", read=lambda question: Done(detail=question.instance_id))
        bus.start()
        question = ReadConsole(instance_id="i-1")
        assert bus.call("network", question, Done, DEADLINE_S) == Done(detail="i-1")

    def test_the_error_of_who_was_asked_comes_back(self, bus: Bus) -> None:
        def refuse(question: ReadConsole) -> Done:
            raise NotFound("There is none.", code="InvalidInstanceID.NotFound")

        self.serve(bus, topic="network", read=refuse)
        bus.start()
        with pytest.raises(NotFound, match="There is none") as caught:
            bus.call("network", ReadConsole(instance_id="i-1"), Done, DEADLINE_S)
        assert caught.value.exact_code == "InvalidInstanceID.NotFound"

    def test_a_call_ends_at_its_deadline(self, bus: Bus) -> None:
        may_go_on = threading.Event()

        def wait(question: ReadConsole) -> Done:
            may_go_on.wait(DEADLINE_S)
            return Done()

        self.serve(bus, topic="network", read=wait)
        bus.start()
        started = time.monotonic()
        with pytest.raises(Unavailable):
            bus.call("network", ReadConsole(instance_id="i-1"), Done, 0.3)
        assert 0.2 < time.monotonic() - started < 5
        may_go_on.set()

    def test_a_call_that_nobody_answers(self, bus: Bus) -> None:
        bus.start()
        with pytest.raises(Unavailable):
            bus.call("network", ReadConsole(instance_id="i-1"), Done, 0.5)

    def test_questions_may_ask_questions(self, bus: Bus) -> None:
        def ask(question: ReadConsole) -> Done:
            return bus.call("datapath.n1", question, Done, DEADLINE_S)

        self.serve(bus, topic="datapath.n1", read=lambda question: Done(detail="deep"))
        self.serve(bus, topic="network", read=ask)
        bus.start()
        answers = []
        threads = [
            threading.Thread(
                target=lambda: answers.append(
                    bus.call("network", ReadConsole(instance_id="i-1"), Done, DEADLINE_S)
                )
            )
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE_S)
        assert answers == [Done(detail="deep")] * 8

    def test_an_announcement_reaches_all_who_hear_it(self, bus: Bus) -> None:
        first, second, deaf = Listener(), Listener(), Listener()
        self.serve(bus, topic="datapath.n1", group="datapath", changed=first)
        self.serve(bus, topic="compute.n1", group="datapath", changed=second)
        self.serve(bus, topic="member.n1", group="member", changed=deaf)
        bus.start()
        news = PolicyChanged(network_id="subnet-1", revision=7)
        bus.announce("datapath", news)
        assert first.wait_for(1) == second.wait_for(1) == [news]
        own = PolicyChanged(network_id="subnet-2", revision=8)
        bus.announce("datapath.n1", own)
        assert first.wait_for(2) == [news, own]
        assert (second.heard, deaf.heard) == ([news], [])

    def test_who_announces_hears_it_once(self, bus: Bus) -> None:
        heard = Listener()
        self.serve(bus, topic="controller", changed=heard)
        bus.start()
        bus.announce("controller", PolicyChanged(network_id="subnet-1", revision=7))
        heard.wait_for(1)
        time.sleep(0.2)
        assert len(heard.heard) == 1

    def test_a_role_may_come_and_go(self, bus: Bus) -> None:
        first, second = Listener(), Listener()
        self.serve(bus, topic="network", read=lambda question: Done(detail="there"))
        bus.start()
        self.serve(bus, wanted=first)
        bus.cast("controller", Wanted(instance_id="i-1"))
        first.wait_for(1)
        bus.retire("controller", 10)
        bus.retire("controller", 10)
        bus.cast("controller", Wanted(instance_id="i-2"))
        question = ReadConsole(instance_id="i-1")
        assert bus.call("network", question, Done, DEADLINE_S) == Done(detail="there")
        self.serve(bus, wanted=second)
        assert second.wait_for(1) == [Wanted(instance_id="i-2")]
        assert first.heard == [Wanted(instance_id="i-1")]

    def test_it_says_that_it_is_well(self, bus: Bus) -> None:
        bus.start()
        wait_until(lambda: bus.well_for_s() > 0, "the bus is well")

    def test_an_announcement_that_nobody_hears_is_lost(self, bus: Bus) -> None:
        bus.start()
        bus.announce("datapath", PolicyChanged(network_id="subnet-1", revision=7))

    def test_a_listener_that_raises_harms_nobody(self, bus: Bus) -> None:
        heard, casts = Listener(), Listener()

        def fail(message: Message) -> None:
            heard(message)
            raise RuntimeError("a bug")

        self.serve(bus, topic="controller", changed=fail, wanted=casts)
        bus.start()
        for _ in range(10):
            bus.announce("controller", PolicyChanged(network_id="subnet-1", revision=7))
        heard.wait_for(10)
        bus.cast("controller", Wanted(instance_id="i-1"))
        casts.wait_for(1)

    def test_stop_waits_for_what_is_under_way_and_takes_no_more(self, make_bus: MakeBus) -> None:
        bus = make_bus()
        begun, ended = threading.Event(), Listener()

        def handle(message: Message, delivery: Delivery) -> None:
            begun.set()
            time.sleep(0.3)
            ended(message)

        self.serve(bus, wanted=handle)
        bus.start()
        bus.cast("controller", Wanted(instance_id="i-1"))
        bus.cast("controller", Wanted(instance_id="i-1", request_id="later"))
        assert begun.wait(DEADLINE_S)
        bus.stop(10)
        assert len(ended.heard) == 1
        with pytest.raises(Unavailable):
            bus.call("controller", ReadConsole(instance_id="i-1"), Done, 0.5)
        bus.stop(10)
        after = make_bus()
        rest = Listener()
        self.serve(after, wanted=rest)
        after.start()
        assert rest.wait_for(1)[-1].request_id == "later"
        after.stop(10)
