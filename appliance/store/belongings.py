"""What belongs to a project, and how it goes when the project does."""

from __future__ import annotations

from sqlalchemy import delete, select

from appliance.errors import Conflict
from appliance.store import Transaction, groups
from appliance.store.schema import (
    audit,
    image_shares,
    images,
    instances,
    key_pairs,
    metadata,
    security_groups,
    tags,
)

# The log outlives what it tells of; a share is its owner's, and means whoever has that number.
_NOT_OWNED = (audit, image_shares)


def delete_all(tx: Transaction, project_id: str, name: str) -> None:
    """Delete what a project owns and what is shared with it.

    Instances that were terminated stay listed for nobody until their time has come.

    :raises Conflict: something is left that an operator would miss; nothing was deleted.
    """
    living = select(instances.c.id).where(
        instances.c.project_id == project_id, instances.c.state != "terminated"
    )
    if tx.execute(living.limit(1)).first():
        raise Conflict(f"Project {name!r} has instances.", hint="Terminate them, or disable it.")
    kept = select(images.c.id).where(
        images.c.project_id == project_id, images.c.deleted_at.is_(None)
    )
    if tx.execute(kept.limit(1)).first():
        raise Conflict(
            f"Project {name!r} has images.",
            hint="`anynode image list` shows them; delete them, or disable the project.",
        )
    _delete_groups(tx, project_id)
    for table in (key_pairs, tags, image_shares):
        tx.execute(delete(table).where(table.c.project_id == project_id))


def _delete_groups(tx: Transaction, project_id: str) -> None:
    ids = list(
        tx.execute(
            select(security_groups.c.id).where(security_groups.c.project_id == project_id)
        ).scalars()
    )
    for group in groups.find(tx, project_id, ids=ids) if ids else ():
        groups.remove(tx, group)


def check_is_free(tx: Transaction, project_id: str) -> None:
    """Make sure that a new project inherits nothing from an earlier one of its id.

    :raises Conflict: something is left that bears the id.
    """
    for table in metadata.sorted_tables:
        if "project_id" not in table.c or table in _NOT_OWNED:
            continue
        bears = select(table.c.project_id).where(table.c.project_id == project_id)
        if table is images:
            # Deleted images stay known to the instances that were made from them.
            bears = bears.where(images.c.deleted_at.is_(None))
        if tx.execute(bears.limit(1)).first():
            raise Conflict(
                f"Could not make a project with the id {project_id}: one that was deleted has "
                "left terminated instances, which stay listed for a while.",
                hint="Try again in two hours, or take another id.",
            )
