"""Looking at a stranger's image before anything else opens it.

oslo.utils knows the signatures of the formats and their traps; the checks of our own are for
what it is silent about. Whatever is not plainly harmless is refused with one sentence.
"""

from __future__ import annotations

import io
import os
import re
import stat
from pathlib import Path
from typing import BinaryIO

from appliance.errors import InputError
from appliance.images import qcow2
from appliance.model import Value

GIB = 1 << 30
DISK_FORMATS = ("raw", "qcow2")
BOOT_FORMATS = ("kernel", "ramdisk")

_SECTOR_BYTES = 512
_HEAD_BYTES = 1 << 20
"""VHDX, the most scattered of the known formats, has its signatures in the first 256 KiB."""

_PACKED = (
    (0, b"\x1f\x8b", "gzip"),
    (0, b"\xfd7zXZ\x00", "xz"),
    (0, b"\x28\xb5\x2f\xfd", "zstd"),
    (0, b"BZh", "bzip2"),
    (0, b"PK\x03\x04", "zip"),
    (0, b"7z\xbc\xaf\x27\x1c", "7z"),
    (257, b"ustar", "tar"),
)
_OTHER_DISKS = (
    (0, qcow2.MAGIC, "qcow2"),
    (0, b"QED\x00", "qed"),
    (0, b"KDMV", "vmdk"),
    (0, b"COWD", "vmdk"),
    (0, b"conectix", "vhd"),
    (0, b"vhdxfile", "vhdx"),
    (0, b"LUKS\xba\xbe", "luks"),
    (0, b"Bochs Virtual HD Image", "bochs"),
    (0, b"WithoutFreeSpace", "parallels"),
    (0, b"WithouFreSpacExt", "parallels"),
    (0, b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop", "cloop"),
)
_KERNELS = (
    (0x202, b"HdrS"),
    (0, b"\x7fELF"),
    (0, b"MZ"),
    (56, b"ARM\x64"),
    (0, b"\x1f\x8b"),
    (0, b"\xfd7zXZ\x00"),
    (0, b"\x28\xb5\x2f\xfd"),
)
_VMDK_TEXT = re.compile(rb"(?:[ \t\r]*(?:#[^\n]*)?\n)*[ \t]*(?:version|createType)[ \t]*=", re.I)
"""QEMU takes any text for a VMDK whose first line that is no comment sets the version."""


class ImageLimits(Value, frozen=True, kw_only=True):
    """How large an image may be, in bytes: as a file, as a disk, and as a kernel or ramdisk."""

    file_bytes: int = 256 * GIB
    virtual_size_bytes: int = 16384 * GIB
    boot_file_bytes: int = GIB // 2


class Inspected(Value, frozen=True, kw_only=True):
    """What an inspected file is. ``virtual_size_bytes`` is 0 for a kernel or ramdisk."""

    format: str
    size_bytes: int
    virtual_size_bytes: int


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading that is neither a device nor a pipe; links are followed.

    :raises InputError: it is something else, is missing, or may not be read.
    """
    try:
        # Merely opening a device or a pipe can have an effect, or wait for ever.
        _check_regular(os.stat(path).st_mode, path)
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(f"Could not open {path}: {reason}.") from error
    file = os.fdopen(fd, "rb")
    try:
        _check_regular(os.fstat(fd).st_mode, path)
    except BaseException:
        file.close()
        raise
    return file


def _check_regular(mode: int, path: Path) -> None:
    if not stat.S_ISREG(mode):
        raise InputError(f"{path} is not a regular file.")


def inspect(path: Path, declared_format: str, limits: ImageLimits) -> Inspected:
    """Return what a file is, or refuse it. Reads at most its first 3 MiB; changes nothing.

    :param declared_format: ``raw``, ``qcow2``, ``kernel`` or ``ramdisk``; it is never guessed.
    :raises InputError: the file is not what was declared, or is not harmless, or is too large.
    """
    with open_regular(path) as file:
        return inspect_open(file, declared_format, limits, str(path))


def inspect_open(file: BinaryIO, declared_format: str, limits: ImageLimits, name: str) -> Inspected:
    """Do what :func:`inspect` does for an open file; ``name`` is what an error calls it."""
    size_bytes = os.fstat(file.fileno()).st_size
    if size_bytes == 0:
        raise InputError(f"Image {name} was refused: it is empty.")
    if declared_format in BOOT_FORMATS:
        _check_size(size_bytes, limits.boot_file_bytes, f"a {declared_format}", name)
        _check_boot_file(file, declared_format, name)
        virtual_size_bytes = 0
    elif declared_format in DISK_FORMATS:
        _check_size(size_bytes, limits.file_bytes, "an image file", name)
        virtual_size_bytes = _check_disk(file, declared_format, size_bytes, name)
        _check_size(virtual_size_bytes, limits.virtual_size_bytes, "a disk", name)
    else:
        raise InputError(
            f"There is no image format {declared_format!r}.",
            hint=f"Say one of {', '.join(DISK_FORMATS + BOOT_FORMATS)}.",
        )
    return Inspected(
        format=declared_format, size_bytes=size_bytes, virtual_size_bytes=virtual_size_bytes
    )


def read_virtual_size(path: Path, image_format: str) -> int:
    """Return the size in bytes of the disk in an image of ours, whose format is known.

    :raises InputError: the file is missing, or its header is damaged.
    """
    with open_regular(path) as file:
        if image_format == "qcow2":
            return qcow2.read_header(file, str(path)).virtual_size_bytes
        size_bytes = os.fstat(file.fileno()).st_size
        return -(-size_bytes // _SECTOR_BYTES) * _SECTOR_BYTES


def _check_size(size_bytes: int, limit_bytes: int, what: str, name: str) -> None:
    if size_bytes > limit_bytes:
        raise InputError(
            f"Image {name} was refused: {what} of {size_bytes / GIB:,.1f} GiB is over the limit "
            f"of {limit_bytes / GIB:,.1f} GiB."
        )


def _check_boot_file(file: BinaryIO, declared_format: str, name: str) -> None:
    head = file.read(4096)
    if declared_format == "kernel" and not any(
        head[offset:].startswith(magic) for offset, magic in _KERNELS
    ):
        raise InputError(f"Image {name} was refused: it is not a Linux kernel.")


def _check_disk(file: BinaryIO, declared_format: str, size_bytes: int, name: str) -> int:
    head = file.read(_HEAD_BYTES)
    found = _signatures(head)
    if found != {declared_format}:
        _refuse_other(found - {"raw", declared_format}, declared_format, name)
    if declared_format == "qcow2":
        header = qcow2.read_header(file, name)
        qcow2.check_standalone(header, file, name)
        virtual_size_bytes = header.virtual_size_bytes
    else:
        if size_bytes % _SECTOR_BYTES:
            raise InputError(
                f"Image {name} was refused: a raw disk consists of whole sectors of "
                f"{_SECTOR_BYTES} bytes, and {size_bytes} bytes do not."
            )
        virtual_size_bytes = size_bytes
    _check_second_opinion(head, declared_format, name)
    return virtual_size_bytes


def _signatures(head: bytes) -> set[str]:
    """Return the formats whose signature our own tables find; ``raw`` when there is none."""
    found = {
        kind for offset, magic, kind in _PACKED + _OTHER_DISKS if head[offset:].startswith(magic)
    }
    if _VMDK_TEXT.match(head):
        found.add("vmdk")
    return found or {"raw"}


def _refuse_other(found: set[str], declared_format: str, name: str) -> None:
    packed = sorted(found & {kind for _, _, kind in _PACKED})
    if packed:
        raise InputError(
            f"Image {name} was refused: it was declared {declared_format} and is packed with "
            f"{packed[0]}.",
            hint="Unpack it first.",
        )
    raise InputError(
        f"Image {name} was refused: it was declared {declared_format} and is "
        f"{' and '.join(sorted(found)) or 'something else'}."
    )


def _check_second_opinion(head: bytes, declared_format: str, name: str) -> None:
    """Ask oslo.utils, which must find the declared format and no other.

    A partition table is part of a raw disk, so that ``gpt`` (its name for MBR, too) is no other.
    """
    # Takes 0.1 s to import, which only who brings in an image should pay.
    from oslo_utils.imageutils import format_inspector

    wrapper = format_inspector.InspectWrapper(io.BytesIO(head))
    try:
        while wrapper.read(65536):
            pass
        wrapper.close()
        inspectors = {str(inspector): inspector for inspector in wrapper.formats or ()}
        if declared_format in inspectors:
            inspectors[declared_format].safety_check()
    except format_inspector.SafetyCheckFailed as error:
        raise InputError(
            f"Image {name} was refused: it failed the checks {', '.join(error.failures)}."
        ) from error
    except Exception as error:
        # Its parsers meet hostile bytes here: whatever they raise, the image is not harmless.
        raise InputError(f"Image {name} was refused: its format could not be read.") from error
    found = set(inspectors)
    if declared_format == "raw":
        found = found - {"gpt"} or {"raw"}
    if found != {declared_format}:
        _refuse_other(found - {declared_format}, declared_format, name)
