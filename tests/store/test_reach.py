"""Ports on other nodes: a node is told what moved, comes and goes, at the cost of what changed."""

from __future__ import annotations

import msgspec
import pytest
from sqlalchemy import event, update

from appliance.messages import GetPolicy
from appliance.model import NetworkReach, RemotePort
from appliance.store import Transaction, confirmations, members, placements, policy, reach
from appliance.store import instances as instance_rows
from appliance.store.networks import of_ports
from appliance.store.schema import nodes, policy_confirmations, ports
from tests.store.conftest import Site, claim_room

ADDRESSES = {"a": "192.0.2.1:8774", "b": "192.0.2.2:8774", "c": "192.0.2.3:8774"}


class Watcher:
    """What a node knows after each question."""

    def __init__(self, site: Site, node_id: str) -> None:
        self.site, self.node_id = site, node_id
        self.revision = self.known_revision = -1
        self.remotes: dict[str, RemotePort] = {}

    def ask(self) -> NetworkReach | None:
        question = GetPolicy(
            node_id=self.node_id,
            network_id=self.site.network_id,
            known_revision=self.known_revision,
            reach_revision=self.revision,
        )
        self.site.store.transaction(lambda tx: confirmations.confirm(tx, question))
        answer = self.site.store.read(
            lambda tx: policy.answer(tx, question, confirmations.standing(tx, question))
        )
        if answer.policy:
            self.known_revision = answer.policy.revision
        if answer.delta:
            self.known_revision = answer.delta.to_revision
        if answer.reach:
            if answer.reach.is_whole:
                self.remotes = {}
            for port_id in answer.reach.removed_port_ids:
                self.remotes.pop(port_id, None)
            self.remotes |= {one.port_id: one for one in answer.reach.remotes}
            self.revision = answer.reach.revision
        return answer.reach

    def where(self) -> dict[str, str]:
        """Return the node of each address that is elsewhere, after asking."""
        self.ask()
        fresh = Watcher(self.site, self.node_id)
        fresh.ask()
        assert fresh.remotes == self.remotes
        return {one.addresses[0]: one.node_address for one in self.remotes.values()}


@pytest.fixture
def three(site: Site) -> list[str]:
    """Three nodes that can be reached."""
    found = [site.add_node(name) for name in ADDRESSES]

    def address(tx: Transaction) -> None:
        for name, text in ADDRESSES.items():
            tx.execute(update(nodes).where(nodes.c.name == name).values(address=text))

    site.store.transaction(address)
    return found


def place(site: Site, instance_id: str, epoch: int, node_id: str) -> str:
    """Place an instance on a node and bind it; return its address."""

    def write(tx: Transaction) -> str:
        assert claim_room(tx, instance_id, epoch, node_id)
        instance_rows.placed(tx, [(instance_id, epoch, node_id)])
        assert placements.commit(tx, instance_id, epoch, node_id)
        binding = instance_rows.bind(tx, instance_id, epoch, region="r", quarantine_s=0.0)
        return binding.ports[0].addresses[0]

    return site.store.transaction(write)


def launch(site: Site) -> str:
    return site.store.transaction(site.launch)[0]


def test_each_node_is_told_of_the_others_ports(site: Site, three: list[str]) -> None:
    watchers = [Watcher(site, node_id) for node_id in three]
    at = [place(site, launch(site), 1, node_id) for node_id in three]
    hosts = [text.partition(":")[0] for text in ADDRESSES.values()]
    for index, watcher in enumerate(watchers):
        expected = {at[other]: hosts[other] for other in range(3) if other != index}
        assert watcher.where() == expected
    (one, _) = watchers[0].remotes.values()
    rows = site.store.read(lambda tx: tx.execute(ports.select()).all())
    assert one.mac == {row.id: row.mac for row in rows}[one.port_id]
    assert one.addresses == site.store.read(lambda tx: of_ports(tx, [one.port_id]))[one.port_id]


def test_a_difference_holds_what_changed_and_no_more(site: Site, three: list[str]) -> None:
    watcher = Watcher(site, three[0])
    for _ in range(3):
        place(site, launch(site), 1, three[1])
    watcher.ask()
    assert watcher.ask() is None
    late = place(site, launch(site), 1, three[2])
    told = watcher.ask()
    assert told
    assert not told.is_whole
    assert [one.addresses[0] for one in told.remotes] == [late]
    assert told.removed_port_ids == ()


def test_an_address_moves_to_the_new_epoch(site: Site, three: list[str]) -> None:
    watchers = [Watcher(site, node_id) for node_id in three]
    instance_id = launch(site)
    at = place(site, instance_id, 1, three[1])
    assert [watcher.where() for watcher in watchers] == [{at: "192.0.2.2"}, {}, {at: "192.0.2.2"}]

    # The old placement is still there: nobody has heard of its node, nor fenced it.
    assert place(site, instance_id, 2, three[2]) == at
    assert [watcher.where() for watcher in watchers] == [{at: "192.0.2.3"}, {at: "192.0.2.3"}, {}]


def test_ports_go_with_their_instance(site: Site, three: list[str]) -> None:
    watcher = Watcher(site, three[0])
    instance_id = launch(site)
    at = place(site, instance_id, 1, three[1])
    assert watcher.where() == {at: "192.0.2.2"}

    def end(tx: Transaction) -> None:
        placement, instance = (
            placements.active(tx, instance_id),
            instance_rows.get(tx, instance_id),
        )
        assert placement
        assert instance
        placements.end(tx, placement, "gone")
        assert instance_rows.terminated(tx, instance, None)

    site.store.transaction(end)
    assert watcher.where() == {}


def test_others_are_told_when_a_node_moves(site: Site, three: list[str]) -> None:
    watcher = Watcher(site, three[0])
    at = place(site, launch(site), 1, three[1])
    assert watcher.where() == {at: "192.0.2.2"}

    def move(tx: Transaction) -> None:
        members.certify(tx, three[1], certificate="", is_control=False, address="192.0.2.99:8774")

    site.store.transaction(move)
    assert watcher.where() == {at: "192.0.2.99"}


def test_an_address_is_not_confirmed_before_frames_go_the_right_way(
    site: Site, three: list[str]
) -> None:
    watcher = Watcher(site, three[0])
    instance_id = launch(site)
    place(site, instance_id, 1, three[1])
    watcher.ask()

    def confirmed(tx: Transaction) -> int | None:
        table = policy_confirmations
        query = table.select().where(table.c.node_id == three[0])
        row = tx.execute(query).first()
        return row.revision if row else None

    assert site.store.read(confirmed) == confirmations.NOTHING
    watcher.ask()
    first = watcher.revision
    assert site.store.read(confirmed) == first

    place(site, instance_id, 2, three[2])
    behind = msgspec.structs.replace(
        GetPolicy(node_id=three[0], network_id=site.network_id, known_revision=first + 1),
        reach_revision=first,
    )
    site.store.transaction(lambda tx: confirmations.confirm(tx, behind))
    assert site.store.read(confirmed) == first
    for revision in (-1, first + 1):
        now = msgspec.structs.replace(behind, reach_revision=revision)
        site.store.transaction(lambda tx, now=now: confirmations.confirm(tx, now))  # type: ignore[misc]
        assert site.store.read(confirmed) == (confirmations.NOTHING if revision < 0 else first + 1)


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("192.0.2.1:8774", "192.0.2.1"),
        ("", ""),
        ("192.0.2.1", ""),
        ("[2001:db8::1]:8774", ""),
        ("node-1:8774", ""),
    ],
)
def test_hosts_of_addresses(address: str, host: str) -> None:
    assert reach.host_of(address) == host


def test_a_difference_costs_what_changed(site: Site, three: list[str]) -> None:
    watcher = Watcher(site, three[0])
    rows: list[int] = []

    def asked(count: int) -> int:
        for _ in range(count):
            place(site, launch(site), 1, three[1])
        watcher.ask()
        place(site, launch(site), 1, three[1])
        statements = 0

        def note(*_: object) -> None:
            nonlocal statements
            statements += 1

        engine = site.store.engine
        event.listen(engine, "before_cursor_execute", note)
        told = watcher.ask()
        event.remove(engine, "before_cursor_execute", note)
        assert told
        rows.append(len(told.remotes))
        return statements

    asked(1)  # writes that the node has confirmed for the first time
    assert asked(1) == asked(20)
    assert set(rows) == {1}
