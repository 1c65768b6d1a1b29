"""``vxlan`` on one node in a namespace of its own: entries, rules, and nothing left."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import msgspec
import pytest
from anynode_network_flatdhcp import Settings as FlatSettings
from anynode_network_flatdhcp import create as create_flat
from anynode_network_vxlan import Settings, create, rules, tunnels

from appliance.datapath import links
from appliance.errors import ConfigError, Conflict, InputError
from appliance.hooks import Network
from appliance.hookspecs import PluginContext, PluginSource
from appliance.model import NetworkReach, NetworkSpec
from appliance.testing.namespaces import Namespace, NetworkInside, set_up
from appliance.testing.network import (
    SpanningNetworkContract,
    make_network,
    make_port,
    make_remote,
)

pytestmark = pytest.mark.node

FORWARD = Path("/proc/sys/net/ipv4/ip_forward")
LOCAL = "192.0.2.1"


class Node(Namespace):
    """A node with the plugin, and what must be the same before and after."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.directory = directory
        self.call(FORWARD.write_text, "0\n")
        self.call(self.run, "nft", "add", "table", "inet", "foreign")
        self.call(self.run, "ip", "link", "add", "under0", "type", "bridge")
        self.call(set_up, "under0", f"{LOCAL}/24")

    def start(self, settings: Settings | None = None, node_address: str = LOCAL) -> Network:
        """Return the facade of a plugin object as a freshly started node has it."""
        plugin = create(settings or Settings(), self.context("vxlan", node_address))
        return NetworkInside("vxlan", plugin, self)

    def start_flat(self) -> Network:
        """Return the same of a plugin whose networks end at the node."""
        plugin = create_flat(FlatSettings(), self.context("flatdhcp", LOCAL))
        return NetworkInside("flatdhcp", plugin, self)

    def context(self, name: str, node_address: str) -> PluginContext:
        folders = [self.directory / kind / name for kind in ("state", "run")]
        for folder in folders:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return PluginContext(
            node_name="n1",
            state_dir=folders[0],
            run_dir=folders[1],
            plugins=cast(PluginSource, None),
            node_address=node_address,
        )

    def run(self, *command: str) -> str:
        """Run a program and return what it printed."""
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        return done.stdout + done.stderr

    def inventory(self) -> dict[str, object]:
        """Return everything that a plugin could leave behind."""
        return {
            "links": sorted(self.call(links.links)),
            "rules": self.call(self.run, "nft", "list", "ruleset"),
            "forward": self.call(FORWARD.read_text),
            "neighbours": self.call(self.run, "ip", "neigh", "show", "nud", "permanent"),
        }


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    """Return a node that must be as it was when all ports and networks are gone."""
    with Node(tmp_path) as node:
        before = node.inventory()
        yield node
        driver = node.start()
        for port in driver.list().ports:
            driver.detach(port.port_id)
        for network_id in driver.list().network_ids:
            driver.release(network_id)
        assert node.inventory() == before


@pytest.fixture
def driver(node: Node) -> Network:
    return node.start()


@pytest.fixture
def network() -> NetworkSpec:
    return make_network("vxlan")


class TestVxlan(SpanningNetworkContract):
    @pytest.fixture
    def network_type(self) -> str:
        return "vxlan"

    @pytest.fixture
    def driver(self, node: Node) -> Network:
        return node.start()


def whole(network: NetworkSpec, *numbers: int) -> NetworkReach:
    remotes = tuple(make_remote(network, number) for number in numbers)
    return NetworkReach(revision=1, remotes=remotes, is_whole=True)


# -- what may be made -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "hint"), [("", "cluster.address"), ("node-1", ""), ("192.0.2.77", "Correct")]
)
def test_an_end_for_tunnels_is_needed(
    node: Node, network: NetworkSpec, address: str, hint: str
) -> None:
    driver = node.start(node_address=address)
    with pytest.raises(ConfigError) as refused:
        driver.prepare(network)
    assert hint in refused.value.hint
    assert driver.list().network_ids == ()


def test_setting_goes_before_the_nodes_address(node: Node, network: NetworkSpec) -> None:
    driver = node.start(Settings(address=LOCAL), node_address="192.0.2.77")
    driver.prepare(network)
    assert driver.list().warnings == ()


@pytest.mark.parametrize("segment", [0, -1, 1 << 24])
def test_segments_that_are_none_are_refused(
    driver: Network, network: NetworkSpec, segment: int
) -> None:
    with pytest.raises(InputError, match=str(segment)):
        driver.prepare(msgspec.structs.replace(network, segment=segment))


def test_two_networks_need_two_segments(driver: Network, network: NetworkSpec) -> None:
    driver.prepare(network)
    other = msgspec.structs.replace(make_network("vxlan", 2), segment=network.segment)
    with pytest.raises(Conflict, match=network.network_id):
        driver.prepare(other)
    with pytest.raises(Conflict, match="segment"):
        driver.prepare(msgspec.structs.replace(network, segment=7))
    assert driver.list().network_ids == (network.network_id,)
    assert driver.list().warnings == ()


def test_foreign_tunnels_are_not_touched(node: Node, driver: Network, network: NetworkSpec) -> None:
    name = tunnels.device_name(network)
    node.call(node.run, "ip", "link", "add", name, "type", "bridge")
    with pytest.raises(ConfigError, match=name):
        driver.prepare(network)
    node.call(node.run, "ip", "link", "del", name)
    taken = ("type", "vxlan", "id", str(network.segment), "dstport", "4789")
    node.call(node.run, "ip", "link", "add", "theirs", *taken)
    with pytest.raises(ConfigError, match="tunnel"):
        driver.prepare(network)
    assert driver.list().network_ids == ()
    assert "theirs" in node.call(links.links)
    node.call(node.run, "ip", "link", "del", "theirs")


# -- what is put right ----------------------------------------------------------------------------


def breakages(network: NetworkSpec) -> dict[str, tuple[str, ...]]:
    """Return ways in which somebody may damage a network that has remotes."""
    name, remote = tunnels.device_name(network), make_remote(network, 7)
    return {
        "no tunnel": ("ip", "link", "del", name),
        "tunnel down": ("ip", "link", "set", name, "down"),
        "tunnel elsewhere": ("ip", "link", "set", name, "nomaster"),
        "floods": ("bridge", "link", "set", "dev", name, "flood", "on"),
        "learns": ("bridge", "link", "set", "dev", name, "learning", "on"),
        "no bridge": ("ip", "link", "del", network.bridge),
        "no inet rules": ("nft", "delete", "table", "inet", rules.TABLE),
        "no bridge rules": ("nft", "delete", "table", "bridge", rules.TABLE),
        "no rules of the network": (
            *("nft", "flush", "chain", "inet", rules.TABLE),
            f"network-{network.segment}",
        ),
        "no members": ("nft", "flush", "set", "inet", rules.TABLE, f"members-{network.segment}"),
        "no MACs": ("nft", "flush", "set", "bridge", rules.TABLE, "elsewhere"),
        "no networks": (
            *("nft", "delete", "element", "inet", rules.TABLE, "networks"),
            f"{{ {network.segment} : goto network-{network.segment} }}",
        ),
        "no forwarding entry": ("bridge", "fdb", "del", remote.mac, "dev", name, "self"),
        "no bridge entry": ("bridge", "fdb", "del", remote.mac, "dev", name, "master"),
        "no neighbour": ("ip", "neigh", "del", remote.addresses[0], "dev", network.bridge),
        "wrong node": (
            *("bridge", "fdb", "replace", remote.mac, "dev", name, "dst", "192.0.2.66"),
            *("self", "static"),
        ),
    }


def test_damage_is_named_and_put_right(node: Node, driver: Network, network: NetworkSpec) -> None:
    port = make_port(network)
    driver.prepare(network)
    driver.attach(network, port)
    driver.reach(network, whole(network, 7, 8))
    before = driver.list()
    assert before.warnings == ()
    for damage, command in breakages(network).items():
        assert node.call(node.run, *command) == "", damage
        assert driver.list().warnings, damage
        driver.prepare(network)
        driver.attach(network, port)
        assert driver.list() == before, damage


def test_an_underlay_that_is_too_small_is_named(
    node: Node, driver: Network, network: NetworkSpec
) -> None:
    driver.prepare(network)
    node.call(node.run, "ip", "link", "set", "under0", "mtu", "1499")
    (warning,) = driver.list().warnings
    assert "1499" in warning
    assert "1500" in warning
    node.call(node.run, "ip", "address", "del", f"{LOCAL}/24", "dev", "under0")
    (warning,) = driver.list().warnings
    assert LOCAL in warning
    node.call(set_up, "under0", f"{LOCAL}/24")


def test_a_restarted_node_keeps_what_is_right(
    node: Node, driver: Network, network: NetworkSpec
) -> None:
    driver.prepare(network)
    driver.reach(network, whole(network, 7, 8))
    tunnel = node.call(links.link, tunnels.device_name(network))
    again = node.start()
    assert {one.port_id for one in again.list().remotes[network.network_id]} == {""}
    again.prepare(network)
    assert again.list().warnings == ()
    assert len(again.list().remotes[network.network_id]) == 2
    again.reach(network, whole(network, 8, 9))
    assert again.list().warnings == ()
    assert [one.port_id for one in again.list().remotes[network.network_id]] == [
        make_port(network, number).port_id for number in (8, 9)
    ]
    assert node.call(links.link, tunnels.device_name(network)) == tunnel


def test_another_end_for_tunnels_makes_them_anew(
    node: Node, driver: Network, network: NetworkSpec
) -> None:
    driver.prepare(network)
    driver.reach(network, whole(network, 7))
    node.call(set_up, "under0", "192.0.2.3/24")
    moved = node.start(node_address="192.0.2.3")
    moved.prepare(network)
    moved.reach(network, whole(network, 7))
    assert moved.list().warnings == ()
    shown = node.call(node.run, "ip", "-d", "link", "show", tunnels.device_name(network))
    assert "local 192.0.2.3" in shown
    node.call(node.run, "ip", "address", "del", "192.0.2.3/24", "dev", "under0")


def test_a_lost_record_leaves_nothing(node: Node, driver: Network, network: NetworkSpec) -> None:
    driver.prepare(network)
    driver.reach(network, whole(network, 7))
    (node.directory / "state" / "vxlan" / "networks.json").unlink()
    again = node.start()
    assert again.list().network_ids == (network.network_id,)
    again.release(network.network_id)
    # The way out is not the network's alone, and its record is gone.
    node.call(node.run, "nft", "delete", "table", "ip", "anynode_nat_vxlan")
    node.call(FORWARD.write_text, "0\n")


def test_ports_move_here_and_away(node: Node, driver: Network, network: NetworkSpec) -> None:
    """The MAC of a port is sent to its tap when it comes, and into the tunnel when it goes."""
    port, remote = make_port(network, 7), make_remote(network, 7)
    driver.prepare(network)
    driver.reach(network, whole(network, 7, 8))

    def way() -> str:
        shown = node.call(node.run, "bridge", "fdb", "show", "br", network.bridge)
        (line,) = [
            one for one in shown.splitlines() if one.startswith(remote.mac) and "master" in one
        ]
        return line.split()[2]

    assert way() == tunnels.device_name(network)
    tap = driver.attach(network, port).tap
    assert way() == tap
    driver.reach(network, NetworkReach(revision=2, removed_port_ids=(port.port_id,)))
    assert way() == tap
    assert driver.list().warnings == ()
    driver.reach(network, NetworkReach(revision=3, remotes=(remote,)))
    assert way() == tunnels.device_name(network)
    driver.detach(port.port_id)
    assert way() == tunnels.device_name(network)
    assert driver.list().warnings == ()


def test_neighbours_over_ipv6(node: Node, driver: Network) -> None:
    network = msgspec.structs.replace(
        make_network("vxlan"), cidr6="fd00:64::/64", gateway6="fd00:64::1"
    )
    remote = make_remote(network, 7)
    remote = msgspec.structs.replace(remote, addresses=(*remote.addresses, "fd00:64::7"))
    driver.prepare(network)
    driver.reach(network, NetworkReach(revision=1, remotes=(remote,), is_whole=True))
    assert driver.list().remotes == {network.network_id: (remote,)}
    shown = node.call(node.run, "ip", "-6", "neigh", "show", "nud", "permanent")
    assert "fd00:64::7" in shown
    assert "fe80::" in shown
    driver.reach(network, NetworkReach(revision=2, removed_port_ids=(remote.port_id,)))
    assert remote.mac not in node.call(node.run, "ip", "-6", "neigh", "show", "nud", "permanent")
    assert driver.list().warnings == ()


# -- together with others -------------------------------------------------------------------------


def test_forwarding_ends_with_the_last_type(
    node: Node, driver: Network, network: NetworkSpec
) -> None:
    flat, other = node.start_flat(), make_network("flatdhcp", 2)
    for first, second in ((driver, flat), (flat, driver)):
        flat.prepare(other)
        driver.prepare(network)
        for one in (first, second):
            assert node.call(FORWARD.read_text) == "1\n"
            assert one.list().warnings == ()
            one.release(one.list().network_ids[0])
        assert node.call(FORWARD.read_text) == "0\n"


def test_networks_of_two_types_know_their_own(
    node: Node, driver: Network, network: NetworkSpec
) -> None:
    flat, other = node.start_flat(), make_network("flatdhcp", 2)
    flat.prepare(other)
    driver.prepare(network)
    kept = flat.attach(other, make_port(other))
    mine = driver.attach(network, make_port(network))
    assert flat.list().ports == (kept,)
    assert driver.list().ports == (mine,)
    driver.detach(kept.port_id)
    assert flat.list().ports == (kept,)
    flat.detach(kept.port_id)
    flat.release(other.network_id)


def test_a_network_takes_its_members_with_it(
    node: Node, driver: Network, network: NetworkSpec
) -> None:
    other = make_network("vxlan", 2)
    for one in (network, other):
        driver.prepare(one)
        driver.reach(one, whole(one, 7))
    driver.release(network.network_id)
    assert node.call(rules.macs_elsewhere) == {make_port(other, 7).mac}
    assert node.call(rules.members, network.segment) == set()
    assert driver.list().warnings == ()


def test_a_change_costs_what_changes(node: Node, driver: Network, network: NetworkSpec) -> None:
    """Rules and entries of a thousand ports are not looked at when one more comes."""
    big = msgspec.structs.replace(network, cidr="10.64.0.0/16", gateway="10.64.0.1")
    driver.prepare(big)
    remotes = tuple(
        msgspec.structs.replace(
            make_remote(network, 1),
            port_id=f"eni-{number:017x}",
            mac=f"06:b0:00:00:{number >> 8:02x}:{number & 255:02x}",
            addresses=(f"10.64.{1 + (number >> 8)}.{number & 255}",),
        )
        for number in range(1000)
    )
    driver.reach(big, NetworkReach(revision=1, remotes=remotes[:-1], is_whole=True))
    listed: list[str] = []
    original = rules._listed
    try:
        rules._listed = lambda what: listed.append(str(what)) or []  # type: ignore[func-returns-value]
        driver.reach(big, NetworkReach(revision=2, remotes=remotes[-1:]))
    finally:
        rules._listed = original
    assert listed == []
    assert len(driver.list().remotes[big.network_id]) == 1000
    assert driver.list().warnings == ()


def test_what_is_elsewhere_is_read_by_network(node: Node, driver: Network) -> None:
    """The kernel is asked for one link's entries: more networks make none of them slower."""
    first, second = make_network("vxlan"), make_network("vxlan", 2)
    for network, numbers in ((first, (7, 8)), (second, (9,))):
        driver.prepare(network)
        driver.reach(network, whole(network, *numbers))
    for network, count in ((first, 2), (second, 1)):
        found = node.call(tunnels.entries, network)
        assert (len(found.nodes), len(found.bridged)) == (count, count)
        assert set(found.neighbours.values()) == set(found.nodes) == set(found.bridged)
    assert driver.list().warnings == ()
