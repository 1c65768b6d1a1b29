"""What a store begins with: a default VPC, a default network per zone, and the node itself."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from ipaddress import IPv4Network

from appliance.config import Config
from appliance.errors import ConfigError, Conflict, InputError
from appliance.model import NetworkSpec
from appliance.plugins import overhead_bytes, spans_nodes
from appliance.store import Transaction, networks, nodes
from appliance.store.nodes import Node

LONE_TYPE, CLUSTER_TYPE = "flatdhcp", "vxlan"
"""Types of default networks where the settings name none."""

_VPC_PREFIX = 16
_SMALLEST_PREFIX = 28
_LONGEST_BRIDGE = 15


def prepare(tx: Transaction, config: Config, node_id: str = "") -> None:
    """Make the default VPC and the default network of a lone node's zone, unless they are there.

    :param node_id: the node that keeps the networks of types that end at nodes.
    :raises ConfigError: a range of the settings is none, or the VPC has no room for the network.
    :raises PluginError: the network plugin of the settings is not installed.
    """
    vpc_id = _default_vpc(tx, config)
    if networks.default_in_zone(tx, config.node.zone) is None:
        kind = config.network.type or LONE_TYPE
        _make_default(tx, config, vpc_id, config.node.zone, kind, node_id)
    keep_networks(tx, node_id)


def found(tx: Transaction, config: Config, node_id: str) -> None:
    """Make of what a lone node has in its store what a cluster begins with. Safe to repeat.

    Networks that end at nodes are that node's from then on, and its zone gets one that does not.

    :raises ConfigError: as :func:`prepare_zone`.
    :raises PluginError: the network plugin of the settings is not installed.
    """
    keep_networks(tx, node_id)
    prepare_zone(tx, config, config.node.zone)


def keep_networks(tx: Transaction, node_id: str) -> None:
    """Write that networks of types that end at nodes are that node's, where nothing else is said.

    For the only node that there is: one of a store of its own, or the first of a cluster.
    """
    vpc_id = networks.default_vpc(tx)
    if not node_id or vpc_id is None:
        return
    ending = [one for one in networks.in_vpc(tx, vpc_id) if not spans_nodes(one.type)]
    if ending:
        networks.keep_on(tx, [one.network_id for one in ending], node_id)


def prepare_zone(tx: Transaction, config: Config, zone: str) -> None:
    """Give a zone of a cluster a default network that all its nodes have. Safe to repeat.

    One that only some node has is the default no more: it keeps its type, its node and its
    instances.

    :raises ConfigError: a range of the settings is none, the VPC has no room for the network, or
        the type of the settings ends at nodes.
    :raises PluginError: the network plugin of the settings is not installed.
    """
    vpc_id = _default_vpc(tx, config)
    before = networks.default_in_zone(tx, zone)
    if before is not None:
        if before not in networks.keepers(tx, [before]):
            return
        networks.end_default(tx, before)
    _make_default(tx, config, vpc_id, zone, check_spans(config), "")


def type_of_defaults(*, is_alone: bool) -> str:
    """Return the type of default networks where the settings name none."""
    return LONE_TYPE if is_alone else CLUSTER_TYPE


def check_spans(config: Config) -> str:
    """Return the type of a cluster's default networks.

    :raises ConfigError: that of the settings ends at nodes.
    :raises PluginError: the network plugin of the settings is not installed.
    """
    kind = config.network.type or CLUSTER_TYPE
    if not spans_nodes(kind):
        raise ConfigError(
            f"Networks of type {kind} end at a node, so that a cluster's zone needs another.",
            hint=f"Set network.type to {CLUSTER_TYPE}, or to nothing.",
        )
    return kind


def _default_vpc(tx: Transaction, config: Config) -> str:
    found = networks.default_vpc(tx)
    return found or networks.create_vpc(tx, str(_vpc_range(config)), is_default=True)


def make_network(
    tx: Transaction, config: Config, zone: str, kind: str, *, cidr: str = "", node_id: str = ""
) -> NetworkSpec:
    """Make a further network of the default VPC, which launches have to name.

    :param cidr: its range; empty: the first of the usual size that is free.
    :param node_id: the only node that has it, where the type ends at nodes.
    :raises InputError: the range is none, or no part of the VPC.
    :raises Conflict: another network has a part of it, or it is too small or too large.
    :raises PluginError: the network plugin is not installed.
    """
    vpc_id = _default_vpc(tx, config)
    vpc, others = IPv4Network(networks.range_of_vpc(tx, vpc_id)), networks.in_vpc(tx, vpc_id)
    chosen = _checked_range(vpc, cidr, others) if cidr else _free_range(vpc, config, zone, others)
    return _make(tx, config, vpc_id, zone, kind, node_id, chosen, others, is_default=False)


def _checked_range(vpc: IPv4Network, cidr: str, others: Sequence[NetworkSpec]) -> IPv4Network:
    networks.gateway_of(cidr)
    wanted = IPv4Network(cidr)
    if not wanted.subnet_of(vpc):
        raise InputError(f"{wanted} is not inside the default VPC, {vpc}.")
    if wanted.prefixlen > _SMALLEST_PREFIX:
        raise InputError(f"{wanted} is too small for a network: at most /{_SMALLEST_PREFIX}.")
    for other in others:
        if wanted.overlaps(IPv4Network(other.cidr)):
            raise Conflict(f"Network {other.network_id} has {other.cidr}, which meets {wanted}.")
    return wanted


def _make_default(
    tx: Transaction, config: Config, vpc_id: str, zone: str, kind: str, node_id: str
) -> None:
    others = networks.in_vpc(tx, vpc_id)
    cidr = _free_range(IPv4Network(networks.range_of_vpc(tx, vpc_id)), config, zone, others)
    _make(tx, config, vpc_id, zone, kind, node_id, cidr, others, is_default=True)


def _make(
    tx: Transaction,
    config: Config,
    vpc_id: str,
    zone: str,
    kind: str,
    node_id: str,
    cidr: IPv4Network,
    others: Sequence[NetworkSpec],
    *,
    is_default: bool,
) -> NetworkSpec:
    spans, settings = spans_nodes(kind), config.network
    spec = NetworkSpec(
        network_id=tx.world.ids.ec2("subnet"),
        vpc_id=vpc_id,
        type=kind,
        cidr=str(cidr),
        gateway=networks.gateway_of(str(cidr)),
        bridge=_free_bridge(settings.bridge, {other.bridge for other in others}),
        dns=settings.dns,
        mtu=settings.mtu - overhead_bytes(kind),
        segment=(
            networks.free_segment(tx, settings.first_segment, settings.last_segment) if spans else 0
        ),
    )
    networks.create(tx, spec, zone=zone, is_default=is_default, node_id="" if spans else node_id)
    return spec


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


def _free_range(
    vpc: IPv4Network, config: Config, zone: str, others: Sequence[NetworkSpec]
) -> IPv4Network:
    """Return the range of the settings, or the first of its size that is free."""
    first = _range("network.cidr", config.network.cidr)
    taken = [ipaddress.ip_network(other.cidr) for other in others]
    if first.subnet_of(vpc) and not any(first.overlaps(one) for one in taken):
        return first
    for candidate in vpc.subnets(new_prefix=max(first.prefixlen, vpc.prefixlen)):
        if not any(candidate.overlaps(one) for one in taken):
            return candidate
    raise ConfigError(
        f"The default VPC, {vpc}, has no room for a network of zone {zone}.",
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
