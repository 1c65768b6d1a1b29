"""A node on a bench for firewalls: bridges, taps held open, a port to the world beyond.

Writing to a tap is what its instance sends and reading is what it receives. The kernel carries a
written frame to its end before the write returns, except when it is so busy that a thread of its
own has to: what must arrive is waited for, what must not is looked for once.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from pyroute2 import IPRoute

from appliance.firewall import METADATA_ADDRESS, NODE, UPLINK, Packet, link_local
from appliance.hooks import Firewall
from appliance.model import FirewallPort, NetworkSpec
from appliance.run import run
from appliance.testing.firewall import FirewallInside
from appliance.testing.frames import encode
from appliance.testing.namespaces import Machine, Namespace, add_route, open_tap, set_up

_CLONE_NEWNET = 0x40000000
_SYSCTL = Path("/proc/sys/net")
_SIOCGIFHWADDR = 0x8927
_READ_BYTES = 65600
_TAG = b"anynode-tag"


class FirewallLab:
    """One node with a firewall. Everything is gone when it is closed."""

    def __init__(self, plugin: object, name: str = "lab") -> None:
        self.namespace = Namespace()
        self.install(plugin, name)
        self._taps: dict[str, int] = {}
        self._macs: dict[str, str] = {}
        self._sniffers: dict[tuple[int, int], socket.socket] = {}
        self.namespace.call(_forward)

    def install(self, plugin: object, name: str = "lab") -> None:
        """Give the node another plugin; what the one before has put in force stays."""
        self.firewall: Firewall = FirewallInside(name, plugin, self.namespace)

    def close(self) -> None:
        """Remove the node."""
        for fd in self._taps.values():
            os.close(fd)
        for sniffer in self._sniffers.values():
            sniffer.close()
        self.namespace.close()

    def add_network(self, network: NetworkSpec) -> None:
        """Make a network's bridge with the gateway's addresses and a port to the world beyond."""
        addresses = [
            f"{gateway}/{cidr.partition('/')[2]}"
            for gateway, cidr in (
                (network.gateway, network.cidr),
                (METADATA_ADDRESS, "/32"),
                (network.gateway6, network.cidr6),
            )
            if gateway
        ]
        self.namespace.call(_make_bridge, network.bridge, addresses)
        self._macs[network.network_id] = self.namespace.call(_mac_of, network.bridge)
        self.add_tap(uplink_name(network), network.bridge)

    def add_tap(self, name: str, bridge: str = "") -> None:
        """Make a tap, put it into a bridge when one is named, and set it up."""
        self._taps[name] = self.namespace.call(open_tap, name)
        self.namespace.call(_enslave, name, bridge)

    def remove_tap(self, name: str) -> None:
        """Remove a tap."""
        os.close(self._taps.pop(name))

    def add_ports(self, network: NetworkSpec, ports: Sequence[FirewallPort]) -> None:
        """Make the taps of ports, and tell the node which MAC has which address."""
        for port in ports:
            self.add_tap(port.tap, network.bridge)
            own = [*port.addresses, str(link_local(port.mac))]
            self.namespace.call(_add_neighbours, network.bridge, port.mac, own)

    def add_machine(self, network: NetworkSpec, port: FirewallPort) -> Machine:
        """Make a machine with a stack of its own behind a port's tap; the caller closes it."""
        machine = Machine(self.namespace, port.tap, port.mac)
        self.namespace.call(_enslave, port.tap, network.bridge)
        lengths = (network.cidr.partition("/")[2], network.cidr6.partition("/")[2])
        machine.call(_set, "ipv6/conf/eth0/accept_dad", "0")
        machine.call(
            set_up, "eth0", *(f"{a}/{n}" for a, n in zip(port.addresses, lengths, strict=True))
        )
        machine.call(add_route, "0.0.0.0/0", network.gateway)
        return machine

    def gateway_mac(self, network: NetworkSpec) -> str:
        """Return the MAC of a network's bridge."""
        return self._macs[network.network_id]

    def send(self, tap: str, frame: bytes) -> None:
        """Send a frame as the instance behind a tap would, or as the world beyond the bridge."""
        with suppress(BlockingIOError):
            os.write(self._taps[tap], frame)

    def received(self, tap: str) -> list[bytes]:
        """Return the frames that have come out of a tap and were not asked for yet."""
        frames = []
        with suppress(BlockingIOError):
            while True:
                frames.append(os.read(self._taps[tap], _READ_BYTES))
        return frames

    def passes(self, network: NetworkSpec, packet: Packet, *, wait_s: float = 0.0) -> bool:
        """Send a packet from its source and say whether it comes out at its destination.

        What the node itself sends goes through its own stack, and what it receives is looked for
        behind its filters.

        :param wait_s: how long to wait for a packet that is expected to come.
        """
        end = self._name(network, packet.destination)
        sniffer = self._sniffer(packet) if end == NODE else None
        self._come_out(end, sniffer)
        frames = encode(packet, _TAG)
        if packet.source == NODE:
            self.namespace.call(_send_from_node, network.bridge, frames)
        else:
            for frame in frames:
                self.send(self._name(network, packet.source), frame)
        until = time.monotonic() + wait_s
        while not any(_is_seen(packet, one) for one in self._come_out(end, sniffer)):
            if time.monotonic() >= until:
                return False
            time.sleep(0.001)
        return True

    def _come_out(self, end: str, sniffer: socket.socket | None) -> list[bytes]:
        return _drain(sniffer) if sniffer else self.received(end)

    def forget_flows(self) -> None:
        """Make the node's kernel forget every flow that it tracks."""
        self.namespace.call(run, ["conntrack", "-F"], deadline_s=30)

    def _name(self, network: NetworkSpec, side: str) -> str:
        return uplink_name(network) if side == UPLINK else side

    def _sniffer(self, packet: Packet) -> socket.socket:
        family = socket.AF_INET6 if ":" in packet.ip_src else socket.AF_INET
        key = (family, packet.protocol)
        if key not in self._sniffers:
            made = self.namespace.call(socket.socket, family, socket.SOCK_RAW, packet.protocol)
            made.setblocking(False)
            self._sniffers[key] = made
        _drain(self._sniffers[key])
        return self._sniffers[key]


def join(namespace: Namespace) -> None:
    """Take the calling thread into a namespace, for the rest of its life."""
    path = f"/proc/self/task/{namespace.thread_id}/ns/net"
    with open(path) as place:
        if ctypes.CDLL(None, use_errno=True).setns(place.fileno(), _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "setns")


def uplink_name(network: NetworkSpec) -> str:
    """Return the name of a bridge's port to the world beyond."""
    return f"up-{network.bridge}"[:15]


def _is_seen(packet: Packet, content: bytes) -> bool:
    """Return whether a frame or datagram is the packet: by its tag, where it could carry one."""
    if packet.arp is not None:
        return content[12:14] == b"\x08\x06" and content[:12] == _head(packet)
    if packet.nd_target:
        last = encode(packet)[-1]
        return last[-16 if packet.is_fragment else -24 :] in content[-24:]
    # The first bytes may have travelled in another fragment.
    return _TAG[4:] in content


def _head(packet: Packet) -> bytes:
    return encode(packet)[0][:12]


def _drain(sniffer: socket.socket) -> list[bytes]:
    found = []
    with suppress(BlockingIOError):
        while True:
            found.append(sniffer.recv(_READ_BYTES))
    return found


def _forward() -> None:
    _set("ipv4/ip_forward", "1")
    _set("ipv6/conf/all/forwarding", "1")


def _set(switch: str, value: str) -> None:
    """Set a sysctl of this namespace; a kernel without IPv6 has not all of them."""
    with suppress(FileNotFoundError):
        (_SYSCTL / switch).write_text(value)


def _make_bridge(name: str, addresses: Sequence[str]) -> None:
    with IPRoute() as netlink:
        netlink.link("add", ifname=name, kind="bridge", br_mcast_snooping=0, br_forward_delay=0)
        index = netlink.link_lookup(ifname=name)[0]
        # A MAC that was set stays when ports come and go.
        netlink.link("set", index=index, address=f"0e:00:00:00:00:{index % 256:02x}")
    _set(f"ipv6/conf/{name}/accept_dad", "0")
    set_up(name, *addresses)


def _mac_of(name: str) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        answer = fcntl.ioctl(asking, _SIOCGIFHWADDR, struct.pack("256s", name.encode()))
    return ":".join(f"{byte:02x}" for byte in answer[18:24])


def _enslave(name: str, bridge: str) -> None:
    with (
        suppress(FileNotFoundError),
        open(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6", "w") as f,
    ):
        f.write("1")
    with IPRoute() as netlink:
        index = netlink.link_lookup(ifname=name)[0]
        if bridge:
            netlink.link("set", index=index, master=netlink.link_lookup(ifname=bridge)[0])
        netlink.link("set", index=index, state="up")


def _add_neighbours(bridge: str, mac: str, addresses: Sequence[str]) -> None:
    with IPRoute() as netlink:
        index = netlink.link_lookup(ifname=bridge)[0]
        for address in addresses:
            netlink.neigh("replace", dst=address, lladdr=mac, ifindex=index, state=0x80)


def _send_from_node(bridge: str, frames: Sequence[bytes]) -> None:
    """Send the IP packets of frames through the node's own stack, so that it filters them."""
    for frame in frames:
        packet = frame[14:]
        family = socket.AF_INET6 if packet[0] >> 4 == 6 else socket.AF_INET
        with socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, bridge.encode())
            if family == socket.AF_INET6:
                end = socket.inet_ntop(family, packet[24:40])
                scope = socket.if_nametoindex(bridge)
                raw.setsockopt(socket.IPPROTO_IPV6, 36, 1)
                target: tuple[str, int] | tuple[str, int, int, int] = (end, 0, 0, scope)
            else:
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
                target = (socket.inet_ntoa(packet[16:20]), 0)
            # A packet that our rules drop on the way out is reported to its sender.
            with suppress(PermissionError):
                raw.sendto(packet, target)
