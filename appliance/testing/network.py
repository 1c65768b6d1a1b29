"""The contract of ``appliance.network``: subclass it and give it your plugin.

Override ``driver``, the facade around a fresh plugin on a node without networks, and
``network_type``, the plugin's short name. Whatever your plugin makes must be yours to remove.
"""

from __future__ import annotations

import msgspec
import pytest

from appliance.errors import Conflict, InputError, NotFound, Stale
from appliance.hooks import Network
from appliance.model import NetworkReach, NetworkSpec, PortSpec, RemotePort, tap_name

HOSTILE_HOSTNAMES = (
    "",
    "-x",
    "a,b",
    "a\ndhcp-script=/tmp/e",
    "a#b",
    "a b",
    "a/b",
    "../a",
    "A",
    "ä",
    "a.b",
    "a\0",
    "a" * 64,
    "a" * 300,
)


def make_network(network_type: str, number: int = 1) -> NetworkSpec:
    """Return a network whose ids, bridge and range follow from its number."""
    return NetworkSpec(
        network_id=f"subnet-{number:017x}",
        vpc_id="vpc-00000000000000001",
        type=network_type,
        cidr=f"10.64.{number}.0/24",
        gateway=f"10.64.{number}.1",
        bridge=f"anbrt{number}",
        dns=("192.0.2.53",),
        mtu=1450,
        segment=10000 + number,
    )


def make_port(network: NetworkSpec, number: int = 1) -> PortSpec:
    """Return a port whose id, MAC and address follow from its number, below 200."""
    return PortSpec(
        port_id=f"eni-{number:02x}{network.network_id[-2:]}0123456789abc",
        instance_id=f"i-{number:017x}",
        device_index=0,
        mac=f"06:a0:00:00:{network.network_id[-2:]}:{number:02x}",
        network_id=network.network_id,
        addresses=(network.gateway.rpartition(".")[0] + f".{number + 4}",),
        hostname=f"host-{number}",
        group_ids=("sg-00000000000000001",),
    )


class NetworkContract:
    """What every network plugin must do."""

    @pytest.fixture
    def network_type(self) -> str:
        """Return the short name of the plugin."""
        raise NotImplementedError("Override this fixture.")

    @pytest.fixture
    def driver(self) -> Network:
        """Return the facade around a fresh plugin."""
        raise NotImplementedError("Override this fixture.")

    @pytest.fixture
    def network(self, network_type: str) -> NetworkSpec:
        """Return the network that the tests make."""
        return make_network(network_type)

    def test_empty_node_has_nothing(self, driver: Network) -> None:
        state = driver.list()
        assert (state.network_ids, state.ports, state.warnings) == ((), (), ())

    def test_prepare_is_safe_to_repeat(self, driver: Network, network: NetworkSpec) -> None:
        driver.prepare(network)
        driver.prepare(network)
        state = driver.list()
        assert state.network_ids == (network.network_id,)
        assert state.warnings == ()

    def test_attach_names_the_tap(self, driver: Network, network: NetworkSpec) -> None:
        port = make_port(network)
        driver.prepare(network)
        first = driver.attach(network, port)
        assert driver.attach(network, port) == first
        assert first.tap == tap_name(port.port_id)
        assert driver.list().ports == (first,)
        assert driver.list().warnings == ()

    def test_attach_takes_a_new_hostname(self, driver: Network, network: NetworkSpec) -> None:
        port = make_port(network)
        driver.prepare(network)
        driver.attach(network, port)
        driver.attach(network, msgspec.structs.replace(port, hostname="other"))
        assert len(driver.list().ports) == 1

    def test_attach_needs_a_prepared_network(self, driver: Network, network: NetworkSpec) -> None:
        with pytest.raises(Conflict):
            driver.attach(network, make_port(network))
        assert driver.list().ports == ()

    def test_raise_needs_a_port(self, driver: Network, network: NetworkSpec) -> None:
        port = make_port(network)
        driver.prepare(network)
        with pytest.raises(NotFound):
            driver.raise_link(port.port_id)
        driver.attach(network, port)
        driver.raise_link(port.port_id)
        driver.raise_link(port.port_id)
        driver.detach(port.port_id)
        with pytest.raises(NotFound):
            driver.raise_link(port.port_id)

    def test_detach_is_safe_to_repeat(self, driver: Network, network: NetworkSpec) -> None:
        port, other = make_port(network, 1), make_port(network, 2)
        driver.detach(port.port_id)
        driver.prepare(network)
        driver.attach(network, port)
        kept = driver.attach(network, other)
        driver.detach(port.port_id)
        driver.detach(port.port_id)
        assert driver.list().ports == (kept,)
        assert driver.list().warnings == ()

    def test_release_refuses_while_ports_are_here(
        self, driver: Network, network: NetworkSpec
    ) -> None:
        port = make_port(network)
        driver.prepare(network)
        attached = driver.attach(network, port)
        with pytest.raises(Conflict, match=port.port_id):
            driver.release(network.network_id)
        state = driver.list()
        assert state.ports == (attached,)
        assert state.network_ids == (network.network_id,)
        assert state.warnings == ()

    def test_release_is_safe_to_repeat(self, driver: Network, network: NetworkSpec) -> None:
        driver.release(network.network_id)
        driver.prepare(network)
        driver.release(network.network_id)
        driver.release(network.network_id)
        state = driver.list()
        assert (state.network_ids, state.ports, state.warnings) == ((), (), ())

    def test_networks_are_independent(self, driver: Network, network_type: str) -> None:
        one, two = make_network(network_type, 1), make_network(network_type, 2)
        driver.prepare(one)
        driver.prepare(two)
        kept = driver.attach(two, make_port(two))
        driver.release(one.network_id)
        state = driver.list()
        assert state.network_ids == (two.network_id,)
        assert state.ports == (kept,)
        assert state.warnings == ()

    def test_two_networks_need_two_bridges(self, driver: Network, network_type: str) -> None:
        one, two = make_network(network_type, 1), make_network(network_type, 2)
        driver.prepare(one)
        with pytest.raises((Conflict, InputError)):
            driver.prepare(msgspec.structs.replace(two, bridge=one.bridge))
        assert driver.list().network_ids == (one.network_id,)

    @pytest.mark.parametrize("hostname", HOSTILE_HOSTNAMES)
    def test_hostile_hostname_is_refused(
        self, driver: Network, network: NetworkSpec, hostname: str
    ) -> None:
        driver.prepare(network)
        with pytest.raises(InputError):
            driver.attach(network, msgspec.structs.replace(make_port(network), hostname=hostname))
        assert driver.list().ports == ()
        assert driver.list().warnings == ()

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("dns", ("1.1.1.1 -x",)),
            ("dns", ("1.1.1.1\nserver=8.8.8.8",)),
            ("domain", "a b"),
            ("domain", "a\nconf-file=/etc/shadow"),
            ("cidr", "10.64.1.1/24"),
            ("cidr", "10.64.1.0/33"),
            ("gateway", "10.65.0.1"),
            ("bridge", "a" * 16),
            ("bridge", "../x"),
            ("bridge", "an0123456789ab"),
            ("network_id", "../../etc"),
            ("mtu", 0),
        ],
    )
    def test_hostile_network_is_refused(
        self, driver: Network, network: NetworkSpec, field: str, value: object
    ) -> None:
        fields = {**msgspec.structs.asdict(network), field: value}
        with pytest.raises(InputError):
            driver.prepare(NetworkSpec(**fields))
        assert driver.list().network_ids == ()

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("mac", "unknown"),
            ("mac", "ff:ff:ff:ff:ff:ff"),
            ("mac", "06:a0:00:00:00:01,ignore"),
            ("addresses", ("10.65.0.9",)),
            ("addresses", ("10.64.1.1",)),
            ("addresses", ("10.64.1.9\n",)),
            ("network_id", "subnet-ffffffffffffffffe"),
            ("port_id", "../../x"),
        ],
    )
    def test_hostile_port_is_refused(
        self, driver: Network, network: NetworkSpec, field: str, value: object
    ) -> None:
        driver.prepare(network)
        fields = {**msgspec.structs.asdict(make_port(network)), field: value}
        with pytest.raises(InputError):
            driver.attach(network, PortSpec(**fields))
        assert driver.list().ports == ()

    @pytest.mark.parametrize("name", ["../../x", "", "a/b", "eni-1\n"])
    def test_hostile_ids_are_refused(self, driver: Network, name: str) -> None:
        with pytest.raises(InputError):
            driver.detach(name)
        with pytest.raises(InputError):
            driver.release(name)


def make_remote(network: NetworkSpec, number: int, node_address: str = "192.0.2.9") -> RemotePort:
    """Return the port of that number as other nodes than its own know it."""
    port = make_port(network, number)
    return RemotePort(
        port_id=port.port_id, mac=port.mac, addresses=port.addresses, node_address=node_address
    )


class SpanningNetworkContract(NetworkContract):
    """What a network plugin must do besides when its networks span nodes.

    What becomes of frames is not its subject.
    """

    def reached(self, driver: Network, network: NetworkSpec) -> set[tuple[str, object, str]]:
        """Return the ports elsewhere that the plugin has, without their ids."""
        remotes = driver.list().remotes.get(network.network_id, ())
        assert list(remotes) == sorted(remotes, key=lambda one: one.mac)
        return {(one.mac, one.addresses, one.node_address) for one in remotes}

    def meant(self, *remotes: RemotePort) -> set[tuple[str, object, str]]:
        """Return the same of what it was told."""
        return {(one.mac, one.addresses, one.node_address) for one in remotes}

    def test_spans_nodes(self, driver: Network) -> None:
        assert driver.spans_nodes

    def test_nothing_is_reached_at_first(self, driver: Network, network: NetworkSpec) -> None:
        driver.prepare(network)
        assert driver.list().remotes == {}

    def test_whole_reach_replaces_what_was(self, driver: Network, network: NetworkSpec) -> None:
        one, two, three = (make_remote(network, number) for number in (1, 2, 3))
        driver.prepare(network)
        for _ in range(2):
            driver.reach(network, NetworkReach(revision=1, remotes=(one, two), is_whole=True))
            assert self.reached(driver, network) == self.meant(one, two)
        driver.reach(network, NetworkReach(revision=2, remotes=(two, three), is_whole=True))
        assert self.reached(driver, network) == self.meant(two, three)
        driver.reach(network, NetworkReach(revision=3, is_whole=True))
        assert driver.list().remotes == {}
        assert driver.list().warnings == ()

    def test_difference_changes_what_it_names(self, driver: Network, network: NetworkSpec) -> None:
        one, two, three = (make_remote(network, number) for number in (1, 2, 3))
        driver.prepare(network)
        driver.reach(network, NetworkReach(revision=1, remotes=(one, two), is_whole=True))
        moved = make_remote(network, 2, "192.0.2.10")
        change = NetworkReach(
            revision=2,
            remotes=(moved, three),
            removed_port_ids=(one.port_id, make_port(network, 9).port_id),
        )
        for _ in range(2):
            driver.reach(network, change)
            assert self.reached(driver, network) == self.meant(moved, three)
        assert driver.list().warnings == ()

    def test_port_elsewhere_takes_new_addresses(
        self, driver: Network, network: NetworkSpec
    ) -> None:
        one, two = make_remote(network, 1), make_remote(network, 2)
        swapped = [
            msgspec.structs.replace(one, addresses=two.addresses),
            msgspec.structs.replace(two, addresses=one.addresses),
        ]
        driver.prepare(network)
        driver.reach(network, NetworkReach(revision=1, remotes=(one, two), is_whole=True))
        driver.reach(network, NetworkReach(revision=2, remotes=tuple(swapped)))
        assert self.reached(driver, network) == self.meant(*swapped)
        successor = msgspec.structs.replace(make_remote(network, 3), addresses=one.addresses)
        driver.reach(
            network,
            NetworkReach(revision=3, remotes=(successor,), removed_port_ids=(two.port_id,)),
        )
        assert self.reached(driver, network) == self.meant(swapped[0], successor)

    def test_difference_needs_the_whole_first(self, driver: Network, network: NetworkSpec) -> None:
        driver.prepare(network)
        with pytest.raises(Stale):
            driver.reach(network, NetworkReach(revision=1, remotes=(make_remote(network, 1),)))
        assert driver.list().remotes == {}

    def test_reach_needs_a_prepared_network(self, driver: Network, network: NetworkSpec) -> None:
        with pytest.raises(Conflict):
            driver.reach(
                network,
                NetworkReach(revision=1, remotes=(make_remote(network, 1),), is_whole=True),
            )
        assert driver.list().network_ids == ()

    def test_reach_stays_when_the_network_is_prepared_again(
        self, driver: Network, network: NetworkSpec
    ) -> None:
        one = make_remote(network, 1)
        driver.prepare(network)
        driver.reach(network, NetworkReach(revision=1, remotes=(one,), is_whole=True))
        driver.prepare(network)
        assert self.reached(driver, network) == self.meant(one)

    def test_reach_goes_with_the_network(self, driver: Network, network: NetworkSpec) -> None:
        driver.prepare(network)
        driver.reach(
            network, NetworkReach(revision=1, remotes=(make_remote(network, 1),), is_whole=True)
        )
        driver.release(network.network_id)
        assert driver.list().remotes == {}
        driver.prepare(network)
        assert driver.list().remotes == {}
        with pytest.raises(Stale):
            driver.reach(network, NetworkReach(revision=2, remotes=(make_remote(network, 2),)))

    def test_reach_of_networks_is_independent(self, driver: Network, network_type: str) -> None:
        one, two = make_network(network_type, 1), make_network(network_type, 2)
        for network in (one, two):
            driver.prepare(network)
            driver.reach(
                network,
                NetworkReach(revision=1, remotes=(make_remote(network, 1),), is_whole=True),
            )
        driver.reach(one, NetworkReach(revision=2, is_whole=True))
        assert self.reached(driver, two) == self.meant(make_remote(two, 1))
        assert driver.list().warnings == ()

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("mac", "ff:ff:ff:ff:ff:ff"),
            ("mac", "06:a0:00:00:00:01 . 1"),
            ("addresses", ("10.64.1.9; flush ruleset",)),
            ("node_address", "node-2"),
            ("node_address", "192.0.2.9 }"),
        ],
    )
    def test_hostile_remote_is_refused(
        self, driver: Network, network: NetworkSpec, field: str, value: object
    ) -> None:
        fields = {**msgspec.structs.asdict(make_remote(network, 1)), field: value}
        driver.prepare(network)
        with pytest.raises(InputError):
            driver.reach(
                network, NetworkReach(revision=1, remotes=(RemotePort(**fields),), is_whole=True)
            )
        assert driver.list().remotes == {}
