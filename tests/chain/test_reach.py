"""A node hears which ports are on others, keeps its own, and learns it anew after a restart."""

from __future__ import annotations

import pytest
from sqlalchemy import update

from appliance.messages import GetPolicy
from appliance.store import Transaction, confirmations, networks, policy
from appliance.store import nodes as node_rows
from appliance.store.nodes import Node
from appliance.store.schema import nodes, placements, ports
from tests.chain.conftest import MakeChain
from tests.chain.harness import Chain, wait_until

ELSEWHERE = "192.0.2.2"


def known(chain: Chain) -> dict[str, str]:
    """Return the node's address of each port that the network plugin was told of."""
    remotes = chain.machine.network.network_list().remotes
    return {one.port_id: one.node_address for one in remotes.get(chain.network_id, ())}


def ports_of(chain: Chain) -> list[str]:
    return [port.port_id for port in chain.machine.network.network_list().ports]


def move(chain: Chain, instance_id: str, port_id: str, node_id: str) -> None:
    """Write that an instance is on a node, as a binding there does."""

    def write(tx: Transaction) -> None:
        where = placements.c.instance_id == instance_id
        tx.execute(update(placements).where(where).values(node_id=node_id))
        vpc_id = networks.default_vpc(tx) or ""
        policy.changed(tx, vpc_id, [policy.Change(kind="port", subject=port_id)])

    chain.node.store.transaction(write)


def add_node(chain: Chain) -> None:
    def write(tx: Transaction) -> None:
        node_rows.join(tx, Node(node_id="other", name="other", zone="z", roles=("compute",)))
        address = f"{ELSEWHERE}:8774"
        tx.execute(update(nodes).where(nodes.c.id == "other").values(address=address))

    chain.node.store.transaction(write)


@pytest.fixture
def chain(make_chain: MakeChain, monkeypatch: pytest.MonkeyPatch) -> Chain:
    # The node must not be asked what it holds: it would be told to remove what has moved. Nor may
    # it wait with other news until it is.
    monkeypatch.setattr("appliance.store.policy._rest_s", lambda holders: 0.0)
    made = make_chain(compute={"inventory_every_s": 600.0})
    add_node(made)
    return made


def test_ports_elsewhere_are_told(chain: Chain) -> None:
    stays, goes = chain.run_instances(2)
    chain.wait_for("running", stays, goes)
    assert known(chain) == {}
    before = set(ports_of(chain))
    port_id = chain.node.store.read(lambda tx: _port_of(tx, goes))
    move(chain, goes, port_id, "other")
    wait_until(lambda: known(chain) == {port_id: ELSEWHERE}, "the node was told")
    assert set(ports_of(chain)) == before

    move(chain, goes, port_id, chain.node.node_id)
    wait_until(lambda: known(chain) == {}, "the port is the node's own again")


def test_a_restarted_node_asks_anew(chain: Chain) -> None:
    stays, goes = chain.run_instances(2)
    chain.wait_for("running", stays, goes)
    port_id = chain.node.store.read(lambda tx: _port_of(tx, goes))
    chain.stop()
    chain.machine.network.node.remotes.clear()
    chain.start()
    move(chain, goes, port_id, "other")
    wait_until(lambda: known(chain) == {port_id: ELSEWHERE}, "the node was told")

    def is_confirmed() -> bool:
        _, revision = chain.node.store.read(lambda tx: networks.with_revision(tx, chain.network_id))
        question = GetPolicy(
            node_id=chain.node.node_id,
            network_id=chain.network_id,
            known_revision=revision,
            reach_revision=revision,
        )
        found = chain.node.store.read(lambda tx: confirmations.standing(tx, question))
        return found.confirmed == found.revision == revision

    wait_until(is_confirmed, "rules and reach are confirmed")


def _port_of(tx: Transaction, instance_id: str) -> str:
    found = tx.execute(ports.select().where(ports.c.instance_id == instance_id)).first()
    assert found
    return str(found.id)
