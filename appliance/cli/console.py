"""``anynode console``: what an instance printed on its serial port."""

from __future__ import annotations

import time

import click

from appliance.cli.access import Access, pass_access
from appliance.cli.output import json_option, print_json, printable

_POLL_S = 1.0


@click.command("console", short_help="Show the serial output of an instance.")
@click.argument("instance_id")
@click.option("--follow", is_flag=True, help="Go on showing what comes, until Ctrl-C.")
@click.option("--raw", is_flag=True, help="Keep escape sequences: the instance may use them.")
@json_option
@pass_access
def console(access: Access, instance_id: str, follow: bool, raw: bool, as_json: bool) -> None:
    """Show the end of an instance's serial output, through the EC2 API."""
    client = access.ec2()
    text = client.console(instance_id)
    if as_json:
        print_json({"instance_id": instance_id, "output": text})
        return
    shown = text if raw else printable(text)
    click.echo(shown, nl=bool(shown) and not shown.endswith("\n"))
    while follow:
        time.sleep(_POLL_S)
        newer = client.console(instance_id)
        added = what_is_new(text, newer)
        text = newer
        if added:
            click.echo(added if raw else printable(added), nl=False)


def what_is_new(before: str, after: str) -> str:
    """Return what a text has gained, when both are the last part of one that only grows."""
    if after.startswith(before):
        return after[len(before) :]
    # The window has moved: the end of the old text is somewhere in the new one.
    tail = before[-400:]
    at = after.rfind(tail) if tail else -1
    return after[at + len(tail) :] if at >= 0 else after
