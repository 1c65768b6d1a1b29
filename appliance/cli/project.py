"""``anynode project``: tenants, and who belongs to them."""

from __future__ import annotations

import click

from appliance.access_levels import ACCESS_LEVELS
from appliance.cli.access import Access, pass_access
from appliance.cli.output import json_option, moment, print_json, print_table, say


@click.group()
def project() -> None:
    """Tenants, and the users that belong to them."""


@project.command("create")
@click.argument("name")
@click.option("--id", "project_id", default="", help="Twelve digits; drawn when left out.")
@json_option
@pass_access
def create(access: Access, name: str, project_id: str, as_json: bool) -> None:
    """Make a project with the quota of the settings."""
    import msgspec

    from appliance.store import identity

    ceilings = msgspec.structs.asdict(access.config.quota)
    made = access.change(
        "CreateProject",
        lambda made: f"{made.name} {made.project_id}",
        lambda tx: identity.create_project(tx, name, ceilings, project_id),
    )
    if as_json:
        print_json(made)
    else:
        say(f"Made project {made.name} ({made.project_id}).")


@project.command("list")
@json_option
@pass_access
def list_all(access: Access, as_json: bool) -> None:
    """List all projects."""
    from appliance.store import identity

    projects, users = access.read(lambda tx: (identity.list_projects(tx), identity.list_users(tx)))
    members = {
        one.name: {
            user.name: user.memberships[one.name] for user in users if one.name in user.memberships
        }
        for one in projects
    }
    if as_json:
        print_json(
            [
                {
                    "project_id": one.project_id,
                    "name": one.name,
                    "is_enabled": one.is_enabled,
                    "created_at": one.created_at,
                    "members": members[one.name],
                }
                for one in projects
            ]
        )
        return
    rows = [
        (
            one.name,
            one.project_id,
            "enabled" if one.is_enabled else "disabled",
            ", ".join(f"{name} ({level})" for name, level in members[one.name].items()),
            moment(one.created_at),
        )
        for one in projects
    ]
    print_table(
        ("name", "id", "state", "members", "created"),
        rows,
        "There are no projects; `anynode project create NAME` makes one.",
    )


@project.command("enable")
@click.argument("name")
@pass_access
def enable(access: Access, name: str) -> None:
    """Let the keys of a project work again."""
    _set_enabled(access, name, is_enabled=True)


@project.command("disable")
@click.argument("name")
@pass_access
def disable(access: Access, name: str) -> None:
    """Make the keys of a project stop working at once; its instances go on."""
    _set_enabled(access, name, is_enabled=False)


def _set_enabled(access: Access, name: str, *, is_enabled: bool) -> None:
    from appliance.store import identity

    word = "Enable" if is_enabled else "Disable"
    access.change(
        f"{word}Project", name, lambda tx: identity.enable_project(tx, name, is_enabled=is_enabled)
    )
    say(f"{word}d project {name}.")


@project.command("delete", short_help="Delete a project without instances and images.")
@click.argument("name")
@pass_access
def delete(access: Access, name: str) -> None:
    """Delete a project without instances and images.

    Its access keys, memberships, key pairs and security groups go with it. To keep all that and
    let nobody in, disable it.
    """
    from appliance.store import identity

    access.change("DeleteProject", name, lambda tx: identity.delete_project(tx, name))
    say(f"Deleted project {name}.")


@project.command("add-user")
@click.argument("name")
@click.argument("user")
@click.option(
    "--level",
    type=click.Choice(ACCESS_LEVELS),
    default="member",
    show_default=True,
    help="Access level.",
)
@pass_access
def add_user(access: Access, name: str, user: str, level: str) -> None:
    """Make a user a member of a project, or change the access level there."""
    from appliance.store import identity

    access.change(
        "AddUserToProject",
        f"{user} {name} {level}",
        lambda tx: identity.join_project(tx, user, name, level),
    )
    say(f"User {user} is {level} of project {name}.")


@project.command("remove-user")
@click.argument("name")
@click.argument("user")
@pass_access
def remove_user(access: Access, name: str, user: str) -> None:
    """Take a user out of a project; its keys for the project are deleted."""
    from appliance.store import identity

    access.change(
        "RemoveUserFromProject",
        f"{user} {name}",
        lambda tx: identity.leave_project(tx, user, name),
    )
    say(f"User {user} is no longer in project {name}.")
