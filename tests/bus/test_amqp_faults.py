"""What harms a broker or a connection loses no message, and makes none take effect twice."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pika
import pytest

from appliance.bus import amqp_link
from appliance.bus.amqp import AmqpBus
from appliance.bus.amqp_link import MOST_BYTES
from appliance.bus.intake import Arrival
from appliance.errors import Unavailable
from appliance.messages import DeadLetter, Done, GetMembers, Members, Message, Wanted, encode
from appliance.store import Store, Transaction, outbox
from appliance.testing.bus import DEADLINE_S, Listener, wait_until
from appliance.world import World
from tests.bus.places import HYPERVISOR, Places, places_in, serve
from tests.services.rabbitmq import Broker, VirtualHost, running

QUESTION = GetMembers(node_id=HYPERVISOR, known_revision=0)
RECOVERY_S = 60.0


@pytest.fixture(scope="module")
def frail() -> Iterator[Broker]:
    """A broker that tests may harm; whoever does leaves it running."""
    with running() as broker:
        yield broker


@pytest.fixture
def frail_host(frail: Broker) -> VirtualHost:
    """A virtual host of that broker."""
    return frail.new_vhost()


@pytest.fixture
def frail_places(frail_host: VirtualHost, tmp_path: Path) -> Iterator[Places]:
    """Nodes' buses there."""
    with places_in(frail_host, tmp_path) as made:
        yield made


class Effects:
    """Counts what took effect, in the transactions of the deliveries."""

    def __init__(self, bus: AmqpBus) -> None:
        self.done: Counter[str] = Counter()
        self._lock = threading.Lock()
        serve(bus, "controller", casts={Wanted: self.handle, DeadLetter: Listener()})

    def handle(self, message: Wanted, delivery: Arrival) -> None:
        """Take effect."""

        def work(tx: Transaction) -> None:
            with self._lock:
                self.done[message.instance_id] += 1

        delivery.once(work)

    def wait_for(self, count: int, deadline_s: float = RECOVERY_S) -> None:
        """Wait until so many have taken effect, each once."""
        until = time.monotonic() + deadline_s
        while len(self.done) < count:
            assert time.monotonic() < until, f"{len(self.done)} of {count}"
            time.sleep(0.05)
        assert set(self.done.values()) == {1}


def wait_well(bus: AmqpBus, deadline_s: float = RECOVERY_S) -> None:
    until = time.monotonic() + deadline_s
    while not bus.well_for_s():
        assert time.monotonic() < until, "it does not get well"
        time.sleep(0.05)


def is_empty(store: Store) -> bool:
    return not store.read(outbox.queues)


@pytest.mark.faults("broker: kill -9", quick=True)
def test_a_broker_is_killed_while_messages_are_cast(frail: Broker, frail_places: Places) -> None:
    control, node = frail_places.control(), frail_places.hypervisor()
    effects = Effects(control)
    control.start()
    node.start()
    wait_well(control)
    is_over = threading.Event()
    sent = []

    def cast() -> None:
        for number in range(100_000):
            if is_over.wait(0.002):
                return
            control.cast("controller", Wanted(instance_id=f"i-{number}"))
            sent.append(number)

    sender = threading.Thread(target=cast)
    sender.start()
    time.sleep(0.5)
    frail.kill()
    time.sleep(0.5)
    with pytest.raises(Unavailable):
        node.call("controller", QUESTION, Members, 0.5)
    frail.start()
    wait_well(control)
    time.sleep(0.5)
    is_over.set()
    sender.join()
    effects.wait_for(len(sent))
    assert len(sent) > 100
    wait_until(lambda: is_empty(frail_places.store()), "the outbox is empty")


@pytest.mark.faults("broker: short of memory", quick=True)
def test_a_broker_that_is_short_of_memory_sticks_nobody(
    frail: Broker, frail_places: Places
) -> None:
    control, node = frail_places.control(), frail_places.hypervisor()
    effects = Effects(control)
    serve(control, "network", calls={GetMembers: lambda _: Members(revision=1)})
    control.start()
    node.start()
    wait_well(control)
    wait_well(node)
    frail.rabbitmqctl("set_vm_memory_high_watermark", "0.0001")
    try:
        # The first that is sent is what makes the broker say that it takes no more.
        wait_until(lambda: not node.well_for_s() and not control.well_for_s(), "both know")
        started = time.monotonic()
        with pytest.raises(Unavailable):
            node.call("network", QUESTION, Members, 1.0)
        for number in range(20):
            control.cast("controller", Wanted(instance_id=f"i-{number}"))
        control.announce("member", Wanted(instance_id="i-1"))
        assert time.monotonic() - started < 5
        assert len(frail_places.store().read(outbox.pending)) == 20
    finally:
        frail.rabbitmqctl("set_vm_memory_high_watermark", "0.6")
    effects.wait_for(20)
    wait_well(node)
    assert node.call("network", QUESTION, Members, DEADLINE_S) == Members(revision=1)


@pytest.mark.faults("broker: frozen")
def test_a_frozen_broker_is_noticed(frail: Broker, frail_places: Places) -> None:
    control = frail_places.control()
    effects = Effects(control)
    control.start()
    wait_well(control)
    frail.pause()
    try:
        started = time.monotonic()
        wait_until(lambda: not control._link.wait_up(0), "the connection is given up")
        assert time.monotonic() - started < 30
        control.cast("controller", Wanted(instance_id="i-1"))
        with pytest.raises(Unavailable):
            control.call("network", QUESTION, Members, 0.5)
        # Nor does whoever tries to connect wait for ever.
        time.sleep(amqp_link.OPEN_S + 2)
    finally:
        frail.resume()
    effects.wait_for(1)


@pytest.mark.faults("broker: long work", quick=True)
def test_a_connection_outlives_work_that_takes_long(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(amqp_link, "HEARTBEAT_S", 1)
    control = places.control()
    may_go_on, handled = threading.Event(), Listener()

    def work(message: Message, delivery: Arrival) -> None:
        may_go_on.wait(DEADLINE_S)
        handled(message)

    serve(control, "controller", casts={Wanted: work})
    control.start()
    wait_well(control)
    control.cast("controller", Wanted(instance_id="i-1"))
    time.sleep(3.5)
    assert control.well_for_s() > 3.5
    may_go_on.set()
    handled.wait_for(1)
    time.sleep(0.2)
    assert len(handled.heard) == 1


POISON: dict[str, tuple[str | None, str | None, bytes]] = {
    "no message": ("Wanted", "m-1", b"not json"),
    "of no kind": (None, "m-2", b"{}"),
    "of an unknown kind": ("Nonsense", "m-3", b"{}"),
    "of another role": ("Order", "m-4", b"{}"),
    "deep": ("Wanted", "m-5", b'{"instance_id":' + b"[" * 100_000),
    "without an id": ("Wanted", None, encode(Wanted(instance_id="i-1"))),
    "with a long id": ("Wanted", "m" * 200, encode(Wanted(instance_id="i-1"))),
    "bytes": ("Wanted", "m-6", bytes(range(256))),
}


@pytest.mark.faults("poison: messages", quick=True)
def test_poison_is_kept_and_holds_nothing_up(places: Places) -> None:
    control = places.control()
    effects = Effects(control)
    control.start()
    wait_well(control)
    with places.vhost.channel() as channel:
        for kind, message_id, body in POISON.values():
            for verb in ("cast", "call", "hint"):
                properties = pika.BasicProperties(
                    type=kind, message_id=message_id, user_id="admin", headers={"lane": "\0" * 99}
                )
                channel.basic_publish("anynode", f"{verb}.controller", body, properties)
    control.cast("controller", Wanted(instance_id="i-1"))
    effects.wait_for(1)
    store = places.store()
    wait_until(lambda: len(store.read(outbox.dead_letters)) == len(POISON), "all are kept")
    wait_until(lambda: is_taken(places.vhost, "controller"), "the queue is empty")


def is_taken(vhost: VirtualHost, queue: str) -> bool:
    return vhost.depth(queue) == 0


@pytest.mark.faults("poison: messages", quick=True)
def test_a_huge_message_is_kept_by_its_name(places: Places) -> None:
    control = places.control()
    effects = Effects(control)
    control.start()
    wait_well(control)
    with places.vhost.channel() as channel:
        for verb in ("cast", "call", "hint"):
            properties = pika.BasicProperties(type="Wanted", message_id="m-huge", user_id="admin")
            channel.basic_publish("anynode", f"{verb}.controller", bytes(50 * 2**20), properties)
    control.cast("controller", Wanted(instance_id="i-1"))
    effects.wait_for(1)
    store = places.store()
    wait_until(lambda: len(store.read(outbox.dead_letters)) == 1, "it is kept")
    (letter,) = store.read(outbox.dead_letters)
    assert MOST_BYTES < 50 * 2**20
    assert (letter.message_id, letter.size_bytes) == ("m-huge", 0)
    assert str(50 * 2**20) in letter.error


@pytest.mark.faults("poison: messages", quick=True)
def test_a_huge_message_of_ones_own_does_not_break_the_connection(places: Places) -> None:
    """The broker would close the channel, and the connection with it, at each attempt."""
    hypervisor = places.hypervisor()
    hypervisor.start()
    wait_well(hypervisor)
    before = hypervisor._link._number
    huge = Wanted(instance_id="i" * MOST_BYTES)
    with pytest.raises(Unavailable, match="too long"):
        hypervisor.cast("controller", huge)
    with pytest.raises(Unavailable, match="too long"):
        hypervisor.call("controller", huge, Members, DEADLINE_S)
    hypervisor.announce("controller", huge)
    assert hypervisor.well_for_s() > 0
    assert hypervisor._link._number == before


@pytest.mark.faults("poison: kills its handler")
def test_what_kills_whoever_takes_it_ends_with_the_dead(places: Places) -> None:
    """A process dies with a message in its hands: here its connection does, again and again."""
    control, other = places.control(), places.control("n9")
    letters = Listener()
    is_begun, may_go_on = threading.Event(), threading.Event()

    def never_end(message: Message, delivery: Arrival) -> None:
        is_begun.set()
        may_go_on.wait(600)

    serve(control, "scheduler", casts={Wanted: never_end})
    serve(other, "controller", casts={DeadLetter: letters})
    other.start()
    control.start()
    wait_well(control)
    control.cast("scheduler", Wanted(instance_id="i-1"))
    assert is_begun.wait(DEADLINE_S)
    try:
        while not letters.heard:
            control._link._wish(lambda: control._link._abort("a test's whim"))
            wait_until(lambda: not control._link.wait_up(0), "it is down")
            wait_well(control)
            time.sleep(0.3)
    finally:
        may_go_on.set()
    (letter,) = letters.heard
    assert isinstance(letter, DeadLetter)
    assert (letter.kind, letter.instance_id, letter.topic) == ("Wanted", "i-1", "scheduler")
    assert "20 times" in letter.error


@pytest.mark.faults("broker: connection breaks", quick=True)
def test_what_was_taken_but_not_acknowledged_takes_effect_once(places: Places) -> None:
    control = places.control()
    effects = Effects(control)
    control.start()
    wait_well(control)
    for number in range(60):
        control.cast("controller", Wanted(instance_id=f"i-{number}"))
        if number % 20 == 10:
            control._link._wish(lambda: control._link._abort("a test's whim"))
    effects.wait_for(60)
    wait_well(control)
    wait_until(lambda: is_empty(places.store()), "the outbox is empty")
    wait_until(lambda: is_taken(places.vhost, "controller"), "the queue is empty")


def test_connections_leave_nothing_behind(places: Places) -> None:
    control = places.control()
    control.start()
    wait_well(control)
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        control._link._wish(lambda: control._link._abort("a test's whim"))
        wait_until(lambda: not control._link.wait_up(0), "it is down")
        wait_well(control)
    assert len(list(Path("/proc/self/fd").iterdir())) <= descriptors + 2


def test_the_next_broker_is_tried(places: Places) -> None:
    bus = AmqpBus(
        ["amqp://nobody:nothing@127.0.0.1:1/x", places.vhost.url],
        World(),
        store=None,
        node_id="n5",
        attempts=3,
        lanes=2,
    )
    bus.start()
    try:
        wait_well(bus)
    finally:
        bus.stop(5)


def test_two_relays_publish_a_row_once(places: Places) -> None:
    """Rows that nobody has published are taken by one of those who look."""
    writer = places.store()

    def cast(tx: Transaction) -> None:
        for number in range(50):
            tx.cast("controller", Wanted(instance_id=f"i-{number}"))

    writer.transaction(cast)
    seen: Counter[str] = Counter()
    worker = places.control("n9")

    def handle(message: Message, delivery: Arrival) -> None:
        seen[delivery.message_id] += 1

    serve(worker, "controller", casts={Wanted: handle})
    buses = [places.control(), places.control("n8"), worker]
    for bus in buses:
        bus.start()
    wait_until(lambda: is_empty(writer), "the outbox is empty")
    wait_until(lambda: len(seen) == 50, "all have come")
    assert set(seen.values()) == {1}


def test_answers_and_questions_take_their_time(places: Places) -> None:
    """Many questions at once, each longer than a moment, on one connection."""
    control, node = places.control(), places.hypervisor()

    def answer(question: GetMembers) -> Done:
        time.sleep(0.2)
        return Done(detail=str(question.known_revision))

    serve(control, "controller", calls={GetMembers: answer})
    control.start()
    node.start()
    wait_well(node)
    answers: dict[int, str] = {}

    def ask(number: int) -> None:
        question = GetMembers(node_id=HYPERVISOR, known_revision=number)
        answers[number] = node.call("controller", question, Done, DEADLINE_S).detail

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert answers == {number: str(number) for number in range(64)}
