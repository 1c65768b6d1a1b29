"""Which node holds which image, as the nodes say themselves."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct
from sqlalchemy import Select, bindparam, case, delete, func, insert, or_, select

from appliance.model import ImageHolder, ImageRef
from appliance.store import Transaction
from appliance.store.schema import (
    block_devices,
    image_locations,
    images,
    instances,
    node_status,
    nodes,
)

_MOST = 20
_COPIES = 2
_IS_MEMBER = nodes.c.removed_at.is_(None) & (nodes.c.address != "")
_HOLDERS = (
    select(image_locations.c.sha256, nodes.c.id, nodes.c.address)
    .join(nodes, nodes.c.id == image_locations.c.node_id)
    .join(node_status, node_status.c.node_id == nodes.c.id)
    .where(
        image_locations.c.sha256.in_(bindparam("digests", expanding=True)),
        _IS_MEMBER,
        nodes.c.id != bindparam("but"),
    )
    .order_by(node_status.c.is_up.desc(), image_locations.c.added_at, nodes.c.id)
)
_OF_INSTANCE = select(images.c.sha256).where(
    or_(
        images.c.id.in_(
            select(block_devices.c.image_id).where(
                block_devices.c.instance_id == bindparam("instance_id")
            )
        ),
        *(
            images.c.id
            == select(column).where(instances.c.id == bindparam("instance_id")).scalar_subquery()
            for column in (instances.c.kernel_id, instances.c.ramdisk_id)
        ),
    )
)


class Copying(Struct, frozen=True, kw_only=True):
    """An image that too few nodes hold, and one that shall hold it, too."""

    image: ImageRef
    node_id: str


def held_by(tx: Transaction, node_id: str) -> set[str]:
    """Return the digests of the images that a node is known to hold."""
    query = select(image_locations.c.sha256).where(image_locations.c.node_id == node_id)
    return set(tx.execute(query).scalars())


def add(tx: Transaction, sha256: str, node_id: str) -> None:
    """Note that a node holds an image. Safe to repeat."""
    if sha256 not in held_by(tx, node_id):
        tx.execute(insert(image_locations).values(sha256=sha256, node_id=node_id, added_at=tx.now))


def write(tx: Transaction, node_id: str, digests: Iterable[str]) -> None:
    """Note all images that a node holds; of those that are no image of the cluster nothing."""
    wanted, known = set(digests), held_by(tx, node_id)
    gone = known - wanted
    if gone:
        tx.execute(
            delete(image_locations).where(
                image_locations.c.node_id == node_id, image_locations.c.sha256.in_(sorted(gone))
            )
        )
    query = select(images.c.sha256).where(images.c.sha256.in_(sorted(wanted - known))).distinct()
    for sha256 in tx.execute(query).scalars().all():
        tx.execute(insert(image_locations).values(sha256=sha256, node_id=node_id, added_at=tx.now))


def holders(tx: Transaction, digests: Iterable[str], but: str = "") -> dict[str, list[ImageHolder]]:
    """Return by digest the members that hold an image, those that are down last.

    :param but: a node that is left out.
    """
    found: dict[str, list[ImageHolder]] = {}
    for row in tx.execute(_HOLDERS, {"digests": sorted(set(digests)), "but": but}):
        found.setdefault(row.sha256, []).append(ImageHolder(node_id=row.id, address=row.address))
    return found


def wanted_by(tx: Transaction, instance_id: str) -> list[str]:
    """Return the digests of the images that an instance boots from."""
    return list(tx.execute(_OF_INSTANCE, {"instance_id": instance_id}).scalars())


def lonely(tx: Transaction) -> list[Copying]:
    """Return images that too few nodes hold, each with an up node that could hold it, too.

    Two are to hold an image though any one hypervisor may not have what it says it has: so two
    control nodes, or one and two hypervisors, or three hypervisors.

    At most 20, any of them, as some may have no room anywhere; none where there is no other node
    for instances.
    """
    takers = (
        select(nodes.c.id, nodes.c.roles)
        .join(node_status, node_status.c.node_id == nodes.c.id)
        .where(_IS_MEMBER, node_status.c.is_up.is_(True))
        .order_by(func.random())
    )
    able = [row.id for row in tx.execute(takers) if "compute" in row.roles.split()]
    too_few = _too_few().subquery()
    query = (
        select(images)
        .join(too_few, too_few.c.sha256 == images.c.sha256)
        .where(images.c.deleted_at.is_(None), images.c.state == "available")
        .order_by(func.random())
        .limit(_MOST)
    )
    rows = tx.execute(query).all()
    held = _who_hold(tx, {row.sha256 for row in rows})
    found: dict[str, Copying] = {}
    for number, row in enumerate(rows):
        others = [node_id for node_id in able if node_id not in held[row.sha256]]
        if others and row.sha256 not in found:
            ref = ImageRef(
                image_id=row.id,
                sha256=row.sha256,
                format=row.format,
                size_bytes=row.size_bytes,
                virtual_size_bytes=row.virtual_size_bytes,
            )
            found[row.sha256] = Copying(image=ref, node_id=others[number % len(others)])
    return list(found.values())


def _too_few() -> Select[tuple[str]]:
    """Return the digests of which there may be less than two copies, if one hypervisor lies."""
    table = image_locations
    may_lie = func.max(case((nodes.c.is_control.is_(True), 0), else_=1))
    return (
        select(table.c.sha256)
        .join(nodes, nodes.c.id == table.c.node_id)
        .where(_IS_MEMBER)
        .group_by(table.c.sha256)
        .having(func.count() - may_lie < _COPIES)
    )


def _who_hold(tx: Transaction, digests: Iterable[str]) -> dict[str, set[str]]:
    table = image_locations
    query = select(table.c.sha256, table.c.node_id).where(table.c.sha256.in_(sorted(digests)))
    found: dict[str, set[str]] = {}
    for row in tx.execute(query):
        found.setdefault(row.sha256, set()).add(row.node_id)
    return found
