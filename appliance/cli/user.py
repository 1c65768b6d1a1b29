"""``anynode user``: people and programs."""

from __future__ import annotations

import click

from appliance.cli.access import Access, pass_access
from appliance.cli.output import json_option, moment, print_json, print_table, say


@click.group()
def user() -> None:
    """People and programs that use the cloud."""


@user.command("create")
@click.argument("name")
@json_option
@pass_access
def create(access: Access, name: str, as_json: bool) -> None:
    """Make a user, who belongs to no project yet."""
    from appliance.store import identity

    made = access.change(
        "CreateUser",
        lambda made: f"{made.name} {made.user_id}",
        lambda tx: identity.create_user(tx, name),
    )
    if as_json:
        print_json(made)
    else:
        say(f"Made user {made.name} ({made.user_id}).")


@user.command("list")
@json_option
@pass_access
def list_all(access: Access, as_json: bool) -> None:
    """List all users and their projects."""
    from appliance.store import identity

    found = access.read(identity.list_users)
    if as_json:
        print_json(found)
        return
    rows = [
        (
            one.name,
            one.user_id,
            "enabled" if one.is_enabled else "disabled",
            ", ".join(f"{name} ({level})" for name, level in one.memberships.items()),
            moment(one.created_at),
        )
        for one in found
    ]
    print_table(
        ("name", "id", "state", "projects", "created"),
        rows,
        "There are no users; `anynode user create NAME` makes one.",
    )


@user.command("enable")
@click.argument("name")
@pass_access
def enable(access: Access, name: str) -> None:
    """Let the keys of a user work again."""
    _set_enabled(access, name, is_enabled=True)


@user.command("disable")
@click.argument("name")
@pass_access
def disable(access: Access, name: str) -> None:
    """Make the keys of a user stop working at once; instances go on."""
    _set_enabled(access, name, is_enabled=False)


def _set_enabled(access: Access, name: str, *, is_enabled: bool) -> None:
    from appliance.store import identity

    word = "Enable" if is_enabled else "Disable"
    access.change(
        f"{word}User", name, lambda tx: identity.enable_user(tx, name, is_enabled=is_enabled)
    )
    say(f"{word}d user {name}.")


@user.command("delete", short_help="Delete a user with keys and memberships.")
@click.argument("name")
@pass_access
def delete(access: Access, name: str) -> None:
    """Delete a user with keys and memberships; what belongs to projects stays."""
    from appliance.store import identity

    access.change("DeleteUser", name, lambda tx: identity.delete_user(tx, name))
    say(f"Deleted user {name}.")
