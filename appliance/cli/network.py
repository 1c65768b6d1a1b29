"""``anynode network``: the networks that instances are in, which EC2 calls subnets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from appliance.cli.access import Access, pass_access
from appliance.cli.output import json_option, print_json, print_table, say

if TYPE_CHECKING:
    from appliance.store.network_lines import NetworkView


@click.group(short_help="See, make and remove networks.")
def network() -> None:
    """See, make and remove the networks that instances are in; EC2 calls them subnets."""


@network.command("list", short_help="List the networks and how full they are.")
@json_option
@pass_access
def list_networks(access: Access, as_json: bool) -> None:
    """List the networks: type, zone, range, and how many addresses are used, freed and free.

    Freed addresses are issued again when every node has forgotten who had them.
    """
    from appliance.store import network_lines

    quarantine_s = access.config.network.address_quarantine_s
    found = access.read(lambda tx: network_lines.list_networks(tx, quarantine_s))
    if as_json:
        print_json([_described(one) for one in found])
        return
    print_table(
        ("network", "type", "zone", "node", "range", "used>", "freed>", "free>", "default"),
        [
            (
                one.network.network_id,
                one.network.type,
                one.zone,
                one.node or "all",
                one.network.cidr,
                str(one.used),
                str(one.freed),
                str(one.free),
                "default" if one.is_default else "",
            )
            for one in found
        ],
        "There is no network yet.",
    )


def _described(one: NetworkView) -> dict[str, Any]:
    spec = one.network
    return {
        "network_id": spec.network_id,
        "vpc_id": spec.vpc_id,
        "type": spec.type,
        "zone": one.zone,
        "node": one.node,
        "cidr": spec.cidr,
        "gateway": spec.gateway,
        "bridge": spec.bridge,
        "mtu": spec.mtu,
        "segment": spec.segment,
        "is_default": one.is_default,
        "used": one.used,
        "freed": one.freed,
        "free": one.free,
    }


@network.command("create", short_help="Make a network in a zone.")
@click.option("--zone", "-z", default="", help="Availability zone; else this node's.")
@click.option("--type", "kind", default="", help="Its plugin, such as vxlan; else the usual one.")
@click.option("--cidr", default="", metavar="RANGE", help="IPv4 range; else the next free one.")
@click.option("--node", "-n", default="", help="The node that has it, for a type that ends there.")
@json_option
@pass_access
def create_network(
    access: Access, zone: str, kind: str, cidr: str, node: str, as_json: bool
) -> None:
    """Make a network of the default VPC in a zone.

    Launches get into it when they name it (`aws ec2 run-instances --subnet-id`); the default of
    the zone stays what it was. Networks of one VPC share its groups. There are no routes between
    networks on different nodes.
    """
    from appliance.store import network_lines

    config = access.config
    where = zone or config.node.zone
    made = access.change(
        "CreateNetwork",
        lambda spec: f"{spec.network_id} {spec.type} {spec.cidr} in {where}",
        lambda tx: network_lines.create(tx, config, zone=where, kind=kind, cidr=cidr, node=node),
    )
    if as_json:
        quarantine_s = config.network.address_quarantine_s
        found = access.read(lambda tx: network_lines.list_networks(tx, quarantine_s))
        print_json(next(_described(one) for one in found if one.network == made))
    else:
        say(f"{made.network_id} is a network of type {made.type} in {where}, {made.cidr}.")


@network.command("remove", short_help="Remove a network without instances.")
@click.argument("network_id", metavar="NETWORK")
@json_option
@pass_access
def remove_network(access: Access, network_id: str, as_json: bool) -> None:
    """Remove NETWORK, in which no instance is, and none was of late. A zone's default stays."""
    from appliance.store import network_lines

    quarantine_s = access.config.network.address_quarantine_s
    access.change(
        "RemoveNetwork",
        network_id,
        lambda tx: network_lines.remove(tx, network_id, quarantine_s),
    )
    if as_json:
        print_json({"network_id": network_id})
    else:
        say(f"{network_id} is no network any more.")
