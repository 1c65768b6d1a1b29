"""Files in memory to an ISO 9660 disk with Rock Ridge and Joliet."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import pycdlib

_VOLUME_DESCRIPTOR_OFFSET = 16 * 2048
_APPLICATION_USE_OFFSET = _VOLUME_DESCRIPTOR_OFFSET + 883


def write_iso(path: Path, label: str, files: Mapping[str, bytes]) -> None:
    """Write a disk of that label and those files, mode 0600; all of it or nothing.

    Safe to repeat: a disk that was written from the same arguments is left as it is, with the
    owner that a hypervisor gave it.

    :param files: contents by path, ``openstack/latest/user_data`` for one.
    :raises OSError: it could not be written; what was there stays.
    """
    mark = _mark(label, files)
    if _read_mark(path) == mark:
        return
    image = _render(label, files, mark)
    partial = path.with_name(f".{path.name}.partial")
    if os.path.lexists(partial):
        partial.unlink()
    try:
        fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(image)
            file.flush()
            os.fsync(fd)
        os.replace(partial, path)
    finally:
        # On a disk that may not be written even this fails, and says less than what failed first.
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def _mark(label: str, files: Mapping[str, bytes]) -> str:
    """Return the digest of what goes into the disk.

    The disk carries the time of its making, so that its bytes do not tell whether it is right.
    """
    digest = hashlib.sha256(f"1 {label}\n".encode())
    for name in sorted(files):
        digest.update(f"{name}\n{len(files[name])}\n".encode())
        digest.update(files[name])
    return f"anynode {digest.hexdigest()}"


def _read_mark(path: Path) -> str:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return os.pread(fd, 512, _APPLICATION_USE_OFFSET).decode(errors="replace").strip()
    finally:
        os.close(fd)


def _render(label: str, files: Mapping[str, bytes], mark: str) -> bytes:
    iso = pycdlib.PyCdlib()
    iso.new(
        interchange_level=3,
        vol_ident=label,
        joliet=3,
        rock_ridge="1.09",
        app_ident_str="ANYNODE",
        app_use=mark,
    )
    folders = {"": ""}
    for number, (name, content) in enumerate(sorted(files.items())):
        parent, _, base = name.rpartition("/")
        _add_folders(iso, parent, folders)
        # The names of plain ISO 9660 have no small letters; nobody reads them, so they count.
        iso.add_fp(
            io.BytesIO(content),
            len(content),
            f"{folders[parent]}/F{number}.;1",
            rr_name=base,
            joliet_path=f"/{name}",
            file_mode=0o100444,
        )
    written = io.BytesIO()
    iso.write_fp(written)
    iso.close()
    return written.getvalue()


def _add_folders(iso: pycdlib.PyCdlib, folder: str, known: dict[str, str]) -> None:
    if folder in known:
        return
    parent, _, base = folder.rpartition("/")
    _add_folders(iso, parent, known)
    known[folder] = f"{known[parent]}/D{len(known)}"
    iso.add_directory(known[folder], rr_name=base, joliet_path=f"/{folder}")
