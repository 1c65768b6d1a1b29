"""What goes over the links of a node, seen by the test."""

from __future__ import annotations

import select
import socket
import threading
from types import TracebackType

from tests.node.inside import Inside

_EVERY_PROTOCOL = 0x0003
_LONGEST = 65536


class Sniffer:
    """Collects the frames of all links while its ``with`` block lasts."""

    def __init__(self, inside: Inside) -> None:
        self._socket = inside(
            socket.socket, socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_EVERY_PROTOCOL)
        )
        self._frames: list[tuple[str, bytes]] = []
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self) -> Sniffer:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._is_over.set()
        self._thread.join()
        self._socket.close()

    def _listen(self) -> None:
        while not self._is_over.is_set():
            if select.select([self._socket], [], [], 0.05)[0]:
                frame, place = self._socket.recvfrom(_LONGEST)
                self._frames.append((place[0], frame))

    def links_with(self, *parts: bytes) -> set[str]:
        """Return the links that have carried a frame with all of these bytes in it."""
        frames = list(self._frames)
        return {link for link, frame in frames if all(part in frame for part in parts)}
