"""The brokers of a cluster: what messages go over, and what they move from or to."""

from __future__ import annotations

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from appliance.cluster import decided, logins
from appliance.cluster.management import Access
from appliance.errors import Conflict
from appliance.seal import Seal
from appliance.store import Transaction, cluster_secrets, members

MOVE = "bus-move"
"""The name of the sealed secret about the last move."""


class Broker(Struct, frozen=True, kw_only=True):
    """A broker: its URLs without a login, whether the cluster's authority vouches for it."""

    urls: str
    is_ours: bool
    access: Access


class Move(Struct, frozen=True, kw_only=True):
    """A move of all messages; when ``is_done`` nothing is left at the source.

    ``is_back`` says that it undoes the move before it.
    """

    source: Broker
    target: Broker
    is_done: bool = False
    is_back: bool = False


def current(tx: Transaction, seal: Seal) -> Broker:
    """Return the broker that messages are sent over.

    :raises ConfigError: this store belongs to no cluster, or the sealing key is another one.
    """
    what = decided.get(tx, seal)
    return Broker(
        urls=what.bus_urls, is_ours=what.bus_is_ours, access=logins.stored_access(tx, seal)
    )


def last_move(tx: Transaction, seal: Seal) -> Move | None:
    """Return the last move; ``None`` when messages were never moved."""
    found = cluster_secrets.find(tx, seal, MOVE)
    return msgspec.json.decode(found, type=Move) if found else None


def keep_move(tx: Transaction, seal: Seal, move: Move) -> None:
    """Store what is known of a move."""
    cluster_secrets.put(tx, seal, MOVE, msgspec.json.encode(move))


def use(tx: Transaction, seal: Seal, first: Broker, also: Broker | None) -> int:
    """Have all nodes send over a broker, and hear another, too; return the list's new revision."""
    what = replace(
        decided.get(tx, seal),
        bus_urls=first.urls,
        bus_is_ours=first.is_ours,
        also_urls=also.urls if also else "",
        also_is_ours=also.is_ours if also else True,
    )
    decided.keep(tx, seal, what)
    logins.keep_access(tx, seal, first.access)
    return members.changed(tx)


def access_to(tx: Transaction, seal: Seal, urls: str) -> Access:
    """Return how a broker is administered that nodes shall hear.

    :raises Conflict: they shall not.
    """
    what = decided.get(tx, seal)
    if urls == what.bus_urls:
        return logins.stored_access(tx, seal)
    move = last_move(tx, seal)
    if urls and urls == what.also_urls and move:
        return next(one for one in (move.source, move.target) if one.urls == urls).access
    raise Conflict("That is no broker of this cluster, or not any more.")


def all_access(tx: Transaction, seal: Seal) -> list[Access]:
    """Return how each broker is administered that nodes have logins at."""
    found = [logins.stored_access(tx, seal)]
    move = last_move(tx, seal)
    if move and not move.is_done:
        found += [one.access for one in (move.source, move.target) if one.access not in found]
    return found
