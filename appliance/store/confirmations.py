"""Which revision of a network's policy each node has in force, as it has said.

A freed address is issued again when no node goes by a policy that knows who had it.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec
from sqlalchemy import and_, bindparam, exists, insert, or_, select, update

from appliance.errors import NotFound
from appliance.messages import GetPolicy
from appliance.model import NetworkSpec, Phase
from appliance.store import Transaction
from appliance.store.schema import (
    networks,
    placements,
    policy_changes,
    policy_confirmations,
    ports,
)

NOTHING = -1
"""The revision of a node that has asked for a policy, and has none in force yet."""

# A node that has held an instance in a network has learnt its policy, and must learn what follows.
_STANDING = (
    select(
        networks.c.body,
        networks.c.policy_revision,
        policy_confirmations.c.revision.label("confirmed"),
    )
    .outerjoin(
        policy_confirmations,
        and_(
            policy_confirmations.c.network_id == networks.c.id,
            policy_confirmations.c.node_id == bindparam("node_id"),
        ),
    )
    .where(
        networks.c.id == bindparam("network_id"),
        or_(
            policy_confirmations.c.revision.is_not(None),
            exists()
            .where(
                placements.c.node_id == bindparam("node_id"),
                placements.c.phase.in_((Phase.CLAIMED.value, Phase.COMMITTED.value)),
                ports.c.instance_id == placements.c.instance_id,
                ports.c.network_id == networks.c.id,
            )
            .correlate(networks),
        ),
    )
)
_IS_AWAITED = (
    select(policy_changes.c.id)
    .where(
        policy_changes.c.network_id == bindparam("network_id"),
        policy_changes.c.revision > bindparam("confirmed"),
        policy_changes.c.revision <= bindparam("in_force"),
        policy_changes.c.kind == "left",
    )
    .limit(1)
)
_CONFIRM = (
    update(policy_confirmations)
    .where(
        policy_confirmations.c.network_id == bindparam("in_network"),
        policy_confirmations.c.node_id == bindparam("of_node"),
    )
    .values(revision=bindparam("known"))
)


class Standing(NamedTuple):
    """A network, its policy's revision, and that which a node is known to have in force.

    ``confirmed`` is ``None`` for a node that has not asked before.
    """

    network: NetworkSpec
    revision: int
    confirmed: int | None


def standing(tx: Transaction, question: GetPolicy) -> Standing:
    """Return how a node and a network stand to each other.

    :raises NotFound: there is no such network, or not for that node: it holds nothing in it.
    """
    values = {"network_id": question.network_id, "node_id": question.node_id}
    row = tx.execute(_STANDING, values).first()
    if row is None:
        raise NotFound(
            f"There is no network {question.network_id} that node {question.node_id} has "
            "instances in.",
            code="InvalidSubnetID.NotFound",
        )
    network = msgspec.json.decode(row.body, type=NetworkSpec)
    return Standing(network, int(row.policy_revision), row.confirmed)


def in_force(question: GetPolicy) -> int:
    """Return the revision that a node has in force, as its question says."""
    known, reached = question.known_revision, question.reach_revision
    if known < 0 or (reached is not None and reached < 0):
        # It has nothing in force yet, and from now on must learn of every change.
        return NOTHING
    # A freed address is issued again only when no node sends its frames elsewhere.
    return known if reached is None else min(known, reached)


def is_due(tx: Transaction, question: GetPolicy, found: Standing) -> bool:
    """Say whether what a node has in force must be written down now.

    One that is told news will ask again, and says then what it made of it. Until then only an
    address that was freed may wait for it.
    """
    has = in_force(question)
    if found.confirmed is None or has < found.confirmed or has == found.revision:
        return has != found.confirmed
    values = {"network_id": question.network_id, "confirmed": found.confirmed, "in_force": has}
    return tx.execute(_IS_AWAITED, values).first() is not None


def confirm(tx: Transaction, question: GetPolicy) -> None:
    """Write down what a node has in force; from then on it is told of changes. Safe to repeat."""
    of_node = {"in_network": question.network_id, "of_node": question.node_id}
    known = in_force(question)
    if tx.execute(_CONFIRM, {**of_node, "known": known}).rowcount:
        return
    tx.execute(
        insert(policy_confirmations).values(
            network_id=question.network_id, node_id=question.node_id, revision=known
        )
    )
