"""``anynode instances``: all instances of all projects, from the store."""

from __future__ import annotations

import time

import click

from appliance.cli.access import Access, pass_access
from appliance.cli.output import json_option, print_json, print_table, span


@click.command("instances", short_help="List the instances of all projects.")
@click.option("--all", "with_terminated", is_flag=True, help="Terminated ones, too.")
@json_option
@pass_access
def instances(access: Access, with_terminated: bool, as_json: bool) -> None:
    """List the instances of all projects with state, address, node and reason."""
    from appliance.store import overview

    terminated_s = float(access.config.store.terminated_s) if with_terminated else 0.0
    found = access.read(lambda tx: overview.list_instances(tx, terminated_s=terminated_s))
    if as_json:
        print_json(found)
        return
    now = time.time()
    rows = [
        (
            one.instance_id,
            one.name,
            one.project_name,
            one.instance_type,
            one.state,
            " ".join(one.addresses),
            one.node_name,
            span(now - one.created_at),
            one.reason_message,
        )
        for one in found
    ]
    hidden = "" if with_terminated else "; `--all` shows terminated ones"
    print_table(
        ("id", "name", "project", "type", "state", "address", "node", "age>", "reason"),
        rows,
        f"There are no instances{hidden}.",
    )
