"""``anynode key``: access keys, which sign EC2 calls."""

from __future__ import annotations

import click

from appliance.cli.access import Access, pass_access
from appliance.cli.output import json_option, moment, print_json, print_table, say


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
    from appliance.ec2_client import Ec2Credentials, endpoint_of
    from appliance.store import identity

    seal = access.seal()
    access_key_id, secret = access.change(
        "CreateAccessKey",
        f"{user} {project}",
        lambda tx: identity.create_access_key(tx, seal, user, project),
    )
    made = Ec2Credentials(
        endpoint=endpoint_of(access.config),
        region=access.config.node.region,
        access_key_id=access_key_id,
        secret=secret,
    )
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
            "enabled" if one.is_enabled else "disabled",
            moment(one.created_at),
        )
        for one in found
    ]
    print_table(
        ("id", "user", "project", "state", "created"),
        rows,
        "There are no access keys; `anynode key create USER PROJECT` makes one.",
    )


@key.command("enable")
@click.argument("access_key_id")
@pass_access
def enable(access: Access, access_key_id: str) -> None:
    """Let an access key work again."""
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
