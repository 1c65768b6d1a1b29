"""A cluster on fakes whose nodes have image stores of their own: launches bring what they need."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.image_import import Wanted, import_image
from appliance.store import Transaction, image_locations
from appliance.store.images import MACHINE, Image
from tests.cluster.fakes import (
    ALL_ROLES,
    HYPERVISOR_ROLES,
    FakeCluster,
    FakeNode,
    running,
    wait_until,
)
from tests.services.postgresql import PostgreSQL
from tests.services.rabbitmq import Broker

MIB = 1 << 20


@pytest.fixture(scope="module")
def cluster(
    tmp_path_factory: pytest.TempPathFactory, postgresql: PostgreSQL, rabbitmq: Broker
) -> Iterator[FakeCluster]:
    folder = tmp_path_factory.mktemp("images")
    own = {"images": {"folder": ""}}
    with running(folder, postgresql, rabbitmq.new_vhost(), **own) as made:
        for name, roles in (("n1", ALL_ROLES), ("n2", ALL_ROLES), ("n3", HYPERVISOR_ROLES)):
            made.add(name, roles, zone=f"zone-{name}")
        made.start()
        yield made


def imported(cluster: FakeCluster, node: FakeNode, size_bytes: int = 20 * MIB) -> Image:
    """Import an image of random bytes on a node."""
    disk = cluster.folder / "random.raw"
    disk.write_bytes(os.urandom(size_bytes))
    wanted = Wanted(kind=MACHINE, name=os.urandom(4).hex(), format="raw", is_public=True)
    return import_image(cluster.store, node.config, disk, wanted, "demo").image


def launch(cluster: FakeCluster, image: Image, node: FakeNode, via: FakeNode, count: int) -> None:
    """Launch on one node through another, and wait until all runs."""
    reply = via.client().run_instances(
        ImageId=image.image_id,
        InstanceType="t2.nano",
        MinCount=count,
        MaxCount=count,
        Placement={"AvailabilityZone": node.zone},
    )
    ids = [one["InstanceId"] for one in reply["Instances"]]
    cluster.wait_state("running", *ids, via=via)
    via.client().terminate_instances(InstanceIds=ids)
    cluster.wait_state("terminated", *ids, via=via)


def fetches(cluster: FakeCluster, image: Image, by: FakeNode) -> int:
    """Return how often a node has begun to fetch an image, as those who gave it tell."""
    line = f"node {by.node_id} fetches image {image.sha256[:12]}"
    return sum(one.log.count(line) for one in cluster.nodes.values())


def known_holders(cluster: FakeCluster, image: Image) -> set[str]:
    def look(tx: Transaction) -> set[str]:
        found = image_locations.holders(tx, [image.sha256]).get(image.sha256, [])
        return {holder.node_id for holder in found}

    return cluster.read(look)


def has_file(node: FakeNode, image: Image) -> bool:
    return (node.config.images_dir / image.sha256).is_file()


def test_a_launch_brings_the_image(cluster: FakeCluster) -> None:
    n1, n3 = cluster["n1"], cluster["n3"]
    image = imported(cluster, n1)
    assert known_holders(cluster, image) == {n1.node_id}
    launch(cluster, image, n3, via=n1, count=1)
    assert has_file(n3, image)
    wait_until(
        lambda: {n1.node_id, n3.node_id} <= known_holders(cluster, image), "n3's copy is known"
    )


def test_ten_launches_bring_it_once(cluster: FakeCluster) -> None:
    n1, n3 = cluster["n1"], cluster["n3"]
    image = imported(cluster, n1)
    launch(cluster, image, n3, via=n1, count=10)
    assert has_file(n3, image)
    assert fetches(cluster, image, by=n3) == 1


def test_a_damaged_copy_is_replaced(cluster: FakeCluster) -> None:
    n1, n3 = cluster["n1"], cluster["n3"]
    image = imported(cluster, n1, MIB)
    launch(cluster, image, n3, via=n1, count=1)
    path: Path = n3.config.images_dir / image.sha256
    good = path.read_bytes()
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.write(bytes(4096))
    launch(cluster, image, n3, via=n1, count=1)
    assert path.read_bytes() == good


def test_no_image_anywhere_ends_the_launch(cluster: FakeCluster) -> None:
    n1, n3 = cluster["n1"], cluster["n3"]
    image = imported(cluster, n1, MIB)
    (n1.config.images_dir / image.sha256).unlink()
    reply = n1.client().run_instances(
        ImageId=image.image_id,
        InstanceType="t2.nano",
        MinCount=1,
        MaxCount=1,
        Placement={"AvailabilityZone": n3.zone},
    )
    (instance_id,) = [one["InstanceId"] for one in reply["Instances"]]
    cluster.wait_state("terminated", instance_id, via=n1)
    (found,) = n1.client().describe_instances(InstanceIds=[instance_id])["Reservations"]
    assert "image" in found["Instances"][0]["StateReason"]["Message"].lower()


@pytest.mark.faults("images: the node that imported dies")
def test_an_image_outlives_the_node_that_imported_it(cluster: FakeCluster) -> None:
    """A second node gets a copy in the background, without a launch; a third fetches from it."""
    n1 = cluster["n1"]
    image = imported(cluster, n1)
    wait_until(lambda: len(known_holders(cluster, image)) == 2, "a second node has it", 60)
    second = next(
        one
        for one in cluster.nodes.values()
        if one.node_id in known_holders(cluster, image) and one is not n1
    )
    third = next(one for one in cluster.nodes.values() if one not in (n1, second))
    n1.kill()
    launch(cluster, image, third, via=cluster["n2"], count=1)
    assert has_file(third, image)
    assert fetches(cluster, image, by=third) == 1
    n1.start()
    cluster.wait_known("n1")
