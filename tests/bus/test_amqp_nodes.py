"""Nodes of a cluster on one broker: what each may say, and what becomes of what it may not."""

from __future__ import annotations

import threading
import time

import pika
import pytest

from appliance.bus import topology
from appliance.bus.amqp import AmqpBus
from appliance.bus.relay import GATHER_S
from appliance.errors import ConfigError, Denied, InputError, Unavailable
from appliance.messages import (
    ConsoleRead,
    DeadLetter,
    Done,
    GetMembers,
    Heartbeat,
    Members,
    MembersChanged,
    Message,
    Order,
    PolicyChanged,
    ReadConsole,
    Report,
    Wanted,
    encode,
)
from appliance.model import ConsoleOutput, NodeCapacity
from appliance.store import Store, Transaction, outbox
from appliance.testing.bus import DEADLINE_S, Listener, wait_until
from appliance.world import World
from tests.bus.places import CONTROL, HYPERVISOR, OTHER, Places, serve
from tests.bus.signer import TestSigner

ORDER = Order(instance_id="i-1", epoch=1, revision=1, verb="run")
FULL = NodeCapacity(vcpus=1, memory_mib=1, disk_gib=1)


def report(node_id: str = HYPERVISOR, instance_id: str = "i-1") -> Report:
    return Report(
        instance_id=instance_id, node_id=node_id, epoch=1, seq=1, revision=1, state="running"
    )


def dead(store: Store) -> list[outbox.Letter]:
    return store.read(outbox.dead_letters)


def wait_well(*buses: AmqpBus) -> None:
    for bus in buses:
        wait_until(lambda bus=bus: bus.well_for_s() > 0, "the bus is well")  # type: ignore[misc]


def test_a_node_is_ordered_and_reports(places: Places) -> None:
    control, node = places.control(), places.hypervisor()
    orders, reports = Listener(), Listener()
    serve(node, f"compute.{HYPERVISOR}", casts={Order: orders})
    serve(control, "controller", casts={Report: reports})
    node.start()
    control.start()
    control.cast(f"compute.{HYPERVISOR}", ORDER)
    assert orders.wait_for(1) == [ORDER]
    node.cast("controller", report())
    assert reports.wait_for(1) == [report()]
    assert dead(places.store()) == []


def test_questions_go_both_ways(places: Places) -> None:
    control, node = places.control(), places.hypervisor()
    text = ConsoleRead(output=ConsoleOutput(text=b"login:", written_at=1.0))
    serve(node, f"compute.{HYPERVISOR}", calls={ReadConsole: lambda _: text})
    serve(control, "controller", calls={GetMembers: lambda asked: Members(revision=7)})
    node.start()
    control.start()
    question = GetMembers(node_id=HYPERVISOR, known_revision=0)
    assert node.call("controller", question, Members, DEADLINE_S) == Members(revision=7)
    console = ReadConsole(instance_id="i-1")
    topic = f"compute.{HYPERVISOR}"
    assert control.call(topic, console, ConsoleRead, DEADLINE_S) == text


def test_hints_reach_nodes_and_controllers(places: Places) -> None:
    control, other, node = places.control(), places.control("n9"), places.hypervisor()
    beats, beats_too, policies, members = (Listener() for _ in range(4))
    serve(control, "controller", hears={Heartbeat: beats})
    serve(other, "controller", hears={Heartbeat: beats_too})
    serve(node, f"datapath.{HYPERVISOR}", hears={PolicyChanged: policies})
    serve(node, f"member.{HYPERVISOR}", group="member", hears={MembersChanged: members})
    for bus in (control, other, node):
        bus.start()
    wait_well(control, other, node)
    beat = Heartbeat(
        node_id=HYPERVISOR,
        boot_id="b",
        capacity=FULL,
        offered_vcpus=1,
        offered_memory_mib=1,
        offered_disk_gib=1,
    )
    node.announce("controller", beat)
    assert beats.wait_for(1) == beats_too.wait_for(1) == [beat]
    control.announce(f"datapath.{HYPERVISOR}", PolicyChanged(network_id="n", revision=1))
    control.announce("member", MembersChanged(revision=1))
    policies.wait_for(1)
    members.wait_for(1)


def test_what_a_node_says_for_another_is_kept_and_believed_by_nobody(places: Places) -> None:
    control, node = places.control(), places.hypervisor()
    reports, letters = Listener(), Listener()
    serve(control, "controller", casts={Report: reports, DeadLetter: letters})
    node.start()
    control.start()
    node.cast("controller", report(OTHER, "i-2"))
    node.cast("controller", Wanted(instance_id="i-1"))
    node.cast("controller", report())
    assert reports.wait_for(1) == [report()]
    store = places.store()
    wait_until(lambda: len(dead(store)) == 2, "two dead letters")
    assert {one.kind for one in dead(store)} == {"Report", "Wanted"}
    assert all(HYPERVISOR in one.error for one in dead(store))
    assert letters.heard == []
    question = GetMembers(node_id=OTHER, known_revision=0)
    serve(control, "network", calls={GetMembers: lambda _: Members(revision=1)})
    wait_until(lambda: _is_denied(node, question), "the question is denied")


def _is_denied(node: AmqpBus, question: Message) -> bool:
    try:
        node.call("network", question, Members, DEADLINE_S)
    except Denied:
        return True
    except Unavailable:
        return False
    raise AssertionError("it was answered")


def test_orders_that_nobody_signed_are_not_followed(places: Places) -> None:
    """Neither with the login of a control node nor with the administrator's."""
    node, thief = places.hypervisor(), places.control(is_signed=False)
    orders, hints = Listener(), Listener()
    serve(node, f"compute.{HYPERVISOR}", casts={Order: orders})
    serve(node, f"member.{HYPERVISOR}", group="member", hears={MembersChanged: hints})
    node.start()
    thief.start()
    thief.cast(f"compute.{HYPERVISOR}", ORDER)
    with places.vhost.channel() as channel:
        channel.basic_publish(
            "anynode",
            f"cast.compute.{HYPERVISOR}",
            encode(ORDER),
            pika.BasicProperties(type="Order", message_id="m-1"),
        )
    thief.announce("member", MembersChanged(revision=1))
    wait_until(lambda: sum(node.guard.refused.values()) == 3, "three were refused")
    assert orders.heard == hints.heard == []
    assert dead(places.store()) == []
    honest = places.control("n9")
    honest.start()
    honest.cast(f"compute.{HYPERVISOR}", ORDER)
    orders.wait_for(1)


def test_an_order_that_comes_twice_takes_nothing_more(places: Places) -> None:
    """Whoever reads an order and sends it again changes nothing by the signature's measure."""
    control, node = places.control(), places.hypervisor()
    orders = Listener()
    serve(node, f"compute.{HYPERVISOR}", casts={Order: orders})
    headers = control.guard.headers(f"cast.compute.{HYPERVISOR}", "Order", "m-1", encode(ORDER))
    elsewhere = places.hypervisor(OTHER)
    stolen = Listener()
    serve(elsewhere, f"compute.{OTHER}", casts={Order: stolen})
    for bus in (node, elsewhere):
        bus.start()
    url = places.vhost.logins.promote(CONTROL)
    login = places.vhost.broker.url(places.vhost.name, f"c-{CONTROL}", url)
    connection = pika.BlockingConnection(pika.URLParameters(login))
    for target in (HYPERVISOR, OTHER):
        connection.channel().basic_publish(
            "anynode",
            f"cast.compute.{target}",
            encode(ORDER),
            pika.BasicProperties(
                type="Order", message_id="m-1", headers=headers, user_id=f"c-{CONTROL}"
            ),
        )
    connection.close()
    orders.wait_for(1)
    wait_until(lambda: sum(elsewhere.guard.refused.values()) == 1, "the other refused it")
    assert stolen.heard == []


def test_what_a_node_gives_up_fails_its_instance(places: Places) -> None:
    control, node = places.control(), places.hypervisor()
    letters = Listener()

    def refuse(message: Message, delivery: object) -> None:
        raise InputError("It makes no sense.")

    serve(node, f"compute.{HYPERVISOR}", casts={Order: refuse})
    serve(control, "controller", casts={DeadLetter: letters})
    node.start()
    control.start()
    control.cast(f"compute.{HYPERVISOR}", ORDER)
    (letter,) = letters.wait_for(1)
    assert isinstance(letter, DeadLetter)
    assert (letter.kind, letter.instance_id, letter.epoch) == ("Order", "i-1", 1)
    assert f"Node {HYPERVISOR} gave it up" in letter.error
    (kept,) = dead(places.store())
    assert (kept.topic, kept.kind) == (f"compute.{HYPERVISOR}", "Order")


def test_a_dead_letter_may_be_requeued(places: Places) -> None:
    control, node = places.control(), places.hypervisor()
    orders, is_well = Listener(), threading.Event()

    def handle(message: Message, delivery: object) -> None:
        if not is_well.is_set():
            raise InputError("Not today.")
        orders(message)

    serve(node, f"compute.{HYPERVISOR}", casts={Order: handle})
    serve(control, "controller", casts={DeadLetter: Listener()})
    node.start()
    control.start()
    control.cast(f"compute.{HYPERVISOR}", ORDER)
    store = places.store()
    wait_until(lambda: len(dead(store)) == 1, "a dead letter")
    is_well.set()
    message_id = dead(store)[0].message_id
    # Nobody reads of a dead letter before its first publication is written down as done.
    time.sleep(4 * GATHER_S)
    store.transaction(lambda tx: outbox.requeue(tx, message_id))
    assert orders.wait_for(1) == [ORDER]
    wait_until(lambda: not store.read(outbox.queues), "the outbox is empty")


def test_a_hypervisor_waits_for_its_queue(places: Places) -> None:
    control = places.control()
    control.start()
    url = places.vhost.admit(HYPERVISOR, is_control=False)
    management = places.vhost.broker.management(places.vhost.name)
    management.remove_queue(f"node.{HYPERVISOR}")
    node = places.bus(HYPERVISOR, url, store=None, signer=None, declares=False)
    orders = Listener()
    serve(node, f"compute.{HYPERVISOR}", casts={Order: orders})
    node.start()
    assert node.well_for_s() == 0
    control.cast(f"compute.{HYPERVISOR}", ORDER)
    queue = topology.node_queue(HYPERVISOR)
    with places.vhost.channel() as channel:
        channel.queue_declare(queue.name, durable=True, arguments=dict(queue.arguments))
        for binding in queue.bindings:
            channel.queue_bind(queue.name, binding.exchange, binding.key)
    orders.wait_for(1)


def test_what_no_queue_takes_stays_in_the_outbox(places: Places) -> None:
    control = places.control()
    control.start()
    wait_well(control)
    control.cast("compute.n7", ORDER)
    store = places.store()
    time.sleep(1)
    assert [row.topic for row in store.read(outbox.pending)] == ["compute.n7"]
    places.vhost.logins.admit("n7", is_control=False)
    wait_until(lambda: not store.read(outbox.pending), "the outbox is empty")
    assert places.vhost.depth("node.n7") == 1


def test_questions_within_a_process_need_no_broker() -> None:
    bus = AmqpBus(
        ["amqp://nobody:nothing@127.0.0.1:1/x"],
        World(),
        store=None,
        node_id="n1",
        attempts=3,
        lanes=2,
    )
    heard = Listener()
    serve(
        bus,
        "datapath.n1",
        calls={ReadConsole: lambda _: Done(detail="here")},
        hears={PolicyChanged: heard},
    )
    bus.start()
    try:
        question = ReadConsole(instance_id="i-1")
        assert bus.call("datapath.n1", question, Done, 5.0) == Done(detail="here")
        bus.announce("datapath.n1", PolicyChanged(network_id="n", revision=1))
        heard.wait_for(1)
        assert bus.well_for_s() == 0
        with pytest.raises(Unavailable):
            bus.call("network", question, Done, 0.3)
        with pytest.raises(Unavailable):
            bus.cast("controller", report())
    finally:
        bus.stop(5)


def test_work_goes_to_all_who_serve_it(places: Places) -> None:
    first, second = places.control(), places.control("n9")
    heard = [Listener(), Listener()]

    for bus, listener in zip((first, second), heard, strict=True):

        def handle(message: Message, delivery: object, listener: Listener = listener) -> None:
            listener(message)
            time.sleep(0.02)

        serve(bus, "controller", casts={Wanted: handle})
        bus.start()
    wait_well(first, second)
    for number in range(40):
        first.cast("controller", Wanted(instance_id=f"i-{number}"))
    wait_until(lambda: sum(len(one.heard) for one in heard) == 40, "all are handled")
    assert min(len(one.heard) for one in heard) > 5


def test_a_role_that_cannot_work_leaves_it_to_another(places: Places) -> None:
    """Its store is away: it holds what it has, and takes no more until it can."""
    ailing, well = places.control(), places.control("n9")
    is_away, tries, heard = threading.Event(), Listener(), Listener()
    is_away.set()

    def fail(message: Message, delivery: object) -> None:
        tries(message)
        if is_away.is_set():
            raise Unavailable("The store does not answer.")
        heard(message)

    serve(ailing, "controller", casts={Wanted: fail})
    ailing.start()
    wait_well(ailing)
    ailing.cast("controller", Wanted(instance_id="i-first"))
    # Not at the first try: a cancelled consumer takes what was on its way to it.
    tries.wait_for(2)
    others = Listener()
    serve(well, "controller", casts={Wanted: others})
    well.start()
    for number in range(5):
        ailing.cast("controller", Wanted(instance_id=f"i-{number}"))
    others.wait_for(5)
    is_away.clear()
    assert heard.wait_for(1) == [Wanted(instance_id="i-first")]
    well.retire("controller", 10)
    ailing.cast("controller", Wanted(instance_id="i-last"))
    assert heard.wait_for(2)[-1] == Wanted(instance_id="i-last")


def test_late_questions_are_not_asked_and_late_answers_dropped(places: Places) -> None:
    control, node = places.control(), places.hypervisor()
    asked, may_answer = Listener(), threading.Event()

    def answer(question: Message) -> Message:
        asked(question)
        may_answer.wait(DEADLINE_S)
        return Members(revision=1)

    control.start()
    node.start()
    wait_well(control, node)
    question = GetMembers(node_id=HYPERVISOR, known_revision=0)
    with pytest.raises(Unavailable):
        node.call("controller", question, Members, 0.3)
    time.sleep(0.1)
    serve(control, "controller", calls={GetMembers: answer})
    with pytest.raises(Unavailable):
        node.call("controller", question, Members, 1.0)
    assert len(asked.heard) == 1
    may_answer.set()
    assert node.call("controller", question, Members, DEADLINE_S) == Members(revision=1)
    assert places.vhost.depth("dead") == 0


def test_an_unsigned_order_fails_no_instance_on_a_control_node(places: Places) -> None:
    """A control node that has instances keeps what it refused, and the controller hears nothing."""
    control, thief = places.control(), places.control("n9", is_signed=False)
    orders, letters = Listener(), Listener()
    serve(control, f"compute.{CONTROL}", casts={Order: orders})
    serve(control, "controller", casts={DeadLetter: letters, Wanted: letters})
    control.start()
    thief.start()
    thief.cast(f"compute.{CONTROL}", ORDER)
    store = places.store()
    wait_until(lambda: len(dead(store)) == 1, "a dead letter")
    thief.cast("controller", Wanted(instance_id="i-last"))
    assert letters.wait_for(1) == [Wanted(instance_id="i-last")]
    assert orders.heard == []


class _BrokenSigner(TestSigner):
    """A signer whose key cannot be used."""

    is_broken = True

    def sign(self, key: str, kind: str, message_id: str, body: bytes, expires_at: int) -> bytes:
        if self.is_broken:
            raise ConfigError("The key of this node cannot be used.")
        return super().sign(key, kind, message_id, body, expires_at)


def test_what_cannot_be_signed_stays_and_harms_nobody_who_commits(places: Places) -> None:
    node = places.hypervisor()
    orders = Listener()
    serve(node, f"compute.{HYPERVISOR}", casts={Order: orders})
    node.start()
    signer, store = _BrokenSigner(CONTROL), places.store()
    url = places.vhost.admit(CONTROL, is_control=True)
    control = places.bus(CONTROL, url, store=store, signer=signer)
    control.start()

    def write(tx: Transaction) -> None:
        tx.cast(f"compute.{HYPERVISOR}", ORDER)
        tx.announce("member", MembersChanged(revision=1))

    store.transaction(write)
    assert len(store.read(outbox.pending)) == 1
    signer.is_broken = False
    assert orders.wait_for(1) == [ORDER]
