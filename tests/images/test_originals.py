"""What was imported on a node is never evicted there: it may be the only copy that there is."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from appliance.errors import LimitExceeded
from appliance.images.cache import ImageCache
from appliance.images.inspect import ImageLimits
from appliance.images.store import ImageStore
from appliance.model import ImageRef

MIB = 1 << 20


def received(store: ImageStore, content: bytes) -> ImageRef:
    digest = hashlib.sha256(content).hexdigest()
    image = ImageRef(image_id="x", sha256=digest, format="raw", size_bytes=len(content))
    store.receive(image, [content])
    return image


class Source:
    name = "peer"

    def __init__(self, content: bytes) -> None:
        self._content = content

    def read(self, image: ImageRef) -> list[bytes]:
        return [self._content]


def imported(store: ImageStore, folder: Path, size: int) -> str:
    path = folder / "disk.raw"
    path.write_bytes(os.urandom(size))
    return store.import_file(path, "raw", ImageLimits(virtual_size_bytes=1 << 30)).sha256


def test_only_copies_are_evicted_and_counted(tmp_path: Path) -> None:
    store = ImageStore(tmp_path / "images")
    original = imported(store, tmp_path, 3 * MIB)
    copy = received(store, os.urandom(MIB))
    assert store.originals() == {original}
    cache = ImageCache(store, limit_bytes=2 * MIB)
    content = os.urandom(2 * MIB)
    wanted = ImageRef(
        image_id="y",
        sha256=hashlib.sha256(content).hexdigest(),
        format="raw",
        size_bytes=len(content),
    )
    cache.fetch(wanted, [Source(content)])  # type: ignore[list-item]
    assert store.holds(original)
    assert not store.holds(copy.sha256)


def test_what_is_used_leaves_no_room(tmp_path: Path) -> None:
    store = ImageStore(tmp_path / "images")
    copy = received(store, os.urandom(MIB))
    content = os.urandom(2 * MIB)
    wanted = ImageRef(
        image_id="y",
        sha256=hashlib.sha256(content).hexdigest(),
        format="raw",
        size_bytes=len(content),
    )
    with pytest.raises(LimitExceeded):
        ImageCache(store, limit_bytes=2 * MIB).fetch(
            wanted,
            [Source(content)],  # type: ignore[list-item]
            used=lambda: {copy.sha256},
        )
    assert store.holds(copy.sha256)


def test_a_removed_one_is_forgotten(tmp_path: Path) -> None:
    store = ImageStore(tmp_path / "images")
    original = imported(store, tmp_path, MIB)
    store.remove(original)
    assert store.originals() == frozenset()
