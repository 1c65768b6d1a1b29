"""Bringing an image in: its bytes into the image store, its name into the cluster's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from appliance.config import Config
from appliance.errors import InputError, NotFound
from appliance.images.inspect import GIB, ImageLimits
from appliance.images.store import ImageStore, Progress, StoredImage, ignore_progress
from appliance.store import Store, Transaction, audit, identity, image_locations, images
from appliance.store.images import KERNEL, MACHINE, RAMDISK, Image, NewImage


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What the image shall be called and boot with; see ``NewImage``."""

    kind: str
    name: str
    format: str
    description: str = ""
    kernel_id: str | None = None
    ramdisk_id: str | None = None
    kernel_command_line: str = ""
    is_public: bool = False
    properties: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Imported:
    """An image of the cluster; ``is_new`` says that it was not there before."""

    image: Image
    is_new: bool


def import_image(
    store: Store,
    config: Config,
    path: Path,
    wanted: Wanted,
    project: str,
    progress: Progress = ignore_progress,
    *,
    actor: str = audit.SETUP,
) -> Imported:
    """Check a file, store its bytes and register it. Safe to repeat: nothing is made twice.

    :param project: name or id of its owner; the operator's account when empty.
    :param actor: who does it, for the audit log.
    :raises InputError: the file or what was said of it is refused; nothing was changed.
    :raises NotFound: there is no such project, kernel or ramdisk; nothing was changed.
    """
    owner = store.read(lambda tx: _check(tx, config, wanted, project))
    limits = ImageLimits(virtual_size_bytes=config.images.largest_gib * GIB)
    files = ImageStore(config.images_dir, group=config.images.group)
    stored = files.import_file(path, wanted.format, limits, progress)

    node_id = _node_id(config)

    def register(tx: Transaction) -> Imported:
        imported = _register(tx, owner, wanted, stored)
        if node_id:
            image_locations.add(tx, stored.sha256, node_id)
        if imported.is_new:
            subject = f"{imported.image.image_id} {wanted.name}"
            audit.record_command(tx, actor, "ImportImage", subject)
        return imported

    return store.transaction(register)


def _node_id(config: Config) -> str:
    """Return the id of the node on which this runs; nothing where none was set up yet."""
    try:
        return (config.state_dir / "node_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _check(tx: Transaction, config: Config, wanted: Wanted, project: str) -> str:
    """Return the id of the owner, once all that the image names was found."""
    owner = identity.find_project(tx, project).project_id if project else config.api.account_id
    if wanted.kind != MACHINE and (wanted.kernel_id or wanted.ramdisk_id):
        raise InputError(f"A {wanted.kind} has no kernel or ramdisk of its own.")
    if (wanted.ramdisk_id or wanted.kernel_command_line) and not wanted.kernel_id:
        raise InputError("A ramdisk or a command line is of no use without a kernel.")
    for kind, image_id in ((KERNEL, wanted.kernel_id), (RAMDISK, wanted.ramdisk_id)):
        found = images.find(tx, owner, [image_id]).get(image_id) if image_id else None
        if image_id and (found is None or found.kind != kind):
            raise NotFound(f"There is no {kind} {image_id} that the owner may use.")
    return owner


def _register(tx: Transaction, owner: str, wanted: Wanted, stored: StoredImage) -> Imported:
    new = NewImage(
        project_id=owner,
        kind=wanted.kind,
        name=wanted.name,
        format=stored.format,
        sha256=stored.sha256,
        size_bytes=stored.size_bytes,
        virtual_size_bytes=stored.virtual_size_bytes,
        description=wanted.description,
        kernel_id=wanted.kernel_id,
        ramdisk_id=wanted.ramdisk_id,
        kernel_command_line=wanted.kernel_command_line,
        is_public=wanted.is_public,
        properties=wanted.properties,
    )
    for known in images.list_all(tx):
        if known.state == "available" and _is_same(known, new):
            return Imported(image=known, is_new=False)
    return Imported(image=images.create(tx, new), is_new=True)


def _is_same(known: Image, new: NewImage) -> bool:
    return all(getattr(known, name) == value for name, value in vars(new).items())
