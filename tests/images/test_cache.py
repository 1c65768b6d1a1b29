"""A node's copies: fetched once, verified on use, bounded, and never taken from under anybody."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from appliance.errors import LimitExceeded, NotFound, Unavailable
from appliance.images.cache import ImageCache
from appliance.images.store import ImageStore
from appliance.model import ImageRef
from tests.rig import wait_for

MIB = 1 << 20


class Peer:
    """A source in memory that counts how often it is asked."""

    def __init__(self, name: str = "peer") -> None:
        self.name = name
        self.images: dict[str, bytes] = {}
        self.reads = 0
        self._guard = threading.Lock()

    def add(self, content: bytes, image_id: str = "ami-1") -> ImageRef:
        digest = hashlib.sha256(content).hexdigest()
        self.images[digest] = content
        return ImageRef(image_id=image_id, sha256=digest, format="raw", size_bytes=len(content))

    def read(self, image: ImageRef) -> Iterator[bytes]:
        with self._guard:
            self.reads += 1
        if image.sha256 not in self.images:
            raise NotFound(f"{self.name} does not hold {image.image_id}.")
        content = self.images[image.sha256]
        for start in range(0, len(content), 100_000):
            yield content[start : start + 100_000]


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "images")


@pytest.fixture
def peer() -> Peer:
    return Peer()


def test_lone_node_uses_its_store(store: ImageStore, peer: Peer) -> None:
    ref = peer.add(os.urandom(MIB))
    path = store.receive(ref, peer.read(ref))
    cache = ImageCache(store)
    assert cache.fetch(ref) == path
    assert cache.trim(tuple) == ()
    with pytest.raises(NotFound):
        cache.fetch(peer.add(b"other"))


def test_fetches_once(store: ImageStore, peer: Peer) -> None:
    ref = peer.add(os.urandom(4 * MIB))
    cache = ImageCache(store)
    with ThreadPoolExecutor(8) as pool:
        paths = set(pool.map(lambda _: cache.fetch(ref, [peer]), range(32)))
    assert paths == {store.path(ref.sha256)}
    assert peer.reads == 1


def test_different_images_do_not_wait_for_each_other(store: ImageStore, peer: Peer) -> None:
    first, second = peer.add(b"a" * 512), peer.add(b"b" * 512)
    cache = ImageCache(store)

    class Waiting:
        name = "waiting"

        def read(self, image: ImageRef) -> Iterator[bytes]:
            cache.fetch(second, [peer])
            return peer.read(image)

    assert cache.fetch(first, [Waiting()]).is_file()


def test_wrong_bytes_are_not_kept_and_the_next_source_is_asked(
    store: ImageStore, peer: Peer
) -> None:
    ref = peer.add(os.urandom(MIB))
    changed, short, empty = Peer("changed"), Peer("short"), Peer("empty")
    changed.images[ref.sha256] = b"\0" + peer.images[ref.sha256][1:]
    short.images[ref.sha256] = peer.images[ref.sha256][:-1]
    cache = ImageCache(store)
    with pytest.raises(Unavailable, match=r"changed: .* short: .* empty: ") as caught:
        cache.fetch(ref, [changed, short, empty])
    assert "ami-1" in str(caught.value)
    assert os.listdir(store.directory) == []
    assert cache.fetch(ref, [changed, short, empty, peer]).read_bytes() == peer.images[ref.sha256]


def test_damaged_copy_is_found_and_fetched_again(store: ImageStore, peer: Peer) -> None:
    ref = peer.add(os.urandom(MIB))
    cache = ImageCache(store)
    path = cache.fetch(ref, [peer])
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.write(b"damage")
    with pytest.raises(Unavailable, match="damaged"):
        cache.fetch(ref)
    assert cache.fetch(ref, [peer]).read_bytes() == peer.images[ref.sha256]


def test_unchanged_copy_is_read_through_once(
    store: ImageStore, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = peer.add(os.urandom(MIB))
    store.receive(ref, peer.read(ref))
    verified: list[str] = []
    verify = store.verify

    def count(sha256: str) -> Path:
        verified.append(sha256)
        return verify(sha256)

    monkeypatch.setattr(store, "verify", count)
    cache = ImageCache(store)
    for _ in range(5):
        cache.fetch(ref)
    assert verified == [ref.sha256]
    os.utime(store.path(ref.sha256))
    cache.fetch(ref)
    assert len(verified) == 2


def test_evicts_what_was_used_longest_ago(store: ImageStore, peer: Peer) -> None:
    refs = [peer.add(os.urandom(MIB), f"ami-{number}") for number in range(4)]
    cache = ImageCache(store, limit_bytes=3 * MIB + 100_000)
    for ref in refs[:3]:
        cache.fetch(ref, [peer])
    cache.fetch(refs[0], [peer])
    cache.fetch(refs[3], [peer])
    assert [store.holds(ref.sha256) for ref in refs] == [True, False, True, True]


def test_never_evicts_what_is_used(store: ImageStore, peer: Peer) -> None:
    refs = [peer.add(os.urandom(MIB), f"ami-{number}") for number in range(3)]
    cache = ImageCache(store, limit_bytes=2 * MIB + 100_000)
    for ref in refs[:2]:
        cache.fetch(ref, [peer])
    used = [ref.sha256 for ref in refs[:2]]
    with pytest.raises(LimitExceeded, match="images in use"):
        cache.fetch(refs[2], [peer], used=lambda: used)
    assert all(store.holds(ref.sha256) for ref in refs[:2])
    assert cache.fetch(refs[2], [peer], used=lambda: used[1:]).is_file()
    assert not store.holds(refs[0].sha256)


def test_fetches_at_once_keep_the_limit_together(store: ImageStore, peer: Peer) -> None:
    refs = [peer.add(os.urandom(MIB), f"ami-{number}") for number in range(8)]
    cache = ImageCache(store, limit_bytes=3 * MIB + 100_000)

    def fetch(ref: ImageRef) -> bool:
        try:
            return cache.fetch(ref, [peer]).exists() or True
        except LimitExceeded:
            return False

    with ThreadPoolExecutor(8) as pool:
        fetched = list(pool.map(fetch, refs))
    assert any(fetched)
    assert sum(file.allocated_bytes for file in store.list()) <= 3 * MIB + 100_000


def test_trim(store: ImageStore, peer: Peer, caplog: pytest.LogCaptureFixture) -> None:
    refs = [peer.add(os.urandom(MIB), f"ami-{number}") for number in range(4)]
    unbounded = ImageCache(store)
    for ref in refs:
        unbounded.fetch(ref, [peer])
    bounded = ImageCache(store, limit_bytes=2 * MIB + 100_000)
    caplog.set_level(logging.INFO)
    evicted = bounded.trim(lambda: [refs[0].sha256])
    assert evicted == (refs[1].sha256, refs[2].sha256)
    said = [record.getMessage() for record in caplog.records if "evicted" in record.msg]
    assert [digest in line for digest, line in zip(evicted, said, strict=True)] == [True, True]
    assert said[0].endswith("last used 0.0 hours ago: copies take 4 of 2 MiB")
    assert bounded.trim(lambda: [refs[0].sha256]) == ()
    assert bounded.trim(tuple) == ()


def test_what_came_to_be_used_during_a_wait_stays(store: ImageStore, peer: Peer) -> None:
    old, new = (peer.add(os.urandom(MIB), f"ami-{number}") for number in range(2))
    cache = ImageCache(store, limit_bytes=MIB + 100_000)
    cache.fetch(old, [peer])
    used: list[str] = []
    with ThreadPoolExecutor(1) as pool:
        with cache._making_room:
            waiting = pool.submit(cache.fetch, new, [peer], used=lambda: used)
            wait_for(lambda: cache._locks, 10, "the fetch to begin")
            used.append(old.sha256)
        with pytest.raises(LimitExceeded, match="images in use"):
            waiting.result(10)
    assert store.holds(old.sha256)
