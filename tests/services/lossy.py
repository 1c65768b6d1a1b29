"""A relay between a client and a server that loses what it is told to lose."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import Enum

from tests.services.postgresql import free_port


class Loss(Enum):
    """What becomes of a message of the client's."""

    NOTHING = "it is passed on"
    REQUEST = "it never arrives, and both sides are cut off"
    ANSWER = "it arrives, and the client is cut off before the answer"
    DELAY = "the client is cut off, and the message arrives when it is told to"


class Relay:
    """Passes bytes on between clients and one server, on a port of loopback.

    :param judge: says of each piece that a client sends what becomes of it.
    """

    def __init__(
        self, server_port: int, judge: Callable[[bytes], Loss], host: str = "127.0.0.1"
    ) -> None:
        self._server = (host, server_port)
        self._judge = judge
        self.port = free_port()
        self.may_arrive = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self._open: list[socket.socket] = [self._listener]
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def _start(self, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._server, 10)
            except OSError:
                return
            self._open += [client, server]
            self._start(lambda client=client, server=server: self._pass_on(client, server))  # type: ignore[misc]

    def _pass_on(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while True:
                for source in select.select([client, server], [], [])[0]:
                    piece = source.recv(1 << 16)
                    if not piece or (source is client and self._lose(piece, client, server)):
                        return
                    (server if source is client else client).sendall(piece)
        for one in (client, server):
            one.close()

    def _lose(self, piece: bytes, client: socket.socket, server: socket.socket) -> bool:
        """Do to a piece what is told; say whether the connection is over."""
        loss = self._judge(piece)
        if loss is Loss.NOTHING:
            return False
        if loss is Loss.ANSWER:
            server.sendall(piece)
            server.recv(1)
        client.close()
        if loss is Loss.DELAY:
            self.may_arrive.wait(30)
            server.sendall(piece)
            server.recv(1)
        server.close()
        return True

    def close(self) -> None:
        """Cut everybody off."""
        self.may_arrive.set()
        for one in self._open:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        for thread in self._threads:
            thread.join(10)


@contextmanager
def relayed(
    server_port: int, judge: Callable[[bytes], Loss], host: str = "127.0.0.1"
) -> Iterator[Relay]:
    """Relay for a while."""
    relay = Relay(server_port, judge, host)
    try:
        yield relay
    finally:
        relay.close()
