"""``anynode firewall``: groups, rules and members, and what is in force on this node."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from appliance.cli.access import Access, pass_access
from appliance.cli.output import json_option, print_json, print_table, say

if TYPE_CHECKING:
    from appliance.model import FirewallState
    from appliance.store.groups import Rule
    from appliance.store.overview import GroupLine, NetworkLine

_PROTOCOLS = {-1: "all", 1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6"}


@click.group()
def firewall() -> None:
    """Security groups, and what is in force on this node."""


@firewall.command("list", short_help="List groups, rules, members, and what is in force.")
@click.option("--instance", "instance_text", metavar="ID", help="Only the groups of an instance.")
@json_option
@pass_access
def list_all(access: Access, instance_text: str | None, as_json: bool) -> None:
    """List groups, rules and members of the store, and the revisions that the kernel has."""
    from appliance.store import overview

    instance_id = ""
    if instance_text:
        instance_id = access.read(lambda tx: overview.match_instance(tx, instance_text))
    groups, networks = access.read(
        lambda tx: (overview.list_groups(tx, instance_id), overview.list_networks(tx))
    )
    state = in_force(access)
    if as_json:
        print_json({"groups": groups, "networks": networks, "in_force": state})
        return
    for group in groups:
        _show_group(group)
    if not groups:
        say("There are no security groups yet; a project's first launch makes its default group.")
        say("")
    _show_networks(networks, state, access.config.firewall.driver)


def in_force(access: Access) -> FirewallState:
    """Return what the firewall plugin of this node reads back from the kernel.

    :raises AnynodeError: the plugin is missing, or could not read it.
    """
    from appliance.hooks import Firewall
    from appliance.plugin_loader import loader_of

    name = access.config.firewall.driver
    return Firewall(name, loader_of(access.config).create(Firewall.group, name)).state()


def _show_group(group: GroupLine) -> None:
    say(f"{group.name} ({group.group_id}) of project {group.project_name}")
    members = ", ".join(f"{one} {address}".rstrip() for one, address in group.members)
    say(f"Members: {members or 'none'}")
    rows = [
        (
            "out" if rule.is_egress else "in",
            protocol_words(rule.match.protocol),
            port_words(rule),
            rule.match.cidr or rule.match.source_group_id,
            rule.rule_id,
            rule.description,
        )
        for rule in sorted(group.rules, key=lambda rule: (rule.is_egress, rule.rule_id))
    ]
    print_table(
        ("way", "protocol", "ports", "peer", "rule", "description"),
        rows,
        "No rules: nothing passes.",
    )
    say("")


def protocol_words(protocol: int) -> str:
    """Return the name of a protocol."""
    return _PROTOCOLS.get(protocol, str(protocol))


def port_words(rule: Rule) -> str:
    """Return what of a protocol a rule lets through."""
    match = rule.match
    if match.from_port < 0:
        return "all"
    if match.protocol in (1, 58):
        code = "any" if match.to_port < 0 else match.to_port
        return f"type {match.from_port} code {code}"
    if match.from_port == match.to_port:
        return str(match.from_port)
    return f"{match.from_port}-{match.to_port}"


def _show_networks(networks: list[NetworkLine], state: FirewallState, driver: str) -> None:
    guard = "guarded" if state.is_guarded else "NOT guarded: unknown taps may pass"
    say(f"In force on this node ({driver}): {guard}, {len(state.taps)} taps")
    rows = [
        (
            one.network.network_id,
            one.network.cidr,
            one.revision,
            state.revisions.get(one.network.network_id, "none here"),
        )
        for one in networks
    ]
    print_table(("network", "range", "revision>", "in force>"), rows, "There are no networks.")
    for warning in state.warnings:
        say(f"warning: {warning}")
