"""``anynode messages move``: the messages of a cluster go over another broker from now on."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from appliance.cli.access import Access, operator_name, pass_access
from appliance.cli.output import program_name, say

if TYPE_CHECKING:
    from appliance.cluster.brokers import Broker
    from appliance.seal import Seal
    from appliance.store import Transaction


@click.command(short_help="Move all messages to another broker.")
@click.argument("url", required=False, default="", metavar="[URL[,URL...]]")
@click.option(
    "--admin-url",
    default="",
    metavar="URL",
    help="The new broker's management API, with a login that administers: "
    "https://user:password@host:15671; several with commas.",
)
@click.option("--back", is_flag=True, help="Move back to the broker before the last move.")
@click.option("--lost", is_flag=True, help="The old broker is gone for good: go on without it.")
@click.option("--dry-run", is_flag=True, help="Check the new broker, and change nothing.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask before it begins.")
@pass_access
def move(
    access: Access, url: str, admin_url: str, back: bool, lost: bool, dry_run: bool, yes: bool
) -> None:
    """Move all messages of the cluster to the RabbitMQ at URL while the cluster works.

    The new broker is checked first. Then all nodes hear both, send over the new one, and leave the
    old one; what still lies there is taken along, and no message is lost. Nodes that are down
    learn of it when they are back.

    Safe to repeat: without URL a move that was interrupted is continued. --back turns one around
    that is under way, or undoes the last one. With --lost what lies in the old broker is not taken
    along: the cluster does anew what of it is still to be done.
    """
    from appliance import crash_points
    from appliance.cluster.membership import Membership
    from appliance.cluster.moving import Moving
    from appliance.errors import ConfigError, InputError

    if back and (url or admin_url):
        raise InputError("--back goes to the broker before the last move, and takes no URL.")
    member = Membership.of(access.config.state_dir)
    if member is None:
        raise ConfigError(
            "This node is in no cluster, and needs no broker.",
            hint="`anynode init --bus-url` makes a cluster with a broker of yours.",
        )
    keys = access.seal()
    target = access.read(lambda tx: _target(tx, keys, url, admin_url, is_back=back))
    began = time.monotonic()
    with access.store() as store:
        one = Moving(
            store=store,
            seal=keys,
            target=target,
            own_tls=member.own_tls,
            actor=operator_name(),
            say=lambda text: say(f"[{time.monotonic() - began:5.1f} s] {text}"),
            is_back=back,
            is_lost=lost,
            passed=crash_points.from_environment(),
        )
        one.check()
        if dry_run:
            say(f"Messages can go over {target.urls}.")
            return
        if not yes:
            click.confirm(f"Move all messages to {target.urls}?", abort=True)
        one.run()
    say(f"All messages go over {target.urls}.")
    say(f"`{program_name()} messages move --back` undoes it while the old broker runs.")


def _target(tx: Transaction, keys: Seal, url: str, admin_url: str, *, is_back: bool) -> Broker:
    """Return where messages shall go."""
    from appliance.bus.urls import without_login
    from appliance.cluster import brokers
    from appliance.cluster.moving import broker_of
    from appliance.errors import InputError

    last = brokers.last_move(tx, keys)
    if is_back:
        if last is None:
            raise InputError("Messages were never moved: there is no broker to go back to.")
        return last.target if last.is_back else last.source
    if not url:
        if last is None or last.is_done:
            raise InputError(
                "No move is under way that could be continued.",
                hint="Name the new broker: `anynode messages move amqps://… --admin-url https://…`.",
            )
        return last.target
    known = [brokers.current(tx, keys)]
    known += [last.source, last.target] if last else []
    named = [one for one in known if one.urls == without_login(url)]
    # Of a broker that is known it is known, too, who vouches for it.
    return named[0] if named and not admin_url else broker_of(url, admin_url)
