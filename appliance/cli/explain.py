"""``anynode explain``: why an instance went where it did, or nowhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from appliance.cli.access import Access, pass_access
from appliance.cli.output import json_option, moment, print_json, print_table, say

if TYPE_CHECKING:
    from appliance.model import Decision


@click.command("explain", short_help="Show why an instance went where it did.")
@click.argument("instance_id")
@json_option
@pass_access
def explain(access: Access, instance_id: str, as_json: bool) -> None:
    """Show each placement choice for an instance: the node, its rivals, and who refused whom.

    INSTANCE_ID may be the beginning of an id.
    """
    from appliance.store import overview, timeline

    found_id, decisions, names = access.read(
        lambda tx: (
            found := overview.match_instance(tx, instance_id),
            timeline.decisions_of(tx, found),
            overview.node_names(tx),
        )
    )
    if as_json:
        print_json(decisions)
        return
    if not decisions:
        say(f"No scheduler has decided about {found_id} yet.")
    for number, decision in enumerate(decisions):
        if number:
            say("")
        _show(decision, names)


def _show(decision: Decision, names: dict[str, str]) -> None:
    ranking = decision.ranking
    say(f"{moment(decision.made_at)}, epoch {decision.epoch}, scheduler {decision.scheduler}")
    say(decision.summary)
    say(f"Chosen: {decision.node_name or 'no node'}")
    if decision.claims_lost:
        say(f"Nodes that filled up meanwhile: {decision.claims_lost}")
    if ranking.best:
        weights = sorted({name for one in ranking.best for name in one.scores})
        rows = [
            (
                names.get(one.node_id, one.node_id),
                f"{one.score:.3f}",
                *(f"{one.scores.get(name, 0):.3f}" for name in weights),
                "chosen" if one.node_id == decision.node_id else "",
            )
            for one in ranking.best
        ]
        say("")
        print_table(("best nodes", "score>", *(f"{name}>" for name in weights), ""), rows, "")
    refused = [
        (one.filter, count, reason, ", ".join(names.get(i, i) for i in one.examples))
        for one in ranking.refusals
        for reason, count in one.reasons.items()
    ]
    if refused:
        say("")
        print_table(("filter", "refused>", "because a node", "for example"), refused, "")
