"""What a network and a port must look like before any of it reaches a kernel or a config file."""

from __future__ import annotations

import ipaddress
import re

from appliance.errors import InputError
from appliance.model import NetworkSpec, PortSpec, RemotePort

Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface

_ID = re.compile(r"[a-z0-9]{1,16}-[a-z0-9-]{1,64}")
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_MAC = re.compile(r"[0-9a-f]{2}(?::[0-9a-f]{2}){5}")
# Three bytes are left of a link's 15 for the label of the metadata address.
_LINK = re.compile(r"[a-z][a-z0-9_-]{0,11}")
_OUR_TAP = re.compile(r"an[0-9a-f]{12}")


def check_network(network: NetworkSpec) -> None:
    """Raise InputError unless every value of the network is well-formed and they fit together."""
    check_network_id(network.network_id)
    _match(_LINK, network.bridge, "bridge name")
    if _OUR_TAP.fullmatch(network.bridge):
        raise InputError(f"Bridge name {network.bridge!r} could be the name of a tap.")
    _check_range(network.network_id, network.cidr, network.gateway, 4)
    if network.cidr6 or network.gateway6:
        _check_range(network.network_id, network.cidr6, network.gateway6, 6)
    for server in network.dns:
        _address(server, "DNS server")
    check_domain(network.domain)
    least = 1280 if network.cidr6 else 576
    if not least <= network.mtu <= 65521:
        raise InputError(
            f"MTU {network.mtu} of {network.network_id} is not {least} to 65521 bytes."
        )


def check_network_id(network_id: str) -> None:
    """Raise InputError unless it has the form of an id; it becomes the name of a directory."""
    _match(_ID, network_id, "network id")


def check_port_id(port_id: str) -> None:
    """Raise InputError unless it has the form of an id; it becomes the name of a file."""
    _match(_ID, port_id, "port id")


def check_port(network: NetworkSpec, port: PortSpec) -> None:
    """Raise InputError unless the port's values are well-formed and belong to the network."""
    check_port_id(port.port_id)
    _check_card(port.mac)
    _match(_LABEL, port.hostname, "hostname")
    if port.network_id != network.network_id:
        raise InputError(f"Port {port.port_id} is in {port.network_id}, not {network.network_id}.")
    for text in port.addresses:
        _check_port_address(network, port.port_id, text)


def check_remote(network: NetworkSpec, remote: RemotePort) -> None:
    """Raise InputError unless the values of a port elsewhere are well-formed and fit the network.

    Its node's address is IPv4.
    """
    check_port_id(remote.port_id)
    _check_card(remote.mac)
    for text in remote.addresses:
        _check_port_address(network, remote.port_id, text)
    if _address(remote.node_address, "node").version != 4:
        raise InputError(f"{remote.node_address} of a node is no IPv4 address.")


def _check_card(mac: str) -> None:
    _match(_MAC, mac, "MAC address")
    if int(mac[:2], 16) & 1:
        raise InputError(f"{mac} is a group address, not the MAC address of a network card.")


def check_domain(domain: str) -> None:
    """Raise InputError unless it is a domain name of lower-case labels."""
    if len(domain) > 253 or not all(_LABEL.fullmatch(label) for label in domain.split(".")):
        raise InputError(f"{domain!r} is not a domain name.")


def interface(cidr: str, address: str) -> Interface:
    """Return an address together with the prefix length of its range; both were checked."""
    return ipaddress.ip_interface(f"{address}/{cidr.rpartition('/')[2]}")


def _match(pattern: re.Pattern[str], text: str, kind: str) -> None:
    if not pattern.fullmatch(text):
        raise InputError(f"{text!r} is not a {kind}.")


def _address(text: str, kind: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    try:
        address = ipaddress.ip_address(text)
    except ValueError as error:
        raise InputError(f"{text!r} is not the address of a {kind}.") from error
    if "%" in text:
        raise InputError(f"{text!r} has a zone, which means nothing on another machine.")
    return address


def _range(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise InputError(f"{text!r} is not an address range without host bits.") from error


def _check_range(network_id: str, cidr: str, gateway: str, version: int) -> None:
    span = _range(cidr)
    router = _address(gateway, "gateway")
    if span.version != version or "/" not in cidr:
        raise InputError(f"Range {cidr} of {network_id} is not an IPv{version} range.")
    if router not in span:
        raise InputError(f"Gateway {gateway} of {network_id} is outside of its range {cidr}.")


def _check_port_address(network: NetworkSpec, port_id: str, text: str) -> None:
    address = _address(text, "port")
    cidr = network.cidr if address.version == 4 else network.cidr6
    if not cidr or address not in _range(cidr):
        raise InputError(f"Address {text} of {port_id} is outside of {network.network_id}.")
    if text in (network.gateway, network.gateway6):
        raise InputError(f"Address {text} of {port_id} is the gateway of {network.network_id}.")
