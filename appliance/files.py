"""Small files that are there as a whole or not at all."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from appliance.errors import Unavailable


def write_whole(path: Path, content: bytes, *, mode: int = 0o600, is_durable: bool = True) -> None:
    """Put a file in place as a whole; a crash leaves the old one, or none.

    What was written lies beside it for a moment, under a name that begins with a dot. Two that
    write the same file must take turns.

    :param is_durable: bring it to the disk, so that it outlives a power cut, too.
    :raises Unavailable: it could not be written, or not for certain brought to the disk: what is
        there is whole, the old one or the new one, and nothing else is left.
    """
    beside = path.with_name(f".{path.name}.new")
    try:
        _write(beside, content, mode, is_durable=is_durable)
        beside.replace(path)
        if is_durable:
            sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise Unavailable(f"Could not write {path}: {error.strerror}.") from error


def _write(path: Path, content: bytes, mode: int, *, is_durable: bool) -> None:
    # What a crash has left may be a link, or belong to somebody else.
    if os.path.lexists(path):
        path.unlink()
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(fd, "wb", buffering=0) as file:
        os.fchmod(fd, mode)
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(fd, rest) :]
        if is_durable:
            os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk.

    :raises OSError: that failed; they may be lost at a power cut.
    """
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
