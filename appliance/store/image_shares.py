"""Who may launch an image beside its owner: everybody, or the projects that it is shared with."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from sqlalchemy import delete, func, insert, select, update

from appliance.errors import LimitExceeded, NotFound
from appliance.store import Transaction
from appliance.store.schema import image_shares, images

MOST_SHARES = 1000
"""Projects that one image can be shared with."""


def publish(tx: Transaction, image_id: str, *, is_public: bool) -> None:
    """Let all projects use an image, or no longer; what runs goes on.

    :raises NotFound: there is no such image.
    """
    statement = update(images).where(images.c.id == image_id, images.c.deleted_at.is_(None))
    if tx.execute(statement.values(is_public=is_public)).rowcount != 1:
        raise NotFound(f"There is no image {image_id}.", code="InvalidAMIID.NotFound")


def share(tx: Transaction, image_id: str, project_ids: Collection[str]) -> None:
    """Let projects use an image. Whether there are such projects is not looked at.

    :raises LimitExceeded: it would be shared with too many; the caller must not commit.
    """
    known = set(of(tx, [image_id]).get(image_id, ()))
    new = [each for each in dict.fromkeys(project_ids) if each not in known]
    if not new:
        return
    rows = [{"image_id": image_id, "project_id": each, "created_at": tx.now} for each in new]
    tx.execute(insert(image_shares), rows)
    count = select(func.count()).where(image_shares.c.image_id == image_id)
    if tx.execute(count).scalar_one() > MOST_SHARES:
        raise LimitExceeded(
            f"Image {image_id} can be shared with {MOST_SHARES} projects at most.",
            code="ResourceLimitExceeded",
        )


def unshare(tx: Transaction, image_id: str, project_ids: Collection[str]) -> None:
    """Let projects use an image no longer; their instances go on. No share is no error."""
    tx.execute(
        delete(image_shares).where(
            image_shares.c.image_id == image_id, image_shares.c.project_id.in_(list(project_ids))
        )
    )


def clear(tx: Transaction, image_id: str) -> None:
    """Let nobody but its owner use an image."""
    tx.execute(delete(image_shares).where(image_shares.c.image_id == image_id))


def of(tx: Transaction, image_ids: Iterable[str]) -> dict[str, list[str]]:
    """Return the ids of the projects that images are shared with, by image."""
    query = select(image_shares.c.image_id, image_shares.c.project_id).where(
        image_shares.c.image_id.in_(list(image_ids))
    )
    found: dict[str, list[str]] = {}
    for row in tx.execute(query.order_by(image_shares.c.project_id)):
        found.setdefault(row.image_id, []).append(row.project_id)
    return found
