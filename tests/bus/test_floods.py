"""One node sends as much as it can: what it may not say is counted, and others are heard."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel

from appliance.bus.letters import LONGEST_OF_OTHERS, MOST_A_MINUTE
from appliance.bus.shares import MOST_AT_ONCE, Shares
from appliance.messages import GetMembers, Heartbeat, Members, Message, Report, Wanted, encode
from appliance.model import NodeCapacity
from appliance.store import outbox
from appliance.testing.bus import DEADLINE_S, Listener, wait_until
from tests.bus.places import HYPERVISOR, OTHER, Places, serve

MANY = 300
REPORT = Report(instance_id="i-1", node_id=HYPERVISOR, epoch=1, seq=1, revision=1, state="running")


@contextmanager
def attacker(places: Places) -> Iterator[BlockingChannel]:
    """Use the login of one node with a client of one's own."""
    url = places.vhost.admit(OTHER, is_control=False)
    connection = pika.BlockingConnection(pika.URLParameters(url))
    try:
        yield connection.channel()
    finally:
        connection.close()


def publish(
    channel: BlockingChannel, key: str, kind: str, body: bytes, **more: str | dict[str, object]
) -> None:
    number = uuid.uuid4().hex
    named = {"user_id": f"h-{OTHER}", "message_id": number, "correlation_id": number}
    properties = pika.BasicProperties(type=kind, **{**named, **more})
    channel.basic_publish("anynode", key, body, properties)


def beat(node_id: str, number: int = 0) -> Heartbeat:
    return Heartbeat(
        node_id=node_id,
        boot_id=f"b-{number}",
        capacity=NodeCapacity(vcpus=1, memory_mib=1, disk_gib=1),
        offered_vcpus=1,
        offered_memory_mib=1,
        offered_disk_gib=1,
    )


@pytest.mark.faults("hostile: floods", quick=True)
def test_what_one_may_not_say_is_kept_in_part_and_counted_whole(places: Places) -> None:
    control, node = places.control(), places.hypervisor()
    reports = Listener()
    serve(control, "controller", casts={Report: reports})
    control.start()
    node.start()
    store = places.store()
    forged: Message = Wanted(instance_id="i-1")
    with attacker(places) as channel:
        for number in range(MANY):
            if number % 3:
                publish(channel, "cast.controller", "Wanted", encode(forged))
            else:
                publish(channel, "cast.controller", "Nonsense", b"\xff" * 10)
        publish(channel, "cast.controller", "Wanted", encode(forged), user_id=f"h-{OTHER}")
        node.cast("controller", REPORT)
        assert reports.wait_for(1) == [REPORT]

    def counted() -> tuple[int, int]:
        found = [one for one in store.read(outbox.senders) if one.login == f"h-{OTHER}"]
        return (found[0].kept, found[0].forgotten) if found else (0, 0)

    wait_until(lambda: sum(counted()) == MANY + 1, "all are counted")
    assert counted()[0] <= MOST_A_MINUTE * 2, "it was a minute, or the turn of one"
    assert reports.heard == [REPORT]
    assert store.read(outbox.pending) == []


def test_what_is_kept_of_others_is_short(places: Places) -> None:
    control = places.control()
    serve(control, "controller", casts={Report: Listener()})
    control.start()
    store = places.store()
    with attacker(places) as channel:
        publish(channel, "cast.controller", "Report", b"x" * (LONGEST_OF_OTHERS + 1))
        wait_until(lambda: len(store.read(outbox.dead_letters)) == 1, "it is kept")
    (letter,) = store.read(outbox.dead_letters)
    assert (letter.sender, letter.size_bytes) == (f"h-{OTHER}", 0)
    assert f"{LONGEST_OF_OTHERS + 1} bytes" in letter.error


def test_hints_of_one_do_not_keep_others_from_being_heard(places: Places) -> None:
    """While one is heard, others wait: of one node but a few, whoever sent more."""
    control = places.control()
    go_on, heard = threading.Event(), Listener()

    def hear(message: Heartbeat) -> None:
        go_on.wait(DEADLINE_S)
        heard(message)

    serve(control, "controller", hears={Heartbeat: hear})
    control.start()
    wait_until(lambda: control.well_for_s() > 0, "the bus is well")
    with attacker(places) as channel:
        for number in range(MANY):
            publish(channel, "hint.controller", "Heartbeat", encode(beat(OTHER, number)))
        for body in (b"{", b"\xff", b'{"node_id": 1e400}'):
            publish(channel, "hint.controller", "Heartbeat", body)
        publish(channel, "hint.controller", "Nonsense", b"{}")
        node = places.hypervisor()
        node.start()
        wait_until(lambda: node.well_for_s() > 0, "the bus is well")
        node.announce("controller", beat(HYPERVISOR))
        # What came before it is in hand, or was left, once a question after it is answered.
        serve(control, "network", calls={GetMembers: lambda _: Members(revision=1)})
        question = GetMembers(node_id=HYPERVISOR, known_revision=0)
        node.call("network", question, Members, DEADLINE_S)
        go_on.set()
        wait_until(lambda: beat(HYPERVISOR) in heard.heard, "the other is heard")
    # Those in hand, and the one that is being heard by the time that the next has come.
    assert len([one for one in heard.heard if one != beat(HYPERVISOR)]) <= MOST_AT_ONCE


def test_questions_of_one_do_not_keep_others_from_being_answered(places: Places) -> None:
    control, node = places.control(), places.hypervisor()
    go_on = threading.Event()
    asked: list[str] = []

    def answer(question: GetMembers) -> Members:
        asked.append(question.node_id)
        go_on.wait(DEADLINE_S)
        return Members(revision=1)

    serve(control, "controller", calls={GetMembers: answer})
    control.start()
    node.start()
    body = encode(GetMembers(node_id=OTHER, known_revision=0))
    with attacker(places) as channel:
        queue = channel.queue_declare(f"process.{OTHER}.x", exclusive=True).method.queue
        channel.queue_bind(queue, "anynode", f"reply.{OTHER}.x")
        for _ in range(MANY):
            publish(channel, "call.controller", "GetMembers", body, reply_to=f"reply.{OTHER}.x")
        refused = [_next(channel, queue) for _ in range(MANY - MOST_AT_ONCE)]
        assert all(b"asks more" in one for one in refused)
        go_on.set()
        question = GetMembers(node_id=HYPERVISOR, known_revision=0)
        assert node.call("controller", question, Members, DEADLINE_S) == Members(revision=1)
    assert asked.count(OTHER) == MOST_AT_ONCE


def _next(channel: BlockingChannel, queue: str) -> bytes:
    for _method, _properties, body in channel.consume(queue, auto_ack=True, inactivity_timeout=5):
        assert body is not None, "nothing more comes"
        return bytes(body)
    raise AssertionError("the queue is gone")


def test_shares() -> None:
    shares = Shares(most=2)
    assert [shares.take("a") for _ in range(3)] == [True, True, False]
    assert shares.take("b")
    shares.give("a")
    assert shares.take("a")
    assert all(shares.take("") for _ in range(9)), "those without a name have no limit"
    shares.give("")
