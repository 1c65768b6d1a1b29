"""The HTTP server with certificates on both sides: who calls is known before it is answered."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterable
from typing import Any

from cheroot.makefile import MakeFile

from appliance.api.server import Server, ServerConnection, ServerGateway

PEER_CERTIFICATE = "anynode.certificate"
"""Where the WSGI environment has the caller's certificate as ``SSLSocket.getpeercert`` tells it.

``None`` where the caller has shown none.
"""


class _Connection(ServerConnection):
    """A connection whose handshake waits for nobody, like all that is read of it."""

    _is_met = False

    def read_some(self) -> bytes | None:
        """Return what has come, nothing at the end; ``None`` when nothing has come."""
        try:
            if not self._is_met:
                self.socket.do_handshake()
                self._is_met = True
            return super().read_some()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return None


class _Gateway(ServerGateway):
    def get_environ(self) -> Any:
        """Return the WSGI environment with the caller's certificate."""
        environ = super().get_environ()
        environ[PEER_CERTIFICATE] = self.req.conn.socket.getpeercert() or None
        return environ


class _Adapter:
    """What cheroot asks of a TLS library, where a connection begins."""

    def __init__(self, context: Callable[[], ssl.SSLContext]) -> None:
        self._context = context

    def bind(self, sock: Any) -> Any:
        return sock

    def wrap(self, sock: Any) -> tuple[Any, dict[str, str]]:
        wrapped = self._context().wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        return wrapped, {}

    def makefile(self, sock: Any, mode: str = "r", bufsize: int = -1) -> Any:
        return MakeFile(sock, mode, bufsize)


class TlsServer(Server):
    """An HTTPS server for one WSGI application.

    :param context: asked for each connection, so that a renewed certificate counts at once.
    """

    ConnectionClass = _Connection

    def __init__(
        self,
        address: str,
        port: int,
        app: Callable[..., Iterable[bytes]],
        threads: int,
        *,
        name: str,
        context: Callable[[], ssl.SSLContext],
    ) -> None:
        super().__init__(address, port, app, threads, name=name)
        self.gateway = _Gateway
        self.ssl_adapter = _Adapter(context)
