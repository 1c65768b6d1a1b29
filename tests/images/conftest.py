"""Images, good and hostile, for the tests of the store."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.images.inspect import ImageLimits

MIB = 1 << 20

QCOW2_FIELDS: dict[str, tuple[str, int]] = {
    "magic": ("4s", 0),
    "version": ("I", 3),
    "backing_offset": ("Q", 0),
    "backing_size": ("I", 0),
    "cluster_bits": ("I", 16),
    "virtual_size": ("Q", 64 * MIB),
    "encryption": ("I", 0),
    "l1_entries": ("I", 1),
    "l1_offset": ("Q", 0x30000),
    "refcount_offset": ("Q", 0x10000),
    "refcount_clusters": ("I", 1),
    "snapshots": ("I", 0),
    "snapshots_offset": ("Q", 0),
    "incompatible": ("Q", 0),
    "compatible": ("Q", 0),
    "autoclear": ("Q", 0),
    "refcount_order": ("I", 4),
    "header_length": ("I", 104),
}

BuildQcow2 = Callable[..., bytes]


@pytest.fixture(scope="session")
def build_qcow2() -> BuildQcow2:
    """A function that returns the bytes of a small qcow2 file with some header fields set.

    ``extensions`` are (kind, content) pairs; ``texts`` are bytes put at an offset.
    """

    def build(
        extensions: tuple[tuple[int, bytes], ...] = (),
        texts: tuple[tuple[int, bytes], ...] = (),
        file_bytes: int = 0x40000,
        **fields: int,
    ) -> bytes:
        unknown = set(fields) - set(QCOW2_FIELDS)
        assert not unknown, unknown
        values = [
            b"QFI\xfb" if name == "magic" else fields.get(name, default)
            for name, (_, default) in QCOW2_FIELDS.items()
        ]
        header = struct.pack(">" + "".join(code for code, _ in QCOW2_FIELDS.values()), *values)
        if fields.get("version") == 2:
            header = header[:72]
        for kind, content in extensions:
            padded = content + bytes(-len(content) % 8)
            header += struct.pack(">II", kind, len(content)) + padded
        whole = bytearray(header.ljust(file_bytes, b"\0"))
        for offset, text in texts:
            whole[offset : offset + len(text)] = text
        return bytes(whole)

    return build


@pytest.fixture
def limits() -> ImageLimits:
    """Limits that a test can reach."""
    return ImageLimits(file_bytes=64 * MIB, virtual_size_bytes=1 << 40, boot_file_bytes=8 * MIB)


@pytest.fixture
def make_image(tmp_path: Path) -> Callable[..., Path]:
    """A function that makes a real image with qemu-img and returns its path."""

    def make(name: str, image_format: str, size: str, *options: str) -> Path:
        path = tmp_path / name
        command = ["qemu-img", "create", "-q", "-f", image_format, *options, str(path), size]
        subprocess.run(command, check=True, timeout=60)
        return path

    return make
