"""Three nodes on one switch: instances reach each other, and nothing else crosses."""

from __future__ import annotations

import errno
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import msgspec
import pytest
from anynode_firewall_nftables.driver import NftablesFirewall
from anynode_network_vxlan import Settings, create
from pyroute2 import IPRoute

from appliance.datapath import links
from appliance.firewall import ETHER_ARP, ETHER_IPV6, METADATA_ADDRESS, Arp, Packet
from appliance.firewall.rules import ICMPV6, UDP
from appliance.hookspecs import PluginContext, PluginSource
from appliance.model import (
    FirewallPort,
    NetworkPolicy,
    NetworkReach,
    PortSpec,
    RemotePort,
    tap_name,
)
from appliance.testing.dhcp import ask_dhcp
from appliance.testing.firewall import FirewallInside, allow, make_group
from appliance.testing.frames import encode, mac_bytes
from appliance.testing.namespaces import Machine, Namespace, NetworkInside, add_route, set_up
from appliance.testing.network import make_network, make_port

pytestmark = pytest.mark.node

VXLAN = 4789
MTU = 1450
SILENCE_S = 0.4
NO_DAD = Path("/proc/sys/net/ipv6/conf/eth0/accept_dad")
DEADLINE_S = 10.0
SO_RCVBUFFORCE = 33
DONT_FRAGMENT = (socket.IPPROTO_IP, 10, 2)  # IP_MTU_DISCOVER, IP_PMTUDISC_DO
NETWORK = msgspec.structs.replace(
    make_network("vxlan"), cidr6="fd00:64::/64", gateway6="fd00:64::1"
)
GATEWAY_MAC = links.bridge_mac(NETWORK.network_id)


@dataclass(frozen=True)
class Seen:
    """A frame between the nodes: the node that sent it, and what was in the tunnel."""

    source: str
    inner: bytes

    @property
    def ether_type(self) -> int:
        return int.from_bytes(self.inner[12:14], "big")

    @property
    def is_for_many(self) -> bool:
        return bool(self.inner[0] & 1)


class Fabric(Namespace):
    """The switch between the nodes, and an ear on it."""

    def __init__(self) -> None:
        super().__init__()
        self.call(_make_switch)
        self._ear = self.call(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, 0x0300)
        self._ear.setblocking(False)
        self._ear.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 24)

    def plug(self, node: Namespace, number: int) -> None:
        node.connect(self, here="under0", there=f"fab{number}")
        self.call(_join_switch, f"fab{number}")
        node.call(set_up, "under0", f"{address_of(number)}/24")

    def heard(self) -> list[bytes]:
        """Return the frames since the last question."""
        frames = []
        with suppress(BlockingIOError):
            while True:
                frames.append(self._ear.recv(65600))
        return frames

    def crossed(self) -> list[Seen]:
        """Return what has gone through tunnels since the last question."""
        found = []
        for frame in self.heard():
            if frame[12:14] != b"\x08\0" or frame[23] != UDP:
                continue
            assert len(frame) <= 14 + 1500, "a frame is longer than the switch carries"
            assert not int.from_bytes(frame[20:22], "big") & 0x3FFF, "a datagram was cut in two"
            if frame[36:38] == VXLAN.to_bytes(2, "big"):
                found.append(Seen(source=socket.inet_ntoa(frame[26:30]), inner=frame[50:]))
        return found

    def close(self) -> None:
        self._ear.close()
        super().close()


def _make_switch() -> None:
    with IPRoute() as netlink:
        netlink.link("add", ifname="fab0", kind="bridge", br_mcast_snooping=0, br_forward_delay=0)
    set_up("fab0", "192.0.2.254/24")


def _join_switch(name: str) -> None:
    with IPRoute() as netlink:
        master = netlink.link_lookup(ifname="fab0")[0]
        netlink.link("set", index=netlink.link_lookup(ifname=name)[0], master=master)


def address_of(number: int) -> str:
    return f"192.0.2.{number}"


class Node(Namespace):
    """A node with its network and firewall plugins."""

    def __init__(self, fabric: Fabric, number: int, directory: Path) -> None:
        super().__init__()
        self.number = number
        self.directory = directory / f"n{number}"
        fabric.plug(self, number)
        self.firewall = FirewallInside("nftables", NftablesFirewall(self.folder("rules")), self)
        self.start()

    def folder(self, name: str) -> Path:
        path = self.directory / name
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return path

    def start(self) -> None:
        """Have what a freshly started node has."""
        context = PluginContext(
            node_name=f"n{self.number}",
            state_dir=self.folder("state"),
            run_dir=self.folder("run"),
            plugins=cast(PluginSource, None),
            node_address=address_of(self.number),
        )
        self.network = NetworkInside("vxlan", create(Settings(), context), self)
        self.firewall.guard()
        self.network.prepare(NETWORK)


@dataclass
class Instance:
    """An instance: where it is, which groups it is in, and its machine while it has one."""

    port: PortSpec
    node: int
    groups: tuple[str, ...] = ("sg-a",)
    machine: Machine | None = None

    @property
    def address(self) -> str:
        return self.port.addresses[0]

    @property
    def address6(self) -> str:
        return self.port.addresses[1]

    @property
    def stack(self) -> Machine:
        assert self.machine
        return self.machine


class Lab:
    """Three nodes and the cluster's table of ports."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.fabric = Fabric()
        self.nodes = {number: Node(self.fabric, number, directory) for number in (1, 2, 3)}
        self.instances: dict[int, Instance] = {}
        self.revision = 0
        self.peers: tuple[str, ...] = ("sg-a",)

    def launch(self, number: int, node: int, *groups: str) -> Instance:
        """Make an instance with an address of its own, without DHCP."""
        port = make_port(NETWORK, number)
        both = (*port.addresses, f"fd00:64::{number + 16:x}")
        port = msgspec.structs.replace(port, addresses=both)
        instance = Instance(port, node, groups or ("sg-a",))
        self.instances[number] = instance
        self.plug(instance)
        return instance

    def plug(self, instance: Instance) -> None:
        """Give an instance its tap on its node, and let all nodes know."""
        node, port = self.nodes[instance.node], instance.port
        tap = node.network.attach(NETWORK, port).tap
        self.tell()
        node.network.raise_link(port.port_id)
        machine = instance.machine = Machine(node, tap, port.mac, mtu=MTU)
        machine.call(NO_DAD.write_text, "0")
        machine.call(set_up, "eth0", f"{instance.address}/24", f"{instance.address6}/64")
        machine.call(add_route, "0.0.0.0/0", NETWORK.gateway)

    def unplug(self, instance: Instance) -> None:
        """Take an instance's tap away, without a word to the other nodes."""
        instance.stack.close()
        instance.machine = None
        self.nodes[instance.node].network.detach(instance.port.port_id)

    def remove(self, number: int) -> None:
        """End an instance."""
        instance = self.instances.pop(number)
        self.unplug(instance)
        self.tell()

    def tell(self) -> None:
        """Bring all nodes up to date."""
        self.revision += 1
        for number, node in self.nodes.items():
            node.firewall.sync(self.policy(number))
            node.network.reach(NETWORK, self.reach(number))

    def policy(self, node: int) -> NetworkPolicy:
        here = [one for one in self.instances.values() if one.node == node]
        members: dict[str, list[str]] = {"sg-a": [], "sg-b": []}
        for one in self.instances.values():
            for group in one.groups:
                members[group] += one.port.addresses
        rules = {"sg-a": [allow(peer=peer) for peer in self.peers], "sg-b": []}
        return NetworkPolicy(
            network=NETWORK,
            revision=self.revision,
            ports=tuple(
                FirewallPort(
                    port_id=one.port.port_id,
                    tap=tap_name(one.port.port_id),
                    mac=one.port.mac,
                    addresses=one.port.addresses,
                    group_ids=one.groups,
                )
                for one in here
            ),
            groups=tuple(make_group(name, rules[name], members[name]) for name in members),
        )

    def reach(self, node: int) -> NetworkReach:
        return NetworkReach(
            revision=self.revision,
            remotes=tuple(
                RemotePort(
                    port_id=one.port.port_id,
                    mac=one.port.mac,
                    addresses=one.port.addresses,
                    node_address=address_of(one.node),
                )
                for one in self.instances.values()
                if one.node != node
            ),
            is_whole=True,
        )

    def close(self) -> None:
        """End everything; nothing of a network may be left on any node."""
        try:
            for number in list(self.instances):
                self.remove(number)
            for node in self.nodes.values():
                assert node.network.list().warnings == ()
                node.network.release(NETWORK.network_id)
                node.firewall.withdraw()
                left = set(node.call(links.links)) - {"lo", "under0", "sit0", "ip6tnl0", "tunl0"}
                assert left == set()
                assert list(node.folder("run").iterdir()) == []
        finally:
            for space in (*self.nodes.values(), self.fabric):
                space.close()


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    made = Lab(tmp_path_factory.mktemp("vxlan"))
    for number in (1, 2, 3):
        made.launch(number, number)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def as_before(lab: Lab) -> Iterator[None]:
    """Leave three instances that may talk to each other, whatever a test did or failed at."""
    yield
    is_as_before = lab.instances.keys() == {1, 2, 3} and lab.peers == ("sg-a",)
    if is_as_before and all(one.groups == ("sg-a",) for one in lab.instances.values()):
        return
    for number in lab.instances.keys() - {1, 2, 3}:
        lab.remove(number)
    lab.peers = ("sg-a",)
    for instance in lab.instances.values():
        instance.groups = ("sg-a",)
    lab.tell()


@pytest.fixture
def one(lab: Lab) -> Instance:
    return lab.instances[1]


@pytest.fixture
def two(lab: Lab) -> Instance:
    return lab.instances[2]


@pytest.fixture
def three(lab: Lab) -> Instance:
    return lab.instances[3]


def udp(address: str, port: int = 0) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    made = socket.socket(family, socket.SOCK_DGRAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    made.settimeout(SILENCE_S)
    made.bind((address, port))
    return made


@contextmanager
def ends(sender: Instance, receiver: Instance) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Open an end for datagrams at each of two instances."""
    with ExitStack() as stack:
        near = stack.enter_context(sender.stack.call(udp, sender.address))
        far = stack.enter_context(receiver.stack.call(udp, receiver.address, 7000))
        yield near, far


def passes(sender: Instance, receiver: Instance, text: bytes = b"hello") -> bool:
    """Say whether a datagram arrives; one that is lost once is not sent again."""
    with ends(sender, receiver) as (near, far):
        near.sendto(text, (receiver.address, 7000))
        return hears(far, text)


def hears(far: socket.socket, text: bytes) -> bool:
    try:
        return far.recv(65600) == text
    except TimeoutError:
        return False


def listen(address: str, port: int) -> socket.socket:
    """Take connections; a caller that waits for one in vain gives up."""
    made = socket.create_server((address, port))
    made.settimeout(DEADLINE_S)
    return made


# -- what crosses ---------------------------------------------------------------------------------


def test_each_reaches_each(lab: Lab) -> None:
    for sender in lab.instances.values():
        for receiver in lab.instances.values():
            if sender is not receiver:
                assert passes(sender, receiver), f"{sender.address} → {receiver.address}"


def test_a_full_packet_fits_and_one_byte_more_does_not(
    lab: Lab, one: Instance, two: Instance
) -> None:
    lab.fabric.crossed()
    with ends(one, two) as (near, far):
        near.setsockopt(*DONT_FRAGMENT)
        fits = bytes(MTU - 28)
        near.sendto(fits, (two.address, 7000))
        assert hears(far, fits)
        with pytest.raises(OSError, match="too long") as refused:
            near.sendto(fits + b"x", (two.address, 7000))
        assert refused.value.errno == errno.EMSGSIZE
    # Looks at each frame on the switch: none is cut in two, none too long.
    assert lab.fabric.crossed()


def test_a_connection_carries_much(lab: Lab, one: Instance, two: Instance) -> None:
    content = bytes(range(256)) * 4096
    with two.stack.call(listen, two.address, 7001) as server:
        received: list[bytes] = []

        def serve() -> None:
            connection, peer = server.accept()
            assert peer[0] == one.address
            with connection:
                while got := connection.recv(65536):
                    received.append(got)

        thread = threading.Thread(target=serve)
        thread.start()
        where = (two.address, 7001)
        with one.stack.call(socket.create_connection, where, DEADLINE_S) as client:
            client.sendall(content)
        thread.join(DEADLINE_S)
    assert b"".join(received) == content
    lab.fabric.crossed()


def test_nothing_but_packets_for_one_crosses(lab: Lab, one: Instance, two: Instance) -> None:
    """Address resolution, broadcasts and multicasts stay, however an instance asks."""
    one.stack.call(_forget_neighbours)
    two.stack.call(_forget_neighbours)
    lab.fabric.crossed()
    with ends(one, two) as (near, far):
        near.sendto(b"to all", ("255.255.255.255", 7000))
        near.sendto(b"to the network", (NETWORK.cidr.replace(".0/24", ".255"), 7000))
        near.sendto(b"to a group", ("224.0.0.251", 7000))
        near.sendto(b"to nobody", (NETWORK.cidr.replace("0/24", "250"), 7000))
        near.sendto(b"to two", (two.address, 7000))
        assert hears(far, b"to two")
        answered, peer = b"and back", near.getsockname()
        far.sendto(answered, peer)
        assert hears(near, answered)
    crossed = lab.fabric.crossed()
    assert {seen.source for seen in crossed} == {address_of(1), address_of(2)}
    assert {seen.ether_type for seen in crossed} == {0x0800}
    assert not any(seen.is_for_many for seen in crossed)
    texts = {seen.inner[42:] for seen in crossed}
    assert texts == {b"to two", answered}


def test_ipv6_crosses_and_its_discovery_does_not(lab: Lab, one: Instance, two: Instance) -> None:
    with (
        one.stack.call(udp, one.address6) as near,
        two.stack.call(udp, two.address6, 7000) as far,
    ):
        # The first packet waits until the address is resolved.
        near.sendto(b"to two", (two.address6, 7000))
        assert hears(far, b"to two")
        far.sendto(b"and back", near.getsockname()[:2])
        assert hears(near, b"and back")
        lab.fabric.crossed()
        solicitation = Packet(
            source="uplink",
            destination="uplink",
            ether_src=one.port.mac,
            ether_dst=two.port.mac,
            ether_type=ETHER_IPV6,
            ip_src=one.address6,
            ip_dst=two.address6,
            protocol=ICMPV6,
            icmp_type=135,
            nd_target=two.address6,
            hop_limit=255,
        )
        with one.stack.call(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, 0xDD86) as card:
            card.settimeout(DEADLINE_S)
            card.bind(("eth0", ETHER_IPV6))
            card.send(encode(solicitation)[0])
            while True:
                answer = card.recv(1500)
                if answer[20] == ICMPV6 and answer[54] == 136:
                    break
        assert answer[6:12] == mac_bytes(two.port.mac)
        near.sendto(b"last", (two.address6, 7000))
        assert hears(far, b"last")
    crossed = lab.fabric.crossed()
    assert not any(seen.is_for_many for seen in crossed)
    assert {seen.inner[20] for seen in crossed if seen.ether_type == ETHER_IPV6} == {UDP}


def test_what_is_a_nodes_business_does_not_cross_for_one_either(
    lab: Lab, one: Instance, two: Instance
) -> None:
    """An instance knows the other's MAC, and asks it alone."""
    refresh = Packet(
        source="uplink",
        destination="uplink",
        ether_src=one.port.mac,
        ether_dst=two.port.mac,
        ether_type=ETHER_ARP,
        arp=Arp(
            operation=1,
            sender_mac=one.port.mac,
            sender_ip=one.address,
            target_mac=two.port.mac,
            target_ip=two.address,
        ),
    )
    lab.fabric.crossed()
    with one.stack.call(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, 0x0608) as card:
        card.settimeout(DEADLINE_S)
        card.bind(("eth0", 0x0806))
        card.send(encode(refresh)[0])
        answer = card.recv(1500)
        assert answer[6:12] == answer[22:28] == mac_bytes(two.port.mac)
        with one.stack.call(udp, one.address) as near:
            near.sendto(b"discover", (two.address, 67))
        assert passes(one, two, b"last")
    crossed = lab.fabric.crossed()
    assert {seen.ether_type for seen in crossed} == {0x0800}
    assert {seen.inner[42:] for seen in crossed} == {b"last"}


def _forget_neighbours() -> None:
    with IPRoute() as netlink:
        index = netlink.link_lookup(ifname="eth0")[0]
        for entry in netlink.get_neighbours(family=socket.AF_INET, ifindex=index):
            netlink.neigh("del", ifindex=index, dst=entry.get_attr("NDA_DST"))


def test_an_address_is_resolved_on_the_own_node(lab: Lab, one: Instance, two: Instance) -> None:
    one.stack.call(_forget_neighbours)
    assert passes(one, two)
    assert one.stack.call(_neighbours)[two.address] == two.port.mac


def _neighbours() -> dict[str, str]:
    with IPRoute() as netlink:
        return {
            entry.get_attr("NDA_DST"): entry.get_attr("NDA_LLADDR")
            for entry in netlink.get_neighbours(family=socket.AF_INET)
        }


def test_leases_come_from_the_own_node(lab: Lab, tmp_path: Path) -> None:
    lab.fabric.crossed()
    for instance in lab.instances.values():
        given = ask_dhcp(instance.stack, tmp_path, tries=3)
        assert given["ip"] == instance.address
        assert given["serverid"] == NETWORK.gateway
        assert given["mtu"] == str(MTU)
    assert lab.fabric.crossed() == []


def test_gateway_and_metadata_are_those_of_the_own_node(lab: Lab) -> None:
    lab.fabric.crossed()
    for number, instance in lab.instances.items():
        node = lab.nodes[instance.node]
        with node.call(listen, METADATA_ADDRESS, 80) as server:

            def serve(server: socket.socket = server, number: int = number) -> None:
                connection, peer = server.accept()
                with connection:
                    connection.sendall(f"node {number} to {peer[0]}".encode())

            thread = threading.Thread(target=serve)
            thread.start()
            where = (METADATA_ADDRESS, 80)
            with instance.stack.call(socket.create_connection, where, DEADLINE_S) as client:
                assert client.recv(100) == f"node {number} to {instance.address}".encode()
            thread.join()
        assert instance.stack.call(_pings, NETWORK.gateway)
    assert lab.fabric.crossed() == []


def _pings(address: str) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
        raw.settimeout(DEADLINE_S)
        request = struct.pack(">BBHHH", 8, 0, 0xF7FE, 1, 0)
        raw.sendto(request, (address, 0))
        while True:
            answer, peer = raw.recvfrom(1000)
            if peer[0] == address and answer[20] == 0:
                return True


def test_what_a_node_says_itself_never_crosses(lab: Lab, two: Instance) -> None:
    """Its gateway is every node's, so that another would not know whom it hears."""
    lab.fabric.crossed()
    with lab.nodes[1].call(udp, NETWORK.gateway) as near:
        with suppress(PermissionError):
            near.sendto(b"from the gateway", (two.address, 7000))
        with suppress(PermissionError):
            near.sendto(b"from the gateway", (NETWORK.cidr.replace(".0/24", ".255"), 7000))
        assert passes(lab.instances[1], two)
    assert all(b"from the gateway" not in seen.inner for seen in lab.fabric.crossed())


# -- rules ----------------------------------------------------------------------------------------


def test_groups_hold_across_nodes(lab: Lab, one: Instance, two: Instance) -> None:
    assert passes(one, two)
    two.groups = ("sg-b",)
    lab.tell()
    assert not passes(one, two)
    # Nobody in the group that may come in: two is no member of it any more.
    assert not passes(two, one)
    two.groups = ("sg-a",)
    lab.peers = ("sg-b",)
    lab.tell()
    assert not passes(one, two)
    one.groups = ("sg-a", "sg-b")
    lab.tell()
    assert passes(one, two)


def test_a_stranger_in_the_network_is_kept_out(lab: Lab, one: Instance) -> None:
    stranger = lab.launch(4, 2, "sg-b")
    assert not passes(stranger, one)
    assert not passes(one, stranger)


# -- who may send ---------------------------------------------------------------------------------


def wrap(frame: bytes, segment: int = NETWORK.segment) -> bytes:
    return b"\x08\0\0\0" + segment.to_bytes(3, "big") + b"\0" + frame


def frame_of(sender: Instance, receiver: Instance, text: bytes, **changes: str) -> bytes:
    packet = Packet(
        source="uplink",
        destination="uplink",
        ether_src=changes.get("ether_src", sender.port.mac),
        ether_dst=changes.get("ether_dst", receiver.port.mac),
        ip_src=changes.get("ip_src", sender.address),
        ip_dst=receiver.address,
        protocol=UDP,
        source_port=7000,
        destination_port=7000,
    )
    (frame,) = encode(packet, text)
    return frame


def test_a_tunnel_takes_frames_of_members_only(
    lab: Lab, one: Instance, two: Instance, three: Instance
) -> None:
    lab.peers = ("sg-a", "0.0.0.0/0")
    lab.tell()
    good = frame_of(two, one, b"good")
    stranger = "06:a0:00:00:01:99"
    cases: list[tuple[Namespace, bytes]] = [
        (lab.fabric, wrap(frame_of(two, one, b"from no node"))),
        (lab.nodes[3], wrap(frame_of(two, one, b"from another node"))),
        (lab.nodes[2], wrap(frame_of(two, one, b"from nobody", ether_src=stranger))),
        (lab.nodes[2], wrap(frame_of(one, one, b"from itself"))),
        (
            lab.nodes[2],
            wrap(frame_of(two, one, b"gateway", ether_src=GATEWAY_MAC)),
        ),
        (
            lab.nodes[2],
            wrap(frame_of(two, one, b"for all", ether_dst="ff:ff:ff:ff:ff:ff")),
        ),
        (
            lab.nodes[2],
            wrap(
                frame_of(two, one, b"for the node", ether_dst=links.bridge_mac(NETWORK.network_id))
            ),
        ),
        (lab.nodes[2], wrap(good, segment=NETWORK.segment + 1)),
        (lab.nodes[2], wrap(good)[:30]),
    ]
    with one.stack.call(udp, "0.0.0.0", 7000) as far:
        for place, datagram in cases:
            with place.call(udp, "0.0.0.0") as near:
                near.sendto(datagram, (address_of(1), VXLAN))
        with lab.nodes[2].call(udp, "0.0.0.0") as near:
            near.sendto(wrap(good), (address_of(1), VXLAN))
        assert hears(far, b"good")
        assert not hears(far, b"good")


def test_foreign_tunnels_pass_by(lab: Lab) -> None:
    """Another program's VXLAN on the same port has its own numbers."""
    ends = {1: "10.99.0.1", 2: "10.99.0.2"}
    for number, address in ends.items():
        lab.nodes[number].call(_make_foreign, address, address_of(3 - number))
    try:
        with (
            lab.nodes[1].call(udp, ends[1]) as near,
            lab.nodes[2].call(udp, ends[2], 7000) as far,
        ):
            near.sendto(b"theirs", (ends[2], 7000))
            assert hears(far, b"theirs")
    finally:
        for number in ends:
            lab.nodes[number].call(_remove_foreign)


def _make_foreign(address: str, peer: str) -> None:
    with IPRoute() as netlink:
        netlink.link(
            "add", ifname="their0", kind="vxlan", vxlan_id=77, vxlan_group=peer, vxlan_port=VXLAN
        )
    set_up("their0", f"{address}/24")


def _remove_foreign() -> None:
    with IPRoute() as netlink:
        netlink.link("del", index=netlink.link_lookup(ifname="their0")[0])


# -- instances that come, move and go -------------------------------------------------------------


def test_an_instance_moves(lab: Lab, one: Instance, three: Instance) -> None:
    mover = lab.launch(5, 2)
    assert passes(one, mover)
    assert passes(mover, three)
    lab.unplug(mover)
    mover.node = 3
    lab.plug(mover)
    assert passes(one, mover)
    assert passes(mover, one)
    assert passes(three, mover)
    # A copy that the old node still has is heard nowhere.
    with (
        one.stack.call(udp, one.address, 7000) as far,
        lab.nodes[2].call(udp, "0.0.0.0") as near,
    ):
        near.sendto(wrap(frame_of(mover, one, b"stale")), (address_of(1), VXLAN))
        assert not hears(far, b"stale")


def test_a_moved_instance_is_local_to_those_that_were_its_peers(lab: Lab, one: Instance) -> None:
    mover = lab.launch(6, 2)
    assert passes(one, mover)
    lab.unplug(mover)
    mover.node = 1
    lab.plug(mover)
    lab.fabric.crossed()
    assert passes(one, mover, b"stays here")
    assert all(b"stays here" not in seen.inner for seen in lab.fabric.crossed())


def test_what_is_removed_is_reached_no_more(lab: Lab, one: Instance) -> None:
    gone = lab.launch(7, 2)
    assert passes(one, gone)
    lab.remove(7)
    lab.fabric.crossed()
    with one.stack.call(udp, one.address) as near:
        near.sendto(b"anybody?", (gone.address, 7000))
    assert passes(one, lab.instances[2])
    assert all(b"anybody?" not in seen.inner for seen in lab.fabric.crossed())
    assert gone.port.mac not in {
        remote.mac
        for node in lab.nodes.values()
        for remote in node.network.list().remotes[NETWORK.network_id]
    }


def test_a_restart_interrupts_nothing(lab: Lab, one: Instance, two: Instance) -> None:
    stop = threading.Event()
    sent = 0
    with ends(one, two) as (near, far):

        def send() -> None:
            nonlocal sent
            while not stop.is_set():
                near.sendto(b"%d" % sent, (two.address, 7000))
                sent += 1
                time.sleep(0.005)

        thread = threading.Thread(target=send)
        thread.start()
        for number in (1, 2):
            lab.nodes[number].start()
            lab.nodes[number].network.attach(NETWORK, lab.instances[number].port)
            lab.nodes[number].network.reach(NETWORK, lab.reach(number))
            assert lab.nodes[number].network.list().warnings == ()
        stop.set()
        thread.join()
        received = []
        with suppress(TimeoutError):
            while True:
                received.append(int(far.recv(100)))
    assert sent > 20
    assert received == list(range(sent))
