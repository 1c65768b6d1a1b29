"""``anynode audit``: who changed what, or tried to."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import click

from appliance.cli.access import Access, pass_access
from appliance.cli.output import moment, print_json, print_table, say
from appliance.cli.when import Moment

if TYPE_CHECKING:
    from appliance.store import Store
    from appliance.store.audit import Entry

_COLUMNS = ("time", "who", "project", "action", "result", "object", "source", "request")
_POLL_S = 0.5
_MOST = 1_000_000


@click.command(short_help="Show who changed what, or tried to.")
@click.option("--since", type=Moment(), help="From a time on: 24h (ago), 7d, 2026-01-31.")
@click.option("--user", "user_name", metavar="USER", help="What one user or operator did.")
@click.option("--project", "project_name", metavar="PROJECT", help="What was done in one project.")
@click.option("--action", metavar="ACTION", help="One action, e.g. TerminateInstances.")
@click.option("--refused", is_flag=True, help="Only what was refused.")
@click.option(
    "--limit",
    type=click.IntRange(1, _MOST),
    default=100,
    show_default=True,
    help="The newest lines that are shown.",
)
@click.option("--follow", "-f", is_flag=True, help="Go on showing new lines until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; with --follow one per line.")
@pass_access
def audit(
    access: Access,
    since: float | None,
    user_name: str | None,
    project_name: str | None,
    action: str | None,
    refused: bool,
    limit: int,
    follow: bool,
    as_json: bool,
) -> None:
    """Show the audit log, oldest first: who, what, which object, the result, from where.

    It has every call of the API that changes something, whether it was carried out or refused,
    every change made with this program, and, within bounds, those who were not recognised (action
    Authenticate). Lines are deleted after store.audit_days and never altered.
    """
    from appliance.store import audit as audit_log
    from appliance.store import identity

    with access.store() as store:
        projects = {p.project_id: p.name for p in store.read(identity.list_projects)}
        project_id = _project_id(project_name, projects)

        def newest(after: int, most: int) -> list[Entry]:
            return store.read(
                lambda tx: audit_log.find(
                    tx,
                    since=since or 0.0,
                    after=after,
                    actors=_actors(user_name),
                    project_id=project_id,
                    action=action or "",
                    refused_only=refused,
                    limit=most,
                )
            )

        found = newest(0, limit)
        if follow:
            _follow(store, found, newest, projects, as_json=as_json)
        elif as_json:
            print_json(found)
        else:
            print_table(
                _COLUMNS, [_row(one, projects) for one in found], "The audit log has no such lines."
            )


def _project_id(name: str | None, projects: dict[str, str]) -> str:
    """Return the id of a project; that of one which was deleted is taken as it is."""
    from appliance.errors import NotFound

    if not name:
        return ""
    for project_id, known in projects.items():
        if name in (project_id, known):
            return project_id
    if name.isdigit():
        return name
    raise NotFound(
        f"There is no project {name!r}.", hint="One that was deleted is named by its id."
    )


def _actors(name: str | None) -> Sequence[str]:
    from appliance.cli.access import OPERATOR

    return (name, f"{OPERATOR} {name}") if name else ()


def _row(entry: Entry, projects: dict[str, str]) -> tuple[str, ...]:
    return (
        moment(entry.at),
        entry.actor or entry.access_key_id or "-",
        projects.get(entry.project_id, entry.project_id) or "-",
        entry.action,
        entry.result,
        entry.subject or "-",
        entry.source,
        entry.request_id,
    )


def _follow(
    store: Store,
    found: list[Entry],
    newest: Callable[[int, int], list[Entry]],
    projects: dict[str, str],
    *,
    as_json: bool,
) -> None:
    last = 0
    while True:
        for one in found:
            _print_line(one, projects, as_json=as_json)
            last = one.number
        time.sleep(_POLL_S)
        found = newest(last, _MOST)


def _print_line(entry: Entry, projects: dict[str, str], *, as_json: bool) -> None:
    if as_json:
        import msgspec

        click.echo(msgspec.json.encode(entry).decode())
    else:
        say("  ".join(_row(entry, projects)))
