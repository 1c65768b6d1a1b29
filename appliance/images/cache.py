"""A node's copies of images: fetched once, verified, and bounded."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from appliance.errors import AnynodeError, LimitExceeded, NotFound, Unavailable
from appliance.images.store import ImageStore, Progress, StoredFile, ignore_progress
from appliance.model import ImageRef

log = logging.getLogger(__name__)

InUse = Callable[[], Collection[str]]
"""Returns the digests that must not be evicted: those of all instances of this node, and of those
that are being made. It is asked right before an eviction, for fetches may have waited long."""

_Stamp = tuple[int, int, int, int]
_WAIT_S = 1.0


class ImageSource(Protocol):
    """Somebody who may hold an image: another node, or a folder."""

    @property
    def name(self) -> str:
        """Return what an error calls the source."""
        ...

    def read(self, image: ImageRef) -> Iterator[bytes]:
        """Yield the bytes of the image in pieces of at most 1 MiB.

        Nobody trusts them: they are stored only when they bear the image's digest.

        :raises NotFound: the source does not hold the image.
        :raises Unavailable: it does not answer, or stopped in the middle.
        """
        ...


class ImageCache:
    """The images of one node, on top of a store; safe to use from many threads.

    On a lone node its store *is* the place where images live: without a source and without a
    limit nothing is ever evicted. What was imported on this node never is.

    :param limit_bytes: how much the copies may take on the disk; ``None`` for no limit.
    """

    def __init__(self, store: ImageStore, *, limit_bytes: int | None = None) -> None:
        self.store = store
        self.limit_bytes = limit_bytes
        self._guard = threading.Lock()
        self._locks: dict[str, tuple[threading.Lock, int]] = {}
        self._verified: dict[str, _Stamp] = {}
        self._making_room = threading.Lock()
        self._expected: dict[str, int] = {}
        self._come: dict[str, int] = {}

    def fetch(
        self,
        image: ImageRef,
        sources: Sequence[ImageSource] = (),
        *,
        used: InUse = tuple,
        progress: Progress = ignore_progress,
    ) -> Path:
        """Return the path of the image's verified bytes; take them from a source if need be.

        The bytes are read through on the first use after a start of the program and whenever the
        file has changed since; who asks for the same image meanwhile waits for the one fetch.
        Safe to repeat; when it raises nothing is left.

        :param sources: asked in order until one gives the right bytes.
        :raises NotFound: neither the store nor a source has it.
        :raises Unavailable: all sources failed; the reasons are in the text.
        :raises LimitExceeded: the images in use leave no room for it.
        """
        with self._alone(image, progress):
            try:
                return self._use(image.sha256)
            except (NotFound, Unavailable) as error:
                if not sources:
                    raise
                failure: AnynodeError = error
            self._reserve(image, used)
            try:
                failures = [failure.message]
                for source in sources:
                    try:
                        self.store.receive(image, source.read(image), self._noting(image, progress))
                        return self._use(image.sha256)
                    except (NotFound, Unavailable) as error:
                        failures.append(f"{source.name}: {error.message}")
                        failure = error
            finally:
                with self._making_room:
                    self._expected.pop(image.sha256, None)
                self._come.pop(image.sha256, None)
            raise Unavailable(
                f"Could not fetch image {image.image_id}. {' '.join(failures)}"
            ) from failure

    def trim(self, used: InUse) -> tuple[str, ...]:
        """Evict what was used longest ago until the limit is kept; return the digests evicted.

        What is in use stays, even when the limit is not reached then.
        """
        with self._making_room:
            return self._evict(used, 0)

    def _use(self, sha256: str) -> Path:
        """Verify unless the same file was verified before, and note the use for the eviction."""
        path = self.store.path(sha256)
        try:
            known = self._verified.get(sha256)
            if known is None or known != _stamp(path):
                self.store.verify(sha256)
            os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
            self._verified[sha256] = _stamp(path)
        except FileNotFoundError as error:
            raise NotFound(f"Image file {sha256} is not on this node.") from error
        except OSError as error:
            raise Unavailable(f"Could not use image file {path}: {error.strerror}.") from error
        return path

    def _reserve(self, image: ImageRef, used: InUse) -> None:
        with self._making_room:
            self._evict(used, image.size_bytes)
            if self.limit_bytes is not None:
                taken = self._taken_bytes()
                if taken + image.size_bytes > self.limit_bytes:
                    raise LimitExceeded(
                        f"No room for image {image.image_id} of {image.size_bytes >> 20:,} MiB: "
                        f"images in use take {taken >> 20:,} of {self.limit_bytes >> 20:,} MiB.",
                        hint="Raise the limit of the image cache.",
                    )
            self._expected[image.sha256] = image.size_bytes

    def _evict(self, used: InUse, wanted_bytes: int) -> tuple[str, ...]:
        evicted: list[str] = []
        taken = self._taken_bytes()
        if self.limit_bytes is None or taken + wanted_bytes <= self.limit_bytes:
            return ()
        kept = {*used(), *self._expected}
        for file in self._copies():
            if taken + wanted_bytes <= self.limit_bytes:
                break
            if file.sha256 in kept or not self.store.remove(file.sha256):
                continue
            log.info(
                "evicted image file %s of %d MiB, last used %.1f hours ago: %s",
                file.sha256,
                file.allocated_bytes >> 20,
                (time.time() - file.last_used_at) / 3600,
                self._why(taken, wanted_bytes),
            )
            self._verified.pop(file.sha256, None)
            taken -= file.allocated_bytes
            evicted.append(file.sha256)
        return tuple(evicted)

    def _why(self, taken_bytes: int, wanted_bytes: int) -> str:
        limit_mib = (self.limit_bytes or 0) >> 20
        wanted = f", {wanted_bytes >> 20:,} MiB are to come" if wanted_bytes else ""
        return f"copies take {taken_bytes >> 20:,} of {limit_mib:,} MiB{wanted}"

    def _taken_bytes(self) -> int:
        """Return what the copies take and those on their way will take."""
        return sum(file.allocated_bytes for file in self._copies()) + sum(self._expected.values())

    def _copies(self) -> list[StoredFile]:
        """Return the files that other nodes have, too, the one used longest ago first."""
        originals = self.store.originals()
        return [file for file in self.store.list() if file.sha256 not in originals]

    def _noting(self, image: ImageRef, progress: Progress) -> Progress:
        """Return what notes how much has come, for those that wait for it."""

        def note(done_bytes: int, total_bytes: int) -> None:
            self._come[image.sha256] = done_bytes
            progress(done_bytes, total_bytes)

        return note

    @contextmanager
    def _alone(self, image: ImageRef, progress: Progress) -> Iterator[None]:
        """Let one thread at a time handle a digest; those that wait see how it comes on."""
        sha256 = image.sha256
        with self._guard:
            lock, waiting = self._locks.get(sha256, (threading.Lock(), 0))
            self._locks[sha256] = (lock, waiting + 1)
        try:
            self._wait(lock, image, progress)
            try:
                yield
            finally:
                lock.release()
        finally:
            with self._guard:
                lock, waiting = self._locks.pop(sha256)
                if waiting > 1:
                    self._locks[sha256] = (lock, waiting - 1)

    def _wait(self, lock: threading.Lock, image: ImageRef, progress: Progress) -> None:
        known = -1
        while not lock.acquire(timeout=_WAIT_S):
            come = self._come.get(image.sha256, -1)
            if come != known:
                known = come
                progress(max(come, 0), image.size_bytes)


def _stamp(path: Path) -> _Stamp:
    """Return what changes whenever the bytes or the rights of a file change."""
    stat = path.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
