"""``anynode address``: who has which address."""

from __future__ import annotations

import click

from appliance.cli.access import Access, pass_access
from appliance.cli.output import json_option, print_json, print_table


@click.group(short_help="See who has which address.")
def address() -> None:
    """See who has which address.

    Addresses are given and taken back with the instances that have them.
    """


@address.command("list", short_help="List addresses and who has them.")
@click.option("--network", "network_id", default="", help="Only those of this network.")
@click.option("--all", "-a", "shows_all", is_flag=True, help="Free and reserved ones, too.")
@json_option
@pass_access
def list_addresses(access: Access, network_id: str, shows_all: bool, as_json: bool) -> None:
    """List addresses with the instance that has each, the epoch of that, and its node.

    A freed one is issued again when every node has forgotten who had it.
    """
    from appliance.store import network_lines
    from appliance.store.network_lines import FREED, USED

    quarantine_s = access.config.network.address_quarantine_s
    found = [
        one
        for one in access.read(
            lambda tx: network_lines.list_addresses(tx, quarantine_s, network_id)
        )
        if shows_all or one.state in (USED, FREED)
    ]
    if as_json:
        print_json(found)
        return
    print_table(
        ("address", "network", "state", "instance", "epoch>", "node", "mac"),
        [
            (
                one.address,
                one.network_id,
                one.state,
                one.instance_id,
                str(one.epoch or ""),
                one.node,
                one.mac,
            )
            for one in found
        ],
        "No address is in use.",
    )
