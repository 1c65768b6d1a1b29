"""``anynode init``: this machine becomes the first node of a cluster."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import click

from appliance.cli.access import Access, operator_name, pass_access
from appliance.cli.output import program_name, say

if TYPE_CHECKING:
    from appliance.cluster.founding import Wishes


@click.command(short_help="Make this machine the first node of a cluster.")
@click.option("--address", default="", help="Address at which other nodes reach this one.")
@click.option("--name", default="", help="Name of the node; else node.name, else the host's.")
@click.option("--zone", default="", help="Availability zone; else node.zone.")
@click.option(
    "--store-url",
    default="",
    metavar="URL",
    help="A PostgreSQL that there is: postgresql://user:password@host/database. Its database is "
    "empty, or this cluster's. Else one is made here.",
)
@click.option(
    "--bus-url",
    default="",
    metavar="URL",
    help="A RabbitMQ that there is: amqps://host/vhost, several with commas. Else one is made.",
)
@click.option(
    "--bus-admin-url",
    default="",
    metavar="URL",
    help="Its management API, with a login that administers: https://user:password@host:15671.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask before it begins.")
@pass_access
def init(
    access: Access,
    address: str,
    name: str,
    zone: str,
    store_url: str,
    bus_url: str,
    bus_admin_url: str,
    dry_run: bool,
    yes: bool,
) -> None:
    """Make a cluster and this machine its first node. Needs root.

    It makes the cluster's certificate authority, a PostgreSQL and a RabbitMQ on this machine (or
    takes yours), and starts the node with them. A lone node grows: its store is copied, compared
    and kept, and its instances go on meanwhile. Other machines join with a token: `anynode token
    create` here, `anynode join TOKEN` there.

    Safe to repeat: what was interrupted is continued, with the options that were given then.
    """
    from appliance.cluster.founding import Wishes

    wishes = Wishes(
        address=address,
        name=name,
        zone=zone,
        bus_url=bus_url,
        bus_admin_url=bus_admin_url,
        store_url=store_url,
    )
    _init(access, wishes, is_dry=dry_run, is_sure=yes)


def _init(access: Access, wishes: Wishes, *, is_dry: bool, is_sure: bool) -> None:
    from appliance.cluster import founding
    from appliance.cluster.papers import ClusterPapers

    _check_root()
    began = time.monotonic()
    one = founding.begin(
        access.lone_config,
        access.config_path,
        wishes,
        ClusterPapers(),
        say=lambda text: say(f"[{time.monotonic() - began:5.1f} s] {text}"),
        actor=operator_name(),
    )
    one.check()
    for line in one.plan():
        say(line)
    if is_dry:
        return
    if not is_sure:
        click.confirm("Make this cluster?", abort=True)
    say("")
    one.run()
    program = program_name()
    say("")
    say(f"The cluster is there; this is its first node. `{program} status` shows it.")
    say(f"Let a machine join: `{program} token create` here, `{program} join TOKEN` there.")


def _check_root() -> None:
    from appliance.errors import ConfigError

    if os.geteuid() != 0:
        raise ConfigError(
            "A cluster's PostgreSQL and RabbitMQ are run as users of their own, which only root "
            "may start.",
            hint="Run it as root.",
        )
