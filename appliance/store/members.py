"""The list of members that every node of a cluster keeps, and its revision."""

from __future__ import annotations

from sqlalchemy import insert, select, update

from appliance.bus.topology import MEMBER_TOPIC
from appliance.messages import GetMembers, Members, MembersChanged
from appliance.model import Member
from appliance.store import Transaction
from appliance.store.schema import cluster, node_status, nodes, revoked_certificates

_KEY = "members_revision"
_REVISION = select(cluster.c.value).where(cluster.c.key == _KEY)
_MEMBERS = (
    select(nodes, node_status.c.is_up)
    .outerjoin(node_status, node_status.c.node_id == nodes.c.id)
    .where(nodes.c.removed_at.is_(None))
    .order_by(nodes.c.name)
)


def revision(tx: Transaction) -> int:
    """Return the revision of the list, 0 before its first change."""
    return int(tx.execute(_REVISION).scalar() or 0)


def changed(tx: Transaction) -> int:
    """Note that the list, or what a node is entitled to, has changed, and tell every member.

    Returns the new revision. For whatever writes what :func:`answer` reads.
    """
    found = tx.execute(_REVISION).scalar()
    new = int(found or 0) + 1
    if found is None:
        tx.execute(insert(cluster).values(key=_KEY, value=str(new)))
    else:
        tx.execute(update(cluster).where(cluster.c.key == _KEY).values(value=str(new)))
    tx.announce(MEMBER_TOPIC, MembersChanged(revision=new))
    return new


def answer(tx: Transaction, question: GetMembers) -> Members:
    """Answer who is in the cluster; without members when the asker knows that already."""
    current = revision(tx)
    if question.known_revision == current:
        return Members(revision=current)
    serials = select(revoked_certificates.c.serial).where(
        revoked_certificates.c.expires_at > tx.now
    )
    return Members(
        revision=current,
        members=tuple(
            Member(
                node_id=row.id,
                name=row.name,
                zone=row.zone,
                address=row.address,
                roles=tuple(row.roles.split()),
                is_control=row.is_control,
                certificate=row.certificate,
                is_up=bool(row.is_up),
            )
            for row in tx.execute(_MEMBERS)
        ),
        revoked=tuple(sorted(tx.execute(serials).scalars())),
    )
