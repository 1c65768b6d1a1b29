"""What a new store begins with: a default VPC with a default network, and the node itself."""

from __future__ import annotations

from appliance.config import Config
from appliance.errors import ConfigError
from appliance.model import NetworkSpec
from appliance.store import Transaction, networks, nodes
from appliance.store.nodes import Node


def prepare(tx: Transaction, config: Config) -> None:
    """Make the default VPC and the default network of the settings, unless they are there."""
    if networks.default_vpc(tx) is not None:
        return
    vpc_id = networks.create_vpc(tx, config.network.cidr, is_default=True)
    gateway = networks.gateway_of(config.network.cidr)
    spec = NetworkSpec(
        network_id=tx.world.ids.ec2("subnet"),
        vpc_id=vpc_id,
        type=config.network.type,
        cidr=config.network.cidr,
        gateway=gateway,
        bridge=config.network.bridge,
        dns=config.network.dns,
        mtu=config.network.mtu,
    )
    networks.create(tx, spec, zone=config.node.zone, is_default=True)


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
