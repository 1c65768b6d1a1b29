"""The image store: files named by the SHA-256 of their bytes, written once and never changed.

Directory mode 0710 and file mode 0440: the QEMU user reads its base images through the group,
nobody else on the machine reads them at all, and not even the QEMU user may write one.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from appliance.errors import (
    AnynodeError,
    ConfigError,
    InputError,
    LimitExceeded,
    NotFound,
    Unavailable,
)
from appliance.images.inspect import ImageLimits, inspect_open, open_regular
from appliance.model import ImageRef, Value

Progress = Callable[[int, int], None]
"""Called with the bytes done and the bytes in all."""

_DIGEST = re.compile(r"[0-9a-f]{64}")
_CHUNK_BYTES = 256 << 10
_ZEROS = bytes(_CHUNK_BYTES)
_DIRECTORY_MODE = 0o710
_FILE_MODE = 0o440
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def ignore_progress(done_bytes: int, total_bytes: int) -> None:
    """Tell nobody."""


class StoredImage(Value, frozen=True, kw_only=True):
    """An image that was inspected and stored."""

    sha256: str
    format: str
    size_bytes: int
    virtual_size_bytes: int

    def ref(self, image_id: str) -> ImageRef:
        """Return the reference that orders carry."""
        return ImageRef(
            image_id=image_id,
            sha256=self.sha256,
            format=self.format,
            size_bytes=self.size_bytes,
            virtual_size_bytes=self.virtual_size_bytes,
        )


class StoredFile(Value, frozen=True, kw_only=True):
    """A file of the store. ``allocated_bytes`` is what it takes on the disk, without its holes."""

    sha256: str
    size_bytes: int
    allocated_bytes: int
    last_used_at: float


class ImageStore:
    """A directory of images by content; safe to use from many threads and processes at once.

    An image that is being written has no name yet, so that nothing is left of it when the
    program is killed, whenever that is.

    :param group: name of the group of the QEMU user; empty leaves the group of this process.
    :raises ConfigError: the directory cannot be made, or there is no such group.
    """

    def __init__(self, directory: Path, *, group: str = "") -> None:
        self.directory = directory
        try:
            directory.mkdir(mode=_DIRECTORY_MODE, parents=True, exist_ok=True)
            directory.chmod(_DIRECTORY_MODE)
            if group:
                shutil.chown(directory, group=group)
            self._gid = directory.stat().st_gid
        except (OSError, LookupError) as error:
            raise ConfigError(
                f"Could not make the image store {directory}: {error}.",
                hint="Look at the settings of the image directory and its group.",
            ) from error

    def import_file(
        self,
        path: Path,
        declared_format: str,
        limits: ImageLimits,
        progress: Progress = ignore_progress,
    ) -> StoredImage:
        """Inspect a file, copy it into the store, and inspect the copy.

        Safe to repeat: the same bytes are the same file of the store. When it raises, or is
        interrupted, no part of it is left. ``path`` is opened with the rights of this process: it
        must come from an operator of this machine, never from a request.

        :raises InputError: the file was refused, or changed while it was read.
        :raises LimitExceeded: the store has no room for it.
        :raises Unavailable: it could not be read or written.
        """
        with open_regular(path) as source:
            inspected = inspect_open(source, declared_format, limits, str(path))
            self._check_room(str(path), source)
            source.seek(0)
            chunks = _read_chunks(source, inspected.size_bytes, progress)
            with self._incoming(str(path), inspected.size_bytes) as incoming:
                for chunk in chunks:
                    incoming.write(chunk)
                if incoming.size_bytes != inspected.size_bytes or source.read(1):
                    raise InputError(f"Image {path} changed while it was read.", hint="Try again.")
                incoming.seal()
                # What was looked at before the copy may have been other bytes than were copied.
                inspect_open(incoming.file, declared_format, limits, str(path))
                self._mark_original(incoming.sha256)
                try:
                    self._adopt(incoming)
                except BaseException:
                    if not self.path(incoming.sha256).exists():
                        (self._marks / incoming.sha256).unlink(missing_ok=True)
                    raise
        return StoredImage(
            sha256=incoming.sha256,
            format=inspected.format,
            size_bytes=inspected.size_bytes,
            virtual_size_bytes=inspected.virtual_size_bytes,
        )

    def receive(
        self,
        image: ImageRef,
        chunks: Iterable[bytes],
        progress: Progress = ignore_progress,
    ) -> Path:
        """Store the bytes of a known image and return their path; they must bear its digest.

        Reads no more than the image's size. When it raises, no part of it is left.

        :raises Unavailable: other bytes came, or fewer, or more, or they could not be written.
        :raises LimitExceeded: the store has no room for it.
        """
        path = self.path(image.sha256)
        with self._incoming(image.image_id, image.size_bytes) as incoming:
            for chunk in chunks:
                if incoming.size_bytes + len(chunk) > image.size_bytes:
                    raise Unavailable(f"More bytes came than image {image.image_id} has.")
                incoming.write(chunk)
                progress(incoming.size_bytes, image.size_bytes)
            if incoming.sha256 != image.sha256:
                raise Unavailable(
                    f"The {incoming.size_bytes} bytes that came are not image {image.image_id}, "
                    f"which has {image.size_bytes}: their digests differ."
                )
            incoming.seal()
            self._adopt(incoming)
        return path

    def path(self, sha256: str) -> Path:
        """Return where the image of that digest is, or would be.

        :raises InputError: that is no digest.
        """
        if not _DIGEST.fullmatch(sha256):
            raise InputError(f"{sha256!r} is no SHA-256 in lower case.")
        return self.directory / sha256

    def holds(self, sha256: str) -> bool:
        """Say whether the image is here; its bytes are not read."""
        return self.path(sha256).is_file()

    def verify(self, sha256: str) -> Path:
        """Read all bytes of an image, compare their digest, and return their path.

        :raises NotFound: the image is not here.
        :raises Unavailable: its bytes have changed, or cannot be read.
        """
        path = self.path(sha256)
        try:
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError as error:
            raise NotFound(f"Image file {sha256} is not in the store {self.directory}.") from error
        except OSError as error:
            raise Unavailable(f"Could not read image file {path}: {error.strerror}.") from error
        if found != sha256:
            raise Unavailable(
                f"Image file {path} is damaged: its bytes now have the digest {found}.",
                hint="Import the image again: that replaces the damaged file.",
            )
        return path

    def list(self) -> tuple[StoredFile, ...]:
        """Return the files of the store, the one used longest ago first."""
        found = []
        for entry in os.scandir(self.directory):
            if not _DIGEST.fullmatch(entry.name):
                continue
            try:
                stat = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            found.append(
                StoredFile(
                    sha256=entry.name,
                    size_bytes=stat.st_size,
                    allocated_bytes=stat.st_blocks * 512,
                    last_used_at=stat.st_atime,
                )
            )
        return tuple(sorted(found, key=lambda file: (file.last_used_at, file.sha256)))

    def digests(self) -> set[str]:
        """Return the digests of all images that are here."""
        return {file.sha256 for file in self.list()}

    def originals(self) -> frozenset[str]:
        """Return the digests of what was imported here, and is not one copy of many."""
        try:
            return frozenset(entry.name for entry in os.scandir(self._marks))
        except FileNotFoundError:
            return frozenset()

    @property
    def _marks(self) -> Path:
        return self.directory.with_name(f"{self.directory.name}.originals")

    def _mark_original(self, sha256: str) -> None:
        self._marks.mkdir(mode=0o700, exist_ok=True)
        (self._marks / sha256).touch(mode=0o600)

    def remove(self, sha256: str) -> bool:
        """Delete an image; say whether it was there.

        Overlays that are based on it lose their base: the caller knows that there are none.
        """
        try:
            self.path(sha256).unlink()
        except FileNotFoundError:
            return False
        (self._marks / sha256).unlink(missing_ok=True)
        return True

    def _check_room(self, what: str, source: BinaryIO) -> None:
        """Refuse before the first byte is copied what cannot fit; holes take no room."""
        stat = os.fstat(source.fileno())
        wanted_bytes = min(stat.st_size, stat.st_blocks * 512)
        if wanted_bytes > shutil.disk_usage(self.directory).free:
            raise self._explain(
                OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), what, wanted_bytes
            )

    @contextmanager
    def _incoming(self, what: str, size_bytes: int) -> Iterator[_Incoming]:
        """Give a file without a name to write into; errors of the disk become sentences."""
        try:
            with _Incoming(self.directory, self._gid) as incoming:
                yield incoming
        except OSError as error:
            raise self._explain(error, what, size_bytes) from error

    def _explain(self, error: OSError, what: str, size_bytes: int) -> AnynodeError:
        if error.errno in _FULL:
            free_bytes = shutil.disk_usage(self.directory).free
            return LimitExceeded(
                f"No room for image {what} of {size_bytes >> 20:,} MiB in {self.directory}: "
                f"{error.strerror}, {free_bytes >> 20:,} MiB free.",
                hint="Remove images that are not in use, or give the directory more room.",
            )
        if error.errno in (errno.EOPNOTSUPP, errno.EISDIR):
            return ConfigError(
                f"The file system of {self.directory} has no unnamed files (O_TMPFILE).",
                hint="Put the image directory on ext4, xfs, btrfs or tmpfs.",
            )
        return Unavailable(f"Could not copy image {what} to {self.directory}: {error.strerror}.")

    def _adopt(self, incoming: _Incoming) -> None:
        """Give the written file its name; keep the one that is there unless it is damaged."""
        try:
            incoming.link(self.directory, incoming.sha256)
        except FileExistsError:
            try:
                self.verify(incoming.sha256)
            except Unavailable:
                self.remove(incoming.sha256)
                with suppress(FileExistsError):
                    # Somebody else who brought the same bytes was faster.
                    incoming.link(self.directory, incoming.sha256)
        _sync_directory(self.directory)


class _Incoming:
    """A file without a name, and the digest of what was written to it."""

    def __init__(self, directory: Path, gid: int) -> None:
        fd = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        self.file: BinaryIO = os.fdopen(fd, "w+b", buffering=0)
        self.size_bytes = 0
        self._gid = gid
        self._digest = hashlib.sha256()

    def __enter__(self) -> _Incoming:
        return self

    def __exit__(self, *exception: object) -> None:
        self.file.close()

    @property
    def sha256(self) -> str:
        """Return the digest of all that was written so far."""
        return self._digest.hexdigest()

    def write(self, chunk: bytes) -> None:
        """Append bytes; a chunk of zeros becomes a hole."""
        self._digest.update(chunk)
        if chunk == _ZEROS[: len(chunk)]:
            self.file.seek(len(chunk), os.SEEK_CUR)
        else:
            rest = memoryview(chunk)
            while rest:
                rest = rest[os.write(self.file.fileno(), rest) :]
        self.size_bytes += len(chunk)

    def seal(self) -> None:
        """Bring all bytes to the disk and set owner and mode."""
        fd = self.file.fileno()
        os.ftruncate(fd, self.size_bytes)
        os.fchmod(fd, _FILE_MODE)
        if os.fstat(fd).st_gid != self._gid:
            os.fchown(fd, -1, self._gid)
        os.fsync(fd)
        self.file.seek(0)

    def link(self, directory: Path, name: str) -> None:
        """Give the file a name.

        :raises FileExistsError: the name is taken; nothing was changed.
        """
        at = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # Without a directory descriptor Python would link the magic link, not its file.
            os.link(f"/proc/self/fd/{self.file.fileno()}", name, dst_dir_fd=at)
        finally:
            os.close(at)


def _read_chunks(source: BinaryIO, size_bytes: int, progress: Progress) -> Iterator[bytes]:
    """Yield at most ``size_bytes`` of a file, which somebody may be writing to."""
    done = 0
    while chunk := source.read(min(_CHUNK_BYTES, size_bytes - done)):
        yield chunk
        done += len(chunk)
        progress(done, size_bytes)


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
