"""The list of members that every node of a cluster keeps, and its revision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import Row, delete, insert, select, update

from appliance.bus.topology import MEMBER_TOPIC
from appliance.cluster import certificates
from appliance.cluster.certificates import Identity
from appliance.errors import Conflict
from appliance.messages import GetMembers, Members, MembersChanged
from appliance.model import Member
from appliance.store import Transaction, cluster_facts, policy
from appliance.store import nodes as store_nodes
from appliance.store.nodes import Node
from appliance.store.schema import (
    cluster,
    node_claims,
    node_status,
    nodes,
    revoked_certificates,
)

_KEY = "members_revision"
_SUPERSEDED = "superseded:"
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


def certify(
    tx: Transaction, node_id: str, *, certificate: str, is_control: bool, address: str = ""
) -> None:
    """Write a node's new certificate, PEM, and its kind; the list has changed then.

    :param address: of its peer service, ``host:port``; empty: the one that is known.
    """
    values = {"certificate": certificate, "is_control": is_control}
    before = tx.execute(select(nodes.c.address).where(nodes.c.id == node_id)).scalar()
    if address:
        values["address"] = address
    tx.execute(update(nodes).where(nodes.c.id == node_id).values(**values))
    if address and before not in (None, address):
        policy.node_moved(tx, node_id)


def is_known(tx: Transaction, node_id: str) -> bool:
    """Say whether there is, or was, a node of that id."""
    return tx.execute(select(nodes.c.id).where(nodes.c.id == node_id)).first() is not None


def enrol(
    tx: Transaction, node: Node, *, certificate: str, address: str, approved: Sequence[int]
) -> None:
    """Make a hypervisor a member; the list has changed then.

    :param approved: vcpus, MiB of memory, GiB of disk that it may offer at most; none: no limit.
    :raises Conflict: another member has its name, or its address; nothing was written.
    """
    of_others = (nodes.c.removed_at.is_(None), nodes.c.id != node.node_id)
    for column, value, option in (
        (nodes.c.name, node.name, "--name"),
        (nodes.c.address, address, "--address or --port"),
    ):
        if tx.execute(select(nodes.c.id).where(*of_others, column == value)).first():
            raise Conflict(
                f"Another node of the cluster has the {column.name} {value}.",
                hint=f"Join with another {option}; one that is gone for good is taken out with "
                "`anynode node remove`.",
            )
    store_nodes.join(tx, node)
    vcpus, memory_mib, disk_gib = (one or None for one in approved)
    tx.execute(
        update(nodes)
        .where(nodes.c.id == node.node_id)
        .values(
            certificate=certificate,
            address=address,
            is_control=False,
            approved_vcpus=vcpus,
            approved_memory_mib=memory_mib,
            approved_disk_gib=disk_gib,
        )
    )


def withdraw(tx: Transaction, node_id: str) -> None:
    """Forget a node that was enrolled a moment ago, and has done nothing yet."""
    expel(tx, node_id)
    for table, column in (
        (node_claims, node_claims.c.node_id),
        (node_status, node_status.c.node_id),
        (nodes, nodes.c.id),
    ):
        tx.execute(delete(table).where(column == node_id))


def is_revoked(tx: Transaction, serial: str) -> bool:
    """Say whether a certificate is listed as revoked."""
    query = select(revoked_certificates.c.serial).where(revoked_certificates.c.serial == serial)
    return tx.execute(query).first() is not None


def revoke(tx: Transaction, serial: str, node_id: str, ends_at: float) -> None:
    """List a certificate as revoked; the list has changed then. Safe to repeat.

    :param serial: hexadecimal, as in the list.
    :param ends_at: when the certificate ends by itself, and need no longer be listed.
    """
    if not is_revoked(tx, serial):
        tx.execute(
            insert(revoked_certificates).values(
                serial=serial, node_id=node_id, revoked_at=tx.now, expires_at=ends_at
            )
        )


def expel(tx: Transaction, node_id: str) -> None:
    """Take a node out of the cluster, all its certificates with it; the list has changed then."""
    member = find(tx, node_id)
    if member is None:
        return
    tx.execute(update(nodes).where(nodes.c.id == node_id).values(removed_at=tx.now))
    revoke_superseded(tx, node_id)
    if member.certificate:
        identity = certificates.identity_of(certificates.read_certificate(member.certificate))
        revoke(tx, identity.serial, node_id, identity.ends_at)


def supersede(tx: Transaction, identity: Identity) -> None:
    """Remember a certificate that another takes the place of, until its node has that one."""
    known = _superseded(tx, identity.node_id)
    if identity not in known:
        text = msgspec.json.encode([*known, identity]).decode()
        cluster_facts.put(tx, _SUPERSEDED + identity.node_id, text)


def revoke_superseded(tx: Transaction, node_id: str) -> bool:
    """Revoke the certificates of a node that others took the place of; say whether any was.

    The list has changed then.
    """
    known = _superseded(tx, node_id)
    for identity in known:
        revoke(tx, identity.serial, node_id, identity.ends_at)
    cluster_facts.remove(tx, _SUPERSEDED + node_id)
    return bool(known)


def has_superseded(tx: Transaction, node_id: str) -> bool:
    """Say whether certificates of a node, that others took the place of, still count."""
    return bool(_superseded(tx, node_id))


def _superseded(tx: Transaction, node_id: str) -> list[Identity]:
    text = cluster_facts.find(tx, _SUPERSEDED + node_id)
    return msgspec.json.decode(text, type=list[Identity]) if text else []


def find(tx: Transaction, node_id: str) -> Member | None:
    """Return a member; ``None`` when there is none of that id, or it was removed."""
    row = tx.execute(_MEMBERS.where(nodes.c.id == node_id)).first()
    return None if row is None else _member(row)


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
        members=tuple(_member(row) for row in tx.execute(_MEMBERS)),
        revoked=tuple(sorted(tx.execute(serials).scalars())),
    )


def _member(row: Row[Any]) -> Member:
    return Member(
        node_id=row.id,
        name=row.name,
        zone=row.zone,
        address=row.address,
        roles=tuple(row.roles.split()),
        is_control=row.is_control,
        certificate=row.certificate,
        is_up=bool(row.is_up),
    )
