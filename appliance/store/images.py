"""Images: what there is to boot from, and whose it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
from sqlalchemy import ColumnElement, String, case, cast, insert, or_, select, update

from appliance.errors import NotFound
from appliance.store import Transaction, filters, tags
from appliance.store.filters import Filter
from appliance.store.schema import images

MACHINE, KERNEL, RAMDISK = "machine", "kernel", "ramdisk"
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
    tags.clear(tx, [image_id])


def list_all(tx: Transaction) -> list[Image]:
    """Return all images of all projects, newest first; for the operator."""
    query = select(images).where(images.c.deleted_at.is_(None)).order_by(images.c.created_at.desc())
    return [_image(row) for row in tx.execute(query)]


def find(tx: Transaction, project_id: str, image_ids: Sequence[str]) -> dict[str, Image]:
    """Return by id the images that a project may use."""
    query = select(images).where(_is_visible(project_id), images.c.id.in_(image_ids))
    return {row.id: _image(row) for row in tx.execute(query)}


def _is_visible(project_id: str) -> ColumnElement[bool]:
    return images.c.deleted_at.is_(None) & or_(
        images.c.project_id == project_id, images.c.is_public.is_(True)
    )


FILTERS: Mapping[str, filters.Rule] = {
    "architecture": filters.constant("x86_64"),
    "description": filters.text(images.c.description),
    "hypervisor": filters.constant("xen"),
    "image-id": filters.text(images.c.id),
    "image-type": filters.text(images.c.kind),
    "is-public": filters.flag(images.c.is_public),
    "kernel-id": filters.text(images.c.kernel_id),
    "manifest-location": filters.text(images.c.project_id + "/" + images.c.name),
    "name": filters.text(images.c.name),
    # Only an operator's images have one; who that is the page is told.
    "owner-alias": filters.nothing,
    "owner-id": filters.text(images.c.project_id),
    "ramdisk-id": filters.text(images.c.ramdisk_id),
    "root-device-name": filters.text(images.c.root_device_name),
    "root-device-type": filters.text(
        case((images.c.kind == MACHINE, "ebs"), else_="instance-store")
    ),
    "state": filters.text(images.c.state),
    "virtualization-type": filters.constant("hvm"),
}


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
    :param executable_by: ``self`` or ``all``: images that are the project's, or everybody's.
    :raises InputError: a filter is not known.
    """
    is_operators = images.c.project_id == operator_id
    rules = {
        **FILTERS,
        "owner-alias": lambda tx, values: filters.matches(
            tx, case((is_operators, "amazon"), else_=cast("", String)), values
        ),
    }
    query = select(images).where(
        _is_visible(project_id), *filters.conditions(tx, rules, wanted, images.c.id)
    )
    if ids:
        query = query.where(images.c.id.in_(ids))
    if owners:
        known = {"self": project_id, "amazon": operator_id}
        query = query.where(images.c.project_id.in_([known.get(owner, owner) for owner in owners]))
    if executable_by:
        is_public = images.c.is_public.is_(True)
        query = query.where(
            or_(
                *([is_public] if "all" in executable_by else []),
                *([images.c.project_id == project_id] if "self" in executable_by else []),
                images.c.project_id.in_([who for who in executable_by if who == project_id]),
            )
        )
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
