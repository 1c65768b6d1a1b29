"""``anynode evacuate``: give up a dead node, and place its instances anew."""

from __future__ import annotations

import click

from appliance.cli.access import Access, operator_name, pass_access
from appliance.cli.output import json_option, print_json, say


@click.command("evacuate", short_help="Place the instances of a dead node anew.")
@click.argument("node")
@click.option(
    "--confirm-dead",
    is_flag=True,
    help="You have seen that the machine is off, or can reach neither the network nor disks of "
    "others, and stays so until its node has been heard again.",
)
@click.option(
    "--lose-disk",
    is_flag=True,
    help="Accept that root disks are made anew from the images: what was written to them is lost.",
)
@json_option
@pass_access
def evacuate(access: Access, node: str, confirm_dead: bool, lose_disk: bool, as_json: bool) -> None:
    """Place the instances of a dead NODE anew, with their ids, MACs and addresses.

    The node must be down. Its disks were its own, so each instance begins with a fresh root disk.
    Instances that run are launched elsewhere; stopped ones stay so, and begin with a fresh disk at
    their next start. When the node comes back it sets its stale copies aside (in attic, below its
    state folder) and starts none of them. Safe to repeat.
    """
    from appliance.controller import lost
    from appliance.errors import InputError
    from appliance.store import Transaction, nodes

    if not confirm_dead:
        raise InputError(
            f"Nobody but you can know that {node} is dead and not merely silent.",
            hint="Make sure of it, take its power best, then add --confirm-dead.",
        )
    if not lose_disk:
        raise InputError(
            "The root disks are on the dead node: whatever was written to them would be lost.",
            hint="Bring the node back, or accept it with --lose-disk.",
        )

    def give_up(tx: Transaction) -> lost.Evacuation:
        return lost.evacuate(tx, nodes.match(tx, node), operator_name())

    done = access.change("EvacuateNode", node, give_up)
    if as_json:
        print_json(done)
        return
    for words, ids in (
        ("placed anew", done.placed),
        ("stopped", done.stopped),
        ("ended", done.ended),
    ):
        for instance_id in ids:
            say(f"{instance_id}  {words}")
    say(f"{len(done.placed) + len(done.stopped) + len(done.ended)} instances were on {node}.")
