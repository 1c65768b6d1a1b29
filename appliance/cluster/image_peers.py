"""Images from other nodes: part by part, from where it broke off, until the digest decides."""

from __future__ import annotations

import http.client
import logging
import ssl
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from appliance.cluster import image_tickets, peer_client
from appliance.errors import AnynodeError, NotFound, Unavailable
from appliance.images.cache import ImageSource
from appliance.model import ImageGrant, ImageHolder, ImageRef
from appliance.world import Clock

log = logging.getLogger(__name__)

PART_BYTES = 16 << 20
"""Bytes that are asked for at once; the one asked gives each part its own time to be taken."""

SILENCE_S = 15.0
SLOW_AFTER_S = 20.0
SLOW_BYTES_PER_S = 128 * 1024
"""Below, another node that holds the image is tried, where there is one."""

SLOWEST_BYTES_PER_S = 8 * 1024
"""Below, a node is given up although there is no other."""

TRIES = 3
"""Failures without a byte between after which a node is given up."""

BUSY_S = 60.0
"""Seconds without a byte after which a node that is busy with others is given up."""

_PAUSE_S = 0.5
_PIECE = 256 * 1024


def sources_of(
    grant: ImageGrant, context: Callable[[], ssl.SSLContext], clock: Clock
) -> list[ImageSource]:
    """Return where an image can be had, one source for each node to begin with.

    A source goes on with the nodes behind its own when that one fails, and never with those before
    it: a node whose bytes were wrong is not asked again.

    :param context: returns what this node proves its membership with.
    """
    return [
        _Holders(grant, grant.holders[number:], context, clock)
        for number in range(len(grant.holders))
    ]


class _Holders:
    """Some nodes that hold an image, asked one after the other."""

    def __init__(
        self,
        grant: ImageGrant,
        holders: Sequence[ImageHolder],
        context: Callable[[], ssl.SSLContext],
        clock: Clock,
    ) -> None:
        self._grant = grant
        self._holders = holders
        self._context = context
        self._clock = clock

    @property
    def name(self) -> str:
        """Return the address of the first node."""
        return self._holders[0].address

    def read(self, image: ImageRef) -> Iterator[bytes]:
        """Yield the bytes of an image, from another node where one fails."""
        done = 0
        problems: list[AnynodeError] = []
        turns, came_at = deque(self._holders), self._clock.monotonic()
        while turns:
            holder, is_last = turns.popleft(), not turns
            reader = _Reader(holder, self._grant, self._context(), self._clock, may_be_slow=is_last)
            try:
                for piece in reader.read(image, done):
                    done += len(piece)
                    yield piece
                    came_at = self._clock.monotonic()
                return
            except _BusyError as error:
                if self._clock.monotonic() - came_at < BUSY_S:
                    turns.append(holder)
                    self._clock.sleep(_PAUSE_S)
                else:
                    problems.append(error)
            except (NotFound, Unavailable) as error:
                log.warning("image %s from %s: %s", image.image_id, holder.address, error.message)
                problems.append(error)
        if all(isinstance(error, NotFound) for error in problems):
            raise problems[-1]
        raise Unavailable(" ".join(error.message for error in problems)) from problems[-1]


class _Reader:
    """Reads an image from one node."""

    def __init__(
        self,
        holder: ImageHolder,
        grant: ImageGrant,
        context: ssl.SSLContext,
        clock: Clock,
        *,
        may_be_slow: bool,
    ) -> None:
        self._holder = holder
        self._grant = grant
        self._context = context
        self._clock = clock
        self._may_be_slow = may_be_slow

    def read(self, image: ImageRef, done: int) -> Iterator[bytes]:
        """Yield the bytes from a place on.

        :raises NotFound: the node does not hold the image.
        :raises Unavailable: it is not there, refuses, gives too little, or (_BusyError) is busy.
        """
        failures = 0
        while done < image.size_bytes:
            before = done
            try:
                for piece in self._part(done, min(PART_BYTES, image.size_bytes - done)):
                    done += len(piece)
                    yield piece
            except _BrokenOffError as error:
                failures = 1 if done > before else failures + 1
                if failures >= TRIES:
                    raise Unavailable(f"{self._holder.address} {error}.") from error
                self._clock.sleep(_PAUSE_S * failures)
            else:
                failures = 0

    def _part(self, begin: int, length: int) -> Iterator[bytes]:
        """Yield the bytes of one part."""
        try:
            line = peer_client.connect(
                self._holder.address, self._context, self._holder.node_id, timeout_s=SILENCE_S
            )
        except Unavailable as error:
            raise _BrokenOffError(error.message) from error
        try:
            reply = self._reply(line, begin, length)
            yield from self._pieces(reply, length)
        finally:
            line.close()

    def _reply(self, line: peer_client.Line, begin: int, length: int) -> http.client.HTTPResponse:
        headers = {
            image_tickets.HEADER: self._grant.ticket,
            "Range": f"bytes={begin}-{begin + length - 1}",
        }
        try:
            line.request("GET", f"{image_tickets.PATH}/{self._grant.sha256}", headers=headers)
            reply = line.getresponse()
        except (OSError, http.client.HTTPException) as error:
            raise _BrokenOffError(f"gave no answer: {error}") from error
        if reply.status == 404:
            raise NotFound(f"{self._holder.address} does not hold the image.")
        if reply.status == 503:
            raise _BusyError(f"{self._holder.address} is busy with others.")
        if reply.status == 403:
            # It may not have heard yet that this node has joined.
            raise _BrokenOffError("answers with status 403")
        if reply.status != 206:
            raise Unavailable(f"{self._holder.address} answers with status {reply.status}.")
        if reply.length != length:
            raise Unavailable(f"{self._holder.address} gives another part than was asked for.")
        return reply

    def _pieces(self, reply: http.client.HTTPResponse, length: int) -> Iterator[bytes]:
        waited_s, counted = 0.0, 0
        least = SLOWEST_BYTES_PER_S if self._may_be_slow else SLOW_BYTES_PER_S
        while length:
            asked_at = self._clock.monotonic()
            try:
                piece = reply.read1(min(_PIECE, length))
            except (OSError, http.client.HTTPException) as error:
                raise _BrokenOffError(f"broke off: {error}") from error
            if not piece:
                raise _BrokenOffError("broke off")
            # What is done with the bytes is not the other node's time.
            waited_s += self._clock.monotonic() - asked_at
            length -= len(piece)
            counted += len(piece)
            yield piece
            if waited_s >= SLOW_AFTER_S:
                if counted / waited_s < least:
                    speed = counted / waited_s / 1024
                    raise Unavailable(f"{self._holder.address} gives {speed:.0f} KiB a second.")
                waited_s, counted = 0.0, 0


class _BrokenOffError(Exception):
    """A part did not come as a whole; what came counts."""


class _BusyError(Unavailable):
    """A node gives as much to others as it may."""
