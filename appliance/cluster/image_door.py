"""The door of a node's images: members with a ticket fetch them, piece by piece."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO

from appliance.cluster import image_tickets
from appliance.cluster.signatures import NodeSigner
from appliance.errors import AnynodeError, Denied, InputError, NotFound
from appliance.images.store import ImageStore
from appliance.world import Clock

log = logging.getLogger(__name__)

_PIECE = 256 * 1024
_RANGE = re.compile(r"bytes=(\d{1,15})-(\d{1,15})")
_TICKET = f"HTTP_{image_tickets.HEADER.upper().replace('-', '_')}"

_REASONS = {206: "206 Partial Content", 403: "403 Forbidden", 404: "404 Not Found"}


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

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        try:
            file, begin, length = self._opened(environ)
        except AnynodeError as error:
            text = error.message.encode()
            status = _REASONS.get(error.http_status, "400 Bad Request")
            start(status, [("Content-Type", "text/plain"), ("Content-Length", str(len(text)))])
            return [text]
        start(
            _REASONS[206],
            [
                ("Content-Type", "application/octet-stream"),
                ("Content-Length", str(length)),
                ("Cache-Control", "no-store"),
            ],
        )
        return _pieces(file, begin, length)

    def _opened(self, environ: dict[str, Any]) -> tuple[BinaryIO, int, int]:
        """Return an image's file, and which part of it was asked for.

        :raises Denied: the caller may not have it.
        :raises NotFound: it is not here.
        :raises InputError: there is no such part.
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
        try:
            file = path.open("rb")
        except FileNotFoundError as error:
            raise NotFound(f"Image file {sha256} is not on this node.") from error
        size = os.fstat(file.fileno()).st_size
        if not begin < end <= size:
            file.close()
            raise InputError(f"Image file {sha256} has {size} bytes.")
        return file, begin, end - begin


def _pieces(file: BinaryIO, begin: int, length: int) -> Iterator[bytes]:
    with file:
        file.seek(begin)
        while length and (piece := file.read(min(_PIECE, length))):
            length -= len(piece)
            yield piece
