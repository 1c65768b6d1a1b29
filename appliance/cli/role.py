"""``anynode role``: which node does what, changed while it works."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from appliance.cli.access import Access, pass_access
from appliance.cli.output import json_option, print_json, say

if TYPE_CHECKING:
    from appliance.store.nodes import NodeStatus

WAIT_S = 60.0
_POLL_S = 0.1


@click.group(short_help="Move roles between the nodes of a cluster.")
def role() -> None:
    """Give roles to nodes and take them away while the cluster works.

    Roles that reach the store (api, controller, scheduler, network) are active on every node that
    has them. A node without api hands calls to those that have it.
    """


node_option = click.option("--node", "-n", required=True, help="Name or id of the node.")


@role.command(short_help="Give a node a role.")
@click.argument("role_name", metavar="ROLE")
@node_option
@json_option
@pass_access
def add(access: Access, role_name: str, node: str, as_json: bool) -> None:
    """Give a node ROLE, and wait until it does that work."""
    from appliance.cluster import changes

    access.change(
        "AddRole", f"{role_name} {node}", lambda tx: changes.add_role(tx, node, role_name)
    )
    _wait(access, node, role_name, is_wanted=True, as_json=as_json)


@role.command(short_help="Take a role from a node.")
@click.argument("role_name", metavar="ROLE")
@node_option
@json_option
@pass_access
def remove(access: Access, role_name: str, node: str, as_json: bool) -> None:
    """Take ROLE from a node, and wait until it does that work no more."""
    from appliance.cluster import changes

    access.change(
        "RemoveRole", f"{role_name} {node}", lambda tx: changes.remove_role(tx, node, role_name)
    )
    _wait(access, node, role_name, is_wanted=False, as_json=as_json)


def _wait(access: Access, name: str, role_name: str, *, is_wanted: bool, as_json: bool) -> None:
    """Wait until a node says itself that it does what is wanted.

    :raises Unavailable: it does not in time, and why as far as is known; the change stays.
    """
    from appliance.errors import Unavailable
    from appliance.store import nodes

    began = time.monotonic()
    with access.store() as store:
        while True:
            node = store.read(lambda tx: nodes.match(tx, name))
            if (role_name in node.condition.roles) is is_wanted:
                break
            if time.monotonic() - began > WAIT_S:
                raise Unavailable(
                    f"{node.name} has not done it within {WAIT_S:g} s.{_problem(node, role_name)}",
                    hint="It is tried again and again; `anynode node list` shows when it is done.",
                )
            time.sleep(_POLL_S)
    took_s = time.monotonic() - began
    if as_json:
        print_json(
            {
                "node_id": node.node_id,
                "name": node.name,
                "roles": list(node.condition.roles),
                "took_s": round(took_s, 1),
            }
        )
        return
    say(f"{node.name} now does {', '.join(node.condition.roles)} ({took_s:.1f} s).")


def _problem(node: NodeStatus, role_name: str) -> str:
    said = node.condition.problems.get(role_name, "")
    return f" It says: {said}" if said else ""
