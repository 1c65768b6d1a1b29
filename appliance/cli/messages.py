"""``anynode messages``: what waits for its handler, and what was given up."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import click

from appliance.cli import messages_move
from appliance.cli.access import Access, pass_access
from appliance.cli.output import (
    json_option,
    moment,
    print_json,
    print_table,
    say,
    say_error,
    size,
    span,
)

if TYPE_CHECKING:
    from appliance.bus.depth import Depth
    from appliance.store import Transaction
    from appliance.store.outbox import Letter, Queue, Sender

_SHOWN_ID = 8
_SHOWN_ERROR = 200


@click.group(
    invoke_without_command=True, short_help="Messages that wait, and those that were given up."
)
@json_option
@click.pass_context
@pass_access
def messages(access: Access, context: click.Context, as_json: bool) -> None:
    """Show the queues, how long the oldest message of each has waited, and the dead letters.

    In a cluster what waits here is on its way to the message broker, which has queues of its own:
    they are shown, too, with how many processes take from each.

    A dead letter is a message that was given up after its last attempt. It is kept with its error
    for as long as other history, and takes effect no more unless it is requeued.

    What a hypervisor may not say, or what nobody can read of it, becomes a dead letter, too, which
    is not requeued: it says from whom it came. The newest 100 of each are kept, others are counted.
    """
    if context.invoked_subcommand is not None:
        return
    from appliance.store import nodes, outbox

    queues, letters, senders, names = access.read(
        lambda tx: (
            outbox.queues(tx),
            outbox.dead_letters(tx),
            outbox.senders(tx),
            {one.node_id: one.name for one in nodes.status(tx)},
        )
    )
    depths = _at_broker(access, list(names))
    if as_json:
        print_json(
            {"queues": queues, "broker": depths, "dead_letters": letters, "senders": senders}
        )
        return
    _show_queues(queues)
    if depths is not None:
        say("")
        _show_depths(depths)
    if letters:
        say("")
        _show_letters(letters)
    if senders:
        say("")
        _show_senders(senders, names)


def _at_broker(access: Access, node_ids: Sequence[str]) -> Sequence[Depth] | None:
    """Return how full the broker's queues are; ``None`` without a broker, or when it is silent."""
    from appliance import bus
    from appliance.bus import topology
    from appliance.cluster.membership import Membership
    from appliance.errors import Unavailable

    config = access.config
    urls = bus.urls_of(config)
    if urls == [bus.LOCAL]:
        return None
    from appliance.bus.depth import depths

    member = Membership.of(config.state_dir)
    tls = member.bus_tls if member else None
    names = [queue.name for queue in topology.shared_queues()]
    names += [topology.node_queue(node_id).name for node_id in node_ids]
    try:
        return depths(urls, names, bus.tls_context(tls) if tls else None)
    except Unavailable as error:
        say_error(error.message)
        return None


def _show_depths(depths: Sequence[Depth]) -> None:
    rows = [
        (one.queue, "no queue" if one.messages is None else one.messages, one.consumers or 0)
        for one in depths
    ]
    print_table(("at the broker", "waiting>", "taken by>"), rows, "")


def _show_queues(queues: Sequence[Queue]) -> None:
    now = time.time()
    rows = [
        (one.topic, one.waiting, span(now - one.oldest_at) if one.oldest_at else "", one.dead)
        for one in queues
    ]
    print_table(("queue", "waiting>", "oldest>", "dead>"), rows, "No message waits.")


def _show_letters(letters: Sequence[Letter]) -> None:
    rows = [
        (
            one.message_id[:_SHOWN_ID],
            one.kind,
            one.about,
            moment(one.dead_at),
            one.attempts,
            size(one.size_bytes),
            " ".join(one.error.split())[:_SHOWN_ERROR],
        )
        for one in letters
    ]
    columns = ("dead letter", "kind", "about", "given up", "attempts>", "size>", "error")
    print_table(columns, rows, "")


def _show_senders(senders: Sequence[Sender], names: Mapping[str, str]) -> None:
    rows = [
        (names.get(one.login[2:], one.login), one.kept, one.forgotten, moment(one.last_at))
        for one in senders
    ]
    columns = ("refused, sent by", "kept>", "not kept>", "the last")
    print_table(columns, rows, "")


@messages.command("requeue", short_help="Let a dead letter be handled once more.")
@click.argument("message_id")
@pass_access
def requeue(access: Access, message_id: str) -> None:
    """Let a dead letter wait for its handler again, with all its attempts before it.

    MESSAGE_ID may be the beginning of an id. What it asks for may have been overtaken meanwhile:
    then it changes nothing.
    """
    from appliance.store import outbox

    done = access.change("RequeueMessage", message_id, lambda tx: outbox.requeue(tx, message_id))
    say(f"Message {done} waits for its handler again.")


messages.add_command(messages_move.move)


@messages.command("drop", short_help="Delete a dead letter, or all that a node has sent.")
@click.argument("message_id", required=False)
@click.option("--from", "sender", metavar="NODE", help="All that was refused of this node.")
@pass_access
def drop(access: Access, message_id: str | None, sender: str | None) -> None:
    """Delete a dead letter for good. MESSAGE_ID may be the beginning of an id."""
    from appliance.store import outbox

    if (message_id is None) == (sender is None):
        raise click.UsageError("Say which message, or with --from of which node.")
    if sender is not None:
        count = access.change("DropMessages", sender, lambda tx: _drop_of(tx, sender))
        say(f"{count} messages of {sender} are deleted.")
        return
    assert message_id is not None
    done = access.change("DropMessage", message_id, lambda tx: outbox.drop(tx, message_id))
    say(f"Message {done} is deleted.")


def _drop_of(tx: Transaction, sender: str) -> int:
    """Delete what was refused of a node; of one that was removed its login is the name."""
    from appliance.store import nodes, outbox

    logins = {one.login for one in outbox.senders(tx)}
    names = {one.name: one.node_id for one in nodes.status(tx)}
    node_id = names.get(sender, sender)
    mine = [login for login in sorted(logins) if login in (sender, f"c-{node_id}", f"h-{node_id}")]
    return sum(outbox.drop_of(tx, login) for login in mine)
