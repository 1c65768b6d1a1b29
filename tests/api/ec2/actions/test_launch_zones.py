"""RunInstances where there are several zones: which one, which subnet, and what contradicts."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
import pytest
from sqlalchemy import update

from appliance.config import NodeSettings
from appliance.model import NodeCapacity
from appliance.store import Transaction, networks, nodes, schema
from appliance.store import setup as store_setup
from appliance.store.nodes import Node
from tests.api.front import Front, error_of

CAPACITY = NodeCapacity(
    vcpus=100,
    memory_mib=10**6,
    disk_gib=10**4,
    memory_free_mib=10**6,
    disk_free_gib=10**4,
    hypervisor="fake",
    accelerator="fake",
)


def add_node(front: Front, name: str, zone: str, vcpus: int = 100) -> None:
    """Let a node of a zone start."""
    settings = NodeSettings(name=name, zone=zone)
    config = msgspec.structs.replace(front.config, node=settings)

    def join(tx: Transaction) -> None:
        store_setup.prepare(tx, config)
        store_setup.join(tx, Node(node_id=name, name=name, zone=zone, roles=("compute",)))
        nodes.offer(tx, name, vcpus=vcpus, memory_mib=10**6, disk_gib=10**4)
        nodes.seen(tx, name, "boot", nodes.Condition(capacity=CAPACITY))

    front.change(join)


def subnet_of(front: Front, zone: str) -> str:
    return front.store.read(lambda tx: networks.default_in_zone(tx, zone)) or ""


def launch(front: Front, **more: Any) -> tuple[str, str]:
    """Launch one instance; return its zone and its subnet."""
    wanted = {"ImageId": front.image.image_id, "InstanceType": "m1.tiny", **more}
    [one] = front.client().run_instances(**wanted, MinCount=1, MaxCount=1)["Instances"]
    return one["Placement"]["AvailabilityZone"], one["SubnetId"]


@pytest.fixture
def wide(front: Front) -> Front:
    """An API with nodes in two zones, of the same size."""
    add_node(front, "n-a", "local-1a")
    add_node(front, "n-b", "local-1b")
    return front


def test_zone_and_subnet_agree(wide: Front) -> None:
    for zone in ("local-1a", "local-1b"):
        found = launch(wide, Placement={"AvailabilityZone": zone})
        assert found == (zone, subnet_of(wide, zone))
    subnet_id = subnet_of(wide, "local-1b")
    assert subnet_id != subnet_of(wide, "local-1a")
    assert launch(wide, SubnetId=subnet_id) == ("local-1b", subnet_id)
    both = {"SubnetId": subnet_id, "Placement": {"AvailabilityZone": "local-1b"}}
    assert launch(wide, **both) == ("local-1b", subnet_id)
    both["Placement"] = {"AvailabilityZone": "local-1a"}
    text = "Value (local-1a) for parameter availabilityZone is invalid. "
    assert error_of(launch, front=wide, **both) == {
        "Code": "InvalidParameterValue",
        "Message": f"{text}Subnet '{subnet_id}' is in the availability zone local-1b",
    }
    unknown = error_of(launch, front=wide, Placement={"AvailabilityZone": "local-1z"})
    assert unknown["Code"] == "InvalidParameterValue"


def test_launches_that_have_no_node_yet_count(wide: Front) -> None:
    """A burst is spread, though no node has taken any of it."""
    assert Counter(launch(wide)[0] for _ in range(6)) == {"local-1a": 3, "local-1b": 3}


def test_the_zone_with_most_room_is_taken(wide: Front) -> None:
    add_node(wide, "n-c", "local-1c", vcpus=150)
    assert launch(wide) == ("local-1c", subnet_of(wide, "local-1c"))


def test_a_zone_whose_nodes_take_nothing_is_left_out(wide: Front) -> None:
    for name, zone in (("n-c", "local-1c"), ("n-d", "local-1d")):
        add_node(wide, name, zone, vcpus=150)
    status, table = schema.node_status, schema.nodes
    down = update(status).where(status.c.node_id == "n-c").values(is_up=False)
    closed = update(table).where(table.c.id == "n-d").values(accepts_instances=False)
    wide.change(lambda tx: (tx.execute(down), tx.execute(closed)))
    assert launch(wide)[0] == "local-1a"


def test_a_zone_without_a_free_address_is_left_out(wide: Front) -> None:
    table, full = schema.addresses, subnet_of(wide, "local-1a")
    taken = update(table).where(table.c.network_id == full).values(port_id="eni-other")
    wide.change(lambda tx: tx.execute(taken))
    assert [launch(wide)[0] for _ in range(2)] == ["local-1b", "local-1b"]


def test_where_no_node_is_up_a_launch_is_still_accepted(front: Front) -> None:
    assert launch(front) == ("local-1a", subnet_of(front, "local-1a"))
