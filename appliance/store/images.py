"""Images: what there is to boot from, and whose it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
from sqlalchemy import ColumnElement, String, bindparam, case, insert, or_, select, update
from sqlalchemy import delete as sql_delete

from appliance.errors import NotFound
from appliance.store import Transaction, filters, image_filters, tags
from appliance.store.filters import Filter
from appliance.store.schema import image_shares, images

MACHINE, KERNEL, RAMDISK = image_filters.MACHINE, "kernel", "ramdisk"
ID_PREFIXES: Mapping[str, str] = {MACHINE: "ami", KERNEL: "aki", RAMDISK: "ari"}


@dataclass(frozen=True, kw_only=True)
class NewImage:
    """An image to be: its bytes are in the image store under ``sha256``.

    ``kind`` is ``machine``, ``kernel`` or ``ramdisk``; ``format`` is that of ``ImageRef``.
    """

    project_id: str
    kind: str
    name: str
    format: str
    sha256: str
    size_bytes: int
    virtual_size_bytes: int = 0
    description: str = ""
    kernel_id: str | None = None
    ramdisk_id: str | None = None
    kernel_command_line: str = ""
    root_device_name: str = "/dev/vda"
    is_public: bool = False
    properties: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Image:
    """An image as it is stored. ``state`` is EC2's: ``pending``, ``available``, ``failed``."""

    image_id: str
    project_id: str
    kind: str
    name: str
    description: str
    format: str
    sha256: str
    size_bytes: int
    virtual_size_bytes: int
    kernel_id: str | None
    ramdisk_id: str | None
    kernel_command_line: str
    root_device_name: str
    is_public: bool
    state: str
    state_reason: str
    properties: Mapping[str, str]
    created_at: float


def _image(row: object) -> Image:
    values = row._mapping  # type: ignore[attr-defined]
    return Image(
        image_id=values["id"],
        project_id=values["project_id"],
        kind=values["kind"],
        name=values["name"],
        description=values["description"],
        format=values["format"],
        sha256=values["sha256"],
        size_bytes=values["size_bytes"],
        virtual_size_bytes=values["virtual_size_bytes"],
        kernel_id=values["kernel_id"],
        ramdisk_id=values["ramdisk_id"],
        kernel_command_line=values["kernel_command_line"],
        root_device_name=values["root_device_name"],
        is_public=values["is_public"],
        state=values["state"],
        state_reason=values["state_reason"],
        properties=msgspec.json.decode(values["properties"] or b"{}", type=dict[str, str]),
        created_at=values["created_at"],
    )


def create(tx: Transaction, image: NewImage, *, state: str = "available") -> Image:
    """Make an image known and return it."""
    image_id = tx.world.ids.ec2(ID_PREFIXES[image.kind])
    tx.execute(
        insert(images).values(
            id=image_id,
            project_id=image.project_id,
            kind=image.kind,
            name=image.name,
            description=image.description,
            format=image.format,
            sha256=image.sha256,
            size_bytes=image.size_bytes,
            virtual_size_bytes=image.virtual_size_bytes,
            kernel_id=image.kernel_id,
            ramdisk_id=image.ramdisk_id,
            kernel_command_line=image.kernel_command_line,
            root_device_name=image.root_device_name,
            is_public=image.is_public,
            state=state,
            properties=msgspec.json.encode(dict(image.properties)),
            created_at=tx.now,
        )
    )
    return _image(tx.execute(select(images).where(images.c.id == image_id)).one())


def set_state(tx: Transaction, image_id: str, state: str, reason: str = "") -> None:
    """Write what became of an image.

    :raises NotFound: there is no such image.
    """
    statement = update(images).where(images.c.id == image_id, images.c.deleted_at.is_(None))
    if tx.execute(statement.values(state=state, state_reason=reason)).rowcount != 1:
        raise NotFound(f"There is no image {image_id}.", code="InvalidAMIID.NotFound")


def delete(tx: Transaction, image_id: str) -> None:
    """Take an image out of use; instances made from it go on, its bytes stay until swept.

    :raises NotFound: there is no such image.
    """
    statement = update(images).where(images.c.id == image_id, images.c.deleted_at.is_(None))
    if tx.execute(statement.values(deleted_at=tx.now, state="deregistered")).rowcount != 1:
        raise NotFound(f"There is no image {image_id}.", code="InvalidAMIID.NotFound")
    tx.execute(sql_delete(image_shares).where(image_shares.c.image_id == image_id))
    tags.clear_of_all(tx, image_id)


def check_exists(tx: Transaction, image_id: str) -> None:
    """Make sure that there is an image, whoever owns it.

    :raises NotFound: there is none.
    """
    query = select(images.c.id).where(images.c.id == image_id, images.c.deleted_at.is_(None))
    if tx.execute(query).first() is None:
        raise NotFound(f"There is no image {image_id}.", code="InvalidAMIID.NotFound")


def set_description(tx: Transaction, image_id: str, text: str) -> None:
    """Say something else about an image.

    :raises NotFound: there is no such image.
    """
    statement = update(images).where(images.c.id == image_id, images.c.deleted_at.is_(None))
    if tx.execute(statement.values(description=text)).rowcount != 1:
        raise NotFound(f"There is no image {image_id}.", code="InvalidAMIID.NotFound")


def list_all(tx: Transaction) -> list[Image]:
    """Return all images of all projects, newest first; for the operator."""
    query = select(images).where(images.c.deleted_at.is_(None)).order_by(images.c.created_at.desc())
    return [_image(row) for row in tx.execute(query)]


def find(tx: Transaction, project_id: str, image_ids: Sequence[str]) -> dict[str, Image]:
    """Return by id the images that a project may use."""
    rows = tx.execute(_FIND, {"project_id": project_id, "ids": list(image_ids)})
    return {row.id: _image(row) for row in rows}


def subject_of(image: Image, project_id: str) -> str:
    """Return the id under which a project's tags of an image are kept."""
    is_own = image.project_id == project_id
    return image.image_id if is_own else tags.shared(image.image_id, project_id)


def tags_of(
    tx: Transaction, project_id: str, found: Sequence[Image]
) -> dict[str, list[tuple[str, str]]]:
    """Return a project's (key, value) pairs of images by their ids."""
    subjects = {subject_of(image, project_id): image.image_id for image in found}
    return {subjects[subject]: pairs for subject, pairs in tags.of(tx, subjects).items()}


def _is_visible(project_id: str | ColumnElement[str]) -> ColumnElement[bool]:
    return images.c.deleted_at.is_(None) & or_(
        images.c.project_id == project_id,
        images.c.is_public.is_(True),
        _is_shared_with(project_id),
    )


def _is_shared_with(project_id: str | ColumnElement[str]) -> ColumnElement[bool]:
    shares = select(image_shares.c.image_id).where(image_shares.c.project_id == project_id)
    return images.c.id.in_(shares)


_FIND = select(images).where(
    _is_visible(bindparam("project_id", type_=String)),
    images.c.id.in_(bindparam("ids", expanding=True)),
)


def _is_executable_by(who: str, project_id: str) -> ColumnElement[bool]:
    """Return the condition that somebody was given leave to launch an image.

    Whom others share their images with is not the project's to see.
    """
    if who == "all":
        return images.c.is_public.is_(True)
    if who in ("self", project_id):
        return _is_shared_with(project_id)
    return (images.c.project_id == project_id) & _is_shared_with(who)


def list_page(
    tx: Transaction,
    project_id: str,
    *,
    operator_id: str,
    wanted: Sequence[Filter] = (),
    ids: Sequence[str] = (),
    owners: Sequence[str] = (),
    executable_by: Sequence[str] = (),
    after: Sequence[float | str] = (),
    limit: int | None = None,
) -> list[Image]:
    """Return the images that a project may use, oldest first, from behind (created_at, id) on.

    :param owners: account numbers, ``self`` or ``amazon``, who is the operator here.
    :param executable_by: who was given leave to launch them: ``self``, ``all`` or account numbers.
    :raises InputError: a filter is not known.
    """
    # Others' tags of an image are not shown, and one's own of another's image are kept apart.
    tagged = case(
        (images.c.project_id == project_id, images.c.id),
        else_=tags.shared_column(images.c.id, project_id),
    )
    query = select(images).where(
        _is_visible(project_id),
        *filters.conditions(tx, image_filters.rules(operator_id), wanted, tagged),
    )
    if ids:
        query = query.where(images.c.id.in_(ids))
    if owners:
        known = {"self": project_id, "amazon": operator_id}
        query = query.where(images.c.project_id.in_([known.get(owner, owner) for owner in owners]))
    if executable_by:
        query = query.where(or_(*(_is_executable_by(who, project_id) for who in executable_by)))
    if after:
        moment, image_id = after
        query = query.where(
            or_(
                images.c.created_at > moment,
                (images.c.created_at == moment) & (images.c.id > image_id),
            )
        )
    query = query.order_by(images.c.created_at, images.c.id).limit(limit)
    return [_image(row) for row in tx.execute(query)]
