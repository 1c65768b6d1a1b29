"""The header of a qcow2 file: read by us before any other program opens it, written for overlays.

Source: the format's own specification, ``docs/interop/qcow2`` of QEMU. Nothing here follows a
pointer out of the first cluster, and nothing is allocated by a length that the file claims.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import BinaryIO

from appliance.errors import InputError

MAGIC = b"QFI\xfb"

_VERSION_2 = struct.Struct(">4sIQIIQIIQQIIQ")
_VERSION_3 = struct.Struct(">QQQII")
_EXTENSION = struct.Struct(">II")
_MAX_EXTENSIONS = 64
_MAX_NAME_BYTES = 1023
_MAX_L1_BYTES = 32 << 20
_MAX_REFCOUNT_TABLE_BYTES = 8 << 20

_INCOMPATIBLE_DIRTY = 1 << 0
_INCOMPATIBLE_CORRUPT = 1 << 1
_INCOMPATIBLE_DATA_FILE = 1 << 2
_INCOMPATIBLE_COMPRESSION = 1 << 3

_EXTENSION_END = 0
_EXTENSION_BACKING_FORMAT = 0xE2792ACA
_EXTENSION_DATA_FILE = 0x44415441
_EXTENSION_ENCRYPTION = 0x0537BE77
_EXTENSION_BITMAPS = 0x23852875

_COMPRESSIONS = (0, 1)
"""zlib and zstd."""

_OVERLAY_CLUSTER_BITS = 16
_OVERLAY_CLUSTER = 1 << _OVERLAY_CLUSTER_BITS
_SECTOR_BYTES = 512
_REFCOUNT_ORDER = 4
_LARGEST_DISK_BYTES = _MAX_L1_BYTES // 8 * (_OVERLAY_CLUSTER // 8) * _OVERLAY_CLUSTER


@dataclass(frozen=True, kw_only=True)
class Header:
    """The fields of a qcow2 header; sizes and offsets in bytes unless named otherwise."""

    version: int
    backing_offset: int
    backing_size: int
    cluster_bits: int
    virtual_size_bytes: int
    encryption: int
    l1_entries: int
    l1_offset: int
    refcount_offset: int
    refcount_clusters: int
    snapshots: int
    incompatible: int = 0
    autoclear: int = 0
    refcount_order: int = 4
    length: int = 72
    compression: int = 0
    backing: str = ""
    extensions: tuple[tuple[int, bytes], ...] = ()

    @property
    def cluster_bytes(self) -> int:
        """Return the size of a cluster."""
        return 1 << self.cluster_bits

    @property
    def backing_format(self) -> str:
        """Return the format that the header names for the backing file; empty for none."""
        for kind, content in self.extensions:
            if kind == _EXTENSION_BACKING_FORMAT:
                return content.decode(errors="replace")
        return ""


def read_header(file: BinaryIO, name: str) -> Header:
    """Return the header of an open file.

    :param name: how the file is called in an error.
    :raises InputError: it is cut, of an unknown version, or its parts do not fit together.
    """
    file.seek(0)
    first = file.read(_VERSION_2.size)
    if len(first) < _VERSION_2.size:
        raise _refusal(name, f"its qcow2 header is cut after {len(first)} bytes")
    magic, version, backing_offset, backing_size, cluster_bits, virtual_size, *rest = (
        _VERSION_2.unpack(first)
    )
    encryption, l1_entries, l1_offset, refcount_offset, refcount_clusters, snapshots, _ = rest
    if magic != MAGIC:
        raise _refusal(name, "it is not a qcow2 file")
    if version not in (2, 3):
        raise _refusal(name, f"qcow2 version {version} is unknown; versions 2 and 3 are")
    if not 9 <= cluster_bits <= 21:
        raise _refusal(name, f"a cluster of 2^{cluster_bits} bytes is not possible in qcow2")
    cluster = first + file.read((1 << cluster_bits) - len(first))
    if version == 3:
        incompatible, autoclear, refcount_order, length, compression = _read_version_3(
            cluster, name
        )
    else:
        incompatible, autoclear, refcount_order, length, compression = 0, 0, 4, len(first), 0
    backing = _read_backing(cluster, backing_offset, backing_size, name)
    return Header(
        version=version,
        backing_offset=backing_offset,
        backing_size=backing_size,
        cluster_bits=cluster_bits,
        virtual_size_bytes=virtual_size,
        encryption=encryption,
        l1_entries=l1_entries,
        l1_offset=l1_offset,
        refcount_offset=refcount_offset,
        refcount_clusters=refcount_clusters,
        snapshots=snapshots,
        incompatible=incompatible,
        autoclear=autoclear,
        refcount_order=refcount_order,
        length=length,
        compression=compression,
        backing=backing,
        extensions=_read_extensions(cluster, length, backing_offset, name),
    )


def _read_version_3(cluster: bytes, name: str) -> tuple[int, int, int, int, int]:
    end = _VERSION_2.size + _VERSION_3.size
    if len(cluster) < end:
        raise _refusal(name, f"its qcow2 header is cut after {len(cluster)} bytes")
    incompatible, _compatible, autoclear, refcount_order, length = _VERSION_3.unpack(
        cluster[_VERSION_2.size : end]
    )
    if length < end or length % 8 or length > len(cluster):
        raise _refusal(name, f"a qcow2 header of {length} bytes is not possible")
    compression = cluster[end] if length > end else 0
    return incompatible, autoclear, refcount_order, length, compression


def _read_backing(cluster: bytes, offset: int, size: int, name: str) -> str:
    if offset == 0:
        return ""
    if size > _MAX_NAME_BYTES or offset + size > len(cluster):
        raise _refusal(name, "the name of its backing file lies outside the header")
    return cluster[offset : offset + size].decode(errors="replace")


def _read_extensions(
    cluster: bytes, start: int, backing_offset: int, name: str
) -> tuple[tuple[int, bytes], ...]:
    end = min(backing_offset, len(cluster)) if backing_offset else len(cluster)
    found: list[tuple[int, bytes]] = []
    while start + _EXTENSION.size <= end:
        kind, size = _EXTENSION.unpack_from(cluster, start)
        if kind == _EXTENSION_END:
            break
        start += _EXTENSION.size
        if size > end - start:
            raise _refusal(name, "a qcow2 header extension reaches beyond the header")
        if len(found) == _MAX_EXTENSIONS:
            raise _refusal(name, f"it has more than {_MAX_EXTENSIONS} qcow2 header extensions")
        found.append((kind, cluster[start : start + size]))
        start += (size + 7) & ~7
    return tuple(found)


def write_overlay(file: BinaryIO, backing: str, backing_format: str, size_bytes: int) -> None:
    """Write an overlay that holds nothing yet into an empty file, as ``qemu-img create`` does.

    Clusters of 64 KiB: the header, the refcount table, its one block, and the L1 table, a hole.

    :param size_bytes: size of the disk, rounded up to whole sectors.
    :raises InputError: the name is too long for a header, or the disk too large for one table.
    :raises OSError: the file could not be written.
    """
    name = os.fsencode(backing)
    if len(name) > _MAX_NAME_BYTES:
        raise InputError(f"The path of the base image is longer than {_MAX_NAME_BYTES} bytes.")
    if not 0 < size_bytes <= _LARGEST_DISK_BYTES:
        raise InputError(f"A disk of {size_bytes:,} bytes is not possible.")
    l1_entries = -(-size_bytes // (_OVERLAY_CLUSTER * (_OVERLAY_CLUSTER // 8)))
    clusters = 3 + -(-l1_entries * 8 // _OVERLAY_CLUSTER)
    file.write(_overlay_header(name, backing_format.encode(), size_bytes, l1_entries))
    file.seek(_OVERLAY_CLUSTER)
    file.write(struct.pack(">Q", 2 * _OVERLAY_CLUSTER))
    file.seek(2 * _OVERLAY_CLUSTER)
    file.write(struct.pack(">H", 1) * clusters)
    file.truncate(clusters * _OVERLAY_CLUSTER)


def _overlay_header(name: bytes, backing_format: bytes, size_bytes: int, l1_entries: int) -> bytes:
    length = _VERSION_2.size + _VERSION_3.size
    padded = backing_format.ljust((len(backing_format) + 7) & ~7, b"\0")
    extensions = (
        _EXTENSION.pack(_EXTENSION_BACKING_FORMAT, len(backing_format))
        + padded
        + _EXTENSION.pack(_EXTENSION_END, 0)
    )
    version_2 = _VERSION_2.pack(
        MAGIC,
        3,
        length + len(extensions),
        len(name),
        _OVERLAY_CLUSTER_BITS,
        -(-size_bytes // _SECTOR_BYTES) * _SECTOR_BYTES,
        0,
        l1_entries,
        3 * _OVERLAY_CLUSTER,
        _OVERLAY_CLUSTER,
        1,
        0,
        0,
    )
    return version_2 + _VERSION_3.pack(0, 0, 0, _REFCOUNT_ORDER, length) + extensions + name


def check_standalone(header: Header, file: BinaryIO, name: str) -> None:
    """Refuse a stranger's qcow2 file that is more than the plain contents of one disk.

    :raises InputError: it refers to another file, needs a feature that we do not know, or its
        tables do not fit into it.
    """
    _check_references(header, name)
    _check_features(header, name)
    _check_tables(header, os.fstat(file.fileno()).st_size, name)


def _check_references(header: Header, name: str) -> None:
    kinds = {kind for kind, _ in header.extensions}
    if header.backing_offset or header.backing_size or _EXTENSION_BACKING_FORMAT in kinds:
        raise _refusal(name, "it has a backing file", flatten=True)
    if header.incompatible & _INCOMPATIBLE_DATA_FILE or _EXTENSION_DATA_FILE in kinds:
        raise _refusal(name, "it keeps its data in another file", flatten=True)
    if header.encryption or _EXTENSION_ENCRYPTION in kinds:
        raise _refusal(name, "it is encrypted", flatten=True)
    if header.snapshots:
        raise _refusal(name, f"it holds {header.snapshots} internal snapshots", flatten=True)
    if header.autoclear or _EXTENSION_BITMAPS in kinds:
        raise _refusal(name, "it holds persistent bitmaps or unknown optional parts", flatten=True)


def _check_features(header: Header, name: str) -> None:
    if header.incompatible & _INCOMPATIBLE_CORRUPT:
        raise _refusal(name, "it is marked as corrupt")
    if header.incompatible & _INCOMPATIBLE_DIRTY:
        raise _refusal(name, "it was copied while in use, or never closed", flatten=True)
    unknown = header.incompatible & ~_INCOMPATIBLE_COMPRESSION
    if unknown:
        raise _refusal(name, f"it needs qcow2 features {unknown:#x} that are not known here")
    if header.compression not in _COMPRESSIONS:
        raise _refusal(name, f"its compression type {header.compression} is not known")
    if bool(header.compression) != bool(header.incompatible & _INCOMPATIBLE_COMPRESSION):
        raise _refusal(name, "its compression type and its feature bits contradict each other")
    if header.refcount_order > 6:
        raise _refusal(name, f"refcounts of 2^{header.refcount_order} bits are not possible")


def _check_tables(header: Header, file_bytes: int, name: str) -> None:
    if header.virtual_size_bytes == 0:
        raise _refusal(name, "its disk has no bytes")
    per_l1_entry = header.cluster_bytes * (header.cluster_bytes // 8)
    needed = -(-header.virtual_size_bytes // per_l1_entry)
    if header.l1_entries < needed or header.l1_entries * 8 > _MAX_L1_BYTES:
        raise _refusal(name, f"an L1 table of {header.l1_entries} entries does not fit its disk")
    refcount_bytes = header.refcount_clusters * header.cluster_bytes
    if not 0 < refcount_bytes <= _MAX_REFCOUNT_TABLE_BYTES:
        raise _refusal(name, f"a refcount table of {refcount_bytes} bytes is not possible")
    tables = (
        ("L1 table", header.l1_offset, header.l1_entries * 8),
        ("refcount table", header.refcount_offset, refcount_bytes),
    )
    for table, offset, size in tables:
        if offset % header.cluster_bytes or offset == 0 or offset + size > file_bytes:
            raise _refusal(name, f"its {table} lies outside the file")


def _refusal(name: str, reason: str, *, flatten: bool = False) -> InputError:
    hint = (
        "Write it out as one plain file with qemu-img convert, and bring that." if flatten else ""
    )
    return InputError(f"Image {name} was refused: {reason}.", hint=hint)
