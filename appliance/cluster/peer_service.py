"""The peer service: what one member answers another, over TLS with certificates on both sides."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable
from typing import Any

from appliance.api.tls import PEER_CERTIFICATE, TlsServer
from appliance.cluster.membership import Membership, WsgiApp
from appliance.config import Config
from appliance.proxy import MEMBER_ID as MEMBER_ID
from appliance.proxy import NOT_TAKEN

log = logging.getLogger(__name__)

THREADS = 8


def make_server(cluster: Membership, config: Config) -> TlsServer:
    """Return the peer service of a node, not yet listening."""
    return TlsServer(
        config.cluster.address or "0.0.0.0",
        config.cluster.port,
        peer_app(cluster),
        THREADS,
        name="anynode-peer",
        context=cluster.server_context,
    )


def peer_app(cluster: Membership) -> WsgiApp:
    """Return the application that lets members in, and strangers only where all may come."""

    def app(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        prefix = next(
            (one for one in cluster.doors if path == one or path.startswith(f"{one}/")), None
        )
        environ[MEMBER_ID] = member_id(cluster, environ.get(PEER_CERTIFICATE))
        if not environ[MEMBER_ID] and prefix not in cluster.open_doors:
            log.warning("a stranger at %s asked for %s", environ.get("REMOTE_ADDR"), path)
            return _refuse(start, "403 Forbidden", "Only members of the cluster are answered here.")
        if prefix is None:
            return _refuse(start, "404 Not Found", "This node does not answer that.")
        return cluster.doors[prefix](environ, start)

    return app


def member_id(cluster: Membership, certificate: dict[str, Any] | None) -> str:
    """Return the node id of a certificate that the authority has signed; empty when it is no
    member's: it was revoked, or the node was removed."""
    names = [pair for part in (certificate or {}).get("subject", ()) for pair in part]
    node_id = next((value for name, value in names if name == "commonName"), "")
    members = cluster.members
    if certificate is None or members.get(node_id) is None:
        return ""
    serial = int(certificate["serialNumber"], 16)
    revoked = {int(one, 16) for one in members.current.revoked}
    return "" if serial in revoked else str(node_id)


def _refuse(start: Callable[..., Any], status: str, message: str) -> Iterable[bytes]:
    body = json.dumps({"message": message}).encode()
    start(
        status,
        [
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(body))),
            (NOT_TAKEN, status),
        ],
    )
    return [body]
