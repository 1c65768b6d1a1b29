"""``anynode key``: access keys, which sign EC2 calls."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from appliance.cli.access import Access, pass_access
from appliance.cli.output import json_option, moment, print_json, print_table, say, span
from appliance.cli.when import Duration

if TYPE_CHECKING:
    from appliance.ec2_client import Ec2Credentials
    from appliance.store.identity import AccessKey


@click.group(short_help="Access keys, which sign EC2 calls.")
def key() -> None:
    """Access keys, which sign EC2 calls (SSH keys are key pairs of the API)."""


@key.command("create", short_help="Make an access key; its secret is printed once.")
@click.argument("user")
@click.argument("project")
@click.option("--env", "as_env", is_flag=True, help="Print the lines of an env file.")
@json_option
@pass_access
def create(access: Access, user: str, project: str, as_env: bool, as_json: bool) -> None:
    """Make an access key for a user in a project; its secret is printed once, here."""
    from appliance.store import identity

    seal = access.seal()
    access_key_id, secret = access.change(
        "CreateAccessKey",
        lambda made: f"{user} {project} {made[0]}",
        lambda tx: identity.create_access_key(tx, seal, user, project),
    )
    made = _credentials(access, access_key_id, secret)
    _print_made(made, as_env=as_env, as_json=as_json)


@key.command("rotate", short_help="Make a key that takes another's place.")
@click.argument("access_key_id")
@click.option(
    "--grace",
    "grace_s",
    type=Duration(),
    default=0.0,
    help="How long the old key still works, e.g. 24h; else it stops at once.",
)
@click.option("--env", "as_env", is_flag=True, help="Print the lines of an env file.")
@json_option
@pass_access
def rotate(access: Access, access_key_id: str, grace_s: float, as_env: bool, as_json: bool) -> None:
    """Make a new key for the same user and project; its secret is printed once, here.

    The old key is disabled at once, or at the end of --grace; it stays listed, so that
    `anynode key enable` can bring it back, until `anynode key delete`.
    """
    from appliance.store import identity

    seal = access.seal()
    new_id, secret = access.change(
        "RotateAccessKey",
        lambda made: f"{access_key_id} {made[0]}",
        lambda tx: identity.rotate_access_key(tx, seal, access_key_id, grace_s=grace_s),
    )
    _print_made(_credentials(access, new_id, secret), as_env=as_env, as_json=as_json)
    if not as_env and not as_json:
        end = f"works for another {span(grace_s)}" if grace_s else "works no longer"
        say(f"The old key {access_key_id} {end}.")


def _credentials(access: Access, access_key_id: str, secret: str) -> Ec2Credentials:
    from appliance.ec2_client import Ec2Credentials, endpoint_of

    return Ec2Credentials(
        endpoint=endpoint_of(access.config),
        region=access.config.node.region,
        access_key_id=access_key_id,
        secret=secret,
    )


def _print_made(made: Ec2Credentials, *, as_env: bool, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "access_key_id": made.access_key_id,
                "secret_access_key": made.secret,
                "endpoint_url": made.endpoint,
                "region": made.region,
            }
        )
    elif as_env:
        click.echo(made.env_lines(), nl=False)
    else:
        say(f"Access key id:      {made.access_key_id}")
        say(f"Secret access key:  {made.secret}")
        say("The secret is not shown again.")


@key.command("list")
@json_option
@pass_access
def list_all(access: Access, as_json: bool) -> None:
    """List all access keys, without their secrets."""
    from appliance.store import identity

    found = access.read(identity.list_access_keys)
    if as_json:
        print_json(found)
        return
    rows = [
        (
            one.access_key_id,
            one.user_name,
            one.project_name,
            _state(one),
            moment(one.created_at),
        )
        for one in found
    ]
    print_table(
        ("id", "user", "project", "state", "created"),
        rows,
        "There are no access keys; `anynode key create USER PROJECT` makes one.",
    )


def _state(key: AccessKey) -> str:
    if not key.is_enabled:
        return "disabled"
    if key.expires_at is None:
        return "enabled"
    left_s = key.expires_at - time.time()
    return f"ends in {span(left_s)}" if left_s > 0 else "ended"


@key.command("enable")
@click.argument("access_key_id")
@pass_access
def enable(access: Access, access_key_id: str) -> None:
    """Let an access key work again, also one that was rotated."""
    _set_enabled(access, access_key_id, is_enabled=True)


@key.command("disable")
@click.argument("access_key_id")
@pass_access
def disable(access: Access, access_key_id: str) -> None:
    """Make an access key stop working at once."""
    _set_enabled(access, access_key_id, is_enabled=False)


def _set_enabled(access: Access, access_key_id: str, *, is_enabled: bool) -> None:
    from appliance.store import identity

    word = "Enable" if is_enabled else "Disable"
    access.change(
        f"{word}AccessKey",
        access_key_id,
        lambda tx: identity.enable_access_key(tx, access_key_id, is_enabled=is_enabled),
    )
    say(f"{word}d access key {access_key_id}.")


@key.command("delete")
@click.argument("access_key_id")
@pass_access
def delete(access: Access, access_key_id: str) -> None:
    """Delete an access key."""
    from appliance.store import identity

    access.change(
        "DeleteAccessKey", access_key_id, lambda tx: identity.delete_access_key(tx, access_key_id)
    )
    say(f"Deleted access key {access_key_id}.")
