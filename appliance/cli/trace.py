"""``anynode trace``: every hop and step of an instance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from appliance.cli import follow as follow_view
from appliance.cli import timeline_view
from appliance.cli.access import Access, pass_access
from appliance.cli.output import json_option, print_json, say, show

if TYPE_CHECKING:
    from appliance.model import TimelineEntry


@click.command("trace", short_help="Show every hop and step of an instance.")
@click.argument("instance_id")
@click.option("--follow", is_flag=True, help="Go on while the instance is on its way.")
@json_option
@pass_access
def trace(access: Access, instance_id: str, follow: bool, as_json: bool) -> None:
    """Show what was done for an instance: each hop and step, where, when, how long, with what end.

    INSTANCE_ID may be the beginning of an id. A step that undoes another is marked with ↶.
    """
    from appliance.store import overview

    with access.store() as store:
        found_id = store.read(lambda tx: overview.match_instance(tx, instance_id))
        if follow and not as_json:
            follow_view.follow_timeline(store, found_id)
            return
        line, entries = follow_view.read_timeline(store, found_id)
    if as_json:
        print_json(entries)
        return
    show_timeline(entries)
    say(follow_view.ending_words(found_id, line))


def show_timeline(entries: Sequence[TimelineEntry]) -> None:
    """Print a table for each request."""
    for section in timeline_view.sections(entries):
        say(timeline_view.heading(section))
        show(timeline_view.table(section))
        say("")
