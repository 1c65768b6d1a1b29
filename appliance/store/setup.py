"""What a store begins with: a default VPC, a default network per zone, and the node itself."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from ipaddress import IPv4Network

from appliance.config import Config
from appliance.errors import ConfigError
from appliance.model import NetworkSpec
from appliance.store import Transaction, networks, nodes
from appliance.store.nodes import Node

_VPC_PREFIX = 16
_LONGEST_BRIDGE = 15


def prepare(tx: Transaction, config: Config) -> None:
    """Make the default VPC and the default network of the node's zone, unless they are there.

    :raises ConfigError: a range of the settings is none, or the VPC has no room for the network.
    """
    vpc_id = networks.default_vpc(tx)
    if vpc_id is None:
        vpc_id = networks.create_vpc(tx, str(_vpc_range(config)), is_default=True)
    if networks.default_in_zone(tx, config.node.zone) is not None:
        return
    others = networks.in_vpc(tx, vpc_id)
    cidr = _free_range(IPv4Network(networks.range_of_vpc(tx, vpc_id)), config, others)
    spec = NetworkSpec(
        network_id=tx.world.ids.ec2("subnet"),
        vpc_id=vpc_id,
        type=config.network.type,
        cidr=str(cidr),
        gateway=networks.gateway_of(str(cidr)),
        bridge=_free_bridge(config.network.bridge, {other.bridge for other in others}),
        dns=config.network.dns,
        mtu=config.network.mtu,
    )
    networks.create(tx, spec, zone=config.node.zone, is_default=True)


def _range(name: str, cidr: str) -> IPv4Network:
    try:
        return IPv4Network(cidr)
    except ValueError as error:
        raise ConfigError(f"{name} is no IPv4 range: {error}.") from error


def _vpc_range(config: Config) -> IPv4Network:
    first = _range("network.cidr", config.network.cidr)
    if not config.network.vpc_cidr:
        return first.supernet(new_prefix=min(first.prefixlen, _VPC_PREFIX))
    vpc = _range("network.vpc_cidr", config.network.vpc_cidr)
    if not first.subnet_of(vpc):
        raise ConfigError(f"network.cidr, {first}, is not inside network.vpc_cidr, {vpc}.")
    return vpc


def _free_range(vpc: IPv4Network, config: Config, others: Sequence[NetworkSpec]) -> IPv4Network:
    """Return the range of the settings, or the first of its size that is free."""
    first = _range("network.cidr", config.network.cidr)
    taken = [ipaddress.ip_network(other.cidr) for other in others]
    if first.subnet_of(vpc) and not any(first.overlaps(one) for one in taken):
        return first
    for candidate in vpc.subnets(new_prefix=max(first.prefixlen, vpc.prefixlen)):
        if not any(candidate.overlaps(one) for one in taken):
            return candidate
    raise ConfigError(
        f"The default VPC, {vpc}, has no room for a network of zone {config.node.zone}.",
        hint="Set network.cidr to a smaller range, or node.zone to a zone that there is.",
    )


def _free_bridge(wanted: str, taken: set[str]) -> str:
    """Return the name of the settings, or one like it with the first number that is free."""
    base, number, name = wanted.rstrip("0123456789"), 0, wanted
    while name in taken:
        name = f"{base[: _LONGEST_BRIDGE - len(str(number))]}{number}"
        number += 1
    return name


def join(tx: Transaction, node: Node) -> None:
    """Make the node known.

    :raises ConfigError: another node bears its name.
    """
    for other in nodes.status(tx):
        if other.name == node.name and other.node_id != node.node_id:
            raise ConfigError(
                f"Another node is called {node.name!r}.", hint="Set node.name to another name."
            )
    nodes.join(tx, node)
