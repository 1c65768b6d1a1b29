"""A new store, with a node that offers room and a project that may launch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec
import pytest

from appliance.config import Config, NetworkSettings, QuotaSettings
from appliance.instance_types import CATALOG
from appliance.model import Phase
from appliance.store import (
    Store,
    Transaction,
    groups,
    identity,
    images,
    launches,
    migrations,
    networks,
    placements,
)
from appliance.store import instances as instance_rows
from appliance.store import nodes as node_rows
from appliance.store import setup as store_setup
from appliance.store.images import MACHINE, NewImage, create
from appliance.store.launches import Launch, RootDisk
from appliance.store.nodes import Node
from appliance.store.placements import Placement
from appliance.world import World

AMPLE = QuotaSettings(instances=10_000, vcpus=100_000, memory_mib=10**9)


@dataclass
class Site:
    """A store with what a launch needs."""

    store: Store
    network_id: str = ""
    vpc_id: str = ""
    project_id: str = ""
    group_id: str = ""
    image_id: str = ""
    node_ids: list[str] = field(default_factory=list)

    def add_node(self, name: str, **offer: int) -> str:
        """Let a node join and offer room."""
        node_id = f"node-{name}"
        room = {"vcpus": 1000, "memory_mib": 10**6, "disk_gib": 10**5, **offer}

        def join(tx: Transaction) -> None:
            node_rows.join(tx, Node(node_id=node_id, name=name, zone="z", roles=("compute",)))
            node_rows.offer(tx, node_id, **room)

        self.store.transaction(join)
        self.node_ids.append(node_id)
        return node_id

    def launch(self, tx: Transaction, count: int = 1, group_ids: tuple[str, ...] = ()) -> list[str]:
        """Write a launch; return the instances' ids."""
        image = images.find(tx, self.project_id, [self.image_id])[self.image_id]
        kind = CATALOG["t2.nano"]
        launches.take_quota(tx, self.project_id, kind, count, count)
        reservation_id = launches.write(
            tx,
            Launch(
                project_id=self.project_id,
                request_id="req",
                request_hash="",
                client_token=None,
                min_count=count,
                count=count,
                image=image,
                kernel_id=None,
                ramdisk_id=None,
                instance_type=kind,
                root_disk=RootDisk(device_name="/dev/vda", disk_gib=1, delete_on_termination=True),
                zone=None,
                network_id=self.network_id,
                group_ids=group_ids or (self.group_id,),
                key_name=None,
                public_key="",
                user_data_base64="",
                attributes={},
                tags={},
                node="n",
                started_at=tx.now,
                duration_ms=1.0,
            ),
        )
        place = next(row for row in reversed(tx.casts) if row.topic == "scheduler")
        found: list[str] = msgspec.json.decode(place.body)["instance_ids"]
        assert instance_rows.find(tx, found)[0].reservation_id == reservation_id
        return found

    def bind(self, tx: Transaction, instance_id: str) -> tuple[str, ...]:
        """Bind an instance; return its addresses."""
        binding = instance_rows.bind(tx, instance_id, 1, region="r", quarantine_s=0.0)
        return tuple(address for port in binding.ports for address in port.addresses)


def claim_room(
    tx: Transaction, instance_id: str, epoch: int, node_id: str, *, kept: Placement | None = None
) -> bool:
    """Place an instance if the node has room; ``kept`` is the stopped copy whose disk it has."""
    disk_gib = 0 if kept else 1
    if not node_rows.claim(
        tx, node_id, vcpus=1, memory_mib=512, disk_gib=disk_gib, instances=disk_gib
    ):
        return False
    placement = Placement(
        instance_id=instance_id,
        epoch=epoch,
        node_id=node_id,
        phase=Phase.CLAIMED,
        vcpus=1,
        memory_mib=512,
        disk_gib=1,
        changed_at=tx.now,
        adopts_epoch=kept.epoch if kept else 0,
    )
    placements.write(tx, [placement])
    return True


def make_site(url: str, cidr: str = "10.64.0.0/24") -> Site:
    """Make a new store."""
    config = Config(network=NetworkSettings(cidr=cidr, type="fake"), quota=AMPLE)
    store = Store(url, World())
    migrations.upgrade(store)
    site = Site(store=store)

    def prepare(tx: Transaction) -> None:
        store_setup.prepare(tx, config)
        site.network_id = networks.default_in_zone(tx, None) or ""
        site.vpc_id = networks.default_vpc(tx) or ""
        ceilings = msgspec.structs.asdict(AMPLE)
        site.project_id = identity.create_project(tx, "alpha", ceilings).project_id
        site.group_id = groups.default(tx, site.project_id, site.vpc_id).group_id
        new = NewImage(
            project_id=site.project_id,
            kind=MACHINE,
            name="small",
            format="raw",
            sha256="0" * 64,
            size_bytes=1 << 20,
            virtual_size_bytes=1 << 20,
        )
        site.image_id = create(tx, new).image_id

    store.transaction(prepare)
    return site


@pytest.fixture
def site(store_url: str) -> Iterator[Site]:
    """A new store of each kind with a range of 251 addresses."""
    made = make_site(store_url)
    yield made
    made.store.close()
