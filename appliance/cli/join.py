"""``anynode join``: this machine becomes a member of a cluster."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

import click

from appliance.cli.access import Access, pass_access
from appliance.cli.output import json_option, print_json, program_name, say

if TYPE_CHECKING:
    from appliance.cluster.join import Joining, Offer
    from appliance.config import Config

TOKEN_VARIABLE = "ANYNODE_JOIN_TOKEN"  # noqa: S105 - a name


@click.command(short_help="Make this machine a member of a cluster.")
@click.argument("token", required=False, default="")
@click.option("--name", default="", help="Name of the node; else node.name, else the host's.")
@click.option("--zone", default="", help="Availability zone; else node.zone.")
@click.option(
    "--address",
    default="",
    help="Address at which other nodes reach this one; else cluster.address, else the one from "
    "which this machine reaches the cluster.",
)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=0, help="Port there; else cluster.port."
)
@click.option("--no-start", is_flag=True, help="Do not start the node afterwards.")
@json_option
@pass_access
def join(
    access: Access,
    token: str,
    name: str,
    zone: str,
    address: str,
    port: int,
    no_start: bool,
    as_json: bool,
) -> None:
    """Make this machine a member of the cluster that a token is from, and start it.

    TOKEN is what `anynode token create` printed. What stands on the command line is seen by all
    users of this machine: write `-` to be asked for it (or to give it on standard input), or put
    it into $ANYNODE_JOIN_TOKEN.

    The cluster is checked by the fingerprint in the token before anything is sent. The node gets a
    certificate, a login and all its settings; there is nothing to edit. Safe to repeat: what was
    interrupted is continued.
    """
    from appliance.cluster import tokens
    from appliance.cluster.join import Joining, Wishes

    _check_root(access.lone_config)
    began = time.monotonic()

    def tell(text: str) -> None:
        if not as_json:
            say(f"[{time.monotonic() - began:5.1f} s] {text}")

    parsed = tokens.parse(_given(token))
    one = Joining(
        config=access.lone_config,
        config_path=access.config_path,
        token=parsed,
        wishes=Wishes(name=name, zone=zone, address=address, port=port),
        offer=_offer,
        say=tell,
    )
    _join(one, is_starting=not no_start, as_json=as_json)


def _given(token: str) -> str:
    """Return the token from where it was put."""
    if token and token != "-":  # noqa: S105 - no password
        return token
    if not token and os.environ.get(TOKEN_VARIABLE):
        return os.environ[TOKEN_VARIABLE]
    if sys.stdin.isatty():
        return str(click.prompt("Token", hide_input=True))
    return sys.stdin.readline()


def _offer(config: Config) -> Offer:
    """Return what this machine offers to instances.

    :raises AnynodeError: its hypervisor does not answer: it would be no use as a node.
    """
    from appliance.cluster.join import Offer
    from appliance.compute.offer import offered
    from appliance.hooks import Compute
    from appliance.plugin_loader import loader_of

    name = config.compute.driver
    driver = Compute(name, loader_of(config).create(Compute.group, name))
    vcpus, memory_mib, disk_gib = offered(driver.capacity(), config.compute)
    return Offer(vcpus=vcpus, memory_mib=memory_mib, disk_gib=disk_gib)


def _join(one: Joining, *, is_starting: bool, as_json: bool) -> None:
    from appliance.cluster import settings
    from appliance.cluster.decided import joined_address

    is_new = one.check()
    told = one.run() if is_new else settings.read(settings.folder_of(one.config.state_dir))
    process = one.start() if is_starting else None
    place = joined_address(told.address, told.port)
    if as_json:
        print_json(
            {
                "node_id": told.node_id,
                "name": told.node_name,
                "zone": told.zone,
                "address": place,
                "is_new": is_new,
                "pid": process.pid if process else None,
            }
        )
        return
    word = "is now" if is_new else "was already"
    say(f"This machine {word} node {told.node_name} of the cluster, for others at {place}.")
    if process:
        say(f"The node is up, process {process.pid}, log {process.log_path}.")
    else:
        say(f"Start it: `{program_name()} run --detach`.")


def _check_root(config: Config) -> None:
    from appliance.errors import ConfigError

    folder = config.state_dir if config.state_dir.exists() else config.state_dir.parent
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"This user may not write to {folder}.", hint="Run the command as root.")
