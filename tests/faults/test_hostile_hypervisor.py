"""A hypervisor that was broken into: what it sends with its own login changes nothing of others."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pika
import pytest
from pika.exceptions import ChannelClosedByBroker

from appliance.bus.failure import FAILURE
from appliance.bus.guard import EXPIRES_AT, SIGNATURE
from appliance.messages import (
    Bind,
    ConsoleRead,
    DeadLetter,
    GetMembers,
    GetPolicy,
    Heartbeat,
    Holding,
    Holdings,
    Inventory,
    MembersChanged,
    Message,
    Order,
    Place,
    PolicyChanged,
    RebootWanted,
    Report,
    ReportConfirmed,
    Wanted,
    decode,
    encode,
)
from appliance.model import ConsoleOutput, NodeCapacity, Reason
from appliance.store import facts as store_facts
from appliance.store import instances, node_changes, outbox
from appliance.store.instances import Instance
from tests.faults.attacker import Attacker, attacker
from tests.faults.mortals import APIS, Mortal, Mortals

NOT_ALLOWED = 403
BAD_USER_ID = 406

Refused = Callable[[Any, str], object]


def publish(
    channel: Any, key: str, body: bytes = b"{}", *, exchange: str = "anynode", **more: str
) -> None:
    """Publish, and return once the broker has taken it or refused it."""
    channel.confirm_delivery()
    properties = pika.BasicProperties(message_id=uuid.uuid4().hex, **more)
    channel.basic_publish(exchange, key, body, properties, mandatory=True)


REFUSED: dict[str, tuple[int, Refused]] = {
    "order another node": (NOT_ALLOWED, lambda c, n: publish(c, f"cast.compute.{n}")),
    "ask another node": (NOT_ALLOWED, lambda c, n: publish(c, f"call.datapath.{n}")),
    "be another node": (
        BAD_USER_ID,
        lambda c, n: publish(c, "cast.controller", user_id=f"h-{n}"),
    ),
    "write to a queue": (NOT_ALLOWED, lambda c, n: publish(c, f"node.{n}", exchange="")),
    "read another's queue": (NOT_ALLOWED, lambda c, n: c.basic_get(f"node.{n}")),
    "read the controllers' queue": (NOT_ALLOWED, lambda c, _: c.basic_get("controller")),
}


@pytest.mark.faults("hostile: hypervisor", quick=True)
def test_the_broker_refuses_what_is_not_a_hypervisors(cluster: Mortals) -> None:
    other = cluster["n4"].node_id
    with attacker(cluster.mortals["n3"]) as evil:
        connection = evil.channel.connection
        for what, (code, attack) in REFUSED.items():
            with pytest.raises(ChannelClosedByBroker) as raised:
                attack(connection.channel(), other)
            assert raised.value.reply_code == code, what
    cluster.assert_sound()


@dataclass(frozen=True)
class Scene:
    """An attack: who makes it, and who shall not be harmed by it."""

    cluster: Mortals
    evil: Attacker
    victim: Instance
    victim_node: Mortal

    @property
    def victim_id(self) -> str:
        """The instance on the other node."""
        return self.victim.instance_id

    def report(self, **values: Any) -> Report:
        """Return a report of the victim, newer than any that there was."""
        usual: dict[str, Any] = {
            "instance_id": self.victim_id,
            "node_id": self.evil.node_id,
            "epoch": self.victim.epoch,
            "seq": 10_000,
            "revision": 10_000,
            "state": "gone",
        }
        return Report(**{**usual, **values})

    def beat(self, node: Mortal, **values: Any) -> Heartbeat:
        """Return a heartbeat of a node."""
        usual: dict[str, Any] = {
            "node_id": node.node_id,
            "boot_id": "evil",
            "capacity": NodeCapacity(vcpus=10**6, memory_mib=10**8, disk_gib=10**8),
            "offered_vcpus": 10**6,
            "offered_memory_mib": 10**8,
            "offered_disk_gib": 10**8,
            "roles": ("datapath", "compute"),
        }
        return Heartbeat(**{**usual, **values})


def reports_of_others(scene: Scene) -> int:
    for state in ("gone", "failed", "stopped", "running", "pending"):
        for node in (scene.evil.node, scene.victim_node):
            for epoch in (scene.victim.epoch - 1, scene.victim.epoch, scene.victim.epoch + 1):
                told = scene.report(state=state, node_id=node.node_id, epoch=epoch)
                scene.evil.send("cast.controller", told)
    return 15


def what_only_controllers_say(scene: Scene) -> int:
    order = Order(instance_id=scene.victim_id, epoch=scene.victim.epoch, revision=9, verb="remove")
    letter = DeadLetter(
        message_id="m", topic="x", kind="Order", instance_id=scene.victim_id, epoch=0, error="evil"
    )
    said: tuple[Message, ...] = (
        *(order, letter, Wanted(instance_id=scene.victim_id, is_forced=True)),
        RebootWanted(instance_id=scene.victim_id),
        Place(reservation_id=scene.victim.reservation_id, instance_ids=(scene.victim_id,)),
        ReportConfirmed(instance_id=scene.victim_id, epoch=1, seq=10_000),
        MembersChanged(revision=10**9),
        PolicyChanged(network_id="n", revision=10**9),
    )
    for message in said:
        scene.evil.send("cast.controller", message)
        scene.evil.send("hint.controller", message)
        kind, _ = scene.evil.ask("controller", message)
        assert kind == FAILURE
    return len(said)


def orders_by_a_way_round(scene: Scene) -> int:
    """To the other node, under its own name and none, with the best signature that it can make."""
    victim, evil = scene.victim_node.node_id, scene.evil
    order = Order(instance_id=scene.victim_id, epoch=scene.victim.epoch, revision=99, verb="remove")
    body, expires_at = encode(order), int(time.time()) + 3600
    for key in (f"cast.compute.{victim}", f"hint.compute.{victim}", "cast.scheduler"):
        for user_id in (evil.login, None):
            number = uuid.uuid4().hex
            signature = evil.signer.sign(key, "Order", number, body, expires_at)
            vouched = {SIGNATURE: signature, EXPIRES_AT: expires_at}
            evil.around(key, body, "Order", user_id, message_id=number, headers=vouched)
            evil.around(key, body, "Order", user_id)
    return 2  # Those to the schedulers under its name; a hypervisor drops what it refuses.


def questions_for_others(scene: Scene) -> int:
    victim = scene.victim_node.node_id
    holding = Holding(
        instance_id=scene.victim_id,
        epoch=scene.victim.epoch + 5,
        seq=9,
        revision=9,
        state="running",
    )
    for node_id in (victim, scene.evil.node_id):
        bind = Bind(instance_id=scene.victim_id, epoch=scene.victim.epoch, node_id=node_id)
        assert scene.evil.ask("network", bind)[0] == FAILURE
    for asked in (
        Inventory(node_id=victim, boot_id="evil", holdings=()),
        GetMembers(node_id=victim, known_revision=-1),
    ):
        assert scene.evil.ask("controller", asked)[0] == FAILURE
    networks = {port.network_id for port in scene.cluster.read(store_facts.read).ports.values()}
    for network_id in ("n", *networks):
        policy = GetPolicy(node_id=victim, network_id=network_id, known_revision=-1)
        assert scene.evil.ask("network", policy)[0] == FAILURE
    # That it holds another's is answered with what it should do about that, and changes nothing.
    mine = Inventory(node_id=scene.evil.node_id, boot_id="evil", holdings=(holding,))
    kind, body = scene.evil.ask("controller", mine)
    assert kind == "Holdings"
    told = decode(kind, body)
    assert isinstance(told, Holdings)
    assert {(one.instance_id, one.verb) for one in told.orders} <= {
        (scene.victim_id, "remove"),
        (scene.cluster.bystanders[0], "run"),
    }
    return 0


def heartbeats(scene: Scene) -> int:
    """It claims a hundred times what is approved, and that the other is another now."""
    evil, victim = scene.evil.node, scene.victim_node
    scene.cluster.change(
        lambda tx: node_changes.set_approved(
            tx, evil.node_id, vcpus=8, memory_mib=8192, disk_gib=80
        )
    )
    told = scene.beat(evil)
    for _ in range(20):
        scene.evil.send("hint.controller", told)
        scene.evil.send("hint.controller", scene.beat(victim))
        scene.evil.send("hint.controller", scene.beat(evil, offered_vcpus=-1))
        scene.evil.send("hint.controller", scene.beat(evil, boot_id="x" * 10**6))
    scene.cluster.wait_for(lambda: _offer(scene.cluster, evil) == (8, 8192, 80), "it is cut")
    assert max(_offer(scene.cluster, victim)) < 10**6
    return 0


def _offer(cluster: Mortals, node: Mortal) -> tuple[int, ...]:
    offered = cluster.read(store_facts.read).offers[node.node_id]
    return offered.vcpus, offered.memory_mib, offered.disk_gib


def answers_that_nobody_asked_for(scene: Scene) -> int:
    """The other node is slow to answer a question, which the attacker has even seen."""
    cluster, victim = scene.cluster, scene.victim_node
    answers: list[Any] = []

    def ask() -> None:
        client = cluster["n1"].client()
        answers.append(client.get_console_output(InstanceId=scene.victim_id))

    forged = ConsoleRead(output=ConsoleOutput(text=b"forged", written_at=1.0))
    with cluster.vhost.channel() as admin:
        seen = admin.queue_declare("", exclusive=True).method.queue
        admin.queue_bind(seen, "anynode", f"call.compute.{victim.node_id}")
        victim.pause()
        asking = threading.Thread(target=ask)
        asking.start()
        try:
            _, asked, _ = next(iter(admin.consume(seen, auto_ack=True, inactivity_timeout=10)))
            assert asked is not None
            for kind, body in (("ConsoleRead", encode(forged)), (FAILURE, b"{}"), ("Done", b"{}")):
                for number in (asked.correlation_id, uuid.uuid4().hex, "", "x" * 255):
                    scene.evil.send_bytes(asked.reply_to, body, kind, correlation_id=number)
                    scene.evil.around(asked.reply_to, body, kind, correlation_id=number)
        finally:
            victim.resume()
            asking.join(30)
    (answer,) = answers
    assert answer["Output"] != "forged"
    return 0


def stolen_orders(scene: Scene) -> int:
    """Its own signed orders, told again to others and altered, by who has got at the broker, too.

    Even with a control node's login they are worth nothing without its key.
    """
    cluster, evil = scene.cluster, scene.evil
    key = f"cast.compute.{evil.node_id}"
    with cluster.vhost.channel() as admin:
        seen = admin.queue_declare("", exclusive=True).method.queue
        admin.queue_bind(seen, "anynode", key)
        instance_id = _live(cluster)
        stolen = [one for one in _drained(admin, seen) if one[0].type == "Order"]
    assert stolen, "the launch was ordered here"
    control = pika.BlockingConnection(pika.URLParameters(cluster["n1"].config.bus.url))
    channel = control.channel()
    there = f"cast.compute.{scene.victim_node.node_id}"
    for properties, body in stolen:
        for_victim = body.replace(instance_id.encode(), scene.victim_id.encode())
        later = {**properties.headers, EXPIRES_AT: properties.headers[EXPIRES_AT] + 10**6}
        for where, what, headers in (
            (key, body, properties.headers),
            (there, body, properties.headers),
            (there, for_victim, properties.headers),
            (key, for_victim, properties.headers),
            (key, body, later),
            (there, body, {}),
        ):
            again = pika.BasicProperties(
                type=properties.type,
                message_id=properties.message_id,
                user_id=properties.user_id
                if properties.user_id.endswith(cluster["n1"].node_id)
                else f"c-{cluster['n1'].node_id}",
                headers=headers,
            )
            channel.basic_publish("anynode", where, what, again)
            evil.around(where, what, properties.type, headers=headers)
    control.close()
    return 0


def _drained(channel: Any, queue: str) -> Iterator[tuple[Any, bytes]]:
    for _, properties, body in channel.consume(queue, auto_ack=True, inactivity_timeout=0.5):
        if properties is None:
            return
        yield properties, body


GARBAGE: tuple[tuple[str, bytes], ...] = (
    ("Report", b""),
    ("Report", b"\xff\xfe" * 500),
    ("Report", b"[" * 100_000),
    ("Report", b'{"a":' * 50_000),
    ("Report", b"null"),
    ("Report", b"9" * 5000),
    ("Nonsense", b"{}"),
    ("", b"{}"),
    ("Report.v9", b"{}"),
    ("x" * 255, b"x" * 2**20),
)


def garbage(scene: Scene) -> int:
    evil, report = scene.evil, scene.report()
    bodies = [*GARBAGE]
    for name, value in (
        ("epoch", "1" + "0" * 4000),
        ("seq", "9223372036854775808"),
        ("revision", "-99999999999"),
        ("instance_id", '"i\\u0000"'),
        ("instance_id", '"' + "i" * 10_000 + '"'),
        ("state", '"on fire"'),
        ("entries", '[{"instance_id":' + "[" * 500),
    ):
        fields = dict.fromkeys(("instance_id", "node_id", "state"), '"x"')
        fields |= dict.fromkeys(("epoch", "seq", "revision"), "1")
        fields |= {"node_id": f'"{evil.node_id}"', name: value}
        text = ",".join(f'"{key}":{one}' for key, one in fields.items())
        bodies.append(("Report", f"{{{text}}}".encode()))
    for kind, body in bodies:
        for key in ("cast.controller", "call.controller", "hint.controller", "call.network"):
            evil.send_bytes(key, body, kind, reply_to="reply.", correlation_id="x")
    for more in (
        {"message_id": ""},
        {"message_id": "m" * 255},
        {"message_id": "m\0m"},
        {"headers": {"lane": "l" * 10_000}},
        {"headers": {"lane": {"a": [1, None, {"b": b"\xff"}]}}},
        {"headers": {"x-death": "none", "x-first-death-queue": "q" * 9000}},
        {"content_type": "image/png", "content_encoding": "gzip", "priority": 255},
        {"expiration": "99999999999"},
    ):
        evil.send("cast.controller", report, **more)
        evil.send_bytes("cast.controller", b"garbage", "Report", **more)
    return len(bodies)


MANY = 2000


def floods(scene: Scene) -> int:
    evil = scene.evil
    own = scene.cluster.placement(scene.cluster.bystanders[0])
    assert own is not None
    long = Reason(code="x" * 10**4, message="y" * 10**5)
    for number in range(MANY):
        evil.send("cast.controller", Wanted(instance_id=scene.victim_id))
        evil.send("hint.controller", scene.beat(evil.node, boot_id=f"b-{number}"))
        if number % 4 == 0:
            evil.send("cast.controller", scene.report(reason=long))
            asked = GetMembers(node_id=evil.node_id, known_revision=-1)
            evil.send("call.controller", asked, reply_to="reply.nobody", correlation_id="x")
            evil.send_bytes(f"reply.{scene.victim_node.node_id}.x", b"{}", "Done")
    return MANY


ATTACKS: dict[str, Callable[[Scene], int]] = {
    "reports of others": reports_of_others,
    "what only controllers say": what_only_controllers_say,
    "orders by a way round": orders_by_a_way_round,
    "questions for others": questions_for_others,
    "heartbeats": heartbeats,
    "answers that nobody asked for": answers_that_nobody_asked_for,
    "stolen orders": stolen_orders,
    "garbage": garbage,
    "floods": floods,
}
"""Each returns how many of its messages must have become dead letters of its sender, at least."""

QUICK = "reports of others"


def _live(cluster: Mortals) -> str:
    """Launch an instance where the attacker is, and end it; return its id."""
    (instance_id,) = cluster.born(via=APIS, zone="local-1a")
    cluster.reach("running", instance_id, via=APIS)
    cluster.end(instance_id, via=APIS)
    cluster.reach("terminated", instance_id, via=APIS)
    return instance_id


def _victim(cluster: Mortals) -> Instance:
    found = cluster.read(lambda tx: instances.get(tx, cluster.bystanders[1]))
    assert found is not None
    return found


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.faults("hostile: hypervisor", quick=name == QUICK))
        for name in ATTACKS
    ],
)
def test_an_attack_changes_nothing_of_others(cluster: Mortals, name: str) -> None:
    victim = _victim(cluster)
    placement = cluster.placement(victim.instance_id)
    assert placement is not None
    victim_node = cluster.mortals["n4"]
    assert placement.node_id == victim_node.node_id
    login = f"h-{cluster['n3'].node_id}"
    with attacker(cluster.mortals["n3"]) as evil:
        refused = ATTACKS[name](Scene(cluster, evil, victim, victim_node))
        _live(cluster)
        evil.channel.connection.process_data_events(0)
    cluster.wait_for(lambda: _refused(cluster, login) >= refused, f"{refused} are counted")
    _clear_away(cluster)
    cluster.assert_sound()
    assert cluster.placement(victim.instance_id) == placement
    assert _victim(cluster) == victim
    _assert_no_secret_was_said(cluster)


def _refused(cluster: Mortals, login: str) -> int:
    found = {one.login: one for one in cluster.read(outbox.senders)}
    return found[login].kept + found[login].forgotten if login in found else 0


def _clear_away(cluster: Mortals) -> None:
    """See that an operator is told of what was refused, in few words, and do what he is told."""
    senders = cluster.read(outbox.senders)
    letters = cluster.read(outbox.dead_letters)
    assert {one.sender for one in letters} <= {one.login for one in senders}
    evil, nobody = f"h-{cluster['n3'].node_id}", "nobody"
    by_control = {f"c-{cluster[name].node_id}" for name in APIS}
    assert {one.login for one in senders} <= {evil, nobody, *by_control}
    assert all(one.kept <= outbox.MOST_OF_ONE for one in senders)
    found = [one for one in cluster.findings() if "I6.REFUSED" in one]
    assert len(found) == len(senders) * len(cluster.mortals)
    cluster.wait_for(lambda: not cluster.waiting(), "all that was sent is handled")
    for one in cluster.read(outbox.senders):
        cluster.change(lambda tx, login=one.login: outbox.drop_of(tx, login))  # type: ignore[misc]


def _assert_no_secret_was_said(cluster: Mortals) -> None:
    secrets = {cluster.key[1]}
    for node in cluster.mortals.values():
        secrets.add(str(pika.URLParameters(node.config.bus.url).credentials.password))
    for node in cluster.mortals.values():
        assert not [secret for secret in secrets if secret in node.log]
