"""What a store begins with: one default VPC, and a default network in each zone that has a node."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from ipaddress import ip_network
from typing import Any

import msgspec
import pytest
from sqlalchemy.exc import IntegrityError

from appliance.config import Config, NetworkSettings, NodeSettings
from appliance.errors import ConfigError, Conflict, InputError
from appliance.model import NetworkSpec, NodeCapacity
from appliance.store import Store, Transaction, migrations, networks, zones
from appliance.store import nodes as node_rows
from appliance.store import setup as store_setup
from appliance.store.nodes import Node
from appliance.world import World


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    store = Store(store_url, World())
    migrations.upgrade(store)
    yield store
    store.close()


def config(zone: str = "local-1a", **network: Any) -> Config:
    return Config(node=NodeSettings(zone=zone), network=NetworkSettings(**network))


def prepare(store: Store, *configs: Config) -> list[NetworkSpec]:
    """Let nodes with these settings start; return the networks of the default VPC."""
    for one in configs:
        store.transaction(partial(store_setup.prepare, config=one))

    def read(tx: Transaction) -> list[NetworkSpec]:
        vpc_id = networks.default_vpc(tx)
        assert vpc_id is not None
        return networks.in_vpc(tx, vpc_id)

    return store.read(read)


def range_of_vpc(store: Store) -> str:
    return store.read(lambda tx: networks.range_of_vpc(tx, networks.default_vpc(tx) or ""))


class TestNetworks:
    def test_lone_node_has_the_network_of_its_settings(self, store: Store) -> None:
        [network] = prepare(store, config(), config())
        assert (network.cidr, network.gateway, network.bridge) == (
            "10.64.0.0/24",
            "10.64.0.1",
            "anbr0",
        )
        assert range_of_vpc(store) == "10.64.0.0/16"

    def test_each_zone_gets_one_beside_the_others(self, store: Store) -> None:
        found = prepare(store, *(config(f"z{number}") for number in (1, 2, 3, 2, 1)))
        assert [one.cidr for one in found] == ["10.64.0.0/24", "10.64.1.0/24", "10.64.2.0/24"]
        assert [one.bridge for one in found] == ["anbr0", "anbr1", "anbr2"]
        assert len({one.vpc_id for one in found}) == 1
        by_zone = store.read(partial(networks.defaults_with_addresses, quarantine_s=0.0))
        assert by_zone == {f"z{n}": one.network_id for n, one in enumerate(found, 1)}

    def test_ranges_of_the_settings(self, store: Store) -> None:
        settings = {"cidr": "172.31.16.0/20", "vpc_cidr": "172.31.0.0/16"}
        found = prepare(store, *(config(zone, **settings) for zone in ("a", "b", "c")))
        ranges = [ip_network(one.cidr) for one in found]
        assert ranges[0] == ip_network("172.31.16.0/20")
        assert not any(
            one.overlaps(other) for one in ranges for other in ranges if one is not other
        )
        assert {one.prefixlen for one in ranges} == {20}
        assert all(one.subnet_of(ip_network("172.31.0.0/16")) for one in ranges)  # type: ignore[arg-type]

    def test_range_larger_than_a_sixteenth_is_the_vpcs(self, store: Store) -> None:
        with pytest.raises(ConfigError, match="has no room for a network of zone b"):
            prepare(store, *(config(zone, cidr="10.0.0.0/16") for zone in ("a", "b")))
        assert range_of_vpc(store) == "10.0.0.0/16"

    def test_long_name_of_a_bridge_stays_one(self, store: Store) -> None:
        settings = {"bridge": "abcdefghijklmno"}
        found = prepare(store, *(config(zone, **settings) for zone in ("a", "b")))
        assert [one.bridge for one in found] == ["abcdefghijklmno", "abcdefghijklmn0"]

    @pytest.mark.parametrize(
        ("network", "said"),
        [
            ({"cidr": "10.64.0.0/24", "vpc_cidr": "10.65.0.0/16"}, "is not inside"),
            ({"cidr": "10.64.0.1/24"}, "network.cidr is no IPv4 range"),
            ({"vpc_cidr": "ten"}, "network.vpc_cidr is no IPv4 range"),
        ],
    )
    def test_wrong_ranges(self, store: Store, network: dict[str, str], said: str) -> None:
        with pytest.raises((ConfigError, InputError), match=said):
            prepare(store, config(**network))


class TestSpanning:
    """Networks of a cluster reach all nodes; those of a lone node stay its own."""

    def default(self, store: Store, zone: str = "local-1a") -> NetworkSpec:
        found = store.read(lambda tx: networks.default_in_zone(tx, zone))
        assert found is not None
        return store.read(lambda tx: networks.find(tx, [found])[found])

    def keeper(self, store: Store, network_id: str) -> str | None:
        return store.read(lambda tx: networks.keepers(tx, [network_id])).get(network_id)

    def test_a_lone_node_keeps_its_network(self, store: Store) -> None:
        store.transaction(partial(store_setup.prepare, config=config(), node_id="n1"))
        network = self.default(store)
        assert (network.type, network.segment, network.mtu) == ("flatdhcp", 0, 1500)
        assert self.keeper(store, network.network_id) == "n1"

    def test_what_no_node_was_said_to_keep_is_the_lone_nodes(self, store: Store) -> None:
        [network] = prepare(store, config())
        assert self.keeper(store, network.network_id) is None
        for node_id in ("n1", "n2"):
            store.transaction(partial(store_setup.prepare, config=config(), node_id=node_id))
        assert self.keeper(store, network.network_id) == "n1"

    def test_a_cluster_begins_with_a_network_of_all_nodes(self, store: Store) -> None:
        for _ in range(2):
            store.transaction(partial(store_setup.found, config=config(), node_id="n1"))
        network = self.default(store)
        assert (network.type, network.segment, network.mtu) == ("vxlan", 10000, 1450)
        assert self.keeper(store, network.network_id) is None
        assert len(prepare(store)) == 1

    def test_a_node_that_becomes_a_cluster_keeps_its_network(self, store: Store) -> None:
        store.transaction(partial(store_setup.prepare, config=config(), node_id="n1"))
        old = self.default(store)
        for _ in range(2):
            store.transaction(partial(store_setup.found, config=config(), node_id="n1"))
        new = self.default(store)
        assert [one.network_id for one in prepare(store)] == [old.network_id, new.network_id]
        assert store.read(lambda tx: networks.find(tx, [old.network_id]))[old.network_id] == old
        assert self.keeper(store, old.network_id) == "n1"
        assert (new.type, new.vpc_id) == ("vxlan", old.vpc_id)
        assert not ip_network(new.cidr).overlaps(ip_network(old.cidr))
        assert new.bridge != old.bridge

    def test_segments_are_given_once(self, store: Store) -> None:
        settings = config(first_segment=7, last_segment=9)
        for zone in ("a", "b", "c"):
            store.transaction(partial(store_setup.prepare_zone, config=settings, zone=zone))
        assert [self.default(store, zone).segment for zone in ("a", "b", "c")] == [7, 8, 9]
        with pytest.raises(Conflict, match="7 to 9"):
            store.transaction(partial(store_setup.prepare_zone, config=settings, zone="d"))
        twin = msgspec.structs.replace(
            self.default(store, "a"), network_id="subnet-2", cidr="10.64.9.0/24"
        )
        with pytest.raises(IntegrityError):
            store.transaction(lambda tx: networks.create(tx, twin, zone="d", is_default=False))

    def test_a_type_that_ends_at_nodes_is_none_for_a_cluster(self, store: Store) -> None:
        settings = config(type="flatdhcp")
        with pytest.raises(ConfigError, match="flatdhcp") as refused:
            store.transaction(partial(store_setup.found, config=settings, node_id="n1"))
        assert "network.type" in refused.value.hint


NEED = {"vcpus": 2, "memory_mib": 100, "disk_gib": 1}


class TestRoom:
    def add(self, store: Store, name: str, zone: str, vcpus: int, *, is_up: bool = True) -> None:
        def join(tx: Transaction) -> None:
            node_rows.join(tx, Node(node_id=name, name=name, zone=zone, roles=("compute",)))
            node_rows.offer(tx, name, vcpus=vcpus, memory_mib=10**6, disk_gib=10**6)
            if is_up:
                capacity = msgspec.convert(
                    {"vcpus": vcpus, "memory_mib": 1, "disk_gib": 1, "hypervisor": "fake"}
                    | {"memory_free_mib": 1, "disk_free_gib": 1, "accelerator": "fake"},
                    NodeCapacity,
                )
                node_rows.seen(tx, name, "boot", node_rows.Condition(capacity=capacity))

        store.transaction(join)

    def room(self, store: Store) -> dict[str, int]:
        return store.read(lambda tx: zones.room(tx, NEED))

    def test_nodes_of_a_zone_count_together(self, store: Store) -> None:
        self.add(store, "n1", "a", 5)
        self.add(store, "n2", "a", 4)
        self.add(store, "n3", "b", 7)
        assert self.room(store) == {"a": 4, "b": 3}

    def test_claims_are_taken_off(self, store: Store) -> None:
        self.add(store, "n1", "a", 6)
        claim = {"vcpus": 4, "memory_mib": 100, "disk_gib": 1, "instances": 1}
        assert store.transaction(lambda tx: node_rows.claim(tx, "n1", **claim))
        assert self.room(store) == {"a": 1}

    def test_scarcest_resource_counts(self, store: Store) -> None:
        self.add(store, "n1", "a", 1000)
        need = {**NEED, "disk_gib": 10**6}
        assert store.read(lambda tx: zones.room(tx, need)) == {"a": 1}

    def test_node_that_is_down_or_closed_has_none(self, store: Store) -> None:
        self.add(store, "n1", "a", 6, is_up=False)
        assert self.room(store) == {}
