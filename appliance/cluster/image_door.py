"""The door of a node's images: members with a ticket fetch them, piece by piece."""

from __future__ import annotations

import logging
import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from appliance.cluster import image_tickets
from appliance.cluster.signatures import NodeSigner
from appliance.errors import AnynodeError, Denied, InputError, NotFound, Unavailable
from appliance.images.store import ImageStore
from appliance.world import Clock

log = logging.getLogger(__name__)

AT_ONCE = 4
"""Parts that are given at the same time; the peer service has other things to answer, too."""

OF_ONE_NODE = 2
"""Of these, those that one node may take."""

_PIECE = 256 * 1024
_RANGE = re.compile(r"bytes=(\d{1,15})-(\d{1,15})")
_TICKET = f"HTTP_{image_tickets.HEADER.upper().replace('-', '_')}"

_REASONS = {
    206: "206 Partial Content",
    403: "403 Forbidden",
    404: "404 Not Found",
    503: "503 Service Unavailable",
}


class ImageDoor:
    """Answers ``GET /images/<sha256>`` with the part of the file that was asked for.

    :param caller: returns the node id of the member that calls, of a WSGI environment.
    """

    def __init__(
        self,
        store: ImageStore,
        signer: NodeSigner,
        clock: Clock,
        caller: Callable[[dict[str, Any]], str],
    ) -> None:
        self._store = store
        self._signer = signer
        self._clock = clock
        self._caller = caller
        self._places = _Places()

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        try:
            part = self._part(environ)
        except AnynodeError as error:
            text = error.message.encode()
            status = _REASONS.get(error.http_status, "400 Bad Request")
            start(status, [("Content-Type", "text/plain"), ("Content-Length", str(len(text)))])
            return [text]
        start(
            _REASONS[206],
            [
                ("Content-Type", "application/octet-stream"),
                ("Content-Length", str(part.length)),
                ("Cache-Control", "no-store"),
            ],
        )
        return part

    def _part(self, environ: dict[str, Any]) -> _Part:
        """Return the part of an image that was asked for.

        :raises Denied: the caller may not have it.
        :raises NotFound: it is not here.
        :raises InputError: there is no such part.
        :raises Unavailable: as many others are given theirs as may be.
        """
        sha256 = environ["PATH_INFO"].removeprefix(f"{image_tickets.PATH}/")
        path = self._store.path(sha256)
        if environ["REQUEST_METHOD"] != "GET":
            raise InputError("Images are fetched with GET.")
        node_id = self._caller(environ)
        try:
            image_tickets.check(
                self._signer, environ.get(_TICKET, ""), sha256, node_id, self._clock.now()
            )
        except Denied as error:
            log.warning("node %s may not fetch image %s: %s", node_id, sha256[:12], error.message)
            raise
        found = _RANGE.fullmatch(environ.get("HTTP_RANGE", ""))
        if found is None:
            raise InputError("Images are fetched in parts: Range: bytes=FIRST-LAST.")
        begin, end = int(found[1]), int(found[2]) + 1
        leave = self._places.take(node_id)
        try:
            part = _Part(path, begin, end, leave)
        except BaseException:
            leave()
            raise
        if begin == 0:
            log.info("node %s fetches image %s", node_id, sha256[:12])
        return part


class _Places:
    """Who is given something now."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._taken: Counter[str] = Counter()

    def take(self, node_id: str) -> Callable[[], None]:
        """Take a place; return what gives it back.

        :raises Unavailable: none is free for this node.
        """
        with self._guard:
            if self._taken.total() >= AT_ONCE or self._taken[node_id] >= OF_ONE_NODE:
                raise Unavailable("This node is busy giving images to others; ask again.")
            self._taken[node_id] += 1

        def leave() -> None:
            with self._guard:
                self._taken[node_id] -= 1

        return leave


class _Part:
    """Part of a file, piece by piece, until it is closed."""

    def __init__(self, path: Path, begin: int, end: int, leave: Callable[[], None]) -> None:
        try:
            self._file: BinaryIO = path.open("rb")
        except FileNotFoundError as error:
            raise NotFound(f"Image file {path.name} is not on this node.") from error
        except OSError as error:
            log.error("image file %s cannot be read: %s", path, error.strerror)
            raise Unavailable(f"Image file {path.name} cannot be read here.") from error
        size = os.fstat(self._file.fileno()).st_size
        if not begin < end <= size:
            self._file.close()
            raise InputError(f"Image file {path.name} has {size} bytes.")
        self._file.seek(begin)
        self.length = end - begin
        self._leave = leave

    def __iter__(self) -> Iterator[bytes]:
        left = self.length
        try:
            while left and (piece := self._file.read(min(_PIECE, left))):
                left -= len(piece)
                yield piece
        finally:
            self.close()

    def close(self) -> None:
        """Give the place to another. Safe to repeat; who serves this calls it, sent or not."""
        if not self._file.closed:
            self._file.close()
            self._leave()
