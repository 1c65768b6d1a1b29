"""Disks of instances: overlays on images, written without any other program.

Formats are always said and never probed, and nothing of the base image is read but its size, by
our own parser.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from appliance.errors import Conflict, InputError, LimitExceeded, Unavailable
from appliance.images import qcow2
from appliance.images.inspect import DISK_FORMATS, GIB, open_regular, read_virtual_size

_SMALLEST_OVERLAY_BYTES = 64 << 10
"""Less than one cluster holds nothing that an instance has written."""


def create_overlay(
    path: Path, base_path: Path, base_format: str, size_bytes: int | None = None
) -> int:
    """Make an instance's disk: a qcow2 overlay on a base image. Return its size in bytes.

    Safe to repeat: an overlay of that base is kept with all that was written to it, and one that
    a crash cut off is made anew. When it raises, ``path`` is as it was.

    :param base_format: ``raw`` or ``qcow2``, as it was verified at import.
    :param size_bytes: the size of the disk, never below the image's own; ``None`` takes that.
    :raises LimitExceeded: the image's disk is larger than ``size_bytes``; nothing was made.
    :raises Conflict: ``path`` is something else, which is not overwritten.
    :raises Unavailable: the file could not be written, for want of room perhaps.
    """
    if base_format not in DISK_FORMATS:
        raise InputError(f"A disk cannot be based on an image of format {base_format!r}.")
    if not (path.is_absolute() and base_path.is_absolute()):
        # A relative name is taken from the overlay's folder, and "x:y" is taken for a protocol.
        raise InputError(f"The paths {path} and {base_path} of a disk must be absolute.")
    image_bytes = read_virtual_size(base_path, base_format)
    if size_bytes is not None and size_bytes < image_bytes:
        raise LimitExceeded(
            f"The image has a disk of {image_bytes / GIB:,.1f} GiB, and the instance type only "
            f"one of {size_bytes / GIB:,.1f} GiB.",
            hint="Choose an instance type with a larger disk.",
        )
    existing = _read_existing(path, base_path, base_format)
    if existing is not None:
        return existing
    wanted_bytes = size_bytes if size_bytes is not None else image_bytes
    partial = path.with_name(f".{path.name}.partial")
    try:
        if os.path.lexists(partial):
            partial.unlink()
        with open(partial, "xb") as file:
            qcow2.write_overlay(file, str(base_path), base_format, wanted_bytes)
        _finish(partial, path)
    except OSError as error:
        raise Unavailable(f"Could not make the disk {path}: {error.strerror}.") from error
    finally:
        # On a disk that may not be written even this fails, and says less than what failed first.
        with suppress(OSError):
            partial.unlink(missing_ok=True)
    return wanted_bytes


def _read_existing(path: Path, base_path: Path, base_format: str) -> int | None:
    """Return the size of the overlay that is there; ``None`` when it must be made."""
    if not os.path.lexists(path):
        return None
    with open_regular(path) as file:
        try:
            header = qcow2.read_header(file, str(path))
        except InputError as error:
            if os.fstat(file.fileno()).st_size < _SMALLEST_OVERLAY_BYTES:
                return None
            raise Conflict(f"{path} is in the way: it is no overlay.") from error
    if (header.backing, header.backing_format) != (str(base_path), base_format):
        raise Conflict(
            f"{path} is an overlay of {header.backing or 'nothing'}, not of {base_path}.",
            hint="Move it away if the instance does not need it.",
        )
    return header.virtual_size_bytes


def _finish(partial: Path, path: Path) -> None:
    """Bring the file to the disk before it gets its name: a crash leaves all of it or nothing."""
    fd = os.open(partial, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fchmod(fd, 0o600)
        os.fsync(fd)
    finally:
        os.close(fd)
    os.replace(partial, path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
