"""T42: messages that nobody can handle are given up, and everything else goes on."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from sqlalchemy import insert, select

from appliance.messages import KINDS, Order, Place, encode
from appliance.model import InstanceState
from appliance.store import Store, outbox
from appliance.store.schema import outbox as table
from appliance.world import World
from tests.chain.conftest import MakeChain, make_chain, quiet_deaths  # noqa: F401
from tests.chain.harness import Chain, wait_until

QUICK = pytest.mark.faults("bus: poison", quick=True)

DEEP = 100_000
MIB = 1 << 20
TOPICS = ("scheduler", "controller", "compute", "datapath", "network")

BODIES = {
    "bad JSON": b"{",
    "no JSON at all": b"\xff\xfe\x00poison",
    "empty": b"",
    "wrong type": b'{"reservation_id": 7, "instance_id": [], "instance_ids": "i-1"}',
    "another message": b'{"name": "x"}',
    "a list": b"[1, 2, 3]",
    "deep list": b"[" * DEEP,
    "deep value": b'{"reservation_id": ' + b"[" * DEEP + b"]" * DEEP + b"}",
    "deep unknown field": b'{"later": ' + b'{"a":' * DEEP + b"1" + b"}" * DEEP + b"}",
    "huge number": b'{"epoch": ' + b"9" * 5000 + b', "revision": NaN}',
    "50 MB": b'{"reservation_id": "' + b"x" * (50 * MIB),
}


def put(chain: Chain, message_id: str, topic: str, kind: str, body: bytes, lane: str = "") -> None:
    name = f"{topic}.{chain.node.node_id}" if topic in ("compute", "datapath") else topic
    row = {"id": message_id, "topic": name, "lane": lane, "kind": kind, "body": body}
    chain.node.store.transaction(
        lambda tx: tx.execute(insert(table).values(**row, created_at=tx.now))
    )


def letters(chain: Chain) -> list[outbox.Letter]:
    found: list[outbox.Letter] = chain.read(outbox.dead_letters)
    return found


def wait_for_letters(chain: Chain, count: int, seconds: float = 20) -> list[outbox.Letter]:
    wait_until(lambda: len(letters(chain)) == count, lambda: f"{letters(chain)}", seconds)
    return letters(chain)


def assert_all_flows(chain: Chain) -> None:
    ids = chain.run_instances(3)
    chain.wait_for("running", *ids)
    chain.stop_instances(ids[0])
    chain.wait_for("stopped", ids[0])
    chain.terminate(*ids)
    chain.wait_for("terminated", *ids)
    chain.assert_clean(allowed={"I6.DEAD_LETTER"})


@QUICK
def test_t42_what_cannot_be_read_is_given_up_at_once(make_chain: MakeChain) -> None:  # noqa: F811
    chain = make_chain()
    kinds = {"scheduler": "Place", "controller": "Report", "compute": "Order"}
    for number, (name, body) in enumerate(BODIES.items()):
        topic = TOPICS[number % len(TOPICS)]
        put(chain, name, topic, kinds.get(topic, "Wanted"), body)
    assert_all_flows(chain)
    given_up = wait_for_letters(chain, len(BODIES))
    assert {letter.message_id for letter in given_up} == set(BODIES)
    assert {letter.attempts for letter in given_up} == {1}
    assert all(letter.error.startswith("Could not decode a ") for letter in given_up)
    assert all(len(letter.error) <= outbox.LONGEST_ERROR for letter in given_up)


@QUICK
def test_t42_unknown_kinds_and_topics(chain: Chain) -> None:
    put(chain, "unknown", "scheduler", "PlaceOfALaterVersion", b"{}")
    put(chain, "astray", "scheduler", "Report", encode(_some_report()))
    put(chain, "nobody's", "volume", "Place", b"{}")
    for kind in KINDS:
        put(chain, f"empty {kind}", "datapath", kind, b"{}")
    assert_all_flows(chain)
    wait_for_letters(chain, 2 + len(KINDS))
    assert "nobody's" not in {letter.message_id for letter in letters(chain)}
    by_id = {letter.message_id: letter.error for letter in letters(chain)}
    assert by_id["unknown"] == "There is no message 'PlaceOfALaterVersion'."
    assert by_id["astray"] == "Role scheduler takes no Report."


def _some_report() -> Any:
    from appliance.messages import Report

    return Report(instance_id="i-1", node_id="n", epoch=1, seq=1, revision=1, state="running")


@QUICK
def test_t42_a_message_of_fifty_megabytes_that_can_be_read(chain: Chain) -> None:
    body = b'{"reservation_id": "r-1", "instance_ids": [], "later": "' + b"x" * (50 * MIB) + b'"}'
    put(chain, "large", "scheduler", "Place", body)
    assert_all_flows(chain)
    assert chain.bus.wait_quiet(20)
    assert letters(chain) == []


@QUICK
def test_t42_a_thousand_messages_of_nobody_hold_nothing_up(chain: Chain) -> None:
    def fill(tx: Any) -> None:
        row = {"topic": "volume", "lane": "", "kind": "Place", "body": b"{}", "created_at": 1.0}
        tx.execute(insert(table), [{**row, "id": f"m{number}"} for number in range(1100)])

    chain.node.store.transaction(fill)
    # Written by another process: only a look at the outbox finds it.
    put(chain, "found", "scheduler", "Place", b"{")
    wait_for_letters(chain, 1)


@pytest.fixture
def chain(make_chain: MakeChain) -> Chain:  # noqa: F811
    return make_chain()


@pytest.mark.parametrize(
    "attempts",
    [pytest.param(2, marks=QUICK), pytest.param(5, marks=pytest.mark.faults("bus: poison"))],
)
def test_t42_a_handler_that_raises_is_tried_so_often_and_no_more(
    make_chain: MakeChain,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    attempts: int,
) -> None:
    from appliance.compute.worker import Worker

    calls: list[str] = []
    order = Worker.order

    def fail(self: Worker, message: Order, *rest: Any) -> None:
        if message.instance_id in poisoned and message.verb == "run":
            calls.append(message.instance_id)
            raise RuntimeError("a bug " + "x" * 10_000)
        order(self, message, *rest)

    poisoned: set[str] = set()
    monkeypatch.setattr(Worker, "order", fail)
    chain = make_chain(
        bus={"attempts": attempts},
        compute={"inventory_every_s": 600.0},
        controller={"progress_s": 600.0},
    )
    chain.faults.at("bus.before.Order", lambda: poisoned.update(_pending(chain)[:1]), nth=1)
    ids = chain.run_instances(2)
    wait_until(lambda: len(poisoned) == 1, "one is poisoned")
    (victim,) = poisoned
    (healthy,) = set(ids) - poisoned
    chain.wait_for("running", healthy)
    (instance,) = chain.wait_for("terminated", victim, seconds=60)
    assert instance.reason
    assert instance.reason.code == "Server.InternalError"
    assert instance.reason.message.startswith("The order to the node was given up: RuntimeError")
    (letter,) = [one for one in letters(chain) if one.kind == "Order" and one.attempts == attempts]
    assert letter.about == victim
    assert calls.count(victim) >= attempts
    assert calls[:attempts] == [victim] * attempts
    assert len(letter.error) <= outbox.LONGEST_ERROR


def _pending(chain: Chain) -> list[str]:
    from appliance.store.schema import instances

    query = select(instances.c.id).where(instances.c.state == "pending").order_by(instances.c.id)
    found: list[str] = list(chain.read(lambda tx: tx.execute(query).scalars().all()))
    return found


@QUICK
@pytest.mark.parametrize("kind", [Order, Place])
def test_t42_an_instance_whose_message_cannot_be_read_fails_with_the_reason(
    make_chain: MakeChain,  # noqa: F811
    kind: type[msgspec.Struct],
) -> None:
    chain = make_chain(
        compute={"inventory_every_s": 600.0, "retry_s": 600.0}, controller={"progress_s": 600.0}
    )
    name = kind.__name__

    def garble(tx: Any) -> None:
        rows = tx.execute(select(table.c.id).where(table.c.kind == name)).scalars().all()
        tx.execute(table.update().where(table.c.id.in_(rows)).values(body=b"{"))

    # Its handler is cut off, its row is garbled, and the node is started again.
    chain.faults.kill_at(f"bus.before.{name}")
    ids = chain.run_instances(2)
    wait_until(chain.faults.is_dead.is_set, "it dies")
    chain.bury()
    store = Store(chain.config.store_url, World())
    store.transaction(garble)
    store.close()
    chain.start()
    for instance in chain.wait_for("terminated", *ids):
        assert instance.state is InstanceState.TERMINATED
        assert instance.reason
        assert instance.reason.code == "Server.InternalError"
        assert f"Could not decode a {name}" in instance.reason.message
    chain.assert_clean(allowed={"I6.DEAD_LETTER"})
    assert chain.quota_used() == {"instances": 0, "vcpus": 0, "memory_mib": 0}
    assert_all_flows(chain)


@QUICK
def test_t42_an_order_of_the_inventory_that_fails_keeps_no_other_from_being_done(
    make_chain: MakeChain,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from appliance.compute.worker import Worker

    order = Worker.order
    poisoned: list[str] = []
    is_lost = True

    def fail(self: Worker, message: Order, *rest: Any) -> None:
        if is_lost:
            return
        if message.instance_id in poisoned:
            raise RuntimeError("a bug")
        order(self, message, *rest)

    monkeypatch.setattr(Worker, "order", fail)
    chain = make_chain(controller={"progress_s": 600.0, "sweep_every_s": 600.0})
    # All orders by cast are lost; the inventory brings them, in the order of the ids.
    ids = sorted(chain.run_instances(3))
    assert chain.bus.wait_quiet(20)
    poisoned.append(ids[0])
    is_lost = False
    chain.wait_for("running", *ids[1:])
    poisoned.clear()
    chain.wait_for("running", ids[0])
    chain.assert_clean()
